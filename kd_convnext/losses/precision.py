"""Keeps losses in at least float32, also under autocast."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Converts half precision to float32 and leaves float32 and float64 as they are.

    Args:
        values: Any shape.

    Returns:
        The values in at least float32.
    """
    # Half precision cannot hold sums of squares over a stage; float64 stays, for checks in double precision.
    return values.to(torch.promote_types(values.dtype, torch.float32))


def without_autocast(values: Tensor) -> torch.autocast:
    """Returns a context in which matrix products keep the type of their inputs.

    Args:
        values: A tensor on the device concerned.

    Returns:
        A context manager; ``torch.compile`` traces it.
    """
    return torch.autocast(values.device.type, enabled=False)
