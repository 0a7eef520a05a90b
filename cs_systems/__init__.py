"""cs_systems: measure, explain and predict what a Transformer language model costs.

Importing the package imports nothing else, so that `--help` answers before torch is loaded.
"""
