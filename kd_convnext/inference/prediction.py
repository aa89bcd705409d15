"""Defines the input and output of a predictor: photograph, prediction, failure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels, Values
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import Finding
from kd_convnext.inference.trust.gate import Distances


@dataclass(frozen=True, eq=False)
class Photograph:
    """One region of interest to classify.

    Attributes:
        image: The file, or its pixels: uint8 RGB [H, W, 3].
        box: The region in its pixels; None for all of it.
        name: What it is called in answers; by default the path.
        lesion_id: The lesion it shows; empty where unknown.
    """

    image: Path | Pixels
    box: Box | None = None
    name: str = ""
    lesion_id: str = ""

    def __str__(self) -> str:
        """Returns its name."""
        return self.name or (str(self.image) if isinstance(self.image, Path) else "image")


@dataclass(frozen=True)
class Failure:
    """A photograph that could not be classified.

    Attributes:
        photograph: Which one.
        finding: Why not, and what to do.
    """

    photograph: Photograph
    finding: Finding


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for a photograph, or for a lesion from all its photographs.

    Attributes:
        name: Of the photograph, or of the lesion.
        class_names: K names in the order of the model's outputs.
        probabilities: float64 [K]; calibrated where the model is.
        logits: float64 [K], the network's own; of a lesion the logarithms of its mean uncalibrated probabilities.
        features: float32 [D], what the network's last layer saw; of a lesion their mean.
        prediction_set: The classes that cannot be ruled out at the calibrated coverage; None without calibration.
        gate_score: How unlike the training photographs; the gate lets up to 1 pass. None without calibration.
        abstain: Whether a person should decide.
        reasons: Why; empty where the model does not abstain.
        box: The region of interest.
        lesion_id: The lesion; empty where unknown.
        photographs: How many photographs this answer stands on.
        distances: From the training photographs, what ``gate_score`` comes from; of a lesion their means.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: Values
    logits: Values
    features: npt.NDArray[np.float32] = field(repr=False)
    prediction_set: tuple[str, ...] | None
    gate_score: float | None
    abstain: bool
    reasons: tuple[str, ...]
    box: Box | None = None
    lesion_id: str = ""
    photographs: int = 1
    distances: Distances | None = None

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]


def mean_rows(rows: Sequence[npt.NDArray[np.floating]]) -> Values:
    """Returns the mean of rows [K], the same to the last bit in whatever order they come.

    Args:
        rows: At least one.
    """
    return np.array([math.fsum(map(float, column)) / len(rows) for column in zip(*rows, strict=True)])
