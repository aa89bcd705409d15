"""Inputs for loss terms whose numbers anyone can make again, and what every term must withstand."""

import math

import torch
from torch import Tensor

from kd_convnext.losses import Outputs, Term, Widths

COUNTS = [33, 1054, 157, 97, 437]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
EVERY = "labels", "unlabelled", "soft"


def wave(*shape: int, step: float) -> Tensor:
    """Returns 2 sin(0), 2 sin(step), 2 sin(2 step), ... in float64."""
    count = math.prod(shape)
    return 2 * (torch.arange(count, dtype=torch.float64) * step).sin().reshape(shape)


def logits() -> tuple[Tensor, Tensor]:
    """Returns logits [6, 5] of a student and of a teacher who half agree."""
    student = wave(6, 5, step=0.7)
    return student, wave(6, 5, step=1.3) + student / 2


def labels_of(kind: str) -> Tensor:
    """Returns labels of one of the kinds `EVERY`."""
    if kind == "soft":
        mixed = 0.7 * torch.eye(5)[LABELS] + 0.3 * torch.eye(5)[LABELS.flip(0)]
        return torch.cat([mixed[:5], torch.full((1, 5), -1.0)]).double()
    return LABELS if kind == "labels" else torch.where(torch.arange(6) % 2 == 0, LABELS, -1)


def outputs(dtype: torch.dtype = torch.float64) -> tuple[Outputs, Outputs]:
    """Returns everything that a student and a teacher may give for six images."""
    own, other = logits()
    student_maps = (wave(6, 3, 6, 6, step=0.3), wave(6, 5, 4, 4, step=0.5))
    teacher_maps = (wave(6, 6, 4, 4, step=0.4), wave(6, 4, 4, 4, step=0.6))
    student = Outputs(own.to(dtype), tuple(maps.to(dtype) for maps in student_maps), wave(6, 4, step=0.9).to(dtype))
    teacher = Outputs(other.to(dtype), tuple(maps.to(dtype) for maps in teacher_maps), wave(6, 7, step=1.1).to(dtype))
    return student, teacher


WIDTHS = Widths(5, (3, 5), 4), Widths(5, (6, 4), 7)


def ready(term: Term) -> Term:
    """Tells a term about classes, and builds its projector in float64."""
    torch.manual_seed(0)
    term.count_classes(COUNTS)
    term.weigh_classes([3.0171, 0.0945, 0.6342, 1.0264, 0.2278])
    term.build(WIDTHS[0], None if term.teacher is None else WIDTHS[1])
    return term.double()


def value_of(term: Term, labels: Tensor = LABELS) -> float:
    """Computes a ready term on the inputs above."""
    student, teacher = outputs()
    torch.manual_seed(1)
    return term(student, None if term.teacher is None else teacher, labels).item()
