"""Turning records into tables, comparisons and plots: `python -m cs_systems.report --help`."""
