"""A checkpoint becomes a network that answers; nothing of its training is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_convnext._version import __version__
from kd_convnext.checkpoints.format import KEY, read_checkpoint
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.common.files import sha256_of
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone
from kd_convnext.models.taps import watched_features

ANSWERING = {"TeacherModule": "backbone", "DistillModule": "student"}
"""Kinds of checkpoints, and the part of each that answers."""


@dataclass(frozen=True)
class ModelInfo:
    """Which model answered.

    Attributes:
        name: The network's timm name.
        kind: The module it was trained as, ``TeacherModule`` or ``DistillModule``.
        checkpoint: The checkpoint's file name.
        checkpoint_sha256: Hash of its bytes.
        kd_convnext: Version of this software.
        torch: Version of PyTorch.
        leak_allowed: Whether the network, or its teacher, had seen lesions that it was judged on.
    """

    name: str
    kind: str
    checkpoint: str
    checkpoint_sha256: str
    kd_convnext: str
    torch: str
    leak_allowed: bool


class Network:
    """A trained classifier in evaluation mode, with its penultimate features.

    Attributes:
        backbone: The network.
        card: What it knows of its data.
        info: Which model it is.
    """

    def __init__(self, backbone: Backbone, card: DataCard, info: ModelInfo) -> None:
        """Wraps a network; use `load_network`."""
        self.backbone = backbone.eval().requires_grad_(False)
        self.card = card
        self.info = info
        self._features = watched_features(backbone)

    @property
    def device(self) -> torch.device:
        """Where it answers."""
        return self.backbone.mean.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers.

        Args:
            images: uint8 [B, C, S, S], on any device.

        Returns:
            Logits [B, K] and the features before the last linear layer [B, D], both float32 on the CPU.
        """
        # TF32 would move answers between GPUs and CPUs by more than rounding.
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), flags:
            logits = self.backbone(images.to(self.device))
            features = self._features.pop()
        return logits.float().cpu(), features.flatten(1).float().cpu()


def load_network(path: str | Path, device: str = "cpu") -> Network:
    """Loads the network of a checkpoint: a teacher, a baseline or a distilled student.

    Args:
        path: The checkpoint, as `fit` writes it. Objects in it are never unpickled.
        device: Where it is to answer, as torch names it.

    Returns:
        The network.

    Raises:
        CheckpointError: The file is missing, not safe, not ours, or does not say what a new photograph needs.
        ConfigError: The device is not there.
    """
    checkpoint = read_checkpoint(path)
    own: Mapping[str, Any] = checkpoint[KEY]
    kind = own.get("kind")
    remedy = "Give the checkpoints/best.ckpt of a run of kd-convnext fit."
    if kind not in ANSWERING:
        raise CheckpointError(Finding("--ckpt_path", f"{path} holds a {kind}, which does not classify", remedy))
    if own.get("card") is None:
        what = f"{path} does not say how its photographs were cropped (it was trained without our data module)"
        raise CheckpointError(Finding("--ckpt_path", what, remedy))
    card = DataCard.from_state(own["card"])
    part = ANSWERING[kind]
    spec = spec_of(BackboneSpec, checkpoint["hyper_parameters"][part])
    backbone = build_backbone(spec, len(card.class_names))
    state = {name.replace("_orig_mod.", ""): value for name, value in checkpoint["state_dict"].items()}
    start = f"{part}."
    try:
        backbone.load_state_dict({name.removeprefix(start): state[name] for name in state if name.startswith(start)})
    except RuntimeError as error:
        what = f"the weights in {path} do not fit {spec.name} ({' '.join(str(error).split())[:200]})"
        raise CheckpointError(Finding("--ckpt_path", what, remedy)) from error
    info = ModelInfo(
        name=spec.name,
        kind=kind,
        checkpoint=Path(path).name,
        checkpoint_sha256=sha256_of(Path(path).expanduser()),
        kd_convnext=__version__,
        torch=torch.__version__,
        leak_allowed=card.leak_allowed,
    )
    return Network(_moved(backbone, device), card, info)


def _moved(backbone: Backbone, device: str) -> Backbone:
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(Finding("--device", f"{device!r} cannot be used ({reason})", "Use cpu.")) from error
