"""Compares networks of unlike architectures: in the teacher's answers (OFA), or on maps of a common size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.targets import labelled_rows
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.projectors import resized
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, logits_of, maps_of


class StageLogits(Term):
    """One-for-all distillation between unlike architectures (OFA; Hao et al., NeurIPS 2023, Eq. 6).

    Each tapped stage of the student is pooled and classified by a head of its own, and judged by ``-sum_k ((p_t[k] +
    y[k])^gamma - y[k]) log p[k]`` with the teacher's probabilities p_t and the labelled class y: the maps of the
    teacher are not needed. The value is the mean over the stages, so that it does not grow with their number; the
    authors sum them (their value is this one times the stages: set the weight by it). Rows without a label take the
    teacher's likeliest class. Extra parameters: ``C_s K + K + 2 C_s`` a stage, not deployed.
    """

    needs = Needs.LOGITS
    student_needs = Needs.MAPS

    def __init__(
        self, weight: float = 1.0, teacher: str = TEACHER, schedule: WeightSchedule | None = None, gamma: float = 1.5
    ) -> None:
        """Sets how much the labelled class is stressed.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            gamma: 1 or more; 1 is the cross-entropy to the teacher's probabilities (the authors' eps).

        Raises:
            ConfigError: gamma is below 1.
        """
        super().__init__(weight, teacher, schedule)
        if not (math.isfinite(gamma) and gamma >= 1):
            raise ConfigError(Finding("StageLogits", f"gamma {gamma} is below 1", "The authors use 1 to 1.5."))
        self.gamma = gamma
        self.projector: nn.ModuleList | None = None

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates a head a tapped stage of the student."""
        self.projector = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, student.classes)) for width in student.channels
        )

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Judges each stage of all rows; see `Term.forward`."""
        assert self.projector is not None
        targets = at_least_float32(logits_of(teacher)).softmax(dim=1)
        told = labels if labels.ndim == 1 else labels.argmax(dim=1)
        classes = torch.where(labelled_rows(labels), told, targets.argmax(dim=1))
        true = F.one_hot(classes, targets.shape[1]).to(targets.dtype)
        stressed = (targets + true) ** self.gamma - true
        answers = [head(maps.mean(dim=(2, 3))) for head, maps in zip(self.projector, maps_of(student), strict=True)]
        losses = [-(stressed * at_least_float32(logits).log_softmax(dim=1)).sum(dim=1).mean() for logits in answers]
        return torch.stack(losses).mean()


class UnlikeMaps(Term):
    """Cosine distance of maps of any two architectures, at each place of a common grid.

    The student's tapped stages are averaged down or interpolated to the size of the teacher's map, brought to its
    channels by a 1x1 convolution, and ``1 - cos`` is averaged over places, stages and images; a teacher with tokens
    gives them as maps. Where it has more or fewer tapped stages, each of the student's is paired with the one at the
    same relative depth. Extra parameters: ``C_s C_t + C_t`` a stage, not deployed.
    """

    needs = Needs.MAPS

    def __init__(self, weight: float = 1.0, teacher: str = TEACHER, schedule: WeightSchedule | None = None) -> None:
        """Sets the weight.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
        """
        super().__init__(weight, teacher, schedule)
        self.projector: nn.ModuleList | None = None

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates a 1x1 convolution a tapped stage of the student.

        Raises:
            ConfigError: A network has no tapped stage.
        """
        if teacher is None or not (student.channels and teacher.channels):
            raise ConfigError(Finding("UnlikeMaps", "a network has no tapped stage", "Tap at least one of each."))
        pairs = paired_depths(len(student.channels), len(teacher.channels))
        self.projector = nn.ModuleList(
            nn.Conv2d(width, teacher.channels[pair], 1) for width, pair in zip(student.channels, pairs, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the maps of all rows, labelled or not; see `Term.forward`."""
        assert self.projector is not None
        own, others = maps_of(student), maps_of(teacher)
        losses = []
        for layer, mine, pair in zip(self.projector, own, paired_depths(len(own), len(others)), strict=True):
            theirs = at_least_float32(others[pair])
            mapped = at_least_float32(layer(resized(mine, (theirs.shape[2], theirs.shape[3]))))
            losses.append(1 - (F.normalize(mapped, dim=1) * F.normalize(theirs, dim=1)).sum(dim=1).mean())
        return torch.stack(losses).mean()


def paired_depths(student: int, teacher: int) -> list[int]:
    """Pairs stages of unlike numbers by relative depth, the last with the last.

    Args:
        student: Tapped stages of the student.
        teacher: Tapped stages of the teacher.

    Returns:
        For each stage of the student the position of the teacher's.
    """
    return [max(0, math.ceil((number + 1) * teacher / student) - 1) for number in range(student)]
