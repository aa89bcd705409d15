"""Compares the order of classes and of images instead of exact probabilities (DIST)."""

import math

from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, logits_of

_TINY = 1e-8


class Correlation(Term):
    """Relations between and within classes (DIST; Huang et al., NeurIPS 2022, Eq. 8 to 10).

    ``inter mean_i (1 - r(p_s[i], p_t[i])) + intra mean_k (1 - r(p_s[:, k], p_t[:, k]))`` with Pearson's correlation r
    of the softened probabilities [B, K], times T²: a student need not match a stronger teacher's confidence. Cost:
    O(B K). With two classes ``inter`` has no gradient, as the correlation of two pairs is 1 or -1: ``intra`` learns
    alone.
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        """Sets the two weights.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            inter: Weight of the relation between the classes of an image (the authors' beta).
            intra: Weight of the relation between the images of a class (the authors' gamma).
            temperature: T > 0.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, teacher, schedule)
        numbers = (inter, intra, temperature)
        if not (all(math.isfinite(number) and number >= 0 for number in numbers) and temperature > 0):
            what = f"inter, intra and temperature {numbers} must be 0 or more, the last above 0"
            raise ConfigError(Finding("Correlation", what, "The authors use 1, 1 and 1 (ImageNet)."))
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the logits of all rows, labelled or not; see `Term.forward`."""
        own = (at_least_float32(logits_of(student)) / self.temperature).softmax(dim=1)
        other = (at_least_float32(logits_of(teacher)) / self.temperature).softmax(dim=1)
        inter = 1 - _pearson(own, other, dim=1).mean()
        intra = 1 - _pearson(own, other, dim=0).mean()
        return (self.inter * inter + self.intra * intra) * self.temperature**2


def _pearson(one: Tensor, other: Tensor, dim: int) -> Tensor:
    one, other = one - one.mean(dim, keepdim=True), other - other.mean(dim, keepdim=True)
    # Not sqrt(a) * sqrt(b): where a side is constant the root's gradient would be infinite.
    squares = one.square().sum(dim) * other.square().sum(dim)
    return (one * other).sum(dim) / squares.clamp_min(_TINY**2).sqrt()
