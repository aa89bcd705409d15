"""The Lightning modules: teacher and student."""
