"""Launches cells one after the other, on a Ray cluster, or as a SLURM array."""

import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_convnext.common.counting import counted
from kd_convnext.common.machine import available_cores
from kd_convnext.common.words import command_line
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.experiment.plan.cells import Cell, CellKey
from kd_convnext.experiment.plan.record import CellRecord
from kd_convnext.experiment.running.cell import Workplace, run_cell

Told = Callable[[CellRecord, float], None]
"""Called with each record as it comes, and the seconds its cell took now."""


def run_serial(cells: Sequence[Cell], place: Workplace, told: Told) -> list[CellRecord]:
    """Runs cells one after the other, in their order.

    Args:
        cells: Teachers before their students.
        place: Where and how.
        told: Hears of each record.

    Returns:
        The records, in the order of the cells.
    """
    records = []
    for cell in cells:
        begun = time.perf_counter()
        record = run_cell(cell, place)
        told(record, time.perf_counter() - begun)
        records.append(record)
    return records


def run_on_ray(cells: Sequence[Cell], place: Workplace, workers: int, told: Told) -> list[CellRecord]:
    """Runs cells on Ray: the cluster of ``$RAY_ADDRESS``, else this machine.

    Args:
        cells: Teachers before their students; a student waits for its teacher alone.
        place: Where and how. Its folder must be seen by all hosts.
        workers: Cells at a time; cores and GPUs are divided among them.
        told: Hears of each record.

    Returns:
        The records, in the order of the cells.

    Raises:
        ConfigError: Ray is not installed.
    """
    # No message to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        remedy = "pip install 'kd-convnext[ray]', or --launcher serial."
        raise ConfigError(Finding("--launcher ray", "Ray is not installed", remedy)) from error
    begun = not ray.is_initialized()
    if begun:
        local = "RAY_ADDRESS" not in os.environ
        # A worker for each cell at least, also where there are fewer cores.
        here: dict[str, Any] = {"num_cpus": max(workers, available_cores()), "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **(here if local else {}))
    try:
        return _on_ray(ray, cells, place, workers, told)
    finally:
        if begun:
            ray.shutdown()


def _on_ray(ray: Any, cells: Sequence[Cell], place: Workplace, workers: int, told: Told) -> list[CellRecord]:
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0) / workers
    share = {
        "num_cpus": max(1, math.floor(there.get("CPU", 1) / workers)),
        # Several cells may share a GPU; no cell gets a part of two.
        "num_gpus": math.floor(gpus) if gpus >= 1 else gpus,
    }

    @ray.remote(max_retries=0, **share)  # type: ignore[untyped-decorator]
    def run(cell: Cell, taught: CellRecord | None) -> CellRecord:
        return run_cell(cell, place)

    pending: dict[Any, Cell] = {}
    running: dict[CellKey, Any] = {}
    for cell in cells:
        taught = running.get(cell.teacher.key) if cell.teacher else None
        running[cell.key] = run.remote(cell, taught)
        pending[running[cell.key]] = cell
    records: dict[CellKey, CellRecord] = {}
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1)
        cell = pending.pop(done[0])
        records[cell.key] = ray.get(done[0])
        told(records[cell.key], records[cell.key].seconds)
    return [records[cell.key] for cell in cells]


def slurm_script(cells: Sequence[Cell], config: Path, out: Path, options: str) -> str:
    """Writes the script that submits the cells to SLURM.

    Args:
        cells: All cells; their positions are the tasks' numbers.
        config: The experiment's own description (``experiment.yaml``).
        out: Its folder, seen by all nodes.
        options: For ``sbatch``, such as ``--gres=gpu:1 --time=08:00:00``.

    Returns:
        A shell script: an array of the teachers, one of cells that nobody teaches, one of the students, which waits
        for the teachers, and a last job that writes tables and report.
    """
    teachers = {cell.teacher.key for cell in cells if cell.teacher}
    groups: dict[str, list[int]] = {"teachers": [], "alone": [], "students": []}
    for number, cell in enumerate(cells):
        kind = "students" if cell.teacher else "teachers" if cell.key in teachers else "alone"
        groups[kind].append(number)
    command = command_line(["paper"], config=config, out=out, resume="true")
    logs = shlex.quote(str(out / "slurm"))
    lines = [
        "#!/bin/bash",
        f"# Submits {counted(len(cells), 'cell')} to SLURM: bash THIS_FILE. Give the command again for what failed.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"mkdir -p {logs}",
    ]
    for kind, numbers in groups.items():
        if numbers:
            waits = " --dependency=afterany:$teachers" if kind == "students" and groups["teachers"] else ""
            array = f"--array={','.join(map(str, numbers))} --output={logs}/%x-%a.txt"
            task = f"--wrap {shlex.quote(f'{command} --cell $SLURM_ARRAY_TASK_ID')}"
            lines.append(f"{kind}=$(sbatch --parsable --job-name={kind} {array} {options}{waits} {task})")
    waited = ":".join(f"${kind}" for kind, numbers in groups.items() if numbers)
    last = (
        f"--output={logs}/report.txt --dependency=afterany:{waited} --wrap {shlex.quote(f'{command} --collect true')}"
    )
    lines.append(f"sbatch --job-name=report {last}")
    return "\n".join(lines) + "\n"
