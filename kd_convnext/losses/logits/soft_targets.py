"""Computes the cross-entropy of softened probabilities to the teacher's (Eq. 2 and 3)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, logits_of


class SoftTargetLoss(nn.Module):
    """Cross-entropy of the student's softened probabilities to the teacher's (Eq. 2 and 3).

    The paper's Eq. 3 has no T²; Hinton et al. (2015) multiply by it so that the gradient keeps its size when
    T changes. Eq. 2 calls z the output of the softmax layer; softening needs logits, and logits are used.
    """

    def __init__(self, temperature: float = 4.0, scale_by_t2: bool = True) -> None:
        """Sets the softness.

        Args:
            temperature: T > 0 of Eq. 2 (never printed in the paper).
            scale_by_t2: Multiply by T²; ``False`` is Eq. 3 to the letter.

        Raises:
            ConfigError: The temperature is not a positive number.
        """
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(Finding("temperature", f"{temperature} is not a positive number", "Use for example 4."))
        self.temperature = float(temperature)
        self.scale_by_t2 = scale_by_t2

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compares two sets of logits.

        Args:
            student_logits: [B, K].
            teacher_logits: [B, K].

        Returns:
            The loss in nats (times T² by default), mean over the batch, a scalar.
        """
        targets = torch.softmax(at_least_float32(teacher_logits) / self.temperature, dim=1)
        loss = F.cross_entropy(at_least_float32(student_logits) / self.temperature, targets)
        return loss * self.temperature**2 if self.scale_by_t2 else loss

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}"


class SoftTargets(Term):
    """Soft targets of Hinton et al. (2015): the teacher's softened probabilities (Eq. 2 and 3).

    ``value: kl`` is ``T² KL(softmax(z_t / T) || softmax(z_s / T))``, 0 where the student equals the teacher;
    ``cross_entropy`` adds the teacher's entropy (Eq. 3 of the paper) and has the same gradient. Cost: O(B K).
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        value: Literal["kl", "cross_entropy"] = "kl",
    ) -> None:
        """Sets the softness.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            temperature: T > 0.
            scale_by_t2: Multiply by T², so that the gradient keeps its size when T changes.
            value: What is logged; the gradient is the same.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, teacher, schedule)
        self.value = value
        self.loss = SoftTargetLoss(temperature, scale_by_t2)

    def entropy(self, teacher: Outputs | None) -> Tensor | None:
        """Returns the teacher's entropy, as scaled in the value, where ``value`` is ``cross_entropy``."""
        if self.value == "kl":
            return None
        other = logits_of(teacher)
        found: Tensor = self.loss(other, other)
        return found

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the logits of all rows, labelled or not; see `Term.forward`."""
        own, other = logits_of(student), logits_of(teacher)
        loss: Tensor = self.loss(own, other)
        return loss if self.value == "cross_entropy" else loss - self.loss(other, other)
