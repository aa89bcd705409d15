"""Computes the distance between feature maps of student and teacher (Eq. 1)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.projectors import Regressors
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, maps_of

Distance = Literal["mse", "l1"]


Reduction = Literal["mean", "sum"]


class FeatureLoss(nn.Module):
    """Distance between the feature maps of student and teacher (Eq. 1).

    Eq. 1 prints the squared L2 norm, the paper's Figure 5 speaks of absolute values, and the reduction is not
    printed. ``mean`` makes every stage count alike, whatever its size; ``sum`` is the equation to the letter.
    """

    def __init__(self, distance: Distance = "mse", reduction: Reduction = "mean") -> None:
        """Chooses the reading of Eq. 1.

        Args:
            distance: ``mse``, squared differences; ``l1``, absolute differences.
            reduction: ``mean``: mean over the elements of a stage, then over the stages. ``sum``: sum over
                the elements of an image and over the stages, then mean over the batch.

        Raises:
            ConfigError: An option is none of the above.
        """
        super().__init__()
        if distance not in ("mse", "l1") or reduction not in ("mean", "sum"):
            raise ConfigError(
                Finding(
                    "feature loss",
                    f"distance {distance!r} with reduction {reduction!r} is unknown",
                    "Use distance mse or l1, and reduction mean or sum.",
                )
            )
        self.distance = distance
        self.reduction = reduction

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Compares the stages pair by pair.

        Args:
            student_features: One map [B, C, H, W] per stage, after the regressors.
            teacher_features: As many maps of the same shapes.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: No stage, different numbers of stages, or maps of different shapes.
        """
        shapes = [tuple(feature.shape) for feature in student_features]
        if not shapes or shapes != [tuple(feature.shape) for feature in teacher_features]:
            teacher_shapes = [tuple(feature.shape) for feature in teacher_features]
            raise ValueError(f"feature maps {shapes} of the student do not pair with {teacher_shapes}")
        distance = F.mse_loss if self.distance == "mse" else F.l1_loss
        stages = torch.stack(
            [
                distance(at_least_float32(student), at_least_float32(teacher), reduction=self.reduction)
                for student, teacher in zip(student_features, teacher_features, strict=True)
            ]
        )
        return stages.mean() if self.reduction == "mean" else stages.sum() / shapes[0][0]

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"distance={self.distance!r}, reduction={self.reduction!r}"


class FeatureMaps(Term):
    """Hints of FitNets (Romero et al., 2015): the student's maps, through 1x1 convolutions, near the teacher's (Eq. 1).

    Maps [B, C, H, W], one a tapped stage, as many of the student as of the teacher; where resolutions differ they are
    resampled. Extra parameters: ``C_s C_t + C_t`` a stage, not deployed.
    """

    needs = Needs.MAPS

    def __init__(
        self,
        weight: float = 0.5,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        distance: Distance = "mse",
        reduction: Reduction = "mean",
    ) -> None:
        """Chooses the reading of Eq. 1.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            distance: ``mse``, squared differences; ``l1``, absolute differences.
            reduction: ``mean`` over elements and stages, or ``sum`` over both, then mean over the batch.

        Raises:
            ConfigError: An option is none of the above.
        """
        super().__init__(weight, teacher, schedule)
        self.loss = FeatureLoss(distance, reduction)
        self.projector: Regressors | None = None

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates one 1x1 convolution a stage.

        Raises:
            ConfigError: The numbers of tapped stages differ, or are 0.
        """
        self.projector = Regressors(student.channels, () if teacher is None else teacher.channels)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the maps of all rows, labelled or not; see `Term.forward`."""
        others = maps_of(teacher)
        assert self.projector is not None
        loss: Tensor = self.loss(self.projector(maps_of(student), others), others)
        return loss
