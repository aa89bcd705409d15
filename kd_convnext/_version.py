"""The version of kd-convnext."""

__version__ = "0.1.0"
