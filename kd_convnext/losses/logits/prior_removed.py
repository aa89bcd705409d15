"""Removes the teacher's class prior from its logits before any other term compares them."""

import math
from collections.abc import Sequence

from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.class_counts import CountedTerm
from kd_convnext.losses.logits.soft_targets import SoftTargets
from kd_convnext.losses.logits.wrapped import check_inner
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, logits_of


class PriorRemoved(CountedTerm):
    """The teacher's logits adjusted after the fact (Menon et al., ICLR 2021, Eq. 9), around any term on logits.

    ``z_t - tau log(prior)`` with the shares of the classes in the training part: a teacher that was trained on few
    images of a class does not hand its reluctance down. Cost: O(B K).

    For teachers that learned the prior: on plain labels (``loss: cross_entropy``), drawn as they are (``natural``).
    Teachers that weigh classes by inverse frequency (``focal``, ``weighted_cross_entropy``), linear ones and those of
    balanced sampling have no prior left; here it would be taken out a second time, and rare classes would be favoured.
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        inner: Term | None = None,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        tau: float = 1.0,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Wraps a term.

        Args:
            inner: A term on logits; its own weight, teacher and schedule are not used. By default soft targets at T 4.
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            tau: How much of the prior is removed: 0 nothing, 1 all of it.
            class_counts: Training images of each class of the teacher; by default the data's.

        Raises:
            ConfigError: The inner term reads more than logits, or tau is negative.
        """
        super().__init__(weight, teacher, schedule, class_counts)
        if not (math.isfinite(tau) and tau >= 0):
            raise ConfigError(Finding("PriorRemoved", f"tau {tau} is not 0 or more", "Use 1."))
        self.tau = tau
        self.inner = check_inner(SoftTargets() if inner is None else inner, type(self).__name__)

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Checks the counts, and builds the inner term."""
        super().build(student, teacher)
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
        """Takes the counts, and tells the inner term."""
        super().count_classes(counts)
        self.inner.count_classes(counts)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the student's logits with the teacher's adjusted ones; see `Term.forward`."""
        loss: Tensor = self.inner(student, self._adjusted(teacher), labels)
        return loss

    def entropy(self, teacher: Outputs | None) -> Tensor | None:
        """Returns the inner term's entropy of the adjusted logits; see `Term.entropy`."""
        return self.inner.entropy(self._adjusted(teacher))

    def _adjusted(self, teacher: Outputs | None) -> Outputs:
        other = at_least_float32(logits_of(teacher))
        return Outputs(logits=other - self.tau * self.log_prior(other.dtype))
