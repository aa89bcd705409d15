"""Compares the distances and angles between the images of a batch (RKD)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32, without_autocast
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, embedding_of

_TINY = 1e-12


class Relational(Term):
    """Relational knowledge distillation (RKD; Park et al., CVPR 2019, Eq. 5 and 8): no projector, any two widths.

    ``distance`` times Huber's loss between the distances of all pairs, each divided by the batch's mean distance, plus
    ``angle`` times that between the cosines of the angles of all triples; embeddings [B, D]. Cost: O(B³ D), memory
    O(B³ + B² D).
    """

    needs = Needs.EMBEDDING

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        """Sets the two weights; the defaults are the authors' for classification.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            distance: Weight of the pairs' distances.
            angle: Weight of the triples' angles.

        Raises:
            ConfigError: A weight is negative or not finite.
        """
        super().__init__(weight, teacher, schedule)
        if not all(math.isfinite(number) and number >= 0 for number in (distance, angle)):
            what = f"distance {distance} or angle {angle} is not 0 or more"
            raise ConfigError(Finding("Relational", what, "The authors use 25 and 50."))
        self.distance, self.angle = distance, angle

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the embeddings of all rows, labelled or not; see `Term.forward`."""
        own, other = at_least_float32(embedding_of(student)), at_least_float32(embedding_of(teacher))
        with without_autocast(own):
            pairs = F.smooth_l1_loss(_distances(own), _distances(other))
            triples = F.smooth_l1_loss(_cosines(own), _cosines(other))
        return self.distance * pairs + self.angle * triples


def _distances(embedding: Tensor) -> Tensor:
    """Distances of all pairs divided by their mean, [B, B]; equal embeddings count, as with the authors."""
    squares = embedding.square().sum(dim=1)
    squared = (squares[:, None] + squares - 2 * (embedding @ embedding.T)).clamp_min(_TINY)
    others = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    distances = torch.where(others, squared.sqrt(), torch.zeros_like(squared))
    count = max(1, len(embedding) * (len(embedding) - 1))
    return distances / (distances.sum() / count).clamp_min(_TINY)


def _cosines(embedding: Tensor) -> Tensor:
    """Cosine of the angle at each image between the directions to two others, [B, B, B]."""
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
    return directions @ directions.transpose(1, 2)
