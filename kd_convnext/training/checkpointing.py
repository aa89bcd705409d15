"""Saves the best network and the newest state of a fit, for a small share of its time."""

import ast
import contextlib
import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from kd_convnext.common.console import say
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.evaluation.direction import best_is


class RunCheckpoint(ModelCheckpoint):
    """Saves ``best.ckpt`` where validation was best, and ``last.ckpt``, the newest state.

    Lightning's own ``save_last`` writes a second copy of the best and nothing in between: a fit that is resumed would
    go back to its best epoch.
    """

    def __init__(
        self,
        save_last: bool = True,
        last_share: float = 0.01,
        mode: Literal["auto", "min", "max"] = "auto",
        **kwargs: Any,
    ) -> None:
        """Sets what is written.

        Args:
            save_last: Write ``last.ckpt`` too, with the optimiser's state, after an epoch and at the end.
            last_share: Of the time, what writing ``last.ckpt`` may take. It is written after every epoch, as long as
                that suffices, else less often; the first and the one at the end always.
            mode: Whether the lowest (``min``) or the highest (``max``) ``monitor`` is best; ``auto`` by its name:
                losses and calibration errors are best when lowest.
            **kwargs: As Lightning's ``ModelCheckpoint``.
        """
        natural = best_is(kwargs.get("monitor") or "")
        super().__init__(save_last=False, mode=natural if mode == "auto" else mode, **kwargs)
        self.against_name = mode not in ("auto", natural)
        self.newest, self.last_share = save_last, last_share
        self._written: float | None = None
        self._took = 0.0
        self._step = -1

    # ---- before the first epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns before the training if the best epoch cannot be chosen by the monitored metric."""
        super().on_fit_start(trainer, pl_module)
        if averaging_of(trainer) is not None:
            # Later the average may have moved on from what was judged.
            self._save_on_train_epoch_end = False
        if not self._chooses(trainer):
            return
        if self.against_name:
            say(trainer, f"Warning: the {self.mode}imum of {self.monitor} is kept as the best, as given")
        epochs, every = trainer.max_epochs or -1, trainer.check_val_every_n_epoch or 1
        if not trainer.limit_val_batches or 0 < epochs < every:
            say(trainer, "Warning: no epoch is validated in this fit: best.ckpt will be the network of its end")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Treats the state that a fit begins with as saved."""
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a misspelt ``monitor`` before any training.

        Raises:
            ConfigError: Validation gives no number of that name.
        """
        if self._chooses(trainer) and not str(self.monitor).startswith("train/"):
            self._require_monitor(trainer.callback_metrics)

    def _require_monitor(self, metrics: dict[str, Tensor]) -> None:
        names = sorted(metrics)
        if self.monitor is None or self.monitor in names or not names:
            return
        close = difflib.get_close_matches(self.monitor, names, n=3) or [name for name in names if name.count("/") == 1]
        what = f"there is no number named {self.monitor!r} to choose the best epoch by"
        raise ConfigError(Finding("--checkpoint.monitor", what, f"Name one of: {', '.join(close)}."))

    # ---- after each epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves best.ckpt if the metric improved, then last.ckpt if the write interval has passed."""
        super().on_train_epoch_end(trainer, pl_module)
        # One clock decides for all processes.
        due = self._written is None or (time.monotonic() - self._written) * self.last_share >= self._took
        # Averaged weights take the place of the trained ones when training ends: this is the last time to see both.
        due |= averaging_of(trainer) is not None and self._last_epoch(trainer)
        self._write(trainer, due=trainer.strategy.broadcast(due))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state and waits for pending writes."""
        super().on_train_end(trainer, pl_module)
        if self._chooses(trainer) and not self.best_model_path and self.dirpath:
            say(trainer, "Warning: no epoch was judged by validation: best.ckpt is the network of the fit's end")
            self.best_model_path = self.format_checkpoint_name(self._monitor_candidates(trainer))
            self._save_checkpoint(trainer, self.best_model_path)
        self._write(trainer, due=self._step != trainer.global_step)
        trainer.strategy.checkpoint_io.teardown()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to pass for a fit where nothing was trained.

        Raises:
            ConfigError: The fit ended before its first step: there is no network to keep.
        """
        super().on_fit_end(trainer, pl_module)
        if not trainer.global_step:
            what = "the fit ended before its first step: nothing was trained"
            raise ConfigError(Finding("--trainer", what, "Raise the limit that ended it (--trainer.max_time)."))

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tells whether a score is among the best; one that is not finite never is."""
        if current is not None and not bool(torch.isfinite(current)):
            say(trainer, f"Warning: {self.monitor} is {float(current)} in epoch {trainer.current_epoch}: not kept")
            return False
        return super().check_monitor_top_k(trainer, current)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if trainer.fit_loop.epoch_loop.val_loop._has_run:
            self._require_monitor(monitor_candidates)
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # Without the callbacks' states Lightning does not ask the averaging for its weights, which were judged.
        with averaged(trainer, wanted=self.save_weights_only):
            super()._save_checkpoint(trainer, filepath)

    def _write(self, trainer: Trainer, *, due: bool) -> None:
        if not (due and self.newest) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None  # since setup
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        begun = time.monotonic()
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._written, self._step = time.monotonic(), trainer.global_step
        self._took = self._written - begun

    def _chooses(self, trainer: Trainer) -> bool:
        return self.monitor is not None and self.save_top_k != 0 and not trainer.fast_dev_run  # type: ignore[attr-defined]

    @staticmethod
    def _last_epoch(trainer: Trainer) -> bool:
        ended = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        return ended or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step

    # ---- resuming

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on by another ``monitor``: nobody would know whether the best network so far is better.

        Raises:
            ConfigError: The fit that is resumed has chosen its best epoch by another number.
        """
        own = type(self).__qualname__
        for key in checkpoint.get("callbacks") or {}:
            if trainer.state.fn != TrainerFn.FITTING or not str(key).startswith(f"{own}{{"):
                continue
            with contextlib.suppress(ValueError, SyntaxError, TypeError, LookupError):
                before = ast.literal_eval(str(key).removeprefix(own))["monitor"]
                if before != self.monitor:
                    what = f"the run has chosen its best epoch by {before}, not by {self.monitor}"
                    remedy = "Leave it out, or begin a new run from the weights of this one."
                    raise ConfigError(Finding("--checkpoint.monitor", what, remedy))

    def state_dict(self) -> dict[str, Any]:
        """Returns the scores by file name: the folder may be moved, and nobody else need know where it lay."""
        state = super().state_dict()
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = Path(state[key]).name
        state["best_k_models"] = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return {**state, "dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back the scores of those files that lie in the folder, wherever it lay before."""
        folder = Path(self.dirpath or ".")

        def here(path: str) -> str:
            return str(folder / Path(path).name)

        known = {here(path): score for path, score in state_dict["best_k_models"].items() if Path(here(path)).is_file()}
        best, kth = state_dict["best_model_path"], state_dict["kth_best_model_path"]
        if best and here(best) in known and here(kth) in known:
            self.best_k_models = known
            self.best_model_path, self.best_model_score = here(best), state_dict["best_model_score"]
            self.kth_best_model_path, self.kth_value = here(kth), state_dict["kth_value"]
        elif best and not state_dict["best_k_models"] and Path(here(best)).is_file():
            self.best_model_path = here(best)  # kept without a score
        if state_dict["last_model_path"]:
            self.last_model_path = here(state_dict["last_model_path"])


def choosing(trainer: Trainer) -> ModelCheckpoint | None:
    """Returns the callback that chooses ``best.ckpt``, where a number chooses it; others may keep other epochs."""
    every = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    kept = next((callback for callback in every if isinstance(callback, RunCheckpoint)), every[0] if every else None)
    return kept if kept is not None and kept.monitor is not None else None


def will_be_best(trainer: Trainer) -> bool | None:
    """Tells whether the network just validated will be ``best.ckpt``; None where no number chooses one.

    Args:
        trainer: Within a fit, after a validation and before its network is saved.
    """
    kept = choosing(trainer)
    if kept is None:
        return None
    score, before = trainer.callback_metrics.get(str(kept.monitor)), kept.best_model_score
    if score is None or not torch.isfinite(score):
        return False
    return before is None or bool(score < before if kept.mode == "min" else score > before)


def averaging_of(trainer: Trainer) -> WeightAveraging | None:
    """Returns the callback that averages the weights of a fit, if there is one."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    return found[0] if found and found[0]._average_model is not None else None


@contextlib.contextmanager
def averaged(trainer: Trainer, *, wanted: bool) -> Iterator[None]:
    """Puts averaged weights into the module for the block, where a callback averages them.

    Args:
        trainer: Within a fit.
        wanted: Whether to do so.
    """
    averaging = averaging_of(trainer) if wanted else None
    if averaging is None:
        yield
        return
    averaging._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        averaging._swap_models(trainer.lightning_module)
