"""Defines a loss term: what it reads of student and teacher, its weight, and its projector."""

import math
from collections.abc import Sequence
from enum import Flag, auto
from typing import ClassVar, NamedTuple

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.described import Described
from kd_convnext.losses.schedule import WeightSchedule, schedule_of

TEACHER = "teacher"
"""Name of the teacher where there is but one."""


class Needs(Flag):
    """Lists what a term reads of a network."""

    LOGITS = auto()
    MAPS = auto()
    EMBEDDING = auto()


class Outputs(NamedTuple):
    """Outputs of one network for one batch; None where no term needs them.

    Attributes:
        logits: [B, K].
        maps: One map [B, C, H, W] for each tapped stage.
        embedding: [B, D], the input of the last linear layer.
    """

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] | None = None
    embedding: Tensor | None = None


class Widths(NamedTuple):
    """Sizes of a network's outputs, known before the first batch: projectors are built from them.

    Attributes:
        classes: K of the logits.
        channels: C of each tapped map, in order; empty where nothing is tapped.
        embedding: D of the embedding; 0 where it is not needed.
    """

    classes: int
    channels: tuple[int, ...] = ()
    embedding: int = 0


class Term(Described, nn.Module, HyperparametersMixin):
    """One summand of an objective. A subclass names its ``needs`` and defines ``forward``.

    Its value is a scalar without its weight, so that curves can be compared. ``forward(student, teacher, labels)`` gets
    the `Outputs` of both (``teacher`` is None for a term on labels), and labels as int64 [B] or as probabilities
    [B, K]; -1 marks a row without a label. It must not branch on the values of tensors: the step is compiled as one
    graph. Arguments of the constructor must be plain values, dataclasses or other terms: they go into checkpoints.

    Attributes:
        needs: What it reads of its teacher, and of the student.
        student_needs: What it reads of the student, where that differs.
        weight: Factor >= 0 in the objective's sum.
        teacher: Name of the teacher it learns from; None: from labels alone.
        schedule: Factor on the weight in each epoch; None: always 1.
    """

    needs: ClassVar[Needs] = Needs.LOGITS
    student_needs: ClassVar[Needs | None] = None

    def __init__(
        self, weight: float = 1.0, teacher: str | None = TEACHER, schedule: WeightSchedule | None = None
    ) -> None:
        """Sets what every term has.

        Args:
            weight: Factor in the objective's sum, 0 or more.
            teacher: Name of the teacher it learns from; None: from labels alone.
            schedule: Factor on the weight in each epoch.

        Raises:
            ConfigError: The weight is negative or not finite.
        """
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            what = f"the weight {weight} of {type(self).__name__} is not 0 or more"
            raise ConfigError(Finding("objective", what, "Use for example 1."))
        self.weight = float(weight)
        self.teacher = teacher
        self.schedule = schedule_of(schedule)

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates the term's own projector; called once, before the optimiser is made.

        Args:
            student: Sizes of the student's outputs.
            teacher: Sizes of its teacher's outputs; None for a term on labels.
        """

    def start_findings(self, classes: int) -> list[Finding]:
        """Lists what no fit should begin with, and warns of what is odd; a checkpoint that is loaded is never asked.

        Args:
            classes: Number of classes.
        """
        return []

    def weight_at(self, epoch: int) -> float:
        """Returns the weight in an epoch, counted from 0."""
        return self.weight * (1.0 if self.schedule is None else self.schedule.factor(epoch))

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 0; a term that changes then writes into a buffer, in place."""

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Takes the weights of the classes (inverse frequency, mean 1) once; most terms ignore them."""

    def count_classes(self, counts: Sequence[int]) -> None:
        """Takes the number of training images of each class, once; most terms ignore it."""

    def entropy(self, teacher: Outputs | None) -> Tensor | None:
        """Returns the teacher's own entropy where the term's value holds it, else None.

        No student can lower it. The value without it, a KL divergence, is logged beside the value.

        Args:
            teacher: What the term reads of its teacher.
        """
        return None

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Computes the term.

        Args:
            student: What it needs of the student.
            teacher: What it needs of its teacher; None for a term on labels.
            labels: int64 [B] with -1 for rows without a label, or probabilities [B, K] with a row of -1.

        Returns:
            A scalar, without the weight.
        """
        raise NotImplementedError


def logits_of(outputs: Outputs | None) -> Tensor:
    """Returns the logits [B, K] that a term has asked for.

    Raises:
        ValueError: They are not there.
    """
    if outputs is None or outputs.logits is None:
        raise ValueError("this term needs logits: of the student, and of a teacher where it has one")
    return outputs.logits


def maps_of(outputs: Outputs | None) -> tuple[Tensor, ...]:
    """Returns the maps [B, C, H, W] that a term has asked for.

    Raises:
        ValueError: They are not there.
    """
    if outputs is None or outputs.maps is None:
        raise ValueError("this term needs feature maps: of the student, and of a teacher where it has one")
    return outputs.maps


def embedding_of(outputs: Outputs | None) -> Tensor:
    """Returns the embedding [B, D] that a term has asked for.

    Raises:
        ValueError: It is not there.
    """
    if outputs is None or outputs.embedding is None:
        raise ValueError("this term needs the embedding: of the student, and of a teacher where it has one")
    return outputs.embedding
