"""Mixes the images of a training batch, and their labels, on the device: mixup and CutMix."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.targets import labelled_rows, target_probabilities


@dataclass(frozen=True)
class MixSpec:
    """Describes how images of a batch are mixed; by default not at all.

    Attributes:
        mixup: alpha of the Beta distribution of mixup's weights (Zhang et al., ICLR 2018); 0 for none.
        cutmix: alpha of the Beta distribution of CutMix's areas (Yun et al., ICCV 2019); 0 for none. With both, each
            batch is mixed by one of them, at random.
        probability: Share of the batches that are mixed, 0..1.

    Examples:
        >>> MixSpec(mixup=0.2).on, MixSpec().on
        (True, False)
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values that cannot work, all together."""
        findings = [
            Finding(f"mixing.{name}", f"{value} cannot work", f"Use {remedy}.")
            for name, value, good, remedy in (
                ("mixup", self.mixup, math.isfinite(self.mixup) and self.mixup >= 0, "0 for none, or such as 0.2"),
                ("cutmix", self.cutmix, math.isfinite(self.cutmix) and self.cutmix >= 0, "0 for none, or such as 1"),
                ("probability", self.probability, 0 <= self.probability <= 1, "0 to 1"),
            )
            if not good
        ]
        if findings:
            raise ConfigError(findings)

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def mixed(
    images: Tensor, labels: Tensor, spec: MixSpec, num_classes: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixes each image of a batch with its counterpart: the first with the last, those with and without labels apart.

    The image keeps at least half of itself, so that its own label stays the likeliest.

    Args:
        images: [B, C, H, W], uint8 0..255 or floating 0..1.
        labels: int64 [B], -1 where there is none.
        spec: How.
        num_classes: K.
        rng: Draws kind, weight and place; nothing is read from the device.

    Returns:
        Images [B, C, H, W], floating 0..1, and probabilities [B, K]: a row of -1 where an image has no label. Also of
        a batch that is left as it is, so that every batch has one form.
    """
    images = images / 255 if images.dtype == torch.uint8 else images
    own, own_share = target_probabilities(labels, num_classes, torch.float32), 1.0
    labelled = labelled_rows(labels)
    other = _counterparts(labelled)
    if rng.random() < spec.probability:
        cut = spec.mixup <= 0 or (spec.cutmix > 0 and rng.random() < 0.5)
        alpha = spec.cutmix if cut else spec.mixup
        share = rng.beta(alpha, alpha)
        own_share = max(share, 1 - share)
        if cut:
            images, own_share = _pasted(images, other, own_share, rng)
        else:
            images = torch.lerp(images[other], images, own_share)
    targets = own_share * own + (1 - own_share) * own[other]
    return images, torch.where(labelled[:, None], targets, torch.full_like(targets, -1.0))


def _counterparts(labelled: Tensor) -> Tensor:
    """Pairs images from both ends inwards, so that no label is lost to an image that has none.

    Args:
        labelled: bool [B].

    Returns:
        int64 [B], the position of each one's counterpart; computed without waiting for the device.
    """
    order = (~labelled).to(torch.uint8).argsort(stable=True)
    place = order.argsort()
    count, size = labelled.sum(), len(labelled)
    return order[torch.where(place < count, count - 1 - place, count + size - 1 - place)]


def _pasted(images: Tensor, other: Tensor, own_share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Pastes a rectangle of each image's counterpart; returns the share of the area that is the image's own."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - own_share)
    tall, wide = int(height * side), int(width * side)
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    pasted = images.clone()
    area = (..., slice(top, top + tall), slice(left, left + wide))
    pasted[area] = images[area][other]
    return pasted, 1 - tall * wide / (height * width)
