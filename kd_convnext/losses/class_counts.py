"""Shares the counts of the training part's classes among the terms that need them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Term, Widths


class CountedTerm(Term):
    """A term that needs the number of training images of each class: from the data, or given.

    Attributes:
        counts: [K] float32, at least 1 each; None until they are known.
        present: bool [K], whether a class has a training image; None until the counts are known.
    """

    counts: Tensor | None
    present: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str | None = None,
        schedule: WeightSchedule | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Takes the counts, where they are given.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher; None: from labels alone.
            schedule: Factor on the weight in each epoch.
            class_counts: Training images of each class; by default the data's.

        Raises:
            ConfigError: A count is negative, or all are 0.
        """
        super().__init__(weight, teacher, schedule)
        self._given = class_counts is not None
        # Not persistent: the counts come from the hyperparameters.
        self.register_buffer("counts", None, persistent=False)
        self.register_buffer("present", None, persistent=False)
        if class_counts is not None:
            self.take_counts(class_counts)

    def count_classes(self, counts: Sequence[int]) -> None:
        """Takes the counts of the training part, unless others were given."""
        if not self._given:
            self.take_counts(counts)

    def take_counts(self, counts: Sequence[int]) -> None:
        """Takes counts; subclasses compute from them here.

        Args:
            counts: Training images of each class; a class without one counts as having one.

        Raises:
            ConfigError: A count is negative, or all are 0.
        """
        if any(count < 0 for count in counts) or not any(counts):
            what = f"the counts {list(counts)} cannot be those of a training part"
            remedy = "Counts must be 0 or more, and at least one class needs an image."
            raise ConfigError(Finding(type(self).__name__, what, remedy))
        self.counts = torch.tensor([max(1.0, float(count)) for count in counts])
        self.present = torch.tensor([count > 0 for count in counts])

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Checks that the counts are known.

        Raises:
            ConfigError: They are not, or are those of another number of classes.
        """
        if self.counts is None:
            what = f"{type(self).__name__} needs the number of training images of each class"
            remedy = "Give class_counts to the term or to the module (DistillModule(class_counts=data.class_counts))."
            raise ConfigError(Finding("objective", what, remedy))
        if len(self.counts) != student.classes:
            what = f"{len(self.counts)} counts for {student.classes} classes"
            raise ConfigError(Finding(type(self).__name__, what, "Give one count a class."))

    def known_counts(self) -> Tensor:
        """Returns the counts [K].

        Raises:
            ValueError: They are not known yet.
        """
        if self.counts is None:
            raise ValueError(f"{type(self).__name__} has not been told the classes' counts")
        return self.counts

    def log_prior(self, dtype: torch.dtype) -> Tensor:
        """Returns the logarithms of the classes' shares of the training part, [K].

        Args:
            dtype: Of the result.
        """
        counts = self.known_counts().to(dtype)
        return (counts / counts.sum()).log()


def effective_numbers(counts: Sequence[float] | Tensor, beta: float) -> Tensor:
    """Computes the effective number of images of each class, ``(1 - beta^n) / (1 - beta)`` (Cui et al., 2019, Eq. 2).

    Args:
        counts: Images n >= 1 of each class, [K].
        beta: In 0..1; 0 gives 1 for every class, towards 1 the numbers become the counts.

    Returns:
        float64 [K].

    Raises:
        ConfigError: beta is outside 0 <= beta < 1.
    """
    if not (math.isfinite(beta) and 0 <= beta < 1):
        raise ConfigError(Finding("effective number", f"beta {beta} is outside 0..1", "Cui et al. use 0.9999."))
    numbers = torch.as_tensor(counts, dtype=torch.float64)
    return (1 - beta**numbers) / (1 - beta) if beta else torch.ones_like(numbers)


def effective_weights(counts: Sequence[float] | Tensor, beta: float, present: Tensor | None = None) -> Tensor:
    """Weighs classes by the inverse of their effective numbers, with mean 1 over those that occur.

    Args:
        counts: Images n >= 1 of each class, [K].
        beta: As of `effective_numbers`.
        present: bool [K], the classes that occur; by default all.

    Returns:
        float64 [K], 0 for a class that does not occur: no image of it can ever ask for its weight.
    """
    inverse = 1 / effective_numbers(counts, beta)
    if present is not None:
        inverse = inverse * present
    return inverse * (inverse > 0).sum() / inverse.sum()
