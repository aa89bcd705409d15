"""Turns a manifest of photographs into batches."""
