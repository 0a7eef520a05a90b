"""Measuring time and memory of plain callables: nothing here knows about models or torch."""
