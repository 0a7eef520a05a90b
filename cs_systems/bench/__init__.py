"""Experiments: each turns cases into records. `record` is what every other layer reads."""
