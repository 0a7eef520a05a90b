"""Experiments on numbers of few bits: sums, autocast, layer norm, training."""
