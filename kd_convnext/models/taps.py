"""Taps feature maps and the embedding of any backbone by forward hooks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from torch import Tensor, nn

from kd_convnext.common.nearest import did_you_mean
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import STAGE_REDUCTIONS, Backbone, blank_pass
from kd_convnext.models.foreign import ForeignNetwork
from kd_convnext.models.token_head import TokenHead

Layout = Literal["channels first", "channels last", "tokens"]

Result = TypeVar("Result")

TOKEN_TAPS = 4
"""Blocks that are tapped by default in a network without stages."""


@dataclass(frozen=True)
class TapSpec:
    """Selects the modules to tap where terms need maps.

    Attributes:
        student: Modules of the student; by default its four stages.
        teacher: Modules of every teacher, or for each teacher's name those of it; by default their stages.
    """

    student: list[str] | None = None
    teacher: list[str] | dict[str, list[str]] | None = None

    def of_teacher(self, name: str) -> list[str] | None:
        """Returns the modules of a teacher, or None for its stages."""
        return self.teacher.get(name) if isinstance(self.teacher, Mapping) else self.teacher


class _Store:
    """Stores the outputs of hooks since the last read. Copies start empty and belong to the copied model."""

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.features: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Store":
        # Activations are not leaves of the graph and cannot be copied; `memo` keeps hooks and taps together.
        memo[id(self)] = copied = _Store(self.active)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"active": self.active, "features": {}}


class _Hook:
    """Puts a module's output into the store, channels first."""

    def __init__(self, store: _Store, name: str, layout: Layout, prefix: int) -> None:
        self.store = store
        self.name = name
        self.layout = layout
        self.prefix = prefix

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self.store.active:
            self.store.features[self.name] = self._as_map(output)

    def _as_map(self, output: Tensor) -> Tensor:
        if self.layout == "tokens":
            # The grid is square, as the images are; class and register tokens come first.
            tokens = output[:, self.prefix :]
            side = math.isqrt(tokens.shape[1])
            if side * side != tokens.shape[1]:
                what = f"the {tokens.shape[1]} tokens of {self.name!r} are no square grid"
                raise ConfigError(Finding("taps", what, "Give square images, or tap a network of maps."))
            return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)
        return output.permute(0, 3, 1, 2) if self.layout == "channels last" else output


class FeatureTaps:
    """Records the feature maps of named modules during a backbone's forward pass.

    The hooks are registered here, so create taps before ``torch.compile`` sees its first batch. Active taps record
    every pass until `pop` reads and empties them; inactive ones record in `run` alone, which training steps use: no
    activation outlives its step, and validation and prediction record nothing.

    Attributes:
        names: The tapped modules, in the order of the features.
        channels: Channels of each map.

    Examples:
        >>> import torch
        >>> from kd_convnext.models.backbones import BackboneSpec, build_backbone
        >>> spec = BackboneSpec("convnext_tiny", image_size=64, args={"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]})
        >>> student = build_backbone(spec, num_classes=5)
        >>> taps = FeatureTaps(student)
        >>> logits = student(torch.zeros(2, 3, 64, 64))
        >>> [tuple(map.shape) for map in taps.pop().values()]
        [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]

        A network of torchvision, or of one's own, wants the names of its modules:

        >>> from torchvision.models import resnet18
        >>> network = resnet18()
        >>> taps = FeatureTaps(network, ["layer1", "layer4"], image_size=64)
        >>> logits, maps = taps.run(network, torch.zeros(2, 3, 64, 64))
        >>> [tuple(map.shape) for map in maps]
        [(2, 64, 16, 16), (2, 512, 2, 2)]
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        names: Sequence[str] | None = None,
        *,
        active: bool = True,
        image_size: int = 224,
    ) -> None:
        """Registers the hooks.

        Args:
            backbone: The network to look into: a `Backbone`, or any network of images.
            names: Modules of ``backbone.network``, or of the network; by default its stages at 1/4, 1/8, 1/16 and
                1/32, in a plain vision transformer four blocks at equal distances. Tokens become maps of their grid.
            active: Record every pass, or only those of `run`.
            image_size: Side in pixels of the one black image that tells the maps' layouts in a network that is no
                `Backbone`.

        Raises:
            ConfigError: A name is unknown, given twice, or its module returns no feature map; or the backbone
                lacks the four stages and no names are given. Valid names are listed.
        """
        if not isinstance(backbone, Backbone):
            backbone = ForeignNetwork(backbone, image_size)
        self.names = _checked_names(backbone, names)
        stages = {} if _blocks(backbone) else {stage.name: stage for stage in backbone.stages}
        layouts: dict[str, tuple[int, Layout]] = {
            name: (stages[name].channels, "channels last" if stages[name].channels_last else "channels first")
            for name in self.names
            if name in stages
        }
        layouts |= _probe(backbone, [name for name in self.names if name not in stages])
        self.channels = tuple(layouts[name][0] for name in self.names)
        self._store = _Store(active)
        prefix = _prefix_tokens(backbone)
        hooks = {name: _Hook(self._store, name, layouts[name][1], prefix) for name in self.names}
        for name, hook in hooks.items():
            backbone.network.get_submodule(name).register_forward_hook(hook)

    def pop(self) -> dict[str, Tensor]:
        """Returns the recorded maps and clears them.

        Returns:
            Maps [B, C, H, W] by module name, in the order of ``names``; part of the graph where gradients are
            on.

        Raises:
            RuntimeError: No forward pass ran since the last call.
        """
        caught, self._store.features = self._store.features, {}
        missing = [name for name in self.names if name not in caught]
        if missing:
            raise RuntimeError(
                f"no features of {', '.join(missing)}: run the backbone with active taps before each pop()"
            )
        return {name: caught[name] for name in self.names}

    def run(self, backbone: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Runs the backbone and returns its maps beside its logits, whether the taps are active or not.

        A function of its inputs alone, which ``torch.compile`` traces whole: were the maps left in the taps, they
        would become outputs of the graph, kept and given gradients.

        Args:
            backbone: The tapped backbone, or a module that calls it once.
            images: What it takes.

        Returns:
            Its output, and the maps [B, C, H, W] in the order of ``names``.
        """
        store = self._store
        active, features = store.active, store.features
        store.active, store.features = True, {}
        try:
            logits = backbone(images)
            return logits, list(self.pop().values())
        finally:
            store.active, store.features = active, features


def _checked_names(backbone: Backbone, names: Sequence[str] | None) -> tuple[str, ...]:
    stages = [stage.name for stage in backbone.stages]
    blocks = _blocks(backbone)
    if names is None and blocks:
        count = min(TOKEN_TAPS, len(blocks))
        return tuple(blocks[(number + 1) * len(blocks) // count - 1] for number in range(count))
    if names is None:
        found = tuple(stage.reduction for stage in backbone.stages)
        if found != STAGE_REDUCTIONS:
            raise ConfigError(
                Finding(
                    "taps",
                    f"{backbone.name} has stages at 1/{', 1/'.join(map(str, found))} of the image"
                    if found
                    else f"{backbone.name} lists no stages",
                    "Name the modules to tap, or use a backbone with stages at 1/4, 1/8, 1/16 and 1/32.",
                )
            )
        return tuple(stages)
    modules = [name for name, _ in backbone.network.named_modules() if name]
    valid = stages + [name for name in modules if name not in stages]
    findings = []
    for position, name in enumerate(names):
        if name in names[:position]:
            findings.append(Finding("taps", f"{name!r} is named twice", "Name each module once."))
        elif name not in valid:
            listed = ", ".join(stages + [n for n in modules if "." not in n and n not in stages])
            findings.append(
                Finding(
                    "taps",
                    f"{backbone.name} has no module {name!r}",
                    f"{did_you_mean(name, valid)}Valid are {listed}, or any of the {len(valid)} modules inside them.",
                )
            )
    if not names:
        findings.append(Finding("taps", "the list of modules is empty", f"Valid are {', '.join(stages)}."))
    if findings:
        raise ConfigError(findings)
    return tuple(names)


def _transformer(backbone: Backbone) -> tuple[str, nn.Module]:
    """Finds the timm network and where it lies: a `TokenHead` holds it as ``vit``."""
    network = backbone.network
    return ("vit.", network.vit) if isinstance(network, TokenHead) else ("", network)


def _prefix_tokens(backbone: Backbone) -> int:
    network = _transformer(backbone)[1]
    # Torchvision's transformers have a class token and no count of it.
    return int(getattr(network, "num_prefix_tokens", hasattr(network, "class_token")))


def _blocks(backbone: Backbone) -> list[str]:
    """Names the blocks of a plain vision transformer, all of one resolution; none in other networks."""
    start, network = _transformer(backbone)
    if not hasattr(network, "num_prefix_tokens"):
        return []
    info: Any = getattr(network, "feature_info", [])
    entries = info.get_dicts() if hasattr(info, "get_dicts") else info
    reductions = {entry["reduction"] for entry in entries}
    return [start + entry["module"] for entry in entries] if len(reductions) == 1 else []


def _probe(backbone: Backbone, names: Sequence[str]) -> dict[str, tuple[int, Layout]]:
    """Runs one empty image through the network to learn channels and layout of modules that are no stages."""
    if not names:
        return {}
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(names)

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else None

        return hook

    handles = [backbone.network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        blank_pass(backbone)
    finally:
        for handle in handles:
            handle.remove()
    prefix = _prefix_tokens(backbone)
    layouts: dict[str, tuple[int, Layout]] = {}
    findings = []
    for name, shape in shapes.items():
        if shape is not None and len(shape) == 3 and _is_square(shape[1] - prefix):
            layouts[name] = (shape[2], "tokens")
            continue
        if shape is None or len(shape) != 4:
            gives = "no tensor" if shape is None else f"shape {list(shape)}"
            findings.append(
                Finding("taps", f"{name!r} returns {gives}, no feature map", "Name a module that returns a map.")
            )
            continue
        # The image is square: the channels are the side that is unlike the other two.
        square_last, square_first = shape[2] == shape[3], shape[1] == shape[2]
        default = getattr(backbone.network, "output_fmt", "NCHW") == "NHWC"
        channels_last = default if square_last == square_first else square_first
        layouts[name] = (shape[3], "channels last") if channels_last else (shape[1], "channels first")
    if findings:
        raise ConfigError(findings)
    return layouts


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


class _InputHook:
    """Puts the first input of the last linear layer into the store."""

    def __init__(self, store: _Store) -> None:
        self.store = store

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.store.active:
            self.store.features["embedding"] = inputs[0].flatten(1)


class EmbeddingTap:
    """Records the embedding, the input of a backbone's last linear layer.

    Attributes:
        width: D of the embedding.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Registers the hook.

        Args:
            backbone: The network to look into.
        """
        self._store = _Store(active=True)
        handle = _head(backbone).register_forward_pre_hook(_InputHook(self._store))
        blank_pass(backbone)
        self.width = int(self._store.features["embedding"].shape[1])
        self._store.active, self._store.features = False, {}
        self._handle = handle

    def run(self, backbone: Callable[[Tensor], Result], images: Tensor) -> tuple[Result, Tensor]:
        """Runs the backbone and returns its embedding [B, D] beside its result; ``torch.compile`` traces it whole.

        Args:
            backbone: The tapped backbone, or a function that calls it once.
            images: What it takes.
        """
        store = self._store
        active, features = store.active, store.features
        store.active, store.features = True, {}
        try:
            result = backbone(images)
            return result, store.features["embedding"]
        finally:
            store.active, store.features = active, features


def _head(backbone: Backbone) -> nn.Module:
    head = cast(Any, backbone.network).get_classifier()
    return cast(nn.Module, head[0] if isinstance(head, tuple | list | nn.ModuleList) else head)


def watched_features(backbone: Backbone) -> list[Tensor]:
    """Records the input of the last linear layer (the embedding).

    Args:
        backbone: The network.

    Returns:
        A list that holds it, and nothing else, after each pass.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    _head(backbone).register_forward_pre_hook(keep)
    return seen
