"""Measures how unlike the training photographs a photograph is (out-of-distribution gate).

Three distances to the training photographs, of which each may stop a photograph. In *appearance* (colours, contrasts
and textures of the picture) and in fine *detail* by Mahalanobis with a shrunk covariance (Ledoit, Wolf 2004); in the
network's penultimate *features* by the nearest neighbours (Sun et al. 2022, arXiv:2204.06507). The features alone do
not do: a network answers calmly to what excites none of its filters, and foreign photographs can lie nearer than
ordinary ones, at every depth. Detail counts twice, in the appearance and alone: photographs of one device hardly differ
in the proportion of their channels' details, and a small difference there is lost among many entries.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values
from kd_convnext.inference.trust.appearance import ENTRIES, LAGS

Features = npt.NDArray[np.float32]

NEIGHBOURS = 5
"""The distance is that to the fifth nearest; a single odd training photograph must not open the gate."""

LARGEST_BANK = 4096
"""More training photographs than this are sampled: the bank stays within megabytes."""


NO_DISTANCE = 1.0
"""Limit of a distance that an older gate does not have, and for which it says 0."""


class Distances(NamedTuple):
    """Distances of a photograph from the training photographs; larger is less alike.

    Attributes:
        appearance: In standard deviations.
        features: 0 (the same direction) to 2.
        detail: In standard deviations; 0 of a gate without it.
    """

    appearance: float
    features: float
    detail: float


@dataclass(frozen=True, eq=False)
class Gate:
    """Features of the training photographs that the gate compares with.

    Attributes:
        mean: float64 [M], of their appearances; in gates fitted before there were more of the first 12 C entries.
        whitening: float64 [M, M]; turns a difference of appearances into standard deviations.
        bank: float32 [N, D], their features, each of length 1.
        detail_mean: float64 [L], of the last entries; None in those older gates.
        detail_whitening: float64 [L, L].
    """

    mean: Values
    whitening: Values
    bank: Features
    detail_mean: Values | None = None
    detail_whitening: Values | None = None

    def distances(self, appearance: Values, features: Features) -> Distances:
        """Returns how far a photograph is.

        Args:
            appearance: float64 [21 C], as `appearance_of` describes it.
            features: float32 [D], the network's penultimate features.
        """
        direction = _unit(features)
        # Not by BLAS: OpenBLAS's threads turn for 0.1 s after a product, on the cores that the next photograph needs.
        similar = np.einsum("nd,d->n", self.bank, direction)
        # The cosine tells which is the fifth; of a small distance its rounding would leave nothing.
        fifth = self.bank[np.argsort(similar)[-min(NEIGHBOURS, len(similar))]]
        apart = np.linalg.norm(np.subtract(direction, fifth, dtype=np.float64))
        detail = 0.0
        if self.detail_mean is not None and self.detail_whitening is not None:
            detail = _length((appearance[-len(self.detail_mean) :] - self.detail_mean) @ self.detail_whitening)
        far = _length((appearance[: len(self.mean)] - self.mean) @ self.whitening)
        return Distances(far, float(apart), detail)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Returns its arrays by name."""
        return {name: values for name, values in vars(self).items() if values is not None}


def fit_gate(appearances: Values, features: Features) -> Gate:
    """Builds the gate.

    Args:
        appearances: float64 [N, 21 C] of the training photographs, as validation sees them, at least two.
        features: float32 [N, D] of the same.

    Returns:
        The gate.
    """
    details = appearances.shape[1] // ENTRIES * len(LAGS)
    bank = np.stack([_unit(row) for row in features])
    return Gate(*_whitening(appearances), bank, *_whitening(appearances[:, -details:]))


def _whitening(values: Values) -> tuple[Values, Values]:
    from sklearn.covariance import LedoitWolf

    mean = values.mean(axis=0)
    spread = np.maximum(values.std(axis=0), 1e-6)
    precision = LedoitWolf().fit((values - mean) / spread).precision_
    return mean, np.linalg.cholesky(precision) / spread[:, None]


def _length(values: Values) -> float:
    return float(np.linalg.norm(values))


def _unit(features: Features) -> Features:
    length = float(np.linalg.norm(features))
    return np.asarray(features / (length or 1.0), np.float32)
