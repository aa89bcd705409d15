"""Cuts, super-resolves, resizes and stores regions of interest."""
