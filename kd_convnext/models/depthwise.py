"""Computes the gradient of a depthwise convolution's weights on a CPU as a convolution itself.

torch leaves it to a slow path of oneDNN for kernels above 3 px: on a CPU with AVX2 two fifths of a training step of a
small ConvNeXt at 96 px, and slow with AVX-512 and in bf16 as well. The gradient is the correlation of the padded input
with the gradient of the output, channel by channel and image by image: a depthwise convolution whose kernels are those
gradients, which runs at the rate of a forward pass. In mixed precision it is computed in float32: faster, and closer.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FROM_KERNEL = 5
"""Smaller kernels gain nothing (measured with 3 px at 3 to 56 px)."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the size; in training on a CPU its weights' gradient is computed faster."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training and _able(input, weight) and depthwise_pays():
            mixed = torch.is_autocast_enabled("cpu")
            with torch.autocast("cpu", enabled=False):
                found = cast(Tensor, _Depthwise.apply(input.float(), weight, bias))
            return found.to(torch.get_autocast_dtype("cpu")) if mixed else found
        return cast(Tensor, super()._conv_forward(input, weight, bias))


def quicken_depthwise(network: nn.Module) -> None:
    """Makes the depthwise convolutions of a network that gain by it `DepthwiseConv2d`; weights and names stay.

    Args:
        network: Changed in place.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = DepthwiseConv2d


def depthwise_pays() -> bool:
    """Tells whether this CPU is of a kind on which this way was measured to be faster.

    Not by a measurement of its own: two fits of one seed, or a fit and its resume, must take the same way.
    """
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


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
    plain = images.device.type == "cpu" and weight.dtype == torch.float32
    known = images.dtype == torch.float32 or torch.is_autocast_enabled("cpu")
    learning = weight.requires_grad and torch.is_grad_enabled() and images.ndim == 4
    return plain and known and learning and not torch.compiler.is_compiling()
