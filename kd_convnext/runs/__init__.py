"""The files of a run: folder, tables, figures, loggers."""
