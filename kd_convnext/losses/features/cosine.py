"""Turns the student's embedding towards the teacher's through an orthogonal projector."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32, without_autocast
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, embedding_of


class OrthogonalProjector(nn.Module):
    """A linear map with orthonormal rows or columns, whatever its parameters learn (VkD; Miles et al., CVPR 2024).

    The matrix is the corner of ``exp(W - W^T)``, which is a rotation for every W: the projector can neither shrink nor
    mix away what the student must learn itself. Parameters: ``max(D_s, D_t)²``.
    """

    def __init__(self, student: int, teacher: int) -> None:
        """Creates the parameters.

        Args:
            student: D_s, width of the student's embedding.
            teacher: D_t, width of the teacher's.
        """
        super().__init__()
        self.shape = (teacher, student)
        side = max(student, teacher)
        # Small, so that exp needs few terms; the rotation is learned.
        self.weight = nn.Parameter(torch.randn(side, side) / side)

    def matrix(self) -> Tensor:
        """Returns the map, [D_t, D_s]: orthonormal rows where D_t <= D_s, else orthonormal columns."""
        with without_autocast(self.weight):
            turned = torch.matrix_exp(at_least_float32(self.weight - self.weight.T))
        rows, columns = self.shape
        return turned[:rows, :columns]

    def forward(self, embedding: Tensor) -> Tensor:
        """Projects embeddings.

        Args:
            embedding: [B, D_s].

        Returns:
            [B, D_t], in at least float32.
        """
        matrix = self.matrix()
        with without_autocast(embedding):
            return embedding.to(matrix.dtype) @ matrix.T


class CosineEmbedding(Term):
    """Cosine distance of normalised embeddings through an orthogonal projector (after VkD; Miles et al., CVPR 2024).

    ``mean_i (1 - cos(P e_s, (e_t - mean) / std))``; the teacher's embedding [B, D] is standardised over the batch where
    ``standardise`` is on. Extra parameters: with an orthogonal projector ``max(D_s, D_t)²`` and a matrix exponential a
    step, seconds on a CPU where an embedding has more than a thousand dimensions; with a linear one ``D_s D_t + D_t``.
    Neither is deployed.
    """

    needs = Needs.EMBEDDING

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        standardise: bool = False,
        projector: Literal["orthogonal", "linear"] = "orthogonal",
    ) -> None:
        """Chooses how the teacher's embedding is normalised.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            standardise: Give each dimension of the teacher's embedding mean 0 and deviation 1 over the batch first.
            projector: ``orthogonal``, or ``linear``, much cheaper for wide embeddings.
        """
        super().__init__(weight, teacher, schedule)
        self.standardise = standardise
        self.kind = projector
        self.projector: nn.Module | None = None

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates the projector.

        Raises:
            ConfigError: A network has no embedding.
        """
        if teacher is None or not (student.embedding and teacher.embedding):
            raise ConfigError(Finding("CosineEmbedding", "a network has no embedding", "Use one with a linear head."))
        made = OrthogonalProjector if self.kind == "orthogonal" else nn.Linear
        self.projector = made(student.embedding, teacher.embedding)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the embeddings of all rows, labelled or not; see `Term.forward`."""
        assert self.projector is not None
        own, other = at_least_float32(self.projector(embedding_of(student))), at_least_float32(embedding_of(teacher))
        if self.standardise:
            centred = other - other.mean(dim=0)
            other = centred / (centred.square().mean(dim=0) + 1e-5).sqrt()
        return 1 - (F.normalize(own) * F.normalize(other)).sum(dim=1).mean()
