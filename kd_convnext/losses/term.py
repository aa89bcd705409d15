"""Holds what every loss term shares."""

import torch
from torch import Tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(values: Tensor) -> Tensor:
    """Converts half precision to float32 and leaves float32 and float64 as they are.

    Args:
        values: Any shape.

    Returns:
        The values in at least float32.
    """
    # Half precision cannot hold sums of squares over a stage; float64 stays, for checks in double precision.
    return values.to(_wide(values.dtype))
