"""How many loader processes a fit needs on its machine, by measurement."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.data.cores import available_cores

MOST = 16
"""Loader processes of one fit at most; each holds its own copy of what the data module knows."""

NEGLIGIBLE = 0.05
"""Share of a step up to which loading in the same process is best: a loader process takes its core from the step, and
on two cores costs more than it brings (``benchmarks/feeding.py``)."""

_SPARE_ON_CPU, _SPARE_ON_GPU = 1.25, 4.0
"""How much faster than measured steps are fed. A GPU's are measured eagerly and may later run compiled."""

_SAMPLES, _ROUNDS = 12, 3

_FEW, _MORE, _QUICK = 2, 16, 0.2
"""Images to measure a CPU's step with; and with how many more where that step takes less than these seconds: small
networks take much less time for an image among many."""

_BACKWARD = 2.0
"""A backward pass in forward passes of the same network."""


class Samples(Protocol):
    """What is loaded."""

    def __getitem__(self, key: Any) -> Any:
        """Loads one sample."""


@dataclass(frozen=True)
class Workers:
    """Loader processes of one process of a fit.

    Attributes:
        count: 0 for loading within the step's own process.
        reason: Why, in a few words.
        starved: Whether the machine's cores cannot load as fast as its steps go.
    """

    count: int
    reason: str
    starved: bool = False

    def __str__(self) -> str:
        """Says it for the machine line."""
        number = "no loader worker" if not self.count else f"{self.count} loader worker{'s' if self.count > 1 else ''}"
        return f"{number} ({self.reason})"


def unmeasured_workers(given: int | None) -> Workers:
    """Returns the number given, or else the default."""
    return Workers(default_workers(), "by the cores") if given is None else Workers(given, "as given")


def default_workers(processes: int = 1) -> int:
    """Returns how many loader processes suit a machine of which nothing else is known.

    Args:
        processes: Of this job on this machine; they share its cores.

    Returns:
        One less than a process has cores, 1 to 8.
    """
    return min(8, max(1, available_cores() // processes - 1))


def choose_workers(load: float, step: float, cores: int, *, on_cpu: bool) -> Workers:
    """Decides by what loading and stepping take.

    Args:
        load: Seconds of one core to load an image.
        step: Seconds of a training step, by image.
        cores: This process may use.
        on_cpu: Steps run on the same cores.

    Returns:
        No process where loading hardly takes time from steps on a CPU; else as many as keep up with them, as far as
        there are cores.
    """
    share = load / step
    reason = f"loading takes {share:.1%} of a step on one core, measured"
    if on_cpu and share <= NEGLIGIBLE:
        return Workers(0, reason)
    needed = math.ceil(share * (_SPARE_ON_CPU if on_cpu else _SPARE_ON_GPU))
    most = min(MOST, max(1, cores - 1))
    return Workers(min(needed, most), reason, starved=share > most)


def measured_workers(dataset: Samples, keys: Iterable[Any], trainer: Trainer, batch_size: int) -> Workers:
    """Measures loading and the networks' passes, and decides, in a second or two, without a trace in random numbers.

    Args:
        dataset: The training part.
        keys: What will be asked of it; the first few are.
        trainer: While its fit is being set up, with the module on its device.
        batch_size: Images a step and process.

    Returns:
        The choice; the default where the module is none of ours.
    """
    from kd_convnext.models.backbones import Backbone

    module = trainer.lightning_module
    asked = list(islice(keys, _SAMPLES))
    if not isinstance(getattr(module, "classifier", None), Backbone) or not asked:
        return Workers(default_workers(trainer.num_devices), "by the cores")
    on_cpu = trainer.strategy.root_device.type == "cpu"
    cores = available_cores() // trainer.num_devices
    with isolate_rng(include_cuda=not on_cpu):
        load = _loading(dataset, asked)
        step = _stepping(module, trainer, min(_FEW, batch_size) if on_cpu else batch_size)
        if on_cpu and _FEW * step < _QUICK:
            step = _stepping(module, trainer, min(_MORE, batch_size))
    return choose_workers(load, step, cores, on_cpu=on_cpu)


def _loading(dataset: Samples, keys: Sequence[Any]) -> float:
    dataset[keys[0]]  # sets files and libraries up
    return median(_seconds(lambda key=key: dataset[key]) for key in keys)  # type: ignore[misc]


def _stepping(module: LightningModule, trainer: Trainer, count: int) -> float:
    """Seconds an image of a step, by the forward passes of the networks that take part in it."""
    network, device = cast(Any, module).classifier, trainer.strategy.root_device
    shape = (count, network.in_chans, network.image_size, network.image_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=device)
    teacher = None if getattr(module, "teacher_cache", False) else getattr(module, "teacher", None)
    learns = any(parameter.requires_grad for parameter in network.body_parameters())
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            total = (1 + _BACKWARD * learns) * _passing(network, images)
            if teacher is not None:
                teacher.to(device, network.mean.dtype)
                total += _passing(teacher, images)
    finally:
        for part, training in modes.items():
            part.training = training
    return total / count


def _passing(network: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    def run() -> None:
        network(images)
        if images.device.type != "cpu":
            torch.accelerator.synchronize(images.device)

    run()
    return median(_seconds(run) for _ in range(_ROUNDS))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
