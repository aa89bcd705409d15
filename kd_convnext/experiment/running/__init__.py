"""Runs cells in processes of their own and records how they end."""
