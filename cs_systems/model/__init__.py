"""The pure language model: nothing here knows about timing, precision, devices or parallelism.

`config` and `presets` import neither torch nor jaxtyping, so that flags can be parsed first.
"""
