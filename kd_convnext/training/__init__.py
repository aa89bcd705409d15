"""The training commands, their callbacks and what a run records."""
