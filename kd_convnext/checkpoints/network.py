"""Loads the deployable network of a checkpoint, and nothing else of its training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_convnext._version import __version__
from kd_convnext.checkpoints.format import KEY, deployable_part, is_distilled, read_checkpoint
from kd_convnext.checkpoints.naming import network_name
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.common.counting import counted
from kd_convnext.common.files import sha256_of
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone
from kd_convnext.models.taps import watched_features


@dataclass(frozen=True)
class ModelInfo:
    """Names the model behind a prediction: its checkpoint, kind and backbone.

    Attributes:
        name: The network's timm name, with what was changed of the published one.
        kind: Class name of the module it was trained as, such as ``TeacherModule``.
        checkpoint: The checkpoint's file name.
        checkpoint_sha256: Hash of its bytes.
        kd_convnext: Version of this software.
        torch: Version of PyTorch.
        leak_allowed: Whether the network, or its teacher, had seen lesions that it was judged on.
        distilled: Whether it was trained with a teacher.
    """

    name: str
    kind: str
    checkpoint: str
    checkpoint_sha256: str
    kd_convnext: str
    torch: str
    leak_allowed: bool
    distilled: bool = False


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
        """The device of the network."""
        return self.backbone.mean.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network: returns logits and features.

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
        device: The device to load it to, as torch names it.

    Returns:
        The network.

    Raises:
        CheckpointError: The file is missing, not safe, not ours, or does not say what a new photograph needs.
        ConfigError: The device is not there.
    """
    checkpoint = read_checkpoint(path)
    own: Mapping[str, Any] = checkpoint[KEY]
    kind, part = str(own.get("kind")), deployable_part(checkpoint)
    remedy = "Give the checkpoints/best.ckpt of a run of kd-convnext fit."
    if part is None:
        raise CheckpointError(Finding("--ckpt_path", f"{path} holds a {kind}, which does not classify", remedy))
    if own.get("card") is None:
        what = f"{path} does not say how its photographs were cropped (it was trained without our data module)"
        raise CheckpointError(Finding("--ckpt_path", what, remedy))
    card = DataCard.from_state(own["card"])
    backbone = load_backbone(checkpoint, part, path)
    classes = int(checkpoint["hyper_parameters"]["num_classes"])
    if len(card.class_names) != classes:
        what = f"{path} names {len(card.class_names)} classes for {counted(classes, 'output')}"
        raise CheckpointError(Finding("--ckpt_path", what, remedy))
    info = ModelInfo(
        name=network_name(asdict(spec_of(BackboneSpec, checkpoint["hyper_parameters"][part]))),
        kind=kind,
        checkpoint=Path(path).name,
        checkpoint_sha256=sha256_of(Path(path).expanduser()),
        kd_convnext=__version__,
        torch=torch.__version__,
        leak_allowed=card.leak_allowed,
        distilled=is_distilled(checkpoint),
    )
    return Network(_moved(backbone, device), card, info)


def load_backbone(checkpoint: Mapping[str, Any], part: str, path: str | Path) -> Backbone:
    """Builds one network of a checkpoint and loads its weights.

    Args:
        checkpoint: From `read_checkpoint`.
        part: Which, see `deployable_part`.
        path: The checkpoint's file, for the message.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        CheckpointError: The weights are those of another network.
    """
    settings = checkpoint["hyper_parameters"]
    try:
        spec = spec_of(BackboneSpec, settings[part])
        classes = int(settings["num_classes"])
        backbone = build_backbone(spec, classes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{path} does not describe its network ({type(error).__name__}: {error})"
        raise CheckpointError(Finding("--ckpt_path", what, "Give the best.ckpt of a run.")) from error
    state = {name.replace("_orig_mod.", ""): value for name, value in checkpoint["state_dict"].items()}
    start = f"{part}."
    try:
        backbone.load_state_dict({name.removeprefix(start): state[name] for name in state if name.startswith(start)})
    except RuntimeError as error:
        what = f"the weights in {path} do not fit {spec.name} ({' '.join(str(error).split())[:200]})"
        remedy = "Give the checkpoints/best.ckpt of a run of kd-convnext fit."
        raise CheckpointError(Finding("--ckpt_path", what, remedy)) from error
    return backbone


def _moved(backbone: Backbone, device: str) -> Backbone:
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(Finding("--device", f"{device!r} cannot be used ({reason})", "Use cpu.")) from error
