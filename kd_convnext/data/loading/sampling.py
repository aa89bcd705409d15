"""Chooses how often training draws each crop, by the classes; one's own way is used by its class path."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kd_convnext.errors import ConfigError, Finding

SamplingName = Literal["natural", "square_root", "balanced"]
"""How often a class is drawn: as often as it occurs, by the square root of that, or all equally often."""


class ClassSampling(ABC):
    """Decides how often crops are drawn, with replacement; a subclass is used by its class path, with ``--trust``."""

    @abstractmethod
    def weights(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns how often each crop is drawn, up to a common factor.

        Args:
            labels: int64 [N], of the training part.

        Returns:
            float64 [N], 0 or more.
        """


@dataclass(frozen=True)
class ByFrequency(ClassSampling):
    """Draws a class by a power of its number of crops: 1 is natural, 0.5 the square root, 0 all classes alike.

    Attributes:
        power: -1 to 1; below 0 rare classes are drawn more often than others.

    Raises:
        ConfigError: The power is outside.

    Examples:
        >>> ByFrequency(0.0).weights(np.array([0, 0, 0, 1])).round(2).tolist()
        [0.33, 0.33, 0.33, 1.0]
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        """Refuses a power that cannot work."""
        if not -1 <= self.power <= 1:
            what = f"{self.power} is outside -1..1"
            raise ConfigError(Finding("--data.loader.sampling.power", what, "Use for example 0.5."))

    def weights(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns how often each crop is drawn; see `ClassSampling.weights`."""
        counts = np.bincount(labels).astype(np.float64)
        return np.asarray(counts[labels] ** (self.power - 1), np.float64)


_NAMED: Mapping[SamplingName, ClassSampling | None] = {
    "natural": None,
    "square_root": ByFrequency(0.5),
    "balanced": ByFrequency(0.0),
}


def sampling_power(sampling: SamplingName | ClassSampling) -> float | None:
    """Returns the power of its number of crops by which a class is drawn; None for a way that is no power.

    Args:
        sampling: A name, or a way of one's own.
    """
    chosen = sampling if isinstance(sampling, ClassSampling) else _NAMED[sampling]
    if chosen is None:
        return 1.0
    return chosen.power if isinstance(chosen, ByFrequency) else None


def drawn_weights(
    sampling: SamplingName | ClassSampling, labels: npt.NDArray[np.int64], option: str = "--data.loader.sampling"
) -> npt.NDArray[np.float64] | None:
    """Computes how often each crop is drawn.

    Args:
        sampling: A name, or a way of one's own.
        labels: int64 [N], of the training part.
        option: Who named the way, for messages.

    Returns:
        float64 [N]; None where each is drawn once an epoch.

    Raises:
        ConfigError: The numbers are no weights.
    """
    chosen = sampling if isinstance(sampling, ClassSampling) else _NAMED[sampling]
    if chosen is None:
        return None
    found = np.asarray(chosen.weights(labels), np.float64)
    if found.shape != labels.shape or not np.isfinite(found).all() or found.min() < 0 or found.sum() <= 0:
        what = f"{type(chosen).__name__}.weights returns no weight of 0 or more for each of {len(labels)} crops"
        raise ConfigError(Finding(option, what, "Return a float array as long as the labels."))
    return found
