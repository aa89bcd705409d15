"""Holds what terms around other terms on logits share."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.described import built
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, Term, Widths, logits_of


class WrappedTerm(Term):
    """A term that changes logits and hands them to an inner term."""

    needs = Needs.LOGITS

    def __init__(self, inner: Term, weight: float, teacher: str | None, schedule: WeightSchedule | None) -> None:
        """Takes the inner term.

        Args:
            inner: A term on logits; its own weight, teacher and schedule are not used.
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.

        Raises:
            ConfigError: The inner term reads more than logits.
        """
        super().__init__(weight, teacher, schedule)
        self.inner = check_inner(inner, type(self).__name__)

    def taught(self, teacher: Outputs | None) -> Tensor:
        """Returns the teacher's logits [B, K] that the inner term sees; subclasses that change them do so here."""
        return at_least_float32(logits_of(teacher))

    def entropy(self, teacher: Outputs | None) -> Tensor | None:
        """Returns the inner term's entropy of the logits that it sees; see `Term.entropy`."""
        return self.inner.entropy(Outputs(logits=self.taught(teacher)))

    def compared(self, own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        """Runs the inner term.

        Args:
            own: The student's logits [B, K].
            other: The teacher's logits [B, K].
            labels: As of `Term.forward`.
        """
        return cast(Tensor, self.inner(Outputs(logits=own), Outputs(logits=other), labels))

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Builds the inner term."""
        self.inner.build(student, teacher)

    def start_findings(self, classes: int) -> list[Finding]:
        """Asks the inner term; see `Term.start_findings`."""
        return self.inner.start_findings(classes)

    def begin_epoch(self, epoch: int) -> None:
        """Passes it on to the inner term."""
        self.inner.begin_epoch(epoch)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Passes it on to the inner term."""
        self.inner.weigh_classes(weights)

    def count_classes(self, counts: Sequence[int]) -> None:
        """Passes it on to the inner term."""
        self.inner.count_classes(counts)


def check_inner(inner: Term, who: str) -> Term:
    """Refuses an inner term that reads more than logits.

    Raises:
        ConfigError: It does.
    """
    inner = built(inner, Term)
    if inner.needs != Needs.LOGITS or inner.student_needs not in (None, Needs.LOGITS):
        what = f"{type(inner).__name__} reads more than logits"
        raise ConfigError(Finding(who, what, "Wrap a term on logits, such as SoftTargets or Decoupled."))
    return inner
