"""Runs one cell: fit, then judge its best checkpoint, in a folder that is finished by its record."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import yaml

from kd_convnext.common.files import atomic_write, read_bytes
from kd_convnext.common.parsing import exit_code
from kd_convnext.common.reading import json_of
from kd_convnext.errors import ConfigError, Finding, Terminated
from kd_convnext.experiment.plan.cells import Cell
from kd_convnext.experiment.plan.record import CELL_FILE, CellRecord, read_cell, write_cell
from kd_convnext.runs.folder import RunFolder

LOG = "log.txt"
REQUEST = "request.yaml"
STARTED = "started.json"
REPLACED = "replaced"


@dataclass(frozen=True)
class Workplace:
    """Specifies the folder of an experiment, and how its cells run.

    Attributes:
        out: Folder of the experiment.
        isolate: Each cell in processes of its own. Without, only one device can be used.
        group: W&B's group of the cells' runs.
    """

    out: Path
    isolate: bool = True
    group: str = "paper"


def run_cell(cell: Cell, place: Workplace) -> CellRecord:
    """Runs a cell, or the rest of an interrupted one.

    Args:
        cell: What to run. One that is finished already is only read; one that was interrupted goes on from the end of
            its last whole epoch; one that stands there with another configuration is moved to ``replaced/``.
        place: Where.

    Returns:
        Its record. Whatever goes wrong within the cell is in the record, not raised.
    """
    folder = place.out / cell.path
    done = finished(cell, place.out)
    if done is not None:
        return done
    _make_way(cell, place.out)
    # The clock may be set meanwhile; what is spent goes by another.
    begun, spent = time.monotonic(), _spent_before(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CELL_FILE).unlink(missing_ok=True)
    _write_json(folder / STARTED, {"config_hash": cell.config_hash, "started": time.time(), "seconds": spent})
    error = _untaught(cell, place.out)
    if error is None:
        atomic_write(folder / REQUEST, lambda file: file.write(_request(cell).encode("utf-8")))
        error = _run(_commands(cell, RunFolder(folder)), folder, place)
    record = CellRecord(
        folder=folder,
        method=cell.method,
        title=cell.title,
        family=cell.family,
        setting=cell.setting,
        repeat=cell.repeat,
        seed=cell.seed,
        config_hash=cell.config_hash,
        status="finished" if error is None else "failed",
        error=error,
        seconds=round(spent + time.monotonic() - begun, 1),
    )
    write_cell(record)
    return record


def finished(cell: Cell, out: Path) -> CellRecord | None:
    """Reads the record of a finished cell of this very configuration; None if there is none."""
    try:
        record = read_cell(out / cell.path)
    except ConfigError:
        return None
    return record if record.status == "finished" and record.config_hash == cell.config_hash else None


def _untaught(cell: Cell, out: Path) -> str | None:
    """Returns why a cell has no teacher to learn from, or None."""
    if cell.teacher is None or finished(cell.teacher, out) is not None:
        return None
    try:
        reason = read_cell(out / cell.teacher.path).error or "it was trained with another configuration"
    except ConfigError:
        reason = "it is not finished"
    return f"its teacher {cell.teacher.label} cannot teach: {reason}"


def _commands(cell: Cell, run: RunFolder) -> list[list[str]]:
    request = str(run.path / REQUEST)
    fit = ["fit", "--config", request, "--trainer.default_root_dir", str(run.path)]
    if run.last.exists():
        fit += ["--ckpt_path", str(run.last)]
    else:
        run.best.unlink(missing_ok=True)  # of a first epoch that was killed at its end
    judge = "test" if cell.judged == "test" else "validate"
    return [fit, [judge, "--config", str(run.config), "--ckpt_path", str(run.best)]]


def _request(cell: Cell) -> str:
    return yaml.safe_dump(cell.config, sort_keys=False, allow_unicode=True)


def _run(commands: Sequence[Sequence[str]], folder: Path, place: Workplace) -> str | None:
    """Runs the commands with their output in the cell's log; returns the error in one line, or None."""
    with (folder / LOG).open("a", encoding="utf-8") as log:
        start = log.tell()
        for words in commands:
            code = _in_process(words, log, place) if place.isolate else _here(words, log, place)
            if code:
                log.flush()
                return _reason(code, folder / LOG, start)
    return None


def _in_process(words: Sequence[str], log: TextIO, place: Workplace) -> int:
    """Runs one command: with several devices, each of their processes runs the same words again."""
    child = subprocess.Popen(
        [sys.executable, "-m", "kd_convnext.experiment.child", *words],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        # The log is UTF-8, whatever the terminal is.
        env={**os.environ, "WANDB_RUN_GROUP": place.group, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
    )
    try:
        return child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise


def _here(words: Sequence[str], log: TextIO, place: Workplace) -> int:
    from kd_convnext.training.command import run_training  # loads torch

    with (
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        _environment("WANDB_RUN_GROUP", place.group),
    ):
        try:
            code = exit_code(lambda: run_training(words), words)
        except Exception:
            # Whatever a cell raises ends this cell only.
            traceback.print_exc()
            return 1
    if code == 130:
        raise KeyboardInterrupt
    if code == Terminated.exit_code:
        # The signal was meant for the process, which is ours: no other cell may begin.
        raise Terminated(Finding("kd-convnext paper", "was told to stop (SIGTERM)", "Go on with --resume true."))
    return code


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _reason(code: int, log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit code {code}"])[-1][:500]


def _make_way(cell: Cell, out: Path) -> None:
    """Renames the folder of a cell of another configuration instead of deleting it."""
    folder = out / cell.path
    before = _hash_there(folder)
    if before is None or before == cell.config_hash:
        return
    target = out / REPLACED / cell.path.relative_to("cells").with_name(f"{folder.name}-{before}")
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{before}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def _hash_there(folder: Path) -> str | None:
    for name in (STARTED, CELL_FILE):
        found = _read_json(folder / name)
        if found is not None:
            return str(found.get("config_hash"))
    return None


def _spent_before(folder: Path) -> float:
    """Seconds of earlier attempts; of one that was killed, those until its last checkpoint."""
    started = _read_json(folder / STARTED)
    if started is None:
        return 0.0
    record = _read_json(folder / CELL_FILE)
    if record is not None:
        return float(record["seconds"])
    last = RunFolder(folder).last
    until = last.stat().st_mtime if last.exists() else started["started"]
    return float(started["seconds"] + max(0.0, until - started["started"]))


def _write_json(path: Path, values: object) -> None:
    atomic_write(path, lambda file: file.write(json.dumps(values).encode("utf-8")))


def _read_json(path: Path) -> dict[str, float] | None:
    try:
        found = json_of(read_bytes(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
