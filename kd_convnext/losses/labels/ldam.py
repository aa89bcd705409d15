"""Asks for larger margins from rarer classes, and weighs them later (LDAM-DRW)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.class_counts import CountedTerm, effective_weights
from kd_convnext.losses.labels.cross_entropy import soft_cross_entropy
from kd_convnext.losses.labels.targets import target_probabilities, weighted_mean_of_labelled
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, Widths, logits_of


class LDAM(CountedTerm):
    """Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019, Eq. 10 to 13).

    Cross-entropy of ``scale (z - m_y y)`` with margins ``m_k = margin (n_min / n_k)^(1/4)``; from ``reweight_from`` on
    classes are weighted by the inverse of their effective number, and the sum is divided by the weights' sum, as the
    authors' code does. The margins are in units of the logits: the authors normalise theirs to -1..1 and use scale 30;
    with the plain linear head of our networks 1 is meant. Labels as probabilities get the mixture of the margins.
    """

    needs = Needs.LOGITS
    class_weights: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        schedule: WeightSchedule | None = None,
        margin: float = 0.5,
        scale: float = 1.0,
        reweight_from: int | None = None,
        beta: float = 0.9999,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Sets margins and the epoch of re-weighting.

        Args:
            weight: Factor in the objective's sum.
            schedule: Factor on the weight in each epoch.
            margin: Of the rarest class, 0 or more.
            scale: Of the logits after the margin, above 0.
            reweight_from: First epoch with weights, from 0 (the authors: 160 of 200); None: never.
            beta: Of the effective number.
            class_counts: Training images of each class; by default the data's.

        Raises:
            ConfigError: A value that cannot work.
        """
        self.beta = beta
        super().__init__(weight, None, schedule, class_counts)
        if not (math.isfinite(margin) and margin >= 0 and math.isfinite(scale) and scale > 0):
            what = f"margin {margin} is negative or scale {scale} not above 0"
            raise ConfigError(Finding("LDAM", what, "Use 0.5 and 1."))
        self.margin, self.scale, self.reweight_from = margin, scale, reweight_from
        self.register_buffer("class_weights", torch.ones(0), persistent=False)
        if self.counts is not None:
            self.take_counts(class_counts or ())

    def take_counts(self, counts: Sequence[int]) -> None:
        """Takes counts; no class is weighted yet."""
        super().take_counts(counts)
        if "class_weights" in self._buffers:
            self.class_weights = torch.ones(len(counts))

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Checks the counts."""
        super().build(student, teacher)
        effective_weights(self.known_counts(), self.beta)  # refuses a wrong beta before training

    def begin_epoch(self, epoch: int) -> None:
        """Switches the weights on, in place: a compiled step reads the same memory."""
        if self.reweight_from is None:
            return
        on = epoch >= self.reweight_from
        counts = self.known_counts()
        assert self.present is not None
        present = self.present.cpu()
        wanted = effective_weights(counts.cpu(), self.beta, present) if on else torch.ones(len(counts))
        self.class_weights.copy_(wanted)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges the rows that have a label; see `Term.forward`."""
        logits = at_least_float32(logits_of(student))
        counts = self.known_counts().to(logits.dtype)
        assert self.present is not None
        rarest = counts.masked_fill(~self.present, math.inf).min()
        margins = self.margin * (rarest / counts.clamp_min(rarest)) ** 0.25
        targets = target_probabilities(labels, logits.shape[1], logits.dtype)
        weights = self.class_weights.to(logits.dtype)
        losses = soft_cross_entropy(self.scale * (logits - margins * targets), labels, weights=weights)
        return weighted_mean_of_labelled(losses, labels, weights)
