"""Writes checkpoint files whole or not at all, in a thread beside the training."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from kd_convnext.checkpoints.format import KEY, facts_sha256, weights_sha256
from kd_convnext.common.files import atomic_write, write_finding
from kd_convnext.errors import ConfigError


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint into a temporary file of the same folder, then renames it.

    Lightning's own writer goes through the system's temporary folder: where that is another file system, the file is
    copied into place, and what stops the copy leaves neither the old checkpoint nor the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint, with the SHA-256 of its weights and of what it says of itself.

        Args:
            checkpoint: Lightning's checkpoint.
            path: The file, replaced at once.
            storage_options: Not used.

        Raises:
            ConfigError: The file cannot be written; an older one of that name is untouched.
        """
        if isinstance(checkpoint.get(KEY), dict):
            checkpoint[KEY]["weights_sha256"] = weights_sha256(checkpoint["state_dict"])
            checkpoint[KEY]["facts_sha256"] = facts_sha256(checkpoint)
        # Not straight into the file: torch turns a full disk into an error without its reason.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            atomic_write(Path(path), lambda file: file.write(buffer.getbuffer()))
        except OSError as error:
            raise ConfigError(write_finding(Path(path), error)) from error


class BackgroundWriter(AsyncCheckpointIO):
    """Writes checkpoints in a thread, from copies, while training goes on.

    One at a time: on a slow disk copies must not pile up. What fails there is raised by the next call, at the latest
    at the end of the fit.
    """

    def __init__(self, checkpoint_io: TorchCheckpointIO | None = None) -> None:
        """Chooses how files are written.

        Args:
            checkpoint_io: Called in the thread; by default ``WholeFiles``.
        """
        super().__init__(checkpoint_io or WholeFiles())

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Waits for the one before, then copies and begins to write."""
        self.teardown()
        super().save_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Waits until the file that takes its place is whole, then removes the old one."""
        self.teardown()
        super().remove_checkpoint(*args, **kwargs)
