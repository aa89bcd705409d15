"""Classifies new photographs, with calibration, explanation, export and publishing."""
