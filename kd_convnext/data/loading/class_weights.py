"""Computes class weights from the counts of the training part."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kd_convnext.errors import ConfigError, Finding


def inverse_frequency(counts: Sequence[int]) -> list[float]:
    """Weighs classes by the inverse of their number of training images (the alpha_t of Eq. 4).

    Args:
        counts: Training images of each class, in the order of the model's outputs.

    Returns:
        One weight per class; the weights of the classes that occur have mean 1. A class without a training
        image gets 0: no image of it can ever ask for its weight. Python floats, so that they fit into any
        checkpoint.

    Raises:
        ConfigError: A count is negative or all are 0.

    Examples:
        >>> inverse_frequency([10, 20, 20])
        [1.5, 0.75, 0.75]
    """
    if any(count < 0 for count in counts) or not any(counts):
        raise ConfigError(
            Finding(
                "class counts",
                f"cannot weigh classes by {list(counts)}",
                "Counts must be 0 or more, and at least one class needs an image.",
            )
        )
    inverse = [1.0 / float(count) if count else 0.0 for count in counts]
    mean = math.fsum(inverse) / sum(1 for count in counts if count)
    return [value / mean for value in inverse]


def class_counts(labels: npt.NDArray[np.int64], num_classes: int) -> list[int]:
    """Counts the images of each class.

    Args:
        labels: int64 [N]; negative ones (no label) are not counted.
        num_classes: K.

    Returns:
        K counts; 1 each where there are none at all.
    """
    counts: list[int] = np.bincount(labels[labels >= 0], minlength=num_classes).tolist()
    return counts if any(counts) else [1] * num_classes
