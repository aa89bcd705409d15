"""Draws specimens for demonstrations and tests."""
