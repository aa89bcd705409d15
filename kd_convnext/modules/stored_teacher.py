"""A teacher answers all views of a training part ahead of the training, once for every run that shares them."""

import time
from collections.abc import Iterator, Sequence
from typing import cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_convnext.common.console import progress_bar, say
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch, View
from kd_convnext.data.loading.sampler import view_seeds
from kd_convnext.data.loading.teacher_outputs import AnswerKind, TeacherAnswers, view_name
from kd_convnext.errors import CacheError, Finding
from kd_convnext.modules.frozen_teacher import FrozenTeacher

_KEPT_SECONDS = 30.0
"""A fit that is killed loses no more of the teacher's work than this."""

_KEPT_BYTES = 64e6
"""Answers held in memory before they are written."""


def stored_answers(teacher: FrozenTeacher, data: SpecimenDataModule, trainer: pl.Trainer) -> TeacherAnswers:
    """Makes sure that a teacher's answers for every view of the training part are on the disk.

    Under several processes each makes its share. What an earlier run has made is kept.

    Args:
        teacher: As it was loaded; moved to the trainer's device and type.
        data: Set up for a fit, with a number of ``views``.
        trainer: Whose fit begins.

    Returns:
        The answers, complete.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    fingerprint = teacher.fingerprint  # of the weights as they were stored
    with trainer.precision_plugin.module_init_context():
        teacher.to(trainer.strategy.root_device, torch.get_default_dtype())
    kind = _kind(teacher, fingerprint, data, trainer)
    answers = TeacherAnswers(kind.folder(data.crops.folder.parent), kind)
    views, names = _all_views(data, trainer.max_epochs)
    # One process looks, before any writes: all must divide the same list.
    missing = trainer.strategy.broadcast(np.flatnonzero(answers.missing(names)))
    if len(missing):
        say(trainer, answers.require_space(len(missing)))
        mine = missing[trainer.global_rank :: trainer.world_size]
        with isolate_rng():
            _teach([views[n] for n in mine], [names[n] for n in mine], teacher, data, trainer, answers)
        trainer.strategy.barrier("teacher")
        answers = TeacherAnswers(answers.path, kind)
        if answers.missing(names).any():
            remedy = "Give all processes one folder with --data.cache_dir, and start again."
            raise CacheError(Finding(str(answers.path), "the answers of other processes are not there", remedy))
    return answers


def _kind(teacher: FrozenTeacher, fingerprint: str, data: SpecimenDataModule, trainer: pl.Trainer) -> AnswerKind:
    blank = torch.zeros(1, data.in_chans, data.image_size, data.image_size, dtype=torch.uint8)
    with trainer.precision_plugin.forward_context():
        logits, maps = teacher(blank.to(teacher.device))
    return AnswerKind(
        teacher=fingerprint,
        taps=teacher.taps.names if teacher.taps else (),
        views=data.train_set.views.identity(),
        precision=str(trainer.precision),
        num_classes=logits.shape[1],
        maps=tuple(tuple(values.shape[1:]) for values in maps),
    )


def _all_views(data: SpecimenDataModule, epochs: int | None) -> tuple[list[View], list[int]]:
    """Lists every view that training can ask for, and its name; whole epochs one after the other."""
    # One view an epoch, in turn; balanced classes draw any of them.
    numbers = data.views or 0
    if epochs is not None and epochs > 0 and not data.class_balanced:
        numbers = min(numbers, epochs)
    part = data.train_set
    keys = [part.crops.key(row) for row in part.rows.tolist()]
    views, names = [], []
    for number in range(numbers):
        seeds = view_seeds(data.view_seed, part.rows, np.full(len(part), number)).tolist()
        views += [View(position, seed) for position, seed in enumerate(seeds)]
        names += [view_name(key, seed) for key, seed in zip(keys, seeds, strict=True)]
    return views, names


def _teach(
    views: Sequence[View],
    names: Sequence[int],
    teacher: FrozenTeacher,
    data: SpecimenDataModule,
    trainer: pl.Trainer,
    answers: TeacherAnswers,
) -> None:
    """Asks the teacher, and writes in files of half a minute each; what was answered before an interrupt is kept."""
    held: list[tuple[Tensor, list[Tensor]]] = []
    begin, size, written = time.monotonic(), 0, 0

    def write() -> None:
        nonlocal written, begin, size
        if held:
            logits = torch.cat([logits for logits, _ in held]).numpy()
            maps = [torch.cat(stage).numpy() for stage in zip(*(maps for _, maps in held), strict=True)]
            answers.add(names[written : written + len(logits)], logits, maps)
            written += len(logits)
        held.clear()
        begin, size = time.monotonic(), 0

    wanted = trainer.is_global_zero and trainer.progress_bar_callback is not None
    try:
        with progress_bar(len(views), wanted, "the teacher answers") as advance:
            for logits, maps in _asked(views, teacher, data, trainer):
                held.append((logits, maps))
                size += len(logits) * answers.kind.record.itemsize
                if size > _KEPT_BYTES or time.monotonic() - begin > _KEPT_SECONDS:
                    write()
                advance(len(logits))
    finally:
        write()


def _asked(
    views: Sequence[View], teacher: FrozenTeacher, data: SpecimenDataModule, trainer: pl.Trainer
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for batch in data.view_loader(views):
        with trainer.precision_plugin.forward_context():
            logits, maps = teacher(cast(Batch, batch)["image"].to(teacher.device, non_blocking=True))
        # In float32 on the way: whether a value fits into half precision is judged where it is written.
        yield logits.float().cpu(), [values.float().cpu() for values in maps]
