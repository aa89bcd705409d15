"""Writes and reads the files of a run: folder, tables, figures, loggers."""
