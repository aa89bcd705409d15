"""Leaves out the rows of which a teacher is unsure, before any other term compares the logits."""

from typing import Literal

import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.targets import labelled_rows
from kd_convnext.losses.logits.soft_targets import SoftTargets
from kd_convnext.losses.logits.wrapped import WrappedTerm
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Outputs, Term, logits_of


class Confident(WrappedTerm):
    """A threshold on the teacher's confidence (after FixMatch; Sohn et al., NeurIPS 2020), around any term on logits.

    A row counts where the teacher's largest probability reaches the threshold. Elsewhere the teacher's logits stand
    for the student's: the student's row has no gradient, and adds 0 to the mean over all rows where the inner term is a
    divergence of rows (`SoftTargets`, `Decoupled`). Others still see it, as a constant: `Correlation` among the images
    of a class, `Balanced` in the batch's mean and by what its calibration moved. Of photographs without labels the rows
    that are left out are those that show none of the classes. Cost: O(B K).
    """

    def __init__(
        self,
        inner: Term | None = None,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        threshold: float = 0.5,
        rows: Literal["unlabelled", "all"] = "unlabelled",
    ) -> None:
        """Wraps a term.

        Args:
            inner: A term on logits; its own weight, teacher and schedule are not used. By default soft targets at T 2.
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            threshold: Least probability of the teacher's first class, 0..1; 0 leaves nothing out.
            rows: Which rows may be left out: those without a label, or all.

        Raises:
            ConfigError: The inner term reads more than logits, or the threshold is outside 0..1.
        """
        super().__init__(SoftTargets(temperature=2.0) if inner is None else inner, weight, teacher, schedule)
        if not 0 <= threshold <= 1:
            raise ConfigError(Finding("Confident", f"threshold {threshold} is outside 0..1", "Use for example 0.5."))
        self.threshold, self.rows = threshold, rows

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the rows that count; see `Term.forward`."""
        own, other = at_least_float32(logits_of(student)), self.taught(teacher)
        counts = other.softmax(dim=1).amax(dim=1) >= self.threshold
        if self.rows == "unlabelled":
            counts = counts | labelled_rows(labels)
        return self.compared(torch.where(counts[:, None], own, other), other, labels)
