"""Explains predictions by heat maps and similar training cases."""
