"""Computes the focal loss of labelled images (Eq. 4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.targets import mean_of_labelled, target_probabilities, warn_unweighted
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, Term, logits_of


class FocalLoss(nn.Module):
    """Focal loss on the labelled class (Eq. 4; Lin et al., 2017).

    Read literally, Eq. 4 sums over all classes and never uses the label; its minimum is the uniform
    prediction. This is the loss it stands for: ``-alpha_y (1 - p_y)^gamma log p_y``, mean over the batch.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0) -> None:
        """Sets the weights.

        Args:
            class_weights: One weight >= 0 per class (alpha_t of Eq. 4, see :func:`inverse_frequency`);
                ``None`` weighs all alike.
            gamma: Focus >= 0; 0 is the (weighted) cross-entropy, not divided by the weights' sum.

        Raises:
            ConfigError: A weight or gamma is negative or not finite.
        """
        super().__init__()
        numbers = [float(gamma), *(float(weight) for weight in class_weights or ())]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ConfigError(
                Finding(
                    "focal loss",
                    f"a number of [gamma, *class_weights] = {numbers} is negative or not finite",
                    "All must be 0 or more.",
                )
            )
        self.gamma = float(gamma)
        weights = None if class_weights is None else torch.tensor(numbers[1:])
        # Not persistent: the weights come from the hyperparameters, and a student's checkpoint stays a
        # student's.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Judges logits by their labels.

        Args:
            logits: [B, K].
            labels: int64 [B], positions 0..K-1, -1 for a row without a label; or probabilities [B, K], as mixup gives:
                then each class's loss counts by its probability.

        Returns:
            The loss in nats, mean over the labelled rows, a scalar; 0 where there are none.

        Raises:
            ValueError: The number of class weights is not K.
        """
        if self.class_weights is not None and self.class_weights.numel() != logits.shape[1]:
            raise ValueError(f"{self.class_weights.numel()} class weights for {logits.shape[1]} classes")
        log_probabilities = torch.log_softmax(at_least_float32(logits), dim=1)
        if labels.ndim == 1:
            known = labels.clamp_min(0)
            loss = self._of_classes(log_probabilities.gather(1, known.unsqueeze(1))).squeeze(1)
            if self.class_weights is not None:
                loss = loss * self.class_weights.to(loss.dtype)[known]
        else:
            losses = self._of_classes(log_probabilities)
            if self.class_weights is not None:
                losses = losses * self.class_weights.to(losses.dtype)
            loss = (losses * target_probabilities(labels, logits.shape[1], losses.dtype)).sum(dim=1)
        return mean_of_labelled(loss, labels)

    def _of_classes(self, log_p: Tensor) -> Tensor:
        # 1 - p without cancellation near p = 1; the floor keeps the gradient finite there for gamma below 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(rest**self.gamma) * log_p

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"gamma={self.gamma}, class_weights={self.class_weights}"


class Focal(Term):
    """Focal loss of Lin et al. (2017) on the labels, weighted by class (Eq. 4): ``-alpha_y (1 - p_y)^gamma log p_y``.

    The weights come from the training part, or from ``class_weights``. Cost: O(B K).
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        schedule: WeightSchedule | None = None,
        gamma: float = 2.0,
        weighted: bool = True,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """Sets the focus.

        Args:
            weight: Factor in the objective's sum.
            schedule: Factor on the weight in each epoch.
            gamma: Focus >= 0; 0 is the (weighted) cross-entropy.
            weighted: Take the inverse frequencies of the training part as weights.
            class_weights: Weights >= 0 in their place, one a class.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, None, schedule)
        self.weighted = weighted and class_weights is None
        self.loss = FocalLoss(class_weights, gamma)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Takes the weights of the training part."""
        if self.weighted:
            self.loss = FocalLoss(weights, self.loss.gamma)

    def start_findings(self, classes: int) -> list[Finding]:
        """Warns where weights are wanted and none are known."""
        if self.weighted and self.loss.class_weights is None:
            warn_unweighted("Focal")
        return []

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges the rows that have a label; see `Term.forward`."""
        loss: Tensor = self.loss(logits_of(student), labels)
        return loss
