"""Chooses the number of loader processes that a fit needs on its machine, by measurement."""

import math
from dataclasses import dataclass

from kd_convnext.common.counting import counted
from kd_convnext.common.machine import available_cores

MOST = 16
"""Loader processes of one fit at most; each holds its own copy of what the data module knows."""

NEGLIGIBLE = 0.05
"""Share of a step up to which loading in the same process is best: a loader process takes its core from the step, and
on two cores costs more than it brings (``benchmarks/data/feeding.py``)."""

_SPARE_ON_CPU, _SPARE_ON_GPU = 1.25, 4.0
"""How much faster than measured steps are fed. A GPU's are measured eagerly and may later run compiled."""


@dataclass(frozen=True)
class Workers:
    """Loader processes of one process of a fit.

    Attributes:
        count: 0 for loading within the step's own process.
        reason: Why, in a few words.
        starved: Whether the machine's cores cannot load as fast as its steps go.
    """

    count: int
    reason: str
    starved: bool = False

    def __str__(self) -> str:
        """Formats the choice for the header of a run."""
        number = counted(self.count, "loader worker") if self.count else "no loader worker"
        return f"{number} ({self.reason})"


def unmeasured_workers(given: int | None) -> Workers:
    """Returns the number given, or else the default."""
    return Workers(default_workers(), "by the cores") if given is None else Workers(given, "as given")


def default_workers(processes: int = 1) -> int:
    """Returns how many loader processes suit a machine of which nothing else is known.

    Args:
        processes: Of this job on this machine; they share its cores.

    Returns:
        One less than a process has cores, 1 to 8.
    """
    return min(8, max(1, available_cores() // processes - 1))


def choose_workers(load: float, step: float, cores: int, *, on_cpu: bool) -> Workers:
    """Decides by what loading and stepping take.

    Args:
        load: Seconds of one core to load an image.
        step: Seconds of a training step, by image.
        cores: This process may use.
        on_cpu: Steps run on the same cores.

    Returns:
        No process where loading hardly takes time from steps on a CPU; else as many as keep up with them, as far as
        there are cores.
    """
    share = load / step
    reason = f"loading takes {share:.1%} of a step on one core, measured"
    if on_cpu and share <= NEGLIGIBLE:
        return Workers(0, reason)
    needed = math.ceil(share * (_SPARE_ON_CPU if on_cpu else _SPARE_ON_GPU))
    most = min(MOST, max(1, cores - 1))
    return Workers(min(needed, most), reason, starved=share > most)
