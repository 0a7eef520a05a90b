"""Predictions from the configuration alone: nothing here builds a model or imports torch."""
