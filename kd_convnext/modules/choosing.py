"""Steadies the choice of the best epoch on few validation lesions: a smoothed score, and mirror images."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kd_convnext.models.mirrored import MIRRORED_BATCH

SMOOTHED_OVER = 3
"""Epochs of which the smoothed validation score is the mean."""


class SmoothedScore:
    """Averages a score over the last epochs of a fit.

    Attributes:
        recent: The scores of these epochs; part of a checkpoint, so that a resumed fit goes on with them.

    Examples:
        >>> score = SmoothedScore()
        >>> [score.add(value) for value in (0.2, 0.4, 0.6, 0.8)][-1]
        0.6
    """

    def __init__(self, recent: Iterable[float] = ()) -> None:
        """Begins.

        Args:
            recent: Scores of earlier epochs.
        """
        self.recent = list(recent)

    def add(self, score: float) -> float:
        """Adds the score of an epoch, and returns the mean of the last three."""
        self.recent = [*self.recent, score][-SMOOTHED_OVER:]
        return math.fsum(self.recent) / len(self.recent)


def mean_logits(network: Callable[[Tensor], Tensor], images: Tensor, *, mirrored: bool) -> Tensor:
    """Computes logits, where asked averaged over an image and its three mirror images.

    Args:
        network: From images to logits [B, K].
        images: [B, C, H, W].
        mirrored: Whether to mirror.

    Returns:
        float32 [B, K].
    """
    views = MIRRORED_BATCH if mirrored else MIRRORED_BATCH[:1]
    return torch.stack([network(images.flip(axes) if axes else images).float() for axes in views]).mean(dim=0)
