"""Collects a model's predictions once per image, and evaluates them per image and per lesion."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat

from kd_convnext.evaluation.metrics import METRIC_NAMES, classification_metrics

UNKNOWN = -1
"""The label of an image (or lesion) without one; such rows count in no metric."""

EvaluatedPart = Literal["train", "val", "test", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """Labels and probabilities of one part.

    Attributes:
        part: Where the images come from.
        index: int64 [N], rows of the manifest, ascending, each once.
        labels: int64 [N], positions in ``class_names``; -1 where unknown.
        probabilities: float64 [N, K], rows sum to 1.
        class_names: K names in the order of the model's outputs.
    """

    part: EvaluatedPart
    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that the arrays have the same length.

        Raises:
            ValueError: Lengths, the number of classes, or the order of ``index`` do not fit.
        """
        count = len(self.index)
        expected = (count, len(self.class_names))
        if self.labels.shape != (count,) or self.probabilities.shape != expected:
            raise ValueError(
                f"labels {self.labels.shape} and probabilities {self.probabilities.shape} "
                f"do not fit {count} images of {len(self.class_names)} classes"
            )
        if np.any(np.diff(self.index) <= 0):
            raise ValueError("index must ascend, each row once")

    def __len__(self) -> int:
        """Returns N."""
        return len(self.index)

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """int64 [N], the most probable class of each image."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def confusion_matrix(self) -> npt.NDArray[np.int64]:
        """Counts labelled images.

        Returns:
            int64 [K, K]: rows are true classes, columns predicted ones.
        """
        known = self.labels != UNKNOWN
        count = len(self.class_names)
        if not known.any():
            return np.zeros((count, count), dtype=np.int64)
        counts = confusion_matrix(self.labels[known], self.predictions[known], labels=range(count))
        return np.asarray(counts, dtype=np.int64)

    def metrics(self, *, per_class: bool = True) -> dict[str, float]:
        """Judges the labelled images.

        Args:
            per_class: Judge every class too.

        Returns:
            The names of :data:`kd_convnext.evaluation.metrics.METRIC_NAMES`, then ``precision/<class>``,
            ``recall/<class>``, ``f1/<class>`` and ``support/<class>`` (labelled images) of every class. Empty
            without a labelled image.
        """
        known = self.labels != UNKNOWN
        if not known.any():
            return {}
        # Its counts outlive a test, under whose inference mode they could be changed nowhere else.
        with torch.inference_mode(False):
            collection = _counting(len(self.class_names))
            try:
                collection.update(torch.from_numpy(self.probabilities[known]), torch.from_numpy(self.labels[known]))
                values = collection.compute()
            finally:
                collection.reset()
        found = {name: float(values[name]) for name in METRIC_NAMES}
        if not per_class:
            return found
        by_class = precision_recall_fscore_support(
            self.labels[known],
            self.predictions[known],
            labels=range(len(self.class_names)),
            zero_division=0,
        )
        for name, scores in zip(("precision", "recall", "f1", "support"), by_class, strict=True):
            found |= {f"{name}/{label}": float(value) for label, value in zip(self.class_names, scores, strict=True)}
        return found

    def by_group(self, groups: npt.NDArray[np.str_]) -> "Evaluation":
        """Merges the images of each lesion (or patient) by the mean of their probabilities.

        Args:
            groups: [N] names aligned with ``index``: ``manifest.groups("lesion")[evaluation.index]``.

        Returns:
            One row per group with the group's first index. A group whose images carry different labels has no
            one right answer: its label is -1 and it counts in no metric.

        Raises:
            ValueError: ``groups`` has another length.
        """
        if len(groups) != len(self):
            raise ValueError(f"{len(groups)} group names for {len(self)} images")
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        sizes = np.bincount(member, minlength=len(first))
        sums = np.zeros((len(first), len(self.class_names)))
        np.add.at(sums, member, self.probabilities)
        labels = self.labels[first].copy()
        labels[member[self.labels != labels[member]]] = UNKNOWN
        order = np.argsort(first)
        return Evaluation(
            part=self.part,
            index=self.index[first][order],
            labels=labels[order],
            probabilities=(sums / sizes[:, None])[order],
            class_names=self.class_names,
        )


@cache
def _counting(num_classes: int) -> MetricCollection:
    # Building it takes as long as using it.
    return classification_metrics(num_classes, prefix="", merge_processes=False)


class PredictionStore(Metric):
    """Collects the answers of all batches and processes; an image that a sampler repeated counts once."""

    full_state_update = False
    index: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    probabilities: list[Tensor] | Tensor

    def __init__(self, num_classes: int) -> None:
        """Starts empty.

        Args:
            num_classes: Classes of the model, K.
        """
        super().__init__()
        self.num_classes = num_classes
        for name in ("index", "labels", "probabilities"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        """Adds a batch.

        Args:
            index: int64 [B], rows of the manifest.
            labels: int64 [B], positions 0..K-1, or -1 where unknown.
            probabilities: float [B, K].
        """
        for state, values in (
            (self.index, index.long()),
            (self.labels, labels.long()),
            (self.probabilities, probabilities.detach().float()),
        ):
            assert isinstance(state, list)
            state.append(values)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sorts by index and drops repeats.

        Returns:
            index int64 [N], labels int64 [N], probabilities float32 [N, K].

        Raises:
            ValueError: Nothing was collected.
        """
        index, order = torch.sort(dim_zero_cat(self.index), stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        kept = order[first]
        return index[first], dim_zero_cat(self.labels)[kept], dim_zero_cat(self.probabilities)[kept]

    def evaluation(self, part: EvaluatedPart, class_names: Sequence[str]) -> Evaluation:
        """Returns the collected predictions of all processes.

        Args:
            part: Where the images come from.
            class_names: K names in the order of the model's outputs.
        """
        if not self.index:
            # A process without a batch must still join the others with tensors of the right type and shape.
            nothing = torch.empty(0, dtype=torch.int64, device=self.device)
            self.update(nothing, nothing, nothing.new_empty(0, self.num_classes))
        index, labels, probabilities = self.compute()
        # torchmetrics turns results of one element into scalars.
        return Evaluation(
            part=part,
            index=index.reshape(-1).cpu().numpy(),
            labels=labels.reshape(-1).cpu().numpy(),
            probabilities=probabilities.reshape(-1, self.num_classes).double().cpu().numpy(),
            class_names=tuple(class_names),
        )
