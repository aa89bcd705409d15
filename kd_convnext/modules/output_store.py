"""Fills a store of network outputs on disk: what is missing, in shares, with progress, kept when interrupted."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_convnext.common.console import duration, progress_bar, say
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.teacher_outputs import TeacherAnswers
from kd_convnext.errors import CacheError, Finding

_KEPT_SECONDS = 30.0
"""A fit that is killed loses no more of the teacher's work than this."""

_KEPT_BYTES = 64e6
"""Answers held in memory before they are written."""

WARM, MEASURED = 5.0, 5.0
"""Seconds after the first batch that say nothing yet of the pace, and those after them by which it is measured."""

LONG = 60.0
"""Seconds from which on the time is said before it has passed."""


Answer = tuple[Tensor, list[Tensor], Tensor | None]
"""Logits [B, K], maps [B, C, H, W] and embedding [B, D] of a batch."""


def filled_store(
    answers: TeacherAnswers,
    views: Sequence[View],
    names: Sequence[int],
    asked: Callable[[Sequence[View]], Iterable[Answer]],
    trainer: pl.Trainer,
) -> TeacherAnswers:
    """Computes what a store lacks. Under several processes each makes its share.

    Args:
        answers: The store, perhaps with what earlier runs have computed.
        views: The views wanted, M of them.
        names: Their names, from `view_name`.
        asked: From views to the outputs of a network, in batches.
        trainer: Whose fit begins.

    Returns:
        The store, complete.

    Raises:
        CacheError: The outputs do not fit on the disk, or cannot be written.
    """
    # One process looks, before any writes: all must divide the same list.
    missing = trainer.strategy.broadcast(np.flatnonzero(answers.missing(names)))
    if len(missing):
        say(trainer, answers.require_space(len(missing)))
        mine = missing[trainer.global_rank :: trainer.world_size]
        with isolate_rng():
            _write_all(asked([views[n] for n in mine]), [names[n] for n in mine], trainer, answers)
        trainer.strategy.barrier("teacher")
        answers = TeacherAnswers(answers.path, answers.kind)
        if answers.missing(names).any():
            remedy = "Give all processes one folder with --data.cache_dir, and start again."
            raise CacheError(Finding(str(answers.path), "the outputs of other processes are not there", remedy))
    return answers


def on_the_cpu(logits: Tensor, maps: Sequence[Tensor], embedding: Tensor | None) -> Answer:
    """Brings outputs to the CPU in float32: whether a value fits into half precision is judged where it is written.

    Args:
        logits: [B, K].
        maps: [B, C, H, W] of each tapped stage.
        embedding: [B, D] or None.

    Returns:
        The same.
    """
    return logits.float().cpu(), [v.float().cpu() for v in maps], None if embedding is None else embedding.float().cpu()


def _write_all(asked: Iterable[Answer], names: Sequence[int], trainer: pl.Trainer, answers: TeacherAnswers) -> None:
    """Writes outputs in files of half a minute each; what was computed before an interrupt is kept."""
    held: list[Answer] = []
    begin, size, written = time.monotonic(), 0, 0

    def write() -> None:
        nonlocal written, begin, size
        if held:
            logits, maps, embedding = _joined(held)
            answers.add(names[written : written + len(logits)], logits, maps, embedding)
            written += len(logits)
        held.clear()
        begin, size = time.monotonic(), 0

    forecast = Forecast(len(names), trainer)
    wanted = trainer.is_global_zero and trainer.progress_bar_callback is not None
    try:
        with progress_bar(len(names), wanted, "the teacher's outputs") as advance:
            for answer in asked:
                held.append(answer)
                size += len(answer[0]) * answers.kind.record.itemsize
                if size > _KEPT_BYTES or time.monotonic() - begin > _KEPT_SECONDS:
                    write()
                advance(len(answer[0]))
                forecast.after(len(answer[0]))
    finally:
        write()


class Forecast:
    """Says how long all outputs of a teacher take, once it has answered for some seconds."""

    def __init__(self, count: int, trainer: pl.Trainer) -> None:
        """Takes what is to be said, and to whom.

        Args:
            count: Outputs wanted of this process.
            trainer: Whose fit begins.
        """
        self.count, self.trainer = count, trainer
        self._done, self._warm, self._said = 0, 0, False
        self._first: float | None = None
        self._begun: float | None = None

    def after(self, size: int) -> None:
        """Counts a batch of so many outputs."""
        now, self._done = time.monotonic(), self._done + size
        if self._first is None:
            self._first = now
        elif self._begun is None:
            if now - self._first >= WARM:
                self._begun, self._warm = now, self._done
        elif not self._said and now - self._begun >= MEASURED:
            self._said = True
            each = (now - self._begun) / (self._done - self._warm)
            if (left := each * (self.count - self._done)) >= LONG:
                took = f"{duration(left)} more ({each:.3g} s each, measured)"
                say(self.trainer, f"Asking the teacher is expected to take {took}")


def _joined(held: Sequence[Answer]) -> tuple[Any, list[Any], Any]:
    logits = torch.cat([answer[0] for answer in held]).numpy()
    maps = [torch.cat(stage).numpy() for stage in zip(*(answer[1] for answer in held), strict=True)]
    embeddings = [answer[2] for answer in held if answer[2] is not None]
    return logits, maps, torch.cat(embeddings).numpy() if embeddings else None
