"""What an exported file answers, beside what its checkpoint answers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_convnext.evaluation import Evaluation
from kd_convnext.inference.deployed import PixelType
from kd_convnext.inference.export_formats import Runner
from kd_convnext.inference.export_samples import Samples
from kd_convnext.inference.prediction import Pixels, Values
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.temperature import softmax

_TOGETHER = 3  # another size than the 2 a graph is traced with


@dataclass(frozen=True)
class Compared:
    """How near the answers are.

    Attributes:
        photographs: How many were compared.
        largest_difference: Between two probabilities of a class.
        agreement: Share of photographs with the same most probable class, in 0..1.
        labelled: How many of them have a label and were not seen in training; the next four are None without any.
        accuracy_checkpoint: The checkpoint's on those, in 0..1.
        accuracy: The file's.
        f1_macro_checkpoint: The checkpoint's.
        f1_macro: The file's.
    """

    photographs: int
    largest_difference: float
    agreement: float
    labelled: int
    accuracy_checkpoint: float | None = None
    accuracy: float | None = None
    f1_macro_checkpoint: float | None = None
    f1_macro: float | None = None


def compare(run: Runner, predictor: Predictor, samples: Samples, pixels: PixelType) -> Compared:
    """Asks file and checkpoint the same; the file for each photograph alone and for several at once.

    Args:
        run: The file.
        predictor: The checkpoint.
        samples: The photographs.
        pixels: Type of the file's input.
    """
    temperature = predictor.calibration.temperature if predictor.calibration else 1.0
    expected = softmax(predictor.outputs(list(samples.judged))[0], temperature)
    images = as_input(samples.judged, pixels)
    alone = _probabilities(run, images, 1)
    together = _probabilities(run, images, _TOGETHER)
    difference = max(float(np.abs(found - expected).max()) for found in (alone, together))
    agrees = (alone.argmax(axis=1) == expected.argmax(axis=1)) & (together.argmax(axis=1) == expected.argmax(axis=1))
    known = samples.labels >= 0
    scores: list[float] = []
    for values in (expected, alone) if known.any() else ():
        names = predictor.network.card.class_names
        index = np.arange(int(known.sum()), dtype=np.int64)
        metrics = Evaluation("predict", index, samples.labels[known], values[known], names).metrics()
        scores += [metrics["accuracy"], metrics["f1_macro"]]
    return Compared(
        len(images),
        # A file that answers nonsense must not pass for a near one.
        difference if np.isfinite(difference) else float("inf"),
        float(agrees.mean()),
        int(known.sum()),
        *(scores[place] for place in (0, 2, 1, 3) if scores),
    )


def as_input(pictures: Pixels, pixels: PixelType) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Turns pictures [N, S, S, C] into an input [N, C, S, S]."""
    images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    return images if pixels == "uint8" else np.asarray(images / 255, np.float32)


def _probabilities(run: Runner, images: npt.NDArray[np.generic], together: int) -> Values:
    found = [run(images[start : start + together])[1] for start in range(0, len(images), together)]
    return np.concatenate(found).astype(np.float64)
