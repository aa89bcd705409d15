"""Fills a store of network outputs on disk: what is missing, in shares, with progress, kept when interrupted."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_convnext.common.console import duration, progress_bar, say
from kd_convnext.common.counting import counted
from kd_convnext.common.files import require_space
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.teacher_outputs import STUDENT, Asker, TeacherAnswers
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


Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """Outputs that are wanted of a network.

    Attributes:
        answers: Their store, perhaps with what earlier runs have computed.
        views: The views wanted, M of them.
        names: Their names, from `view_name`.
        asked: From views to the outputs of the network, in batches.
        looks: How often the network runs for a view.
    """

    answers: TeacherAnswers
    views: Sequence[View]
    names: Sequence[int]
    asked: Callable[[Sequence[View]], Iterable[Answer]]
    looks: int = 1


def filled_stores(orders: Sequence[Order], trainer: pl.Trainer, asker: Asker = STUDENT) -> list[TeacherAnswers]:
    """Computes what stores lack, once all of it fits on the disk. Under several processes each makes its share.

    Args:
        orders: What is wanted, below one cache folder.
        trainer: Whose fit begins.
        asker: Who is told.

    Returns:
        The stores, complete.

    Raises:
        CacheError: The outputs do not fit on the disk, or cannot be written.
    """
    # One process looks, before any writes: all must divide the same lists.
    found = trainer.strategy.broadcast([np.flatnonzero(order.answers.missing(order.names)) for order in orders])
    missing = [(order, places) for order, places in zip(orders, found, strict=True) if len(places)]
    if not missing:
        return [order.answers for order in orders]
    say(trainer, _require_space(missing, asker))
    mine = [(order, places[trainer.global_rank :: trainer.world_size]) for order, places in missing]
    forecast = Forecast(sum(len(places) * order.looks for order, places in mine), trainer)
    with isolate_rng():
        for order, places in mine:
            _write_all(order, places, trainer, asker, forecast)
    trainer.strategy.barrier("teacher")
    stores = [
        TeacherAnswers(order.answers.path, order.answers.kind) if len(places) else order.answers
        for order, places in zip(orders, found, strict=True)
    ]
    for order, store in zip(orders, stores, strict=True):
        if lacking := int(store.missing(order.names).sum()):
            raise CacheError(_not_there(store, lacking, trainer.world_size))
    return stores


def _require_space(missing: Sequence[tuple[Order, Places]], asker: Asker) -> str:
    """Returns a line on the disk space that all outputs will take, and refuses what does not fit."""
    stores = [(order.answers, len(places)) for order, places in missing]
    size = sum(count * answers.kind.record.itemsize for answers, count in stores)
    # Stores of one network lie side by side.
    folder = stores[0][0].path if len(stores) == 1 else stores[0][0].path.parent
    views = counted(sum(count for _, count in stores), "view")
    need = require_space(folder, size, f"{asker.outputs} for {views}", asker.no_space)
    each = " and ".join(f"{answers.kind.record.itemsize}" for answers, _ in stores)
    return f"{asker.does} {views} once, {each} bytes each, {need}: {folder}"


def _not_there(store: TeacherAnswers, lacking: int, processes: int) -> Finding:
    """Describes outputs that were written and cannot be found."""
    what = f"{counted(lacking, 'output')} of those just written cannot be found"
    remedy = "Check the disk, or name another --data.cache_dir"
    if processes > 1:
        what, remedy = "the outputs of other processes are not there", "Give all processes one folder"
        remedy += " with --data.cache_dir"
    return Finding(str(store.path), what, f"{remedy}, and start again.")


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


def _write_all(order: Order, places: Places, trainer: pl.Trainer, asker: Asker, forecast: "Forecast") -> None:
    """Writes outputs in files of half a minute each; what was computed before an interrupt is kept."""
    held: list[Answer] = []
    names, answers = [order.names[place] for place in places], order.answers
    begin, size, written = time.monotonic(), 0, 0

    def write() -> None:
        nonlocal written, begin, size
        if held:
            logits, maps, embedding = _joined(held)
            answers.add(names[written : written + len(logits)], logits, maps, embedding, asker)
            written += len(logits)
        held.clear()
        begin, size = time.monotonic(), 0

    wanted = trainer.is_global_zero and trainer.progress_bar_callback is not None
    try:
        with progress_bar(len(names), wanted, asker.outputs, "views") as advance:
            for answer in order.asked([order.views[place] for place in places]):
                held.append(answer)
                size += len(answer[0]) * answers.kind.record.itemsize
                if size > _KEPT_BYTES or time.monotonic() - begin > _KEPT_SECONDS:
                    write()
                advance(len(answer[0]))
                forecast.after(len(answer[0]) * order.looks)
    finally:
        write()


class Forecast:
    """Says how long all outputs of a network take, once it has answered for some seconds."""

    def __init__(self, count: int, trainer: pl.Trainer) -> None:
        """Takes what is to be said, and to whom.

        Args:
            count: Runs of the network wanted of this process.
            trainer: Whose fit begins.
        """
        self.count, self.trainer = count, trainer
        self._done, self._warm, self._said = 0, 0, False
        self._first: float | None = None
        self._begun: float | None = None

    def after(self, size: int) -> None:
        """Counts a batch of so many runs."""
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
