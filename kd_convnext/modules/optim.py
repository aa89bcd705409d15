"""Builds the optimiser, its parameter groups and the learning-rate schedule.

Groups and schedule are written here, not taken from timm or `SequentialLR`: the body starts later than the head and
with a warm-up of its own, which no schedule for all groups can do, and checkpoints of unfinished fits hold this state.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kd_convnext.errors import ConfigError, Finding


@dataclass(frozen=True)
class OptimSpec:
    """Describes optimiser and learning-rate schedule; the defaults are the paper's (section 4.3).

    Attributes:
        name: ``adamw``, or ``sgd`` with momentum (the paper names both).
        lr: Largest learning rate.
        weight_decay: Applied to matrices and kernels; not to biases and norms unless ``decay_all``.
        decay_all: Apply weight decay to everything.
        betas: Of AdamW.
        momentum: Of SGD.
        schedule: ``constant``, or ``cosine`` down to ``final_lr_fraction`` at the last step.
        warmup_epochs: Linear rise from 0 over this many epochs.
        final_lr_fraction: End of the cosine, as a fraction of ``lr``.
        body_lr_fraction: Learning rate of everything but the head, as a fraction of ``lr``.
        layer_decay: Factor on the learning rate from each layer of the body to the one before it, above 0 and at most
            1; 1 treats all alike. About 0.65 to 0.8 suits a pretrained transformer.
        unfreeze_epochs: Epochs after which the next stage of the body (of a plain transformer the next block) begins to
            learn, from the head to the stem (Howard and Ruder, 2018); 0 for all at once.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> spec = OptimSpec(lr=0.1, schedule="cosine", warmup_epochs=1)
        >>> optimizer = build_optimizer(spec, [], layer.parameters())
        >>> schedule = build_schedule(spec, optimizer, steps=10, steps_per_epoch=1)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    decay_all: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = 0.0
    final_lr_fraction: float = 0.0
    body_lr_fraction: float = 1.0
    layer_decay: float = 1.0
    unfreeze_epochs: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot work, all together."""
        findings = [
            Finding(f"optim.{name}", f"{value} cannot work", f"Use {remedy}.")
            for name, value, good, remedy in (
                ("lr", self.lr, self.lr > 0, "a positive number"),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
                ("warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "0 or more"),
                ("final_lr_fraction", self.final_lr_fraction, 0 <= self.final_lr_fraction <= 1, "0 to 1"),
                ("body_lr_fraction", self.body_lr_fraction, 0 <= self.body_lr_fraction <= 1, "0 to 1"),
                ("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1, such as 0.75"),
                ("unfreeze_epochs", self.unfreeze_epochs, self.unfreeze_epochs >= 0, "0 for all at once, or such as 1"),
                ("momentum", self.momentum, 0 <= self.momentum < 1, "0 to below 1"),
            )
            if not good
        ]
        if findings:
            raise ConfigError(findings)


FUSED_ON = ("cpu", "cuda")
"""Devices where one pass over a weight and its state does the whole update: 3 times as fast on a CPU (ConvNeXt-T)."""


def check_resumed(asked: OptimSpec, stored: Mapping[str, Any]) -> None:
    """Refuses to go on with another optimiser than a checkpoint's, and warns of numbers that its state overrules.

    Args:
        asked: Of the fit that is resumed.
        stored: Fields of the `OptimSpec` that the checkpoint was trained with.

    Raises:
        ConfigError: The checkpoint holds the state of another optimiser, or of other groups of parameters.
    """
    remedy = "Leave it as it was, or begin anew from the weights of its best.ckpt."
    findings = []
    for name in ("name", "decay_all", "layer_decay", "unfreeze_epochs"):
        now = getattr(asked, name)
        was = stored.get(name, now)
        if was != now:
            what = f"the checkpoint holds the state of {was}, with which {now} cannot go on"
            findings.append(Finding(f"--model.optim.{name}", what, remedy))
    if findings:
        raise ConfigError(findings)
    overruled = [
        f"{name} {was}"
        for name in ("lr", "body_lr_fraction", "weight_decay", "betas", "momentum")
        if (was := stored.get(name)) is not None and was not in (now := getattr(asked, name), _listed(now))
    ]
    if overruled:
        warnings.warn(f"--model.optim: a resumed fit goes on with its own {', '.join(overruled)}", stacklevel=2)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def build_optimizer(
    spec: OptimSpec,
    body: Iterable[nn.Parameter],
    head: Iterable[nn.Parameter],
    *,
    scales: Mapping[nn.Parameter, float] | None = None,
    first_epochs: Mapping[nn.Parameter, int] | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Builds the optimiser with groups ``body`` and ``head``, each with and without weight decay.

    Args:
        spec: What to build.
        body: Parameters of the body; those without gradient are left out.
        head: Parameters of the head and whatever else starts afresh.
        scales: Factors on the body's learning rate, by parameter; a group for each.
        first_epochs: First epoch in which a parameter of the body learns; a group for each.
        fused: Use torch's fused update where the parameters' device has one; equal to the plain one but for rounding.

    Raises:
        ConfigError: Nothing learns.
    """
    groups: list[dict[str, Any]] = []
    for name, parameters, fraction in (("body", body, spec.body_lr_fraction), ("head", head, 1.0)):
        members: dict[tuple[float, float, int], list[nn.Parameter]] = {}
        decayed, plain = _by_decay(spec, parameters)
        for decay, given in ((spec.weight_decay, decayed), (0.0, plain)):
            for parameter in given:
                scale = (scales or {}).get(parameter, 1.0) if name == "body" else 1.0
                first = (first_epochs or {}).get(parameter, 0)
                members.setdefault((fraction * scale, decay, first), []).append(parameter)
        groups += [
            {"params": alike, "lr": spec.lr * factor, "weight_decay": decay, "name": name, "first_epoch": first}
            for (factor, decay, first), alike in members.items()
        ]
    if not groups:
        what = "no parameter learns: something has frozen the whole network, such as BackboneFinetuning"
        remedy = "Use --model.optim.unfreeze_epochs, or --model.finetune head_first of a teacher."
        raise ConfigError(Finding("--trainer.callbacks", what, remedy))
    able = all(p.device.type in FUSED_ON for group in groups for p in group["params"])
    # None leaves torch its own choice; False would forbid its second best.
    chosen = True if fused and able else None
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=chosen)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=chosen)


def _by_decay(spec: OptimSpec, parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divides the parameters that learn into those with weight decay and those without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in trained if spec.decay_all or parameter.ndim > 1]
    return decayed, [parameter for parameter in trained if not (spec.decay_all or parameter.ndim > 1)]


def build_schedule(
    spec: OptimSpec,
    optimizer: torch.optim.Optimizer,
    *,
    steps: float,
    steps_per_epoch: float,
) -> LambdaLR:
    """Builds the schedule, stepped after every optimiser step; before its first epoch a group's learning rate is 0.

    Args:
        spec: What to build.
        optimizer: From :func:`build_optimizer`.
        steps: Optimiser steps of the whole fit; may be infinite, which suits only ``constant``.
        steps_per_epoch: Optimiser steps of an epoch.

    Raises:
        ConfigError: A cosine without an end.
    """
    if spec.schedule == "cosine" and not math.isfinite(steps):
        remedy = "Set trainer.max_epochs, or optim.schedule: constant."
        raise ConfigError(Finding("optim.schedule", "a cosine needs to know where training ends", remedy))
    warmup = spec.warmup_epochs * steps_per_epoch

    def factor(start: float) -> Callable[[int], float]:
        def at(step: int) -> float:
            if step < start:
                return 0.0
            if step - start < warmup:
                return (step - start + 1) / (warmup + 1)
            if spec.schedule == "constant":
                return 1.0
            done = min(1.0, (step - start - warmup) / max(1.0, steps - start - warmup))
            floor = spec.final_lr_fraction
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

        return at

    starts = [group["first_epoch"] * steps_per_epoch for group in optimizer.param_groups]
    return LambdaLR(optimizer, [factor(start) for start in starts])
