"""Adds low-rank updates to a frozen network (LoRA; Hu et al., 2021), by the package peft.

A layer's weight W learns as W + alpha / rank * B A, with narrow matrices A and B. Checkpoints hold the sum, so that
nobody who reads them needs peft; what a resume needs, W, A and B apart, lies beside it.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone, blank_pass

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"""Parts of peft's names, for W, A and B."""


@dataclass(frozen=True)
class LoraSpec:
    """Describes the low-rank updates of a teacher.

    Attributes:
        rank: Rows of A and columns of B, at least 1.
        alpha: Over ``rank``, the factor of the update.
        dropout: Share of a layer's inputs that its update does not see in training, 0 to below 1.
        targets: Ends of the names of layers that learn, such as ``mlp.fc1``; by default the linear layers and 1x1
            convolutions of attention, in networks without it all of them.

    Raises:
        ConfigError: Values that cannot work; all of them together.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuses values that cannot work, all together."""
        findings = [
            Finding(f"lora.{name}", f"{value} cannot work", f"Use {remedy}.")
            for name, value, good, remedy in (
                ("rank", self.rank, self.rank >= 1, "1 or more, such as 8"),
                ("alpha", self.alpha, self.alpha > 0, "a number above 0, such as twice the rank"),
                ("dropout", self.dropout, 0 <= self.dropout < 1, "0 to below 1"),
                ("targets", self.targets, self.targets is None or len(self.targets) > 0, "names, or leave it out"),
            )
            if not good
        ]
        if findings:
            raise ConfigError(findings)


def missing_peft() -> Finding | None:
    """Names the extra that LoRA needs; None where it is installed."""
    if find_spec("peft") is not None:
        return None
    return Finding("--model.finetune", "lora needs peft, which is not installed", 'pip install "kd-convnext[lora]"')


def add_adapters(backbone: Backbone, spec: LoraSpec) -> None:
    """Freezes a backbone but for its head, and puts an update, which is 0 at first, beside each chosen layer.

    Args:
        backbone: The network; its state dict gets other names.
        spec: What is added.

    Raises:
        ConfigError: peft is not installed, or a target is unknown.
    """
    layers = adapted_layers(backbone, spec.targets)
    if lacking := missing_peft():
        raise ConfigError(lacking)
    from peft import LoraConfig, inject_adapter_in_model

    head = backbone.head_parameters()
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=layers)
    inject_adapter_in_model(config, backbone.network)
    for parameter in head:
        parameter.requires_grad_(True)


def remove_adapters(backbone: Backbone) -> None:
    """Takes the updates away, and with them what they have learnt.

    Args:
        backbone: The network, with updates or without.
    """
    for name, module in list(backbone.network.named_modules()):
        if hasattr(module, "base_layer"):
            backbone.network.set_submodule(name, module.base_layer)
    if hasattr(backbone.network, "peft_config"):
        del backbone.network.peft_config


def adapted_layers(backbone: Backbone, targets: Sequence[str] | None = None) -> list[str]:
    """Chooses the layers that get updates.

    Args:
        backbone: The network.
        targets: Ends of their names; by default those of attention, or else all that are linear in every pixel.

    Returns:
        Their names inside the timm network.

    Raises:
        ConfigError: There are none, or a target ends no name.
    """
    able = _able_layers(backbone)
    if targets is None:
        linear = [name for name, layer in able.items() if layer.weight[0, 0].numel() == 1]
        found = [name for name in linear if name.split(".")[-2:-1] == ["attn"]] or linear
        if not found:
            what = f"{backbone.name} has no linear layers and 1x1 convolutions outside its head"
            raise ConfigError(Finding("--model.lora.targets", what, "Name other convolutions."))
        return found
    of_target = {target: [name for name in able if f".{name}".endswith(f".{target}")] for target in targets}
    findings = [_unknown(target, able) for target, names in of_target.items() if not names]
    if findings:
        raise ConfigError(findings)
    return [name for name in able if any(name in names for names in of_target.values())]


def _unknown(target: str, able: Mapping[str, nn.Module]) -> Finding:
    ends = sorted({".".join(name.split(".")[-count:]) for name in able for count in (1, 2)})
    close = difflib.get_close_matches(target, ends, n=3) or ends[:8]
    what = f"no layer that can learn by LoRA ends in {target!r}"
    return Finding("--model.lora.targets", what, f"Name for example {', '.join(close)}.")


def _able_layers(backbone: Backbone) -> dict[str, Any]:
    """Returns the linear layers and convolutions outside the head that are called as they are.

    Some networks take the weight of a layer and compute themselves, or standardise it first: an update beside such a
    layer would learn nothing, or not add up.
    """
    head = {id(parameter) for parameter in backbone.head_parameters()}
    layers: dict[str, Any] = {
        name: layer
        for name, layer in backbone.network.named_modules()
        if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
    }
    called: set[nn.Module] = set()
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: called.add(module)) for layer in layers.values()
    ]
    try:
        blank_pass(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer for name, layer in layers.items() if layer in called and id(layer.weight) not in head}


def plain_state(state: Mapping[str, Tensor], spec: LoraSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adds updates to the weights beside which they stand.

    Args:
        state: State dict of a module with updates.
        spec: Of the updates.

    Returns:
        The state dict of the same module without them, whose answers are the same but for rounding; and what
        :func:`adapted_state` needs beside it.
    """
    apart = {name: value for name, value in state.items() if _BASE in name or _DOWN in name or _UP in name}
    plain = {name.replace(_BASE, "."): value for name, value in state.items() if _DOWN not in name and _UP not in name}
    for name, down in apart.items():
        if _DOWN in name:
            weight, up = name.replace(_DOWN, "."), apart[name.replace(_DOWN, _UP)]
            update = spec.alpha / spec.rank * (up.flatten(1).float() @ down.flatten(1).float())
            whole = plain[weight]
            plain[weight] = (whole.float() + update.view_as(whole)).to(whole.dtype)
    return plain, apart


def adapted_state(plain: Mapping[str, Tensor], apart: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes :func:`plain_state`, exactly."""
    covered = {name.replace(_BASE, ".") for name in apart}
    return {name: value for name, value in plain.items() if name not in covered} | dict(apart)
