"""Describes how training crops become batches: loader processes, order, views, storage."""

import os
from dataclasses import dataclass
from typing import get_args

from kd_convnext.data.crops.cache.prepared import OnMiss
from kd_convnext.data.loading.sampling import ClassSampling, SamplingName
from kd_convnext.errors import ConfigError, Finding

_PROCESSES, _PROCESSES_A_CORE = 32, 4
"""Loader processes that any machine is trusted with, and those for each of its cores: more only cost memory."""


@dataclass(frozen=True)
class LoaderSpec:
    """Describes how batches are loaded.

    Attributes:
        num_workers: Loader processes; by default a fit measures how many keep up with its steps (0 where loading
            hardly takes time), and judging takes as many as the cores allow, at most 8.
        seed: Decides order and augmentation of training.
        least_batches: Batches an epoch has at least: of few photographs it makes several passes, so that a recipe of so
            many epochs has steps enough.
        views: Augmented views of each crop: one a pass, in turn; null for new ones in every epoch. A number lets a
            teacher's outputs be stored (``--model.teacher_cache``).
        views_seed: Decides the limited views; null for ``seed``. One for several seeds and repeats lets them share a
            teacher's stored outputs.
        sampling: How often training draws a class: ``natural``, ``square_root`` of its share, ``balanced``, or a
            `ClassSampling` by its class path.
        unlabelled_ratio: Unlabelled images for each labelled one in a batch; ``batch_size`` counts labelled ones.
        unlabelled_sampling: As ``sampling``, for unlabelled crops, by the classes that the (first) teacher predicts in
            its stored outputs; ``natural`` draws each as often as any other, pass after pass.
        packed: Read all crops of the manifest from one memory-mapped file, made once from the cache.
        on_miss: Whether a crop that is not in the cache, or whose entry is damaged, is made (``make``), or is an error
            (``raise``) that says how to prepare it.

    Raises:
        ConfigError: A value that cannot work; all of them together.

    Examples:
        >>> LoaderSpec(num_workers=2, views=20).sampling
        'natural'
        >>> LoaderSpec(num_workers=-1)
        Traceback (most recent call last):
        ...
        kd_convnext.errors.ConfigError: --data.loader.num_workers: -1 is too small. Use at least 0.
    """

    num_workers: int | None = None
    seed: int = 0
    least_batches: int = 1
    views: int | None = None
    views_seed: int | None = None
    sampling: SamplingName | ClassSampling = "natural"
    unlabelled_ratio: float = 1.0
    unlabelled_sampling: SamplingName | ClassSampling = "natural"
    packed: bool = False
    on_miss: OnMiss = "make"

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        findings = [
            Finding(f"--data.loader.{name}", f"{value} is too small", f"Use at least {least}.")
            for name, value, least in (
                ("num_workers", self.num_workers, 0),
                ("least_batches", self.least_batches, 1),
                ("views", self.views, 1),
                ("views_seed", self.views_seed, 0),
                ("seed", None if self.views is None else self.seed, 0),
            )
            if value is not None and value < least
        ]
        most = max(_PROCESSES, _PROCESSES_A_CORE * (os.cpu_count() or 1))
        if self.num_workers is not None and self.num_workers > most:
            # Each costs memory: the machine would begin to kill processes.
            what = f"{self.num_workers} processes are too many for this machine"
            findings.append(Finding("--data.loader.num_workers", what, f"Use at most {most}."))
        if not self.unlabelled_ratio >= 0:
            what = f"{self.unlabelled_ratio} is not 0 or more"
            findings.append(Finding("--data.loader.unlabelled_ratio", what, "Use for example 2."))
        findings += [
            Finding(f"--data.loader.{name}", f"there is no {value!r}", f"Choose one of {', '.join(choices)}.")
            for name, value, choices in (
                ("sampling", self.sampling, get_args(SamplingName)),
                ("unlabelled_sampling", self.unlabelled_sampling, get_args(SamplingName)),
                ("on_miss", self.on_miss, get_args(OnMiss)),
            )
            if value not in choices and not isinstance(value, ClassSampling)
        ]
        if findings:
            raise ConfigError(findings)


def check_sizes(image_size: int, batch_size: int) -> None:
    """Refuses sizes that no network or step can work with.

    Args:
        image_size: Side of the network's input in pixels.
        batch_size: Images a batch.

    Raises:
        ConfigError: A size is too small; both together.
    """
    findings = [
        Finding(f"--data.{name}", f"{value} is too small", f"Use at least {least}.")
        for name, value, least in (("image_size", image_size, 8), ("batch_size", batch_size, 1))
        if value < least
    ]
    if findings:
        raise ConfigError(findings)
