"""Predictions for new photographs, and how far they can be trusted."""
