"""Reads and checks the manifest, groups its photographs and splits them."""
