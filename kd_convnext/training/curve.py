"""Writes the curves of a fit to ``metrics.csv``, also of a resumed one: the file is that of the whole run."""

from pathlib import Path

import pandas as pd
from lightning.pytorch.loggers import CSVLogger

from kd_convnext.common.files import atomic_write, read_bytes
from kd_convnext.common.tables import read_table
from kd_convnext.training.outputs import HoldsFiles

_UNTIL = "metrics_until_resume_"


class Curve(CSVLogger, HoldsFiles):
    """Writes ``metrics.csv`` in the run's folder, after the rows of earlier fits that stay.

    Attributes:
        begins: What its file is to hold once the fit is sure to begin, by its path; empty for a new one.
    """

    def __init__(self, folder: Path) -> None:
        """Names the file.

        Args:
            folder: The run's folder.
        """
        super().__init__(str(folder), name="", version="")
        self.begins = {}


def begin_curve(folder: Path, resumed_at: int | None, *, first_process: bool) -> Curve:
    """Makes the logger of a fit; ``metrics.csv`` itself stays as it is until the fit begins.

    Args:
        folder: The run's folder.
        resumed_at: Optimiser steps in the checkpoint that the fit goes on from; None for a new fit. Rows of later
            steps are left out: these steps are taken again. ``metrics_until_resume_<n>.csv`` keeps them all.
        first_process: Only the first process touches files.

    Returns:
        The logger that writes it.
    """
    logger = Curve(folder)
    path = folder / "metrics.csv"
    if not first_process:
        return logger
    earlier = _keep_earlier(path)
    if earlier is None or resumed_at is None:
        return logger
    rows = read_table(earlier, ("step",))
    rows = rows[pd.to_numeric(rows["step"], errors="coerce") < resumed_at]
    aside = path.with_name(f".{path.name}.aside")
    if path.is_file():
        path.replace(aside)  # the writer removes what it finds
    logger.experiment.metrics_keys = [str(name) for name in rows]
    if aside.is_file():
        aside.replace(path)
    logger.begins = {path: rows.to_csv(index=False).encode("utf-8")}
    return logger


def _keep_earlier(path: Path) -> Path | None:
    """Copies the file beside itself; where a kill has left only copies, names the newest."""
    copies = sorted(path.parent.glob(f"{_UNTIL}*.csv"), key=lambda copy: int(copy.stem.removeprefix(_UNTIL)))
    if not path.is_file() or not path.stat().st_size:
        return copies[-1] if copies else None
    kept = path.with_name(f"{_UNTIL}{len(copies) + 1}.csv")
    content = read_bytes(path)
    atomic_write(kept, lambda file: file.write(content))
    return kept
