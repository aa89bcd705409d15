"""Judges labels by the cross-entropy: plain, smoothed, weighted, or adjusted to the classes' prior."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.class_counts import CountedTerm
from kd_convnext.losses.labels.targets import (
    mean_of_labelled,
    target_probabilities,
    warn_unweighted,
    weighted_mean_of_labelled,
)
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, Term, logits_of


def soft_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Computes the cross-entropy of each row, ``-sum_k w_k q_k log p_k``.

    Args:
        logits: [B, K], in at least float32.
        labels: int64 [B] or probabilities [B, K].
        smoothing: Share of the label's probability that is spread over all classes.
        weights: One weight a class, [K].

    Returns:
        [B]; of a row without a label, any finite number.
    """
    targets = target_probabilities(labels, logits.shape[1], logits.dtype, smoothing)
    losses = -targets * logits.log_softmax(dim=1)
    return (losses if weights is None else losses * weights.to(logits.dtype)).sum(dim=1)


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of the labelled rows, weighted by class where weights are given: ``-sum w q log p / sum w q``.

    As ``torch.nn.CrossEntropyLoss`` for class numbers; of probabilities, as mixup gives, torch divides by the number of
    rows alone, and knows no row without a label.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        """Sets the weights.

        Args:
            class_weights: One weight >= 0 a class; None weighs all alike.
        """
        super().__init__()
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        # Not persistent: the weights come from the hyperparameters.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Judges logits by their labels.

        Args:
            logits: [B, K].
            labels: int64 [B] with -1 for rows without a label, or probabilities [B, K] with a row of -1.

        Returns:
            The loss in nats, a scalar; 0 where no row has a label.
        """
        losses = soft_cross_entropy(at_least_float32(logits), labels, weights=self.class_weights)
        if self.class_weights is None:
            return mean_of_labelled(losses, labels)
        return weighted_mean_of_labelled(losses, labels, self.class_weights)


class CrossEntropy(Term):
    """Cross-entropy with smoothed labels (Szegedy et al., 2016): ``-sum_k w_k q_k log p_k``.

    ``q = (1 - s) y + s / K``; weights by inverse frequency by choice, the mean not divided by their sum. Cost: O(B K).
    """

    needs = Needs.LOGITS
    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        schedule: WeightSchedule | None = None,
        smoothing: float = 0.0,
        weighted: bool = False,
    ) -> None:
        """Sets the smoothing.

        Args:
            weight: Factor in the objective's sum.
            schedule: Factor on the weight in each epoch.
            smoothing: s in 0..1; 0 does not smooth.
            weighted: Weigh classes by the inverse of their frequency in the training part.

        Raises:
            ConfigError: The smoothing is outside 0..1.
        """
        super().__init__(weight, None, schedule)
        if not 0 <= smoothing < 1:
            raise ConfigError(Finding("CrossEntropy", f"smoothing {smoothing} is outside 0..1", "Use for example 0.1."))
        self.smoothing, self.weighted = smoothing, weighted
        self.register_buffer("class_weights", None, persistent=False)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Takes the weights of the training part, where they are wanted."""
        if self.weighted:
            self.class_weights = torch.tensor(list(weights))

    def start_findings(self, classes: int) -> list[Finding]:
        """Warns where weights are wanted and none are known."""
        if self.weighted and self.class_weights is None:
            warn_unweighted("CrossEntropy")
        return []

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges the rows that have a label; see `Term.forward`."""
        logits = at_least_float32(logits_of(student))
        return mean_of_labelled(soft_cross_entropy(logits, labels, self.smoothing, self.class_weights), labels)


class BalancedSoftmax(CountedTerm):
    """Balanced softmax (Ren et al., NeurIPS 2020, Eq. 4), or logit-adjusted loss (Menon et al., ICLR 2021, Eq. 10).

    Cross-entropy of ``z + tau log(prior)`` with the classes' shares of the training part: the network learns what the
    classes would look like were they equally frequent. Cost: O(B K).
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        schedule: WeightSchedule | None = None,
        tau: float = 1.0,
        smoothing: float = 0.0,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Sets the adjustment.

        Args:
            weight: Factor in the objective's sum.
            schedule: Factor on the weight in each epoch.
            tau: How much of the prior is added, 0 or more: 1, the balanced softmax, for ``natural`` sampling, 0.5 for
                ``square_root``, which has taken half of it away already.
            smoothing: Of the labels, 0..1.
            class_counts: Training images of each class; by default the data's.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, None, schedule, class_counts)
        if not (math.isfinite(tau) and tau >= 0 and 0 <= smoothing < 1):
            what = f"tau {tau} is negative or smoothing {smoothing} outside 0..1"
            raise ConfigError(Finding("BalancedSoftmax", what, "Use 1 and 0."))
        self.tau, self.smoothing = tau, smoothing

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges the rows that have a label; see `Term.forward`."""
        logits = at_least_float32(logits_of(student))
        adjusted = logits + self.tau * self.log_prior(logits.dtype)
        return mean_of_labelled(soft_cross_entropy(adjusted, labels, self.smoothing), labels)
