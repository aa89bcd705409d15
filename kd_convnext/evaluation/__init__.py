"""Metrics, statistics and comparisons of predictions."""
