"""Compares where student and teacher look: sums of squared feature maps (attention transfer)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.projectors import check_stages
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, maps_of


class AttentionTransfer(Term):
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017, Eq. 2 with p = 2, as the authors' code reduces it).

    ``sum_stages mean((Q_s / |Q_s| - Q_t / |Q_t|)²)`` with ``Q = mean_c F_c²`` as a vector [H W]: no parameters, any
    numbers of channels. Where resolutions differ the larger maps are averaged down first. Cost: O(B C H W).
    """

    needs = Needs.MAPS

    def __init__(self, weight: float = 1000.0, teacher: str = TEACHER, schedule: WeightSchedule | None = None) -> None:
        """Sets the weight.

        Args:
            weight: Factor in the objective's sum, the authors' beta of 1000: the values are small. (Their code has beta
                before these means, their Eq. 2 beta / 2 before sums.)
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
        """
        super().__init__(weight, teacher, schedule)

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Checks that as many stages of the student as of the teacher are tapped."""
        check_stages(student.channels, () if teacher is None else teacher.channels)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the maps of all rows, labelled or not; see `Term.forward`."""
        pairs = zip(maps_of(student), maps_of(teacher), strict=True)
        return torch.stack([_distance(own, other) for own, other in pairs]).sum()


def _distance(own: Tensor, other: Tensor) -> Tensor:
    size = (min(own.shape[2], other.shape[2]), min(own.shape[3], other.shape[3]))
    mine, theirs = (_attention(F.adaptive_avg_pool2d(at_least_float32(maps), size)) for maps in (own, other))
    return (mine - theirs).square().mean()


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(dim=1).flatten(1))
