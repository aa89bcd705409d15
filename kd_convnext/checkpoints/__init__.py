"""Reads and checks checkpoints, and the networks they hold."""
