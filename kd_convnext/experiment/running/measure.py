"""Measures a fit of a few steps: ``python -m kd_convnext.experiment.running.measure fit ...``."""

import json
import sys
import time
from collections.abc import Sequence

from kd_convnext.common.machine import peak_memory
from kd_convnext.errors import KDConvNeXtError


def measure(words: Sequence[str]) -> dict[str, float]:
    """Runs a fit and reads the step times from the run's header.

    Args:
        words: Of a ``fit`` of at least three steps.

    Returns:
        ``step`` and ``batch`` (seconds of a training step and of a validation batch), ``start`` (seconds of everything
        else), ``memory`` and ``gpu_memory`` (peak, bytes).
    """
    begun = time.perf_counter()
    import torch

    from kd_convnext.training.command import TrainingCLI
    from kd_convnext.training.header import RunHeader

    cli = TrainingCLI.parsed(words)
    assert cli is not None
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    (header,) = (callback for callback in callbacks if isinstance(callback, RunHeader))
    step, batch = header.measured
    worked = step * cli.trainer.global_step + batch * 4
    return {
        "step": step,
        "batch": batch,
        "start": max(0.0, time.perf_counter() - begun - worked),
        "memory": peak_memory(),
        "gpu_memory": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(measure(sys.argv[1:])))
    except KDConvNeXtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
