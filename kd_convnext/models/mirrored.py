"""Names the mirror images over which logits are averaged (test-time augmentation)."""

MIRRORED = ((), (1,), (0,), (0, 1))
"""Axes (rows, columns) along which a picture is mirrored, for each of its views."""

MIRRORED_BATCH = tuple(tuple(axis + 2 for axis in axes) for axes in MIRRORED)
"""The same axes of a batch [B, C, H, W]."""
