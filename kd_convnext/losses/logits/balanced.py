"""Distils from a teacher that favours frequent classes, by groups of classes (LTKD)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.class_counts import CountedTerm
from kd_convnext.losses.logits.divergence import batch_kl, group_log_softmax, masked_log_softmax
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Widths, logits_of

GROUPS = 3
"""Head, medium and tail."""

LEAST_ROWS = 4
"""Rows of a batch from which on their mean calibrates: of one row it is the row itself, which would become uniform."""


class Balanced(CountedTerm):
    """Long-tailed knowledge distillation (LTKD; Kim, "Distilling balanced knowledge from a biased teacher", CVPR 2026).

    Hinton's divergence is the sum of one across the groups of frequent, medium and rare classes and of one within
    each, ``KL(P_t || P_s) + sum_g P_t(g) KL(q_t^g || q_s^g)``. Here the first is calibrated: the teacher's group
    probabilities are divided by their means over the batch and normalised again, so that no group is favoured as a
    whole (in a batch of fewer than four rows they stay as they are); and in the second every group counts alike, ``1``
    in place of ``P_t(g)``. Times T². Cost: O(B K). A group of one class has nothing within: with two or three classes,
    by default groups of one, ``within`` is 0.

    Written from the abstract and the decomposition above; neither the full equations nor the authors' code were at
    hand, so the calibration by batch means and the weight 1 of each group are a reading of the idea.
    """

    needs = Needs.LOGITS
    members: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        across: float = 1.0,
        within: float = 1.0,
        temperature: float = 4.0,
        groups: Sequence[Sequence[int]] | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        """Sets the two weights and the groups.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            across: Weight of the divergence across groups.
            within: Weight of the divergences within groups.
            temperature: T > 0.
            groups: Positions of the classes of each group; by default thirds by the number of training images.
            class_counts: Training images of each class; by default the data's.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__(weight, teacher, schedule, class_counts)
        numbers = (across, within, temperature)
        if not (all(math.isfinite(number) and number >= 0 for number in numbers) and temperature > 0):
            what = f"across, within and temperature {numbers} must be 0 or more, the last above 0"
            raise ConfigError(Finding("Balanced", what, "Use for example 1, 1 and 4."))
        named = sorted(number for group in groups or () for number in group)
        if groups is not None and (named != list(range(len(named))) or not all(groups)):
            what = f"the groups {[list(group) for group in groups]} do not name every class once"
            raise ConfigError(Finding("Balanced", what, "Give each class a group, from class 0 on."))
        self.across, self.within, self.temperature = across, within, temperature
        self._named = groups is not None
        # A mask on the device: positions that Python holds would be copied there at every step.
        self.register_buffer("members", torch.zeros(0, 0, dtype=torch.bool), persistent=False)
        if groups is not None:
            self._divide(groups)
        elif class_counts is not None:
            self._divide(thirds(class_counts))

    def _divide(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        self.members = torch.zeros(len(groups), sum(map(len, groups)), dtype=torch.bool)
        for number, group in enumerate(self.groups):
            self.members[number, list(group)] = True

    def count_classes(self, counts: Sequence[int]) -> None:
        """Takes the counts of the training part, and divides the classes into groups by them."""
        super().count_classes(counts)
        if not (self._named or self._given):
            self._divide(thirds(counts))

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Checks the groups or, where these were not named, the counts.

        Raises:
            ConfigError: They are of another number of classes.
        """
        if not self._named:
            super().build(student, teacher)
        elif self.members.shape[1] != student.classes:
            what = f"the groups name {self.members.shape[1]} classes of {student.classes}"
            raise ConfigError(Finding("Balanced", what, "Give each class a group."))

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the logits of all rows, labelled or not; see `Term.forward`."""
        own = at_least_float32(logits_of(student)) / self.temperature
        other = at_least_float32(logits_of(teacher)) / self.temperature
        theirs = group_log_softmax(other, self.members)
        if len(theirs) >= LEAST_ROWS:
            # The mean's logarithm, up to a constant: finite where the teacher gives a group no probability at all.
            theirs = (theirs - theirs.logsumexp(dim=0)).log_softmax(dim=1)
        across = batch_kl(theirs, group_log_softmax(own, self.members))
        inside = [masked_log_softmax(side[:, None], self.members).flatten(1) for side in (other, own)]
        return (self.across * across + self.within * batch_kl(*inside)) * self.temperature**2


def thirds(counts: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Divides classes into head, medium and tail by their numbers of training images.

    Args:
        counts: Training images of each class.

    Returns:
        Positions of the classes, at most three groups of as equal sizes as possible. Of one class too many the middle
        one has it (33, 34 and 33 of a hundred, as summaries of the paper say), of two the first two. Classes without an
        image are in the last beside others: calibrated alone, they would get a share of every answer.
    """
    order = sorted((number for number, count in enumerate(counts) if count), key=lambda number: -counts[number])
    absent = tuple(number for number, count in enumerate(counts) if not count)
    size, more = divmod(len(order), GROUPS)
    further = {0: (0, 0, 0), 1: (0, 1, 0), 2: (1, 1, 0)}[more]
    ends = [0, *itertools.accumulate(size + one for one in further)]
    *groups, last = (tuple(order[a:b]) for a, b in itertools.pairwise(ends) if b > a)
    return (*groups, last + absent)
