"""Compares the outputs of an exported file with those of its checkpoint."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels, Values, softmax
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.inference.exporting.deployed import OUTPUTS, PixelType
from kd_convnext.inference.exporting.formats import Runner
from kd_convnext.inference.exporting.samples import ExportSamples
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.calibration import Calibration
from kd_convnext.inference.trust.gate import Distances, Features

_TOGETHER = 3  # another size than the 2 a graph is traced with


@dataclass(frozen=True)
class Compared:
    """Largest differences between the two outputs.

    Attributes:
        photographs: How many were compared.
        largest_difference: Between two probabilities of a class.
        agreement: Share of photographs with the same most probable class, in 0..1.
        gate_difference: Largest one between two gate scores, as a share of the checkpoint's where that is above 1;
            None without calibration, as is the next.
        decisions: Share of photographs with the same prediction set and the same reasons to abstain, in 0..1.
        labelled: How many of them have a label and were not seen in training; the next four are None without any.
        accuracy_checkpoint: The checkpoint's on those, in 0..1.
        accuracy: The file's.
        f1_macro_checkpoint: The checkpoint's.
        f1_macro: The file's.
    """

    photographs: int
    largest_difference: float
    agreement: float
    gate_difference: float | None
    decisions: float | None
    labelled: int
    accuracy_checkpoint: float | None = None
    accuracy: float | None = None
    f1_macro_checkpoint: float | None = None
    f1_macro: float | None = None


def compare(run: Runner, predictor: Predictor, samples: ExportSamples, pixels: PixelType) -> Compared:
    """Runs file and checkpoint on the same pictures; the file for each photograph alone and for several at once.

    Args:
        run: The file.
        predictor: The checkpoint.
        samples: The photographs.
        pixels: Type of the file's input.
    """
    calibration = predictor.calibration
    logits, features = predictor.outputs(list(samples.judged))
    expected = softmax(logits, calibration.temperature if calibration else 1.0)
    images = as_input(samples.judged, pixels)
    asked = [_outputs(run, images, together) for together in (1, _TOGETHER)]
    difference = max(float(np.abs(found[1] - expected).max()) for found in asked)
    agrees = np.all([found[1].argmax(axis=1) == expected.argmax(axis=1) for found in asked], axis=0)
    gate, decisions = _decided(calibration, samples.judged, logits, features, asked) if calibration else (None, None)
    known = samples.labels >= 0
    scores: list[float] = []
    for values in (expected, asked[0][1]) if known.any() else ():
        names = predictor.network.card.class_names
        index = np.arange(int(known.sum()), dtype=np.int64)
        metrics = Evaluation("predict", index, samples.labels[known], values[known], names).metrics()
        scores += [metrics["accuracy"], metrics["f1_macro"]]
    return Compared(
        len(images),
        _finite(difference),
        float(agrees.mean()),
        gate,
        decisions,
        int(known.sum()),
        *(scores[place] for place in (0, 2, 1, 3) if scores),
    )


def as_input(pictures: Pixels, pixels: PixelType) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Turns pictures [N, S, S, C] into an input [N, C, S, S]."""
    images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    return images if pixels == "uint8" else np.asarray(images / 255, np.float32)


def _outputs(run: Runner, images: npt.NDArray[np.generic], together: int) -> list[Values]:
    found = [run(images[start : start + together]) for start in range(0, len(images), together)]
    return [np.concatenate(column).astype(np.float64) for column in zip(*found, strict=True)]


def _decided(
    calibration: Calibration, pictures: Pixels, logits: Values, features: Features, asked: list[list[Values]]
) -> tuple[float, float]:
    """Returns the largest difference between gate scores, and the share of photographs decided alike."""
    if any(len(found) != len(OUTPUTS) for found in asked):
        return float("inf"), 0.0  # the gate is missing
    level, differences, alike = calibration.photograph, [], []
    for row, (picture, own) in enumerate(zip(pictures, features, strict=True)):
        distances = calibration.gate.distances(appearance_of(picture), own)
        expected = calibration.decide(level, softmax(logits[row]), distances)
        score = expected.gate_score or 0.0
        for file_logits, _, gate_score, gate_distances in asked:
            found = calibration.decide(level, softmax(file_logits[row]), Distances(*gate_distances[row].tolist()))
            differences.append(abs(gate_score[row] - score) / max(1.0, score))
            alike.append((found.prediction_set, found.reasons) == (expected.prediction_set, expected.reasons))
    return _finite(float(np.max(differences))), float(np.mean(alike))


def _finite(difference: float) -> float:
    """Returns infinity for what is no number: a file that answers nonsense must not pass for a near one."""
    return difference if np.isfinite(difference) else float("inf")
