"""Computes a teacher's outputs for all views of a training part before the training, and stores them on disk."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_convnext.common.console import progress_bar, say
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch, View
from kd_convnext.data.loading.sampler import view_seeds
from kd_convnext.data.loading.teacher_outputs import STILL, AnswerKind, TeacherAnswers, view_name
from kd_convnext.data.loading.views import Views
from kd_convnext.errors import CacheError, Finding
from kd_convnext.modules.frozen_teacher import FrozenTeacher

_KEPT_SECONDS = 30.0
"""A fit that is killed loses no more of the teacher's work than this."""

_KEPT_BYTES = 64e6
"""Answers held in memory before they are written."""


Stored = Literal["views", "still"]
"""Which views of a crop a teacher's outputs are stored for: each augmented one, or the one without augmentation."""

_Answer = tuple[Tensor, list[Tensor], Tensor | None]


def stored_answers(
    teacher: FrozenTeacher, data: SpecimenDataModule, trainer: pl.Trainer, stored: Stored = "views"
) -> TeacherAnswers:
    """Makes sure that a teacher's answers for every view of the training part are on the disk.

    Under several processes each makes its share. What an earlier run has made is kept.

    Args:
        teacher: As it was loaded; moved to the trainer's device and type.
        data: Set up for a fit; with a number of ``views`` where each is stored.
        trainer: Whose fit begins.
        stored: ``views``: outputs for each augmented view. ``still``: one output a crop, the mean over the crop and its
            mirror image, at the teacher's own size; for unlabelled crops too.

    Returns:
        The answers, complete.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    fingerprint = teacher.fingerprint  # of the weights as they were stored
    with trainer.precision_plugin.module_init_context():
        teacher.to(trainer.strategy.root_device, torch.get_default_dtype())
    kind = _kind(teacher, fingerprint, data, trainer, stored)
    answers = TeacherAnswers(kind.folder(data.crops.folder.parent), kind)
    views, names = _still_views(data) if stored == "still" else _all_views(data, trainer.max_epochs)
    # One process looks, before any writes: all must divide the same list.
    missing = trainer.strategy.broadcast(np.flatnonzero(answers.missing(names)))
    if len(missing):
        say(trainer, answers.require_space(len(missing)))
        mine = missing[trainer.global_rank :: trainer.world_size]
        with isolate_rng():
            chosen = [views[n] for n in mine]
            loader = (
                data.still_loader(teacher.backbone.image_size, chosen)
                if stored == "still"
                else data.view_loader(chosen)
            )
            asked = _asked(loader, teacher, trainer, mirrored=stored == "still")
            _teach(asked, [names[n] for n in mine], trainer, answers)
        trainer.strategy.barrier("teacher")
        answers = TeacherAnswers(answers.path, kind)
        if answers.missing(names).any():
            remedy = "Give all processes one folder with --data.cache_dir, and start again."
            raise CacheError(Finding(str(answers.path), "the answers of other processes are not there", remedy))
    return answers


def _kind(
    teacher: FrozenTeacher, fingerprint: str, data: SpecimenDataModule, trainer: pl.Trainer, stored: Stored
) -> AnswerKind:
    blank = torch.zeros(1, data.in_chans, data.image_size, data.image_size, dtype=torch.uint8)
    with trainer.precision_plugin.forward_context():
        logits, maps = teacher(blank.to(teacher.device))
    views = data.train_set.views
    if stored == "still":
        views = Views(teacher.backbone.image_size, data.in_chans, resize=data.crop_spec.resize)
    return AnswerKind(
        teacher=fingerprint,
        taps=teacher.taps.names if teacher.taps else (),
        views=views.identity() | ({"mirrored": True} if stored == "still" else {}),
        precision=str(trainer.precision),
        num_classes=logits.shape[1],
        maps=tuple(tuple(values.shape[1:]) for values in maps),
        embedding=0 if teacher.embedding is None else teacher.embedding.shape[1],
    )


def _still_views(data: SpecimenDataModule) -> tuple[list[View], list[int]]:
    """Lists the view without augmentation of every training crop, labelled or not, and its name."""
    part = data.train_set
    places = [part.place(position) for position in range(len(part))]
    names = [view_name(place.crops.key(place.row), STILL) for place in places]
    return [View(position, STILL) for position in range(len(part))], names


def _all_views(data: SpecimenDataModule, epochs: int | None) -> tuple[list[View], list[int]]:
    """Lists every view that training can ask for, and its name; whole epochs one after the other."""
    # One view an epoch, in turn; balanced classes draw any of them.
    numbers = data.views or 0
    if epochs is not None and epochs > 0 and data.sampling == "natural":
        numbers = min(numbers, epochs)
    part = data.train_set
    keys = [part.crops.key(row) for row in part.rows.tolist()]
    views, names = [], []
    for number in range(numbers):
        seeds = view_seeds(data.view_seed, part.rows, np.full(len(part), number)).tolist()
        views += [View(position, seed) for position, seed in enumerate(seeds)]
        names += [view_name(key, seed) for key, seed in zip(keys, seeds, strict=True)]
    return views, names


def _teach(asked: Iterable[_Answer], names: Sequence[int], trainer: pl.Trainer, answers: TeacherAnswers) -> None:
    """Writes outputs in files of half a minute each; what was computed before an interrupt is kept."""
    held: list[_Answer] = []
    begin, size, written = time.monotonic(), 0, 0

    def write() -> None:
        nonlocal written, begin, size
        if held:
            logits, maps, embedding = _joined(held)
            answers.add(names[written : written + len(logits)], logits, maps, embedding)
            written += len(logits)
        held.clear()
        begin, size = time.monotonic(), 0

    wanted = trainer.is_global_zero and trainer.progress_bar_callback is not None
    try:
        with progress_bar(len(names), wanted, "the teacher's outputs") as advance:
            for answer in asked:
                held.append(answer)
                size += len(answer[0]) * answers.kind.record.itemsize
                if size > _KEPT_BYTES or time.monotonic() - begin > _KEPT_SECONDS:
                    write()
                advance(len(answer[0]))
    finally:
        write()


def _joined(held: Sequence[_Answer]) -> tuple[Any, list[Any], Any]:
    logits = torch.cat([answer[0] for answer in held]).numpy()
    maps = [torch.cat(stage).numpy() for stage in zip(*(answer[1] for answer in held), strict=True)]
    embeddings = [answer[2] for answer in held if answer[2] is not None]
    return logits, maps, torch.cat(embeddings).numpy() if embeddings else None


def _asked(
    loader: Iterable[Batch], teacher: FrozenTeacher, trainer: pl.Trainer, *, mirrored: bool
) -> Iterator[_Answer]:
    """Runs the teacher over batches.

    Yields:
        Logits [B, K], maps [B, C, H, W] and embedding [B, D], on the CPU in float32: whether a value fits into half
        precision is judged where it is written.
    """
    for batch in loader:
        images = batch["image"].to(teacher.device, non_blocking=True)
        found = _run(teacher, images, trainer)
        if mirrored:
            # Of a mirrored picture the maps lie mirrored, too.
            logits, maps, embedding = _run(teacher, images.flip(-1), trainer)
            both = None if embedding is None or found[2] is None else (found[2] + embedding) / 2
            pairs = zip(found[1], maps, strict=True)
            found = (found[0] + logits) / 2, [(one + other.flip(-1)) / 2 for one, other in pairs], both
        yield found


def _run(teacher: FrozenTeacher, images: Tensor, trainer: pl.Trainer) -> _Answer:
    with trainer.precision_plugin.forward_context():
        logits, maps = teacher(images)
        embedding = teacher.embedding
    wide = [values.float().cpu() for values in maps]
    return logits.float().cpu(), wide, None if embedding is None else embedding.float().cpu()
