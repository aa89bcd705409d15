"""Lets the student's masked maps generate the teacher's whole ones (MGD)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.features.feature_maps import Reduction
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.projectors import check_stages, resized
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Needs, Outputs, Term, Widths, maps_of

Mask = Literal["pixels", "channels"]
"""What is hidden: places of all channels, or whole channels."""


class Generator(nn.Module):
    """Aligns channels, hides a part, and generates: 1x1, mask, 3x3, ReLU, 3x3."""

    def __init__(self, student: int, teacher: int) -> None:
        """Creates the convolutions.

        Args:
            student: Channels of the student's map.
            teacher: Channels of the teacher's map.
        """
        super().__init__()
        self.align = nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, own: Tensor, size: tuple[int, int], kept: Tensor) -> Tensor:
        """Generates the teacher's maps from the student's masked ones.

        Args:
            own: The student's map [B, C_s, H_s, W_s].
            size: H and W of the teacher's.
            kept: [B, 1, H, W] or [B, C_t, 1, 1], 1 where a pixel or channel is seen, 0 where it is hidden.

        Returns:
            [B, C_t, H, W].
        """
        generated: Tensor = self.generation(self.align(resized(own, size)) * kept)
        return generated


class MaskedGenerative(Term):
    """Masked generative distillation (MGD; Yang et al., ECCV 2022, Eq. 4).

    ``|G(mask * align(F_s)) - F_t|²`` with a random mask over pixels, as the paper has it, and a generator G of two 3x3
    convolutions. The authors' code for classification hides channels of the last stage: ``mask: channels``, ``hidden:
    0.15``, ``reduction: sum`` (summed over a map, mean over the batch) and ``weight: 7e-5``; ``mean`` divides by the
    elements. Extra parameters a stage: ``C_s C_t + 18 C_t²``, not deployed; 2 to 5 times the cost of 1x1 regressors on
    the last stage.
    """

    needs = Needs.MAPS

    def __init__(
        self,
        weight: float = 1.0,
        teacher: str = TEACHER,
        schedule: WeightSchedule | None = None,
        hidden: float = 0.5,
        last_only: bool = True,
        reduction: Reduction = "mean",
        mask: Mask = "pixels",
    ) -> None:
        """Sets what is hidden, and how much of it.

        Args:
            weight: Factor in the objective's sum.
            teacher: Name of the teacher.
            schedule: Factor on the weight in each epoch.
            hidden: Share of pixels or channels that are hidden, 0..1 (the authors' lambda).
            last_only: Only the last tapped stage, as the authors do for classification.
            reduction: ``mean`` over elements and stages, or ``sum`` over both, then mean over the batch.
            mask: ``pixels``, or ``channels``.

        Raises:
            ConfigError: The share is outside 0..1, or the mask is unknown.
        """
        super().__init__(weight, teacher, schedule)
        findings = []
        if not 0 <= hidden < 1:
            findings.append(Finding("MaskedGenerative", f"hidden {hidden} is outside 0..1", "Use for example 0.5."))
        if mask not in get_args(Mask):
            findings.append(Finding("MaskedGenerative", f"there is no mask {mask!r}", "Use pixels or channels."))
        if findings:
            raise ConfigError(findings)
        self.hidden, self.last_only, self.reduction, self.mask = hidden, last_only, reduction, mask
        self.projector: nn.ModuleList | None = None

    def build(self, student: Widths, teacher: Widths | None) -> None:
        """Creates a generator a stage."""
        pairs = check_stages(student.channels, () if teacher is None else teacher.channels)
        self.projector = nn.ModuleList(Generator(*pair) for pair in (pairs[-1:] if self.last_only else pairs))

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        """Compares the maps of all rows, labelled or not; see `Term.forward`."""
        assert self.projector is not None
        count = len(self.projector)
        pairs = zip(self.projector, maps_of(student)[-count:], maps_of(teacher)[-count:], strict=True)
        stages = torch.stack([self._stage(generator, own, other) for generator, own, other in pairs])
        return stages.mean() if self.reduction == "mean" else stages.sum()

    def _stage(self, generator: nn.Module, own: Tensor, other: Tensor) -> Tensor:
        batch, channels, height, width = other.shape
        shape = (batch, 1, height, width) if self.mask == "pixels" else (batch, channels, 1, 1)
        # The scale stays as it is: the authors do not divide by the share that is left.
        kept = (torch.rand(shape, device=other.device) >= self.hidden).to(own.dtype)
        generated = at_least_float32(generator(own, (height, width), kept))
        loss = F.mse_loss(generated, at_least_float32(other), reduction=self.reduction)
        return loss if self.reduction == "mean" else loss / batch
