"""An honest count of floating-point operations, of training steps too.

PyTorch's counter takes the weight gradient of a grouped convolution for that of a dense one: a factor of the number
of groups, which is the number of channels in a depthwise convolution (ConvNeXt). Here it is counted right.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_GROUPED = "convolution_grouped"


@dataclass(frozen=True)
class FlopCount:
    """What was counted; a multiplication and an addition are two operations.

    Attributes:
        by_operator: Name of the operator (``addmm``, ``convolution``, ``convolution_grouped_backward`` ...) to its
            operations. Convolutions of more than one group stand apart.
    """

    by_operator: dict[str, int]

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.by_operator.values())


def count_flops(run: Callable[[], object]) -> FlopCount:
    """Counts the operations of matrix products, convolutions and attention while something runs.

    Elementwise operations, norms and biases are not counted, as is usual: they are bound by memory. Attention counts
    whole (no allowance for masks), and its fused backward pass with the scores that it computes again.

    Args:
        run: Called once, eagerly: what a compiled graph does is not seen. A training step runs its backward pass
            inside.

    Returns:
        The count.
    """
    grouped: Counter[str] = Counter()

    def forward(images: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any) -> int:
        transposed, groups = rest[4], rest[6]
        flops = convolution_flops(images if transposed else out_shape, weight)
        grouped[_GROUPED] += flops if groups > 1 else 0
        return flops

    def backward(gradient: Sequence[int], images: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
        transposed, groups, wanted = rest[4], rest[6], int(rest[7][0]) + int(rest[7][1])
        # Each product of the forward pass comes again in either gradient, with one factor exchanged.
        flops = convolution_flops(images if transposed else gradient, weight) * wanted
        grouped[f"{_GROUPED}_backward"] += flops if groups > 1 else 0
        return flops

    aten = torch.ops.aten
    mode = FlopCounterMode(
        display=False, custom_mapping={aten.convolution: forward, aten.convolution_backward: backward}
    )
    with mode:
        run()
    counts = Counter({_name(operator): flops for operator, flops in mode.get_flop_counts()["Global"].items()})
    for name, flops in grouped.items():
        counts[name] += flops
        counts[name.replace("_grouped", "")] -= flops
    return FlopCount({name: flops for name, flops in counts.items() if flops})


def convolution_flops(places: Sequence[int], weight: Sequence[int]) -> int:
    """Counts one convolution's operations.

    Args:
        places: Shape [N, C, ...] of the tensor at each of whose places the filters are applied: the output, or for a
            transposed convolution the input.
        weight: Shape of the weight, its second number already divided by the groups.

    Returns:
        Two for each product, those with padding included.
    """
    return 2 * places[0] * int(prod(places[2:])) * int(prod(weight))


def _name(operator: Any) -> str:
    return str(operator).removeprefix("aten.")
