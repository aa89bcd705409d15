"""Watches the other processes of a training on several devices: one that dies or stops ends all of them, in words."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from kd_convnext.common.console import complain
from kd_convnext.common.process import is_stopped
from kd_convnext.errors import Finding, Terminated, TrainingError

GRACE = 25.0
"""Seconds that processes have to end by themselves, once one of them is gone or a signal has come."""

_PERIOD = 1.0

_TOLD = threading.Event()
"""Set once this process has been told to stop (SIGTERM) in a training of several."""

_REMEDY = "What is finished stays: go on from RUN/checkpoints/last.ckpt (--ckpt_path)."


def told_to_stop() -> bool:
    """Tells whether this process of a training of several has been told to stop (SIGTERM)."""
    return _TOLD.is_set()


class RankWatch(Callback):
    """Ends a training of several processes within a minute once one of them is killed, stopped, or told to end.

    Lightning's handler of SIGTERM waits in it for the other processes, which may wait for this one; and it kills the
    first process where another has ended, which then cannot say why. Where a launcher of another kind (torchrun, SLURM)
    has started the processes, that launcher watches them, and this does nothing.
    """

    def __init__(self) -> None:
        """Begins without a watch."""
        super().__init__()
        self._watch: _Watch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the processes; not before, as Lightning takes SIGTERM after a fit's first hook."""
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the other processes."""
        self._begin(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the other processes."""
        self._begin(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the other processes."""
        self._begin(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops watching, where the training has ended by itself."""
        if self._watch is not None and trainer.state.status != "interrupted":
            self._watch.end()
            self._watch = None

    def _begin(self, trainer: Trainer) -> None:
        launcher = trainer.strategy.launcher
        environment = getattr(launcher, "cluster_environment", None)
        if self._watch is not None or trainer.world_size < 2 or not isinstance(environment, LightningEnvironment):
            return
        children = [child for child in getattr(launcher, "procs", ()) if isinstance(child, subprocess.Popen)]
        if children or trainer.local_rank > 0:
            self._watch = _Watch(trainer, children)
            self._watch.start()


class _Watch:
    """A thread that looks after the other processes, and a handler of SIGTERM that waits for nobody."""

    def __init__(self, trainer: Trainer, children: list[subprocess.Popen[bytes]]) -> None:
        self._trainer = trainer
        self._children = children
        self._first = os.getppid() if trainer.local_rank > 0 else None
        self._over = threading.Event()
        self._before: Any = None

    def start(self) -> None:
        _end_observer()
        _TOLD.clear()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminate)
        threading.Thread(target=self._run, daemon=True, name="rank-watch").start()

    def end(self) -> None:
        self._over.set()
        # Lightning may have put back what was there before the fit; its own handler must not come after that.
        mine = signal.getsignal(signal.SIGTERM) == self._terminate
        if mine and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Tells Lightning's loop, which tells the others with the next batch; other processes tell the first one."""
        self._trainer._signal_connector.received_sigterm = True
        if self._first is not None and not told_to_stop():
            _send(self._first, signal.SIGTERM)
        _TOLD.set()

    def _run(self) -> None:
        since: float | None = None
        while not self._over.wait(_PERIOD):
            lost = self._lost()
            if lost is None and not told_to_stop():
                since = None
                continue
            since = time.monotonic() if since is None else since
            if time.monotonic() - since >= GRACE:
                self._leave(lost)

    def _lost(self) -> str | None:
        """Names a process that is gone or stopped."""
        if self._first is not None:
            if os.getppid() != self._first:
                return f"the first process ({self._first}) has ended"
            return f"the first process ({self._first}) was stopped" if is_stopped(self._first) else None
        for rank, child in enumerate(self._children, 1):
            code = child.poll()
            if code:
                reason = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return f"process {rank} ({child.pid}) has ended {reason}"
            if is_stopped(child.pid):
                return f"process {rank} ({child.pid}) was stopped"
        return None

    def _leave(self, lost: str | None) -> None:
        """Ends this process from outside its main thread, which waits for a process that will not answer."""
        for child in self._children:
            if child.poll() is None:
                _send(child.pid, signal.SIGKILL)
        error: TrainingError | Terminated
        if told_to_stop():
            error = Terminated(
                Finding("--trainer.devices", "was told to stop (SIGTERM); others did not answer", _REMEDY)
            )
        else:
            error = TrainingError(Finding("--trainer.devices", str(lost), _REMEDY))
        complain(f"error: {error}")
        sys.stdout.flush()
        os._exit(error.exit_code)


def _end_observer() -> None:
    """Ends Lightning's own watch, which kills the first process without a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_run"):
            thread._run = lambda: True  # what it does every few seconds; True ends it


def _send(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return
