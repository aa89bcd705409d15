"""Measures how long the steps of a fit take and wait, and how many are left."""

import time

from lightning.pytorch import Trainer


class StepClock:
    """Measures the time spent waiting for data and working.

    Attributes:
        waited: Seconds spent waiting for batches (loading, augmentation, transfer).
        worked: Seconds spent in steps.
        steps: Finished steps.
    """

    def __init__(self) -> None:
        """Sets both times to zero."""
        self.waited, self.worked, self.steps = 0.0, 0.0, 0
        self._mark = time.perf_counter()

    def ask(self) -> None:
        """Starts timing the wait; time since the last call counts neither as waiting nor as work."""
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Ends the wait and starts timing the work."""
        self.waited += self._lap()

    def end(self) -> None:
        """Stops timing the work and starts timing the wait for the next batch."""
        self.worked += self._lap()
        self.steps += 1

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting, 0 to 1; 0 before the first step."""
        total = self.waited + self.worked
        return self.waited / total if total else 0.0

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


def batches_left(trainer: Trainer) -> float:
    """Counts the training batches still to come, by ``max_epochs`` and ``max_steps``.

    Args:
        trainer: During a fit.

    Returns:
        Batches; infinite where neither limits the fit.
    """
    inf = float("inf")
    epochs = inf if trainer.max_epochs in (None, -1) else trainer.max_epochs or 0
    left = epochs * trainer.num_training_batches - batches_done(trainer)
    if trainer.max_steps != -1:
        left = min(left, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
    return max(0.0, left)


def validation_batches_left(trainer: Trainer) -> float:
    """Counts the validation batches still to come.

    Args:
        trainer: During a fit.

    Returns:
        Batches; infinite for an endless fit.
    """
    batches = sum(trainer.num_val_batches)
    if not batches:
        return 0.0
    every = (trainer.val_check_batch or float("inf")) * (trainer.check_val_every_n_epoch or 1)
    return batches * batches_left(trainer) / every


def batches_done(trainer: Trainer) -> int:
    """Counts the training batches done so far.

    Args:
        trainer: During a fit.

    Returns:
        Batches.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1
