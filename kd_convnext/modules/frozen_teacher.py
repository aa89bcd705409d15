"""Loads a teacher, frozen and outside the student's module tree, so that it is neither saved nor optimised."""

import hashlib
import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.checkpoints.format import KEY, deployable_part, is_distilled, read_checkpoint
from kd_convnext.checkpoints.network import load_backbone
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, Finding
from kd_convnext.models.taps import FeatureTaps, watched_features

ARGUMENT = "--model.teacher_ckpt"


class FrozenTeacher:
    """A trained classifier that answers with logits and feature maps.

    Not an ``nn.Module``: as a child of the student's module it would be saved into every checkpoint of the student,
    and the student could not be tested once the teacher's file has moved.

    Attributes:
        backbone: The network, in evaluation mode, no parameter with a gradient.
        class_names: Names in the order of its outputs.
        card: What it knows of its training data.
        taps: Hooks on its stages; None where no features are wanted.
    """

    def __init__(
        self, ckpt_path: str, *, tap: bool, tap_names: Sequence[str] | None = None, embed: bool = False
    ) -> None:
        """Loads the teacher.

        Args:
            ckpt_path: Checkpoint of a :class:`~kd_convnext.TeacherModule` or of a subclass of it.
            tap: Whether features are wanted.
            tap_names: Modules to tap; by default the four stages.
            embed: Whether the embedding is wanted, that is what the last linear layer sees.

        Raises:
            CheckpointError: The file cannot be used as a teacher.
            ConfigError: A tap's name is unknown.
        """
        checkpoint = read_checkpoint(ckpt_path, ARGUMENT)
        own, part = checkpoint[KEY], deployable_part(checkpoint)
        if part is None or is_distilled(checkpoint):
            what = f"{ckpt_path} holds a {own['kind']}, not a teacher"
            raise CheckpointError(Finding(ARGUMENT, what, "Give the best.ckpt of a TeacherModule's run."))
        self.backbone = load_backbone(checkpoint, part, ckpt_path).eval().requires_grad_(False)
        self.class_names = tuple(own["class_names"])
        self.card: DataCard | None = None if own.get("card") is None else DataCard.from_state(own["card"])
        self.taps = FeatureTaps(self.backbone, tap_names) if tap else None
        self._embedded = watched_features(self.backbone) if embed else None
        self._architecture = json.dumps(checkpoint["hyper_parameters"][part], sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """sha256 of architecture and weights, as they are now: a move to another type changes it."""
        digest = hashlib.sha256(self._architecture.encode())
        for name, value in self.backbone.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.mean.device

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the network to where the student is, and to its type."""
        self.backbone.to(device=device, dtype=dtype)

    @property
    def embedding(self) -> Tensor | None:
        """The embedding [B, D] of the last images; None where it is not wanted."""
        return self._embedded[0].flatten(1) if self._embedded else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Runs the network: returns logits and feature maps.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1, of any size.

        Returns:
            Logits [B, K] and the tapped maps [B, C, H, W] (none without taps).
        """
        size = self.backbone.image_size
        if images.shape[-1] != size or images.shape[-2] != size:
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.taps.run(self.backbone, images) if self.taps else (self.backbone(images), [])
