"""Measures how unlike the training photographs a photograph is (out-of-distribution gate).

Three distances to the training photographs, of which each may stop a photograph. In *appearance* (colours, contrasts
and textures of the picture) and in *detail* (its finest texture, noise, sharpness) to a mixture of Gaussians: the
photographs of one collection are of several kinds and devices, and one Gaussian around all of them also holds what lies
between them. In the network's penultimate *features* by the nearest neighbours (Sun et al. 2022, arXiv:2204.06507). The
features alone do not do: a network answers calmly to what excites none of its filters, and foreign photographs can lie
nearer than ordinary ones, at every depth. Detail counts twice, in the appearance and alone: photographs of one device
hardly differ in it, and a small difference there is lost among many entries.
"""

import warnings
from collections.abc import Mapping
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


EACH, MOST = 100, 8
"""Training photographs for each Gaussian of a mixture, where there is more than one, and how many there are at most."""

MANY = 400
"""With fewer training photographs detail is without texture."""

FLOOR = 0.1
"""Least variance of a Gaussian in each direction, of that of all photographs."""


class Distances(NamedTuple):
    """Distances of a photograph from the training photographs; larger is less alike.

    Attributes:
        appearance: In standard deviations; see `Mixture`.
        features: 0 (the same direction) to 2.
        detail: The same; 0 of a gate without it.
    """

    appearance: float
    features: float
    detail: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians that training photographs are distributed as.

    Attributes:
        mean: float64 [G, M], their centres.
        whitening: float64 [G, M, M]; turns a difference from each centre into standard deviations.
        logs: float64 [G], the logarithms of their heights at the centres; the heights add up to 1.
    """

    mean: Values
    whitening: Values
    logs: Values

    @classmethod
    def of(cls, mean: Values, whitening: Values, logs: Values | None) -> "Mixture":
        """Returns a mixture; without `logs` one Gaussian [M], [M, M], as older gates have it."""
        return cls(mean[None], whitening[None], np.zeros(1)) if logs is None else cls(mean, whitening, logs)

    def distance(self, values: Values) -> float:
        """Returns how far values [M] are: of one Gaussian in standard deviations, of several by their density."""
        apart = np.einsum("gm,gmn->gn", values - self.mean, self.whitening)
        exponents = np.einsum("gn,gn->g", apart, apart) / 2 - self.logs
        nearest = exponents.min()
        return float(np.sqrt(2 * max(nearest - np.log(np.exp(nearest - exponents).sum()), 0.0)))


@dataclass(frozen=True, eq=False)
class Gate:
    """Features of the training photographs that the gate compares with.

    Attributes:
        appearance: Of their appearances; in gates fitted before there were more of the first 12 C entries.
        bank: float32 [N, D], their features, each of length 1.
        detail: Of the last entries; None in those older gates.
    """

    appearance: Mixture
    bank: Features
    detail: Mixture | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> "Gate":
        """Builds the gate from its arrays.

        Args:
            tensors: What `tensors` returned, also that of earlier versions.

        Raises:
            KeyError: One is missing.
        """
        detail = None
        if "detail_mean" in tensors:
            words = (tensors["detail_mean"], tensors["detail_whitening"], tensors.get("detail_logs"))
            detail = Mixture.of(*words)
        return cls(Mixture.of(tensors["mean"], tensors["whitening"], tensors.get("logs")), tensors["bank"], detail)

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
        if self.detail is not None:
            detail = self.detail.distance(appearance[-self.detail.mean.shape[1] :])
        far = self.appearance.distance(appearance[: self.appearance.mean.shape[1]])
        return Distances(far, float(apart), detail)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Returns its arrays by name."""
        detail = {} if self.detail is None else {f"detail_{name}": each for name, each in vars(self.detail).items()}
        return {**vars(self.appearance), "bank": self.bank, **detail}


def fit_gate(appearances: Values, features: Features) -> Gate:
    """Builds the gate.

    Args:
        appearances: float64 [N, 21 C] of the training photographs, as validation sees them, at least two.
        features: float32 [N, D] of the same.

    Returns:
        The gate.
    """
    # Few photographs do not tell small differences of detail from those of texture.
    details = appearances.shape[1] // ENTRIES * len(LAGS) * (3 if len(appearances) >= MANY else 1)
    bank = np.stack([_unit(row) for row in features])
    return Gate(_mixture(appearances), bank, _mixture(appearances[:, -details:]))


def _mixture(values: Values) -> Mixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mean, whitening = _whitening(values)
    count = max(min(len(values) // EACH, MOST), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # any fit will do: its threshold is calibrated
        found = GaussianMixture(count, reg_covar=FLOOR, random_state=0).fit((values - mean) @ whitening)
    factors = found.precisions_cholesky_
    logs = np.log(found.weights_) + np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    centres = mean + found.means_ @ np.linalg.inv(whitening)
    return Mixture(centres, whitening @ factors, logs - np.logaddexp.reduce(logs))


def _whitening(values: Values) -> tuple[Values, Values]:
    """Returns mean [M] and whitening [M, M] with a shrunk covariance (Ledoit, Wolf 2004)."""
    from sklearn.covariance import LedoitWolf

    mean = values.mean(axis=0)
    spread = np.maximum(values.std(axis=0), 1e-6)
    precision = LedoitWolf().fit((values - mean) / spread).precision_
    return mean, np.linalg.cholesky(precision) / spread[:, None]


def _unit(features: Features) -> Features:
    length = float(np.linalg.norm(features))
    return np.asarray(features / (length or 1.0), np.float32)
