"""Brings the student's feature maps to the teacher's shape by 1x1 convolutions (Eq. 1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding


class Regressors(nn.ModuleList):
    """One 1x1 convolution per stage, and resampling where the resolutions differ.

    They serve the feature loss only and are not part of the deployed student.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Creates the convolutions.

        Args:
            student_channels: Channels of the student's maps, one per stage.
            teacher_channels: Channels of the teacher's maps, as many.

        Raises:
            ConfigError: The numbers of stages differ or are 0.
        """
        pairs = check_stages(student_channels, teacher_channels)
        super().__init__(nn.Conv2d(student, teacher, kernel_size=1) for student, teacher in pairs)
        for convolution in self:
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            # No activation follows: unit gain.
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
            nn.init.zeros_(convolution.bias)

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[Tensor]:
        """Maps every stage of the student.

        Args:
            student_features: One map [B, C_s, H_s, W_s] per stage.
            teacher_features: The teacher's maps [B, C_t, H_t, W_t]; only their shapes matter.

        Returns:
            One map [B, C_t, H_t, W_t] per stage.
        """
        mapped = []
        for convolution, student, teacher in zip(self, student_features, teacher_features, strict=True):
            height, width = teacher.shape[-2:]
            own_height, own_width = student.shape[-2:]
            # A 1x1 convolution commutes with averaging and with interpolation: do it on the smaller map.
            if (own_height, own_width) == (height, width):
                mapped.append(convolution(student))
            elif own_height >= height and own_width >= width:
                mapped.append(convolution(F.adaptive_avg_pool2d(student, (height, width))))
            else:
                mapped.append(F.interpolate(convolution(student), (height, width), mode="bilinear"))
        return mapped


def check_stages(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs the tapped stages of student and teacher.

    Args:
        student_channels: Channels of the student's maps, one per stage.
        teacher_channels: Channels of the teacher's maps, as many.

    Returns:
        Channels of both, stage by stage.

    Raises:
        ConfigError: The numbers of stages differ or are 0.
    """
    if not student_channels or len(student_channels) != len(teacher_channels):
        what = f"{len(student_channels)} feature maps of the student, {len(teacher_channels)} of the teacher"
        remedy = "Tap as many modules of the one as of the other, at least one."
        raise ConfigError(Finding("taps", what, remedy))
    return list(zip(student_channels, teacher_channels, strict=True))


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings maps to another resolution: averaged where they are larger, interpolated where they are smaller.

    Args:
        maps: [B, C, H, W].
        size: The wanted height and width.

    Returns:
        [B, C, height, width].
    """
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear")
