"""Measures how unlike the training photographs a photograph is (out-of-distribution gate).

Two distances to the training photographs. In *appearance* (colour quantiles, and contrast at five scales) by
Mahalanobis with a shrunk covariance (Ledoit, Wolf 2004); in the network's penultimate *features* by the nearest
neighbours (Sun et al. 2022, arXiv:2204.06507). Either may stop a photograph. The features alone do not do: a network
answers calmly to what excites none of its filters, and foreign photographs can lie nearer than ordinary ones.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values

Features = npt.NDArray[np.float32]

NEIGHBOURS = 5
"""The distance is that to the fifth nearest; a single odd training photograph must not open the gate."""

LARGEST_BANK = 4096
"""More training photographs than this are sampled: the bank stays within megabytes."""

QUANTILES = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
"""Which of each channel's levels are taken."""

SIDE = 32
"""Contrasts are those of the picture at this side and below."""

NO_CONTRAST = 1e-4
"""A hundredth of the range, squared: below the noise of a camera."""


class Distances(NamedTuple):
    """Distances of a photograph from the training photographs; larger is less alike.

    Attributes:
        appearance: In standard deviations.
        features: 0 (the same direction) to 2.
    """

    appearance: float
    features: float


@dataclass(frozen=True, eq=False)
class Gate:
    """Features of the training photographs that the gate compares with.

    Attributes:
        mean: float64 [M], of their appearances.
        whitening: float64 [M, M]; turns a difference of appearances into standard deviations.
        bank: float32 [N, D], their features, each of length 1.
    """

    mean: Values
    whitening: Values
    bank: Features

    def distances(self, appearance: Values, features: Features) -> Distances:
        """Returns how far a photograph is.

        Args:
            appearance: float64 [M], as `appearance_of` describes it.
            features: float32 [D], the network's penultimate features.
        """
        whitened = (appearance - self.mean) @ self.whitening
        direction = _unit(features)
        # Not by BLAS: OpenBLAS's threads turn for 0.1 s after a product, on the cores that the next photograph needs.
        similar = np.einsum("nd,d->n", self.bank, direction)
        # The cosine tells which is the fifth; of a small distance its rounding would leave nothing.
        fifth = self.bank[np.argsort(similar)[-min(NEIGHBOURS, len(similar))]]
        apart = np.linalg.norm(np.subtract(direction, fifth, dtype=np.float64))
        return Distances(float(np.linalg.norm(whitened)), float(apart))

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Returns its arrays by name."""
        return {"mean": self.mean, "whitening": self.whitening, "bank": self.bank}


def fit_gate(appearances: Values, features: Features) -> Gate:
    """Builds the gate.

    Args:
        appearances: float64 [N, M] of the training photographs, as validation sees them, at least two.
        features: float32 [N, D] of the same.

    Returns:
        The gate.
    """
    from sklearn.covariance import LedoitWolf

    mean = appearances.mean(axis=0)
    spread = np.maximum(appearances.std(axis=0), 1e-6)
    precision = LedoitWolf().fit((appearances - mean) / spread).precision_
    whitening = np.linalg.cholesky(precision) / spread[:, None]
    return Gate(mean, whitening, np.stack([_unit(row) for row in features]))


def appearance_of(picture: npt.NDArray[np.uint8]) -> Values:
    """Describes colours and textures, whatever they show.

    Args:
        picture: uint8 [S, S, C], C 1 or 3.

    Returns:
        float64 [12 C]: seven quantiles of each channel (lightness, a and b of CIELAB; or grey), then for each channel
        the logarithm of the mean squared contrast between neighbours at 32, 16, 8, 4 and 2 pixels a side.
    """
    channels = picture.shape[2]
    colours = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB) if channels == 3 else picture).reshape(-1, channels)
    below = np.stack([np.bincount(colours[:, channel], minlength=256).cumsum() for channel in range(channels)])
    quantiles = np.stack([np.searchsorted(counts, QUANTILES * len(colours)) for counts in below]) / 255
    level = _halved(np.asarray(picture / 255, np.float32), SIDE)
    contrasts = []
    while len(level) > 1:
        coarser = _halved(level, len(level) // 2)
        detail = level - coarser.repeat(2, axis=0).repeat(2, axis=1)
        contrasts.append(np.log(NO_CONTRAST + (detail**2).mean(axis=(0, 1), dtype=np.float64)))
        level = coarser
    return np.concatenate([quantiles.ravel(), *contrasts])


def _halved(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    smaller = cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.float32).reshape(side, side, -1)


def _unit(features: Features) -> Features:
    length = float(np.linalg.norm(features))
    return np.asarray(features / (length or 1.0), np.float32)
