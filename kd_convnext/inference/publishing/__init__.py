"""Writes model cards and folders for the Hugging Face hub."""
