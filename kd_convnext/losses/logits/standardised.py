"""Standardises the logits of both sides before any other term compares them."""

from torch import Tensor

from kd_convnext.errors import Finding
from kd_convnext.losses.logits.soft_targets import SoftTargets
from kd_convnext.losses.logits.wrapped import WrappedTerm
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Outputs, Term, logits_of

_TINY = 1e-7


class LogitStandardised(WrappedTerm):
    """Logit standardisation (Sun et al., CVPR 2024, Eq. 12) around any term on logits.

    Each row becomes ``(z - mean(z)) / (std(z) + 1e-7)`` before the inner term, for student and teacher: only the
    relations of its logits are learned, not their shift and size. Cost: O(B K). Two classes are refused: there a row
    says nothing but which of its logits is the larger, and no gradient is left.
    """

    def __init__(
        self,
        inner: Term | None = None,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
    ) -> None:
        """Wraps a term.

        Args:
            inner: A term on logits; its own weight, teacher and schedule are not used. By default soft targets at T 2.
            weight: Factor in the objective's sum; the authors use 9 with soft targets at T 2.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.

        Raises:
            ConfigError: The inner term reads more than logits.
        """
        super().__init__(SoftTargets(temperature=2.0) if inner is None else inner, weight, teacher, schedule)

    def start_findings(self, classes: int) -> list[Finding]:
        """Lists that there are fewer than three classes, and what the inner term finds."""
        found = super().start_findings(classes)
        if classes < 3:
            what = f"standardised logits of {classes} classes have no gradient: nothing would be learned"
            found.append(Finding("LogitStandardised", what, "Use the term in it alone, such as SoftTargets."))
        return found

    def taught(self, teacher: Outputs | None) -> Tensor:
        """Returns the teacher's logits, standardised."""
        return standardised(logits_of(teacher))

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares standardised logits; see `Term.forward`."""
        return self.compared(standardised(logits_of(student)), self.taught(teacher), labels)


def standardised(logits: Tensor) -> Tensor:
    """Gives each row mean 0 and standard deviation 1.

    Args:
        logits: [B, K].

    Returns:
        [B, K], in at least float32.
    """
    logits = at_least_float32(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    # The root of a variance of 0 has no gradient; the authors' code takes the sample's deviation, so do we.
    variance = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    return centred / (variance.clamp_min(_TINY**2).sqrt() + _TINY)
