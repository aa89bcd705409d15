"""Imports timm without Weights & Biases, which timm's training tools would load: a fifth of the time a start takes."""

import sys

_absent = "wandb" not in sys.modules
if _absent:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it fails, which timm allows for
try:
    import timm
finally:
    if _absent:
        del sys.modules["wandb"]

__all__ = ["timm"]
