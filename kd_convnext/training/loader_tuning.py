"""Measures how many loader processes a fit needs."""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from statistics import median
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.common.machine import available_cores
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.workers import Workers, choose_workers, default_workers

_SAMPLES, _ROUNDS = 12, 3


_FEW, _MORE, _QUICK = 2, 16, 0.2
"""Images to measure a CPU's step with; and with how many more where that step takes less than these seconds: small
networks take much less time for an image among many."""


_BACKWARD = 2.0
"""A backward pass in forward passes of the same network."""


class LoaderTuning(Callback):
    """Lets a fit measure how many loader processes keep up with its steps, where no number is given."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the data module the measurement, to be run when the training loader is built."""
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, SpecimenDataModule):
            data.measure_workers(lambda keys: measured_workers(data.train_set, keys, trainer, data.batch_size))


class Samples(Protocol):
    """Dataset that is loaded for the measurement."""

    def __getitem__(self, key: Any) -> Any:
        """Loads one sample."""


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
    staff = None if getattr(module, "teacher_cache", False) else getattr(module, "staff", None)
    learns = any(parameter.requires_grad for parameter in network.body_parameters())
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            total = (1 + _BACKWARD * learns) * _passing(network, images)
            if staff is not None:
                staff.to(device, network.mean.dtype)
                total += sum(_passing(teacher, images) for teacher in staff.live.values())
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
