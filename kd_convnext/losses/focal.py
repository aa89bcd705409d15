"""Computes the focal loss of labelled images (Eq. 4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.term import at_least_float32


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
            labels: int64 [B], positions 0..K-1.

        Returns:
            The loss in nats, mean over the batch, a scalar.

        Raises:
            ValueError: The number of class weights is not K.
        """
        log_probabilities = torch.log_softmax(at_least_float32(logits), dim=1)
        log_p = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        # 1 - p without cancellation near p = 1; the floor keeps the gradient finite there for gamma below 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(rest**self.gamma) * log_p
        if self.class_weights is not None:
            if self.class_weights.numel() != logits.shape[1]:
                raise ValueError(f"{self.class_weights.numel()} class weights for {logits.shape[1]} classes")
            loss = loss * self.class_weights.to(loss.dtype)[labels]
        return loss.mean()

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"gamma={self.gamma}, class_weights={self.class_weights}"
