"""Watches the loader processes of a torch loader, and starts them when the first batch is asked for."""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from kd_convnext.common.process import is_stopped
from kd_convnext.errors import Finding, TrainingError

PATIENCE = 20
"""Seconds without a batch after which the loader processes are looked at."""

_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([^.]+)\.)?")


class WatchedLoader(DataLoader[Any]):
    """A torch loader whose processes are started by the first batch, and whose stopped processes end the loop.

    Lightning asks for the iterator of an epoch before it tells the sampler which epoch it is. Processes that begin to
    load at once would load the first epoch's order again after a fit has been resumed.
    """

    def __iter__(self) -> Any:
        """Returns an iterator over batches; nothing is loaded before the first is asked for."""
        return _Batches(self)


class _Batches:
    def __init__(self, loader: WatchedLoader) -> None:
        self._loader = loader
        self._begun: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        if self._begun is None:
            self._begun = DataLoader.__iter__(self._loader)
        while True:
            try:
                return next(self._begun)
            except RuntimeError as error:
                if "timed out after" not in str(error):
                    raise
            # Slow is not wrong: crops may be made again by a network. Only what cannot go on is an error.
            _require_running([worker.pid for worker in getattr(self._begun, "_workers", ())])


def _require_running(processes: list[int]) -> None:
    """Ends processes that are stopped, and says so."""
    stopped = [process for process in processes if is_stopped(process)]
    if not stopped:
        return
    for process in stopped:
        # A stopped process takes no other signal, and would be waited for at exit.
        os.kill(process, signal.SIGKILL)
    what = f"{_named(stopped)} stopped from outside (SIGSTOP) and gave nothing for {PATIENCE} s"
    raise TrainingError(Finding("--data.loader.num_workers", what, _REMEDY))


_REMEDY = (
    "What is finished stays; go on from RUN/checkpoints/last.ckpt (--ckpt_path), and with "
    "--data.loader.num_workers 0 if it happens again."
)


def loader_finding(error: BaseException) -> Finding | None:
    """Describes what torch raises where a loader process has died.

    Args:
        error: Anything that a loop has raised.

    Returns:
        The finding; None for any other error.
    """
    found = _DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    reason = f"was ended from outside ({found[2]})" if found[2] else "ended unexpectedly"
    memory = "; SIGKILL is most often a lack of memory" if found[2] == "Killed" else ""
    memory = "; a bus error is most often a full /dev/shm" if found[2] == "Bus error" else memory
    return Finding("--data.loader.num_workers", f"loader process {found[1]} {reason}{memory}", _REMEDY)


def _named(processes: list[int]) -> str:
    numbers = ", ".join(str(process) for process in processes)
    return f"loader process{'es' * (len(processes) > 1)} {numbers} {'were' if len(processes) > 1 else 'was'}"
