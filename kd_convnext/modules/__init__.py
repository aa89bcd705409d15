"""The Lightning modules: a classifier alone (the teacher), and its student."""
