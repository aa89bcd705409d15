"""Stores crops on disk, each computed once."""
