"""One thin file per command of the command line."""
