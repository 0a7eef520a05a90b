"""Where the time and the memory of a run went: ranges to annotate it, readers of its traces, and tables."""
