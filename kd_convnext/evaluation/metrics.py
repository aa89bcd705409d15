"""Computes the metrics of training, validation and test, under the same names everywhere."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.utilities.data import dim_zero_cat

CALIBRATION_BINS = 15
METRIC_NAMES = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper", "auroc_macro", "ece")
"""Names without prefix, in the order in which tables show them; all lie in 0..1."""

# torchmetrics' own macro averages leave out classes that occur neither as label nor as prediction. The paper,
# and scikit-learn with `labels=` and `zero_division=0`, count such a class as 0: hence the mean over
# average="none".


class _MacroPrecision(MulticlassPrecision):
    """Mean of the precision of every class of the model; 0 for a class that was never predicted."""

    def compute(self) -> Tensor:
        """Returns a scalar in 0..1."""
        return super().compute().mean()


class _MacroRecall(MulticlassRecall):
    """Mean of the recall of every class of the model; 0 for a class without a labelled image."""

    def compute(self) -> Tensor:
        """Returns a scalar in 0..1."""
        return super().compute().mean()


class _MacroF1(MulticlassF1Score):
    """Mean of the F1 of every class of the model; 0 for a class without a right prediction."""

    def compute(self) -> Tensor:
        """Returns a scalar in 0..1."""
        return super().compute().mean()


class _PaperF1(MulticlassF1Score):
    """Harmonic mean of macro precision and macro recall.

    All five F1 values of the paper's Table 2 are this one, although its text defines F1 per class.
    """

    def compute(self) -> Tensor:
        """Returns a scalar in 0..1."""
        right, wrong, _, missed = self._final_state()
        precision = _ratio(right, right + wrong).mean()
        recall = _ratio(right, right + missed).mean()
        return _ratio(2 * precision * recall, precision + recall)


class _MacroAUROC(MulticlassAUROC):
    """Mean over the classes of the area under the one-against-rest ROC curve.

    Only classes that occur, and are not the only one to occur, have such a curve; where none has, NaN.
    (torchmetrics counts an absent class as 0 and warns at each epoch.)
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """Returns a scalar in 0..1, or NaN."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
            areas = super().compute()
        labels = dim_zero_cat(self.target)
        counts = torch.bincount(labels, minlength=self.num_classes)
        return areas[(counts > 0) & (counts < labels.numel())].mean()


def classification_metrics(num_classes: int, prefix: str = "val/", *, merge_processes: bool = True) -> MetricCollection:
    """Builds the metrics of one part.

    Update with probabilities [N, K] and labels int64 [N] (positions 0..K-1). Under distributed training the
    states of all processes are merged on ``compute``.

    Args:
        num_classes: Classes of the model, K >= 2.
        prefix: Put before every name: ``train/``, ``val/``, ``test/`` or nothing.
        merge_processes: Whether ``compute`` merges the states of all processes; then all must call it.

    Returns:
        A collection whose ``compute`` gives the names of :data:`METRIC_NAMES` behind the prefix: ``accuracy``
        (share of right answers), ``precision_macro``, ``recall_macro`` and ``f1_macro`` (means over all K
        classes, absent ones count 0), ``f1_paper`` (harmonic mean of the two macros), ``auroc_macro`` (one
        against rest) and ``ece`` (expected calibration error, 15 bins of equal width, L1).
    """
    options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False, "sync_on_compute": merge_processes}
    per_class = ["precision_macro", "recall_macro", "f1_macro", "f1_paper"]
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(average="micro", **options),
            "precision_macro": _MacroPrecision(average="none", **options),
            "recall_macro": _MacroRecall(average="none", **options),
            "f1_macro": _MacroF1(average="none", **options),
            "f1_paper": _PaperF1(average="none", **options),
            "auroc_macro": _MacroAUROC(average="none", **options),
            "ece": MulticlassCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", **options),
        },
        prefix=prefix,
        # The four share one set of counts; naming the group spares torchmetrics a comparison of all states.
        compute_groups=[["accuracy"], per_class, ["auroc_macro"], ["ece"]],
    )


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    whole = whole.float()
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
