"""Weighs classes by the inverse of their effective number of images."""

from collections.abc import Sequence

from torch import Tensor

from kd_convnext.losses.class_counts import CountedTerm, effective_weights
from kd_convnext.losses.labels.focal import FocalLoss
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, logits_of


class ClassBalanced(CountedTerm):
    """Class-balanced loss (Cui et al., CVPR 2019, Eq. 6): weights ``(1 - beta) / (1 - beta^n)``.

    The weights of the classes that occur have mean 1, others 0. The default ``gamma: 0`` weighs the cross-entropy;
    above 0 the focal loss. Cost: O(B K).
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        schedule: WeightSchedule | None = None,
        beta: float = 0.999,
        gamma: float = 0.0,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Sets how fast further images of a class lose value.

        Args:
            weight: Factor in the objective's sum.
            schedule: Factor on the weight in each epoch.
            beta: In 0..1, 1 excluded: (N - 1) / N for N distinct images a class.
            gamma: Focus >= 0 of the focal loss.
            class_counts: Training images of each class; by default the data's.

        Raises:
            ConfigError: A value that cannot work.
        """
        self.beta = beta
        super().__init__(weight, None, schedule, class_counts)
        self.loss = FocalLoss(self._weights(), gamma)

    def _weights(self) -> list[float] | None:
        return None if self.counts is None else effective_weights(self.counts, self.beta, self.present).tolist()

    def take_counts(self, counts: Sequence[int]) -> None:
        """Takes counts, and weighs the classes by them."""
        super().take_counts(counts)
        if "loss" in self._modules:
            self.loss = FocalLoss(self._weights(), self.loss.gamma)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges the rows that have a label; see `Term.forward`."""
        self.known_counts()
        loss: Tensor = self.loss(logits_of(student), labels)
        return loss
