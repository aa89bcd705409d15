"""Fits and evaluates the calibration of a checkpoint."""
