"""Measures what a network costs: parameters, multiply-adds, and the time of one photograph."""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_convnext.models.backbones import Backbone

_ROUNDS = 5


def network_cost(backbone: Backbone) -> dict[str, float]:
    """Counts and times one forward pass of one photograph.

    Args:
        backbone: On the device where it is judged.

    Returns:
        ``parameters``; ``multiply_adds`` of matrix products, convolutions and attention; ``ms_per_photograph``, the
        median of five passes of one photograph after one to warm up.
    """
    parameter = next(backbone.parameters())
    side = backbone.image_size
    photograph = torch.zeros(1, backbone.in_chans, side, side, dtype=torch.uint8, device=parameter.device)
    training = backbone.training
    backbone.eval()
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            backbone(photograph)
        times = [_timed(backbone, photograph) for _ in range(_ROUNDS)]
    backbone.train(training)
    return {
        "parameters": float(sum(one.numel() for one in backbone.parameters())),
        # The counter takes a multiplication and an addition for two.
        "multiply_adds": counter.get_total_flops() / 2,
        "ms_per_photograph": 1000 * statistics.median(times),
    }


def _timed(backbone: Backbone, photograph: torch.Tensor) -> float:
    begun = time.perf_counter()
    backbone(photograph)
    if photograph.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun
