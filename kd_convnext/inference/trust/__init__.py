"""Calibrates: temperature, prediction sets, and the gate against foreign photographs."""
