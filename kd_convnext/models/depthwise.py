"""Computes the gradient of a depthwise convolution's weights on a CPU as a convolution itself.

torch leaves it to a slow path of oneDNN for kernels above 3 px: for a small ConvNeXt at 96 px it took two fifths of a
training step. The gradient is the correlation of the padded input with the gradient of the output, channel by channel
and image by image: a depthwise convolution whose kernels are those gradients, which runs at the rate of a forward pass.
"""

import time
from functools import lru_cache
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FROM_KERNEL = 5
"""Smaller kernels gain nothing (measured with 3 px at 3 to 56 px)."""

_PAYS = 1.5
_ROUNDS = 5


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the size; in training on a CPU its weights' gradient is computed faster."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training and _able(input, weight) and depthwise_gain() >= _PAYS:
            return cast(Tensor, _Depthwise.apply(input, weight, bias))
        return cast(Tensor, super()._conv_forward(input, weight, bias))


def quicken_depthwise(network: nn.Module) -> None:
    """Makes the depthwise convolutions of a network that gain by it `DepthwiseConv2d`; weights and names stay.

    Args:
        network: Changed in place.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = DepthwiseConv2d


@lru_cache(maxsize=1)
def depthwise_gain() -> float:
    """Measures how many times faster than torch's this way computes the weights' gradient on this CPU.

    Takes some 50 ms, once a process.

    Returns:
        The ratio of the medians of interleaved rounds.
    """
    images, weight = torch.ones(8, 64, 12, 12), torch.ones(64, 1, 7, 7)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS + 1):
        for ours, spent in zip((False, True), seconds, strict=True):
            begun = time.perf_counter()
            if ours:
                _weight_gradient(images, images, 7)
            else:
                options: tuple[Any, ...] = ([1, 1], [3, 3], [1, 1], False, [0, 0], 64, [False, True, False])
                torch.ops.aten.convolution_backward(images, images, weight, None, *options)
            spent.append(time.perf_counter() - begun)
    # The first round sets the libraries up.
    return median(seconds[0][1:]) / median(seconds[1][1:])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        side = weight.shape[-1]
        of_images, of_weight, of_bias = ctx.needs_input_grad
        return (
            F.conv2d(gradient, weight.flip(2, 3), padding=side // 2, groups=len(weight)) if of_images else None,
            _weight_gradient(images, gradient, side) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def _weight_gradient(images: Tensor, gradient: Tensor, side: int) -> Tensor:
    """Returns [C, 1, side, side] for images and gradients of the output, both [B, C, H, W]."""
    batch, channels, height, width = images.shape
    pad = side // 2
    planes, kernels = images.contiguous(), gradient.contiguous().reshape(-1, 1, height, width)
    if min(height, width) <= pad:  # oneDNN has a slow path for kernels that are not larger than the padding too
        planes, pad = F.pad(planes, [pad] * 4), 0
    found = F.conv2d(planes.reshape(1, -1, *planes.shape[2:]), kernels, padding=pad, groups=len(kernels))
    return found.view(batch, channels, 1, side, side).sum(0)


def _fits(layer: nn.Conv2d) -> bool:
    side = layer.kernel_size[0]
    depthwise = layer.groups == layer.in_channels == layer.out_channels > 1
    same = layer.stride == layer.dilation == (1, 1) and layer.padding == (side // 2, side // 2)
    odd = layer.kernel_size == (side, side) and side % 2 == 1
    return depthwise and same and odd and side >= _FROM_KERNEL and layer.padding_mode == "zeros"


def _able(images: Tensor, weight: Tensor) -> bool:
    plain = images.device.type == "cpu" and images.dtype == weight.dtype == torch.float32
    learning = weight.requires_grad and torch.is_grad_enabled() and images.ndim == 4
    return plain and learning and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
