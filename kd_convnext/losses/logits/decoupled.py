"""Compares the labelled class against the rest, and the rest among themselves (DKD)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.targets import labelled_rows
from kd_convnext.losses.logits.divergence import batch_kl, masked_log_softmax
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, logits_of


class Decoupled(Term):
    """Decoupled knowledge distillation (DKD; Zhao et al., CVPR 2022, Eq. 7), times T².

    ``target KL(b_t || b_s) + others KL(q_t || q_s)``: b are the probabilities of the labelled class and of all others
    together, q the others' among themselves, both at temperature T. Rows without a label take the teacher's likeliest
    class for it. Cost: O(B K). With two classes ``others`` is 0, as one class alone has probability 1: ``target``
    learns alone.
    """

    needs = Needs.LOGITS

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        target: float = 1.0,
        others: float = 8.0,
        temperature: float = 4.0,
    ) -> None:
        """Sets the two weights; the defaults are those of the authors' code, for CIFAR-100.

        There the term rises linearly over the first 20 of 240 epochs too: ``schedule: {rise: 20}``.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            target: Weight of the labelled class against the rest (the authors' alpha).
            others: Weight of the other classes among themselves (the authors' beta).
            temperature: T > 0.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, teacher, schedule)
        numbers = (target, others, temperature)
        if not (all(math.isfinite(number) and number >= 0 for number in numbers) and temperature > 0):
            what = f"target, others and temperature {numbers} must be 0 or more, the last above 0"
            raise ConfigError(Finding("Decoupled", what, "The authors use 1, 8 and 4."))
        self.target, self.others, self.temperature = target, others, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the logits of all rows; see `Term.forward`."""
        own, other = at_least_float32(logits_of(student)), at_least_float32(logits_of(teacher))
        told = labels if labels.ndim == 1 else labels.argmax(dim=1)
        classes = torch.where(labelled_rows(labels), told, other.argmax(dim=1))
        true = F.one_hot(classes, own.shape[1]).bool()
        own, other = own / self.temperature, other / self.temperature
        first = batch_kl(_binary(other, true), _binary(own, true))
        second = batch_kl(masked_log_softmax(other, ~true), masked_log_softmax(own, ~true))
        return (self.target * first + self.others * second) * self.temperature**2


def _binary(logits: Tensor, true: Tensor) -> Tensor:
    """Logarithms of the probabilities of the true class and of all others, [B, 2]."""
    chosen = logits.masked_fill(~true, -torch.inf).logsumexp(dim=1)
    rest = logits.masked_fill(true, -torch.inf).logsumexp(dim=1)
    return torch.stack([chosen, rest], dim=1).log_softmax(dim=1)
