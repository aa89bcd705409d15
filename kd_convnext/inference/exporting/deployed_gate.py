"""Computes the gate inside an exported network: the distances of `gate`, in operations that every runtime has.

Everything is found from what the network is given. Levels and their counts are whole numbers, which float32 holds
exactly; what is small beside what it is subtracted from is computed in float64 where the runtime has it.
"""

from functools import reduce

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_convnext.inference.trust.appearance import LAGS, NO_CONTRAST, NO_DETAIL, QUANTILES, SIDE
from kd_convnext.inference.trust.gate import NEIGHBOURS, Gate

_LEVELS = 256


class DeployedGate(nn.Module):
    """Computes how far pictures are from the training photographs.

    Attributes:
        image_size: Side of the pictures.
    """

    def __init__(self, gate: Gate, image_size: int) -> None:
        """Stores the gate's arrays as constants.

        Args:
            gate: The gate.
            image_size: Side of the pictures in pixels.
        """
        super().__init__()
        self.image_size = image_size
        # The smallest level that so many pixels do not exceed.
        wanted = np.ceil(QUANTILES * image_size**2)
        shrinking = cv2.resize(np.eye(image_size, dtype=np.float32), (image_size, SIDE), interpolation=cv2.INTER_AREA)
        constants = {
            **{name: values for name, values in gate.tensors().items() if name != "bank"},
            "bank": gate.bank[:, :, None],
            "wanted": wanted.astype(np.float32),
            "shrinking": shrinking[:, :, None],
            "gamma": _gamma(),
            "cube_root": _cube_root(),
        }
        if gate.detail is None:  # an older gate, which has no such distance
            constants |= {
                "detail_mean": np.zeros((1, 0)),
                "detail_whitening": np.zeros((1, 0, 0)),
                "detail_logs": np.zeros(1),
            }
        for name, values in constants.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))
        self.mean: Tensor
        self.whitening: Tensor
        self.logs: Tensor
        self.bank: Tensor
        self.wanted: Tensor
        self.shrinking: Tensor
        self.gamma: Tensor
        self.cube_root: Tensor
        self.detail_mean: Tensor
        self.detail_whitening: Tensor
        self.detail_logs: Tensor

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Measures.

        Args:
            images: [B, C, S, S], uint8 0..255 or float32 0..1.
            features: [B, D], what the last linear layer sees.

        Returns:
            [B, 3], `Distances` in their order, float32.
        """
        levels = images.to(torch.float32) if images.dtype == torch.uint8 else (images * 255).round()
        colours = self.lab(levels) if levels.shape[1] == 3 else levels
        parts = [self._quantiles(colours), *self._contrasts(levels / 255)]
        entries = self.detail_mean.shape[1]
        if entries:
            parts += _differences(levels)
        appearance = torch.cat(parts, dim=1)
        far = _distance(appearance, self.mean, self.whitening, self.logs)
        nearest = self._nearest(features)
        if not entries:
            return torch.stack([far, nearest, torch.zeros_like(nearest)], dim=1)
        detail = _distance(appearance[:, -entries:], self.detail_mean, self.detail_whitening, self.detail_logs)
        return torch.stack([far, nearest, detail], dim=1)

    def _nearest(self, features: Tensor) -> Tensor:
        directions = features / _length(features)[:, None].clamp_min(torch.finfo(torch.float32).tiny)
        similar = _product(self.bank, directions[:, :, None])[:, :, 0]
        found = similar.topk(min(NEIGHBOURS, len(self.bank)), dim=1).indices[:, -1]
        return _length(directions - self.bank[found].flatten(1))

    def _quantiles(self, levels: Tensor) -> Tensor:
        """Returns the quantiles of each channel, [B, C * 7] float64 0..1."""
        flat = levels.flatten(2)
        counts = torch.zeros(flat.shape[0], flat.shape[1], _LEVELS).scatter_add(2, flat.long(), torch.ones_like(flat))
        lower = counts.cumsum(dim=2)[:, :, None, :] < self.wanted[:, None]
        return (lower.sum(dim=3).to(torch.float64) / 255).flatten(1)

    def _contrasts(self, pixels: Tensor) -> list[Tensor]:
        """Returns the logarithms of the contrasts of each scale, [B, C] each, float64."""
        batch, channels, side = pixels.shape[0], pixels.shape[1], SIDE
        rows = _product(self.shrinking, pixels.flatten(0, 1))
        level = _product(self.shrinking, rows.transpose(1, 2)).transpose(1, 2)
        found = []
        while side > 1:
            side //= 2
            blocks = level.reshape(batch * channels, side, 2, side, 2)
            coarser = blocks.mean(dim=(2, 4), keepdim=True)
            contrast = (blocks - coarser).square().to(torch.float64).mean(dim=(1, 2, 3, 4))
            found.append((contrast + NO_CONTRAST).log().reshape(batch, channels))
            level = coarser.reshape(batch * channels, side, side)
        return found

    def lab(self, levels: Tensor) -> Tensor:
        """Turns RGB [B, 3, S, S] 0..255 into CIELAB by OpenCV's whole numbers, the same to the last bit."""
        red, green, blue = _looked_up(self.gamma, levels).unbind(dim=1)
        eighths = (((r * red + g * green + b * blue + 2048) / 4096).floor() for r, g, b in _XYZ)
        x, y, z = (_looked_up(self.cube_root, light) for light in eighths)
        lightness = 296 * y - 1336934
        a, b = 500 * (x - y) + 128 * _ONE, 200 * (y - z) + 128 * _ONE
        return ((torch.stack([lightness, a, b], dim=1) + _ONE / 2) / _ONE).floor().clamp(0, 255)


def _differences(levels: Tensor) -> list[Tensor]:
    """Returns texture, then detail, [B, C] each, float64."""
    texture, detail = [], []
    for lag in LAGS:
        apart = [levels[..., lag:] - levels[..., :-lag], levels[:, :, lag:] - levels[:, :, :-lag]]
        opposed = [_opponents(each) for each in apart]
        logarithms = (_mean([each.square() for each in opposed]) + NO_DETAIL).log()
        sizes = (_mean([each.abs() for each in opposed]) + NO_DETAIL).log()
        texture += [logarithms, 2 * sizes - logarithms]
        detail.append((_mean([each.square() for each in apart]) + NO_DETAIL).log())
    return texture + detail


def _opponents(values: Tensor) -> Tensor:
    if values.shape[1] == 1:
        return values
    red, green, blue = values.unbind(dim=1)
    return torch.stack([red + green + blue, red - green, red + green - 2 * blue], dim=1)


def _mean(parts: list[Tensor]) -> Tensor:
    """Returns the mean of two along both sides, [B, C] float64."""
    first, second = (each.to(torch.float64).mean(dim=(2, 3)) for each in parts)
    return (first + second) / 2


def _distance(values: Tensor, mean: Tensor, whitening: Tensor, logs: Tensor) -> Tensor:
    """Returns the distance of values [B, M] to a `Mixture`, [B] float32."""
    parts = zip(mean, whitening, strict=True)  # one after the other: OpenVINO loses all pictures but the first in 4D
    apart = [((values - centre)[:, :, None] * factors).sum(dim=1) for centre, factors in parts]
    exponents = [each.square().sum(dim=1) / 2 - log for each, log in zip(apart, logs, strict=True)]
    nearest = reduce(torch.minimum, exponents)  # not amin: the quantiser's inference of shapes does not know it
    density = torch.stack([nearest - each for each in exponents]).exp().sum(dim=0).log()
    found: Tensor = (2 * (nearest - density).clamp_min(0)).sqrt().to(torch.float32)
    return found


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """Returns matrix [M, N, 1] times each of values [B, N, P].

    As a convolution: int8 exports round matrix products, and the gate must keep its numbers.
    """
    return functional.conv1d(values, matrix)


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Returns ``table[places]`` of whole numbers, by an operator that is faster than the one of indexing."""
    return table.index_select(0, places.long().flatten()).reshape(places.shape)


def _length(values: Tensor) -> Tensor:
    return values.square().sum(dim=1).sqrt()


_ONE = 32768  # of OpenCV's fixed point
_XYZ = ((1777, 1541, 778), (871, 2929, 296), (73, 448, 3575))  # of linear RGB, white at (1, 1, 1), in 1 / 4096


def _gamma() -> npt.NDArray[np.float32]:
    """Returns linear light for each level of sRGB, in eighths of a level."""
    level = np.arange(_LEVELS) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.rint(2040 * light), np.float32)


def _cube_root() -> npt.NDArray[np.float32]:
    """Returns CIELAB's f for each eighth of a level, of which 32768 are one."""
    light = np.arange(2041) / 2040
    root = np.rint(_ONE * np.where(light < 216 / 24389, light * (841 / 108) + 16 / 116, np.cbrt(light)))
    root[[49, 628]] = 9454, 22126  # nearly halves, which OpenCV's single precision rounds the other way
    return np.asarray(root, np.float32)
