"""Reads tested runs and writes tables, figures and the report."""
