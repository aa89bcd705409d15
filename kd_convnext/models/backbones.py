"""Builds timm classifiers with the normalisation inside and the four stages listed."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError
from kd_convnext.models.depthwise import quicken_depthwise
from kd_convnext.models.hub_names import hub_name_finding
from kd_convnext.models.published import hub_or_cache
from kd_convnext.models.timm_import import timm
from kd_convnext.models.token_head import TokenHead
from kd_convnext.models.weights import load_weights

STAGE_REDUCTIONS = (4, 8, 16, 32)
"""Sides of the input over sides of the map, for the four stages whose features Eq. 1 compares."""


@dataclass(frozen=True)
class Stage:
    """A stage of a backbone.

    Attributes:
        name: Module path inside the timm network, such as ``layers.0``.
        channels: Channels of its output.
        reduction: Side of the input over side of the map: 4, 8, 16 or 32.
        channels_last: Whether the module returns [B, H, W, C] (Swin) instead of [B, C, H, W].
    """

    name: str
    channels: int
    reduction: int
    channels_last: bool


@dataclass(frozen=True)
class BackboneSpec:
    """Describes how to build a backbone; plain values only, so that it fits into a config file and a checkpoint.

    Attributes:
        name: A timm model name, optionally with a weight tag (``swin_tiny_patch4_window7_224.ms_in1k``).
        pretrained: Start from timm's published weights, fetched from the Hugging Face hub or its cache.
        weights: Start from a file instead, whatever ``pretrained`` says: a state dict of timm, of the model's authors
            or, of a plain Vision Transformer, of transformers (.safetensors, .bin, .pth, .pt), or a checkpoint of this
            package (.ckpt; the student of a distillation).
        image_size: Side of the square input in pixels.
        in_chans: 3 for colour, 1 for grey.
        drop_path_rate: Stochastic depth in 0..1.
        args: Further arguments of the timm model, such as ``depths`` or ``window_size``.
        token_blocks: 0 for timm's own head; above 0, for Vision Transformers, a linear head on the class tokens of so
            many last blocks and the mean patch token (:class:`TokenHead`).
        mean: Of each channel, of values in 0..1, for the normalisation of the input; by default that of the
            checkpoint of this package that ``weights`` names, else what timm knows of the model.
        std: The same for the standard deviation.

    Examples:
        >>> spec = BackboneSpec("convnext_tiny", image_size=64, args={"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]})
        >>> network = build_backbone(spec, num_classes=5)
        >>> [stage.channels for stage in network.stages]
        [8, 16, 32, 64]
        >>> network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 5])
    """

    name: str = "swin_tiny_patch4_window7_224"
    pretrained: bool = False
    weights: str | None = None
    image_size: int = 224
    in_chans: int = 3
    drop_path_rate: float = 0.0
    args: dict[str, Any] | None = None
    token_blocks: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None


class Backbone(nn.Module):
    """A timm classifier that takes images as the loader gives them.

    Normalisation happens here, on the device, so that each of teacher and student has its own and that it
    travels with the checkpoint and the exported model.

    Attributes:
        network: The timm model.
        name: Its timm name.
        num_classes: Width of its output, K.
        in_chans: Channels of its input.
        image_size: Side of its square input in pixels.
        args: Further arguments that the timm model was built with.
        stages: Its stages at 1/4, 1/8, 1/16 and 1/32, as far as it has them, in this order.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: BackboneSpec, num_classes: int) -> None:
        """Wraps a network; use :func:`build_backbone`.

        Args:
            network: A timm model.
            spec: What it was built from.
            num_classes: Width of its output.
        """
        super().__init__()
        quicken_depthwise(network)
        self.network = network
        self.name = spec.name
        self.num_classes = num_classes
        self.in_chans = spec.in_chans
        self.image_size = spec.image_size
        self.args = dict(spec.args or {})
        self.stages = stages_of(network)
        for buffer, given in (("mean", spec.mean), ("std", spec.std)):
            values = _pretrained_cfg(network)[buffer] if given is None else given
            values = _of_channels(torch.tensor(values, dtype=torch.float32), spec.in_chans)
            self.register_buffer(buffer, values.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.

        Returns:
            Logits [B, K] in the parameters' type (autocast's, where it is on).
        """
        return cast(Tensor, self.network(self.normalise(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises images as in the network's pretraining.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.

        Returns:
            [B, C, H, W] in the type of the parameters.
        """
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        values = images.to(wide)
        if images.dtype == torch.uint8:
            values = values / 255
        # In at least float32: half precision has no room for the 256 levels.
        return ((values - self.mean.to(wide)) / self.std.to(wide)).to(self.mean.dtype)

    def head_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that a new set of classes starts afresh: the last linear layer(s)."""
        heads = self.network.get_classifier()  # type: ignore[operator]
        heads = heads if isinstance(heads, tuple | list) else [heads]
        return [parameter for head in heads for parameter in head.parameters()]

    def body_parameters(self) -> list[nn.Parameter]:
        """Returns all other parameters."""
        head = {id(parameter) for parameter in self.head_parameters()}
        return [parameter for parameter in self.network.parameters() if id(parameter) not in head]


def build_backbone(spec: BackboneSpec, num_classes: int) -> Backbone:
    """Builds a backbone, with weights if asked.

    A head of another number of classes than ``num_classes`` starts afresh.

    Args:
        spec: What to build.
        num_classes: Width of the output, at least 2.

    Returns:
        The backbone in training mode, on the CPU, in float32.

    Raises:
        ConfigError: The name is unknown, an argument or the size does not suit the model, or the published
            weights cannot be fetched.
        CheckpointError: The weights file is missing, unreadable, or of another model.
    """
    findings = _check(spec, num_classes)
    if findings:
        raise ConfigError(findings)
    try:
        backbone = Backbone(_create(spec, num_classes, pretrained=False), spec, num_classes)
        if spec.args or _pretrained_cfg(backbone.network)["input_size"][-1] != spec.image_size:
            # Many a size or argument that cannot work shows only in a forward pass.
            blank_pass(backbone)
    except KDConvNeXtError:
        raise
    except Exception as error:
        # timm's models divide, index and assert with their arguments before anything looks at them.
        raise ConfigError(
            Finding(
                "backbone",
                f"timm cannot build {spec.name} with image_size {spec.image_size} and args {spec.args or {}} "
                f"({type(error).__name__}: {error})",
                "Check the names and values of args, and that the model takes this size.",
            )
        ) from error
    if spec.weights is not None:
        network = backbone.network
        if isinstance(network, TokenHead) and not spec.weights.endswith(".ckpt"):
            network = network.vit  # a file of timm knows nothing of our head
        start = load_weights(network, spec.weights, in_chans=spec.in_chans)
        for buffer, given in (("mean", spec.mean), ("std", spec.std)):
            if given is None and buffer in start:
                values = _of_channels(start[buffer].float().flatten(), spec.in_chans)
                getattr(backbone, buffer).copy_(values.reshape(1, -1, 1, 1))
    elif spec.pretrained:
        # Built without weights first: what fails now is no argument's fault.
        with hub_or_cache(spec.name):
            backbone = Backbone(_create(spec, num_classes, pretrained=True), spec, num_classes)
    return backbone


@torch.no_grad()
def blank_pass(backbone: Backbone) -> None:
    """Runs one black image through a backbone and leaves it as it was.

    Args:
        backbone: The network; each of its modules keeps its mode, and no statistics move.
    """
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        backbone(backbone.mean.new_zeros(1, backbone.in_chans, backbone.image_size, backbone.image_size))
    finally:
        for module, training in modes.items():
            module.training = training


_NOT_ARGUMENTS = {
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable"),
    *("features_only", "out_indices", "num_classes", "in_chans"),
}
"""Options of timm that load files, or build something else than a classifier of our classes."""


def _check(spec: BackboneSpec, num_classes: int) -> list[Finding]:
    findings = []
    if (placed := hub_name_finding(spec.name)) is not None:
        findings.append(placed)
    elif not timm.is_model(spec.name):
        close = difflib.get_close_matches(spec.name.split(".")[0], timm.list_models(), n=3)
        remedy = f"Did you mean {' or '.join(close)}?" if close else "timm.list_models() lists the names."
        findings.append(Finding("backbone.name", f"timm has no model {spec.name!r}", remedy))
    if spec.in_chans not in (1, 3):
        findings.append(Finding("backbone.in_chans", f"{spec.in_chans} channels", "Use 3 (colour) or 1 (grey)."))
    side: object = spec.image_size
    if not isinstance(side, int):
        what, remedy = f"{side!r} is no side in pixels", "Networks take square images: use for example 224."
        findings.append(Finding("backbone.image_size", what, remedy))
    elif side < 1:
        findings.append(Finding("backbone.image_size", f"{side} pixels", "Use for example 224."))
    if not 0 <= spec.drop_path_rate < 1:
        findings.append(
            Finding("backbone.drop_path_rate", f"{spec.drop_path_rate} is outside 0..1", "Use for example 0.1.")
        )
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        fits = values is None or (len(values) == spec.in_chans and all(0 <= value <= 1 for value in values))
        if not fits or (name == "std" and values is not None and min(values) <= 0):
            what = f"{values} is not a number in 0..1 for each of {spec.in_chans} channels"
            remedy = "Use for example [0.5, 0.5, 0.5] for three; divide numbers of 0..255 by 255."
            findings.append(Finding(f"backbone.{name}", what, remedy))
    for name in sorted(_NOT_ARGUMENTS & set(spec.args or {})):
        remedy = "Leave it out; backbone.weights names a file of weights."
        findings.append(Finding(f"backbone.args.{name}", "is no argument of a network's shape", remedy))
    if num_classes < 1:  # one, where labels are ignored
        findings.append(Finding("num_classes", f"{num_classes} classes", "Give the number of classes."))
    return findings


def _create(spec: BackboneSpec, num_classes: int, *, pretrained: bool) -> nn.Module:
    if spec.token_blocks:
        return TokenHead(_create_timm(spec, 0, pretrained=pretrained), spec.token_blocks, num_classes)
    return _create_timm(spec, num_classes, pretrained=pretrained)


def _create_timm(spec: BackboneSpec, num_classes: int, *, pretrained: bool) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": spec.in_chans, "pretrained": pretrained}
    # Models with windows or position tables must be told the size; others refuse the argument.
    if timm.models.get_pretrained_cfg_value(spec.name, "fixed_input_size"):
        options["img_size"] = spec.image_size
    arguments = spec.args or {}
    try:
        return timm.create_model(spec.name, drop_path_rate=spec.drop_path_rate, **options, **arguments)
    except TypeError as error:
        # Swin must be told 0 (its own default is 0.1); families without stochastic depth refuse even 0.
        if spec.drop_path_rate or "drop_path_rate" not in str(error):
            raise
        return timm.create_model(spec.name, **options, **arguments)


def _of_channels(values: Tensor, channels: int) -> Tensor:
    """Returns one value for each channel: as they are, or their mean where the network has other channels."""
    return values if len(values) == channels else values.mean().expand(channels).clone()


def _pretrained_cfg(network: nn.Module) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], network.pretrained_cfg)


def stages_of(network: nn.Module) -> tuple[Stage, ...]:
    """Lists the stages at 1/4, 1/8, 1/16 and 1/32 that a timm network names; none of other networks.

    Args:
        network: Any network.
    """
    info: Any = getattr(network, "feature_info", [])
    entries = info.get_dicts() if hasattr(info, "get_dicts") else info
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    # The deepest module of each resolution: where several have one, the last has seen most.
    last = {entry["reduction"]: entry for entry in entries}
    return tuple(
        Stage(last[reduction]["module"], last[reduction]["num_chs"], reduction, channels_last)
        for reduction in STAGE_REDUCTIONS
        if reduction in last
    )
