"""Estimates time and memory of an experiment's cells: from finished cells, else from a few timed steps."""

import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kd_convnext.common.console import duration
from kd_convnext.common.counting import counted
from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.data.manifest.source import read_source
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.experiment.plan.cells import Cell
from kd_convnext.experiment.plan.configuration import merged
from kd_convnext.experiment.plan.division import manifest_of, split_of
from kd_convnext.experiment.running.cell import finished

STEPS = 4
"""Training steps of a measurement; the first warms up."""


@dataclass(frozen=True)
class Cost:
    """Estimated time and memory of one cell.

    Attributes:
        seconds: Its whole time.
        memory: Peak memory of its process in bytes; None where only its time is known.
        gpu_memory: Peak memory on the GPU in bytes; 0 without one.
        source: ``finished cells`` or ``timed steps``.
    """

    seconds: float
    memory: int | None
    gpu_memory: int
    source: str


@dataclass(frozen=True)
class Counts:
    """Photographs of the first split's parts."""

    train: int
    val: int
    test: int
    class_names: tuple[str, ...]


def print_estimate(cells: Sequence[Cell], out: Path, workers: int) -> None:
    """Lists cells with their expected time and memory.

    Args:
        cells: What would run.
        out: Folder of the experiment; cells finished there count as known.
        workers: Cells at a time.

    Raises:
        KDConvNeXtError: The data cannot be used, or a method cannot run.
    """
    from rich.console import Console
    from rich.table import Table

    costs = _costs(cells, out)
    table = Table(title=f"{counted(len(cells), 'cell')} in {out}")
    for name in ("#", "method", "setting", "repeat", "judged on", "time", "memory", "known from"):
        table.add_column(name)
    left = 0.0
    for number, cell in enumerate(cells):
        cost, done = costs[cell.method], finished(cell, out) is not None
        left += 0.0 if done else cost.seconds
        time = "finished" if done else duration(cost.seconds)
        row = (cell.method, cell.setting, str(cell.repeat), cell.judged, time, _memory(cost), cost.source)
        table.add_row(str(number), *row)
    Console(width=max(110, Console().width)).print(table)
    print(f"To run: about {duration(left / workers)} with {workers} at a time on a machine like this one;")
    print("crops that are not in the cache yet come on top (kd-convnext prepare --dry_run true).")


def _memory(cost: Cost) -> str:
    if cost.memory is None:
        return "-"
    gpu = f" + {cost.gpu_memory / 2**30:.1f} GB GPU" if cost.gpu_memory else ""
    return f"{cost.memory / 2**30:.1f} GB{gpu}"


def _costs(cells: Sequence[Cell], out: Path) -> dict[str, Cost]:
    known: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        record = finished(cell, out)
        if record is not None:
            known[cell.method].append(record.seconds)
    costs = {
        name: Cost(statistics.median(seconds), None, 0, counted(len(seconds), "finished cell"))
        for name, seconds in known.items()
    }
    missing: dict[str, Cell] = {}
    for cell in cells:
        if cell.method not in costs:
            missing.setdefault(cell.method, cell)
    if missing:
        counts = _count(cells[0])
        with tempfile.TemporaryDirectory() as folder:
            measure = _Measure(Path(folder), counts)
            costs |= {name: measure.cost(cell) for name, cell in missing.items()}
    return costs


def _count(cell: Cell) -> Counts:
    manifest = manifest_of(cell)
    split = split_of(cell, manifest)
    return Counts(len(split.rows("train")), len(split.rows("val")), len(split.rows("test")), manifest.class_names)


class _Measure:
    """Runs a few steps of each method, in processes of their own, on pictures of noise."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        self.folder, self.counts = folder, counts
        self.found: dict[str, dict[str, float]] = {}
        self.manifest: dict[int, Path] = {}

    def cost(self, cell: Cell) -> Cost:
        """Measures one method."""
        if cell.teacher is not None:
            self._run(cell.teacher)
        found = self._run(cell)
        batch = int(cell.config["data"].get("batch_size", 32))
        epochs = int(cell.config["trainer"].get("max_epochs") or 1)
        least = int(ungrouped(cell.config["data"]).get("loader.least_batches") or 1)
        batches = math.ceil(self.counts.train / batch)
        linear = cell.config["model"]["init_args"].get("finetune") == "linear"
        # A linear head's training is the features of every look at every crop, once.
        looks = int(cell.config["model"]["init_args"].get("linear_looks", 2))
        training = looks * batches * found["batch"] if linear else epochs * max(least, batches) * found["step"]
        judging = (epochs * math.ceil(self.counts.val / batch) + math.ceil(self.counts.test / batch)) * found["batch"]
        answers = 0.0
        if cell.teacher is not None:
            asked = _views_asked(cell) * self.counts.train + _unlabelled_asked(cell)
            size = int(cell.teacher.config["data"].get("batch_size", 32))
            answers = math.ceil(asked / size) * self.found[cell.teacher.method]["batch"]
        seconds = found["start"] + answers + training + judging
        return Cost(seconds, int(found["memory"]), int(found["gpu_memory"]), "timed steps")

    def _run(self, cell: Cell) -> dict[str, float]:
        if cell.method in self.found:
            return self.found[cell.method]
        batch = int(cell.config["data"].get("batch_size", 32))
        run = self._place(cell)
        run.mkdir()
        request = run / "request.yaml"
        request.write_text(yaml.safe_dump(self._config(cell, batch)), encoding="utf-8")
        words = ["fit", "--config", str(request), "--trainer.default_root_dir", str(run)]
        command = [sys.executable, "-m", "kd_convnext.experiment.running.measure", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            what = f"the method cannot run ({lines[-1].removeprefix('error: ') if lines else done.returncode})"
            raise ConfigError(Finding(f"grid.methods.{cell.method}", what, "Correct its configuration."))
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        self.found[cell.method] = found
        return found

    def _place(self, cell: Cell) -> Path:
        return self.folder / cell.method

    def _config(self, cell: Cell, batch: int) -> dict[str, Any]:
        """The cell's configuration for a few steps: no start weights, no loggers, noise for photographs."""
        options: dict[str, Any] = {}
        for name, value in cell.config["model"]["init_args"].items():
            start = isinstance(value, dict) and value.keys() & {"pretrained", "weights"}
            options[name] = {**value, "pretrained": False, "weights": None} if start else value
        if cell.teacher is not None:
            options["teacher_ckpt"] = str(self._place(cell.teacher) / "checkpoints" / "last.ckpt")
        elif options.get("finetune") == "head_first":
            # The head alone would be quicker than the epochs that count.
            options["finetune"] = "full"
        noise = str(self._noise(batch))
        given = ungrouped(cell.config["data"])
        own: dict[str, Any] = {
            "manifest": noise,
            "columns": None,
            "classes": None,
            "cache_dir": str(self.folder / "cache"),
            "upscaler": "bicubic",
            "sr_weights": None,
            "split": {"index": 0, "few_groups": "warn"},
        }
        if given.get("unlabelled"):
            own |= {"unlabelled": noise, "unlabelled_columns": None, "allow_leak": True}  # its labels are not read
        if given.get("views"):
            own["loader"] = {"views": 1}  # the others are counted, see `_views_asked`
        data = merged(cell.config["data"], own)
        trainer = {
            "max_epochs": 1,
            "limit_train_batches": STEPS,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 2,
            "logger": False,
            "enable_progress_bar": False,
        }
        config = merged(cell.config, {"trainer": trainer})
        # A teacher that a fit would train before itself is a cell of its own.
        first: dict[str, Any] = {"teacher_config": None} if "teacher_config" in config else {}
        return {**config, **first, "data": data, "model": {**config["model"], "init_args": options}}

    def _noise(self, batch: int) -> Path:
        """Draws photographs of noise: enough for a few batches, every class in every part."""
        if batch in self.manifest:
            return self.manifest[batch]
        import cv2

        folder = self.folder / f"noise{batch}"
        folder.mkdir()
        rng = np.random.default_rng(0)
        names = self.counts.class_names
        wanted = {"train": STEPS * batch, "val": 2 * batch, "test": len(names)}
        rows = []
        for part, count in wanted.items():
            for number in range(max(count, len(names))):
                image = f"{part}{number}.png"
                cv2.imwrite(str(folder / image), rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
                rows.append((image, names[number % len(names)], f"{part}{number}", part))
        path = folder / "manifest.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "label", "lesion_id", "split"), *rows])
        self.manifest[batch] = path
        return path


def _views_asked(cell: Cell) -> int:
    """Returns at how many views of each crop the teacher looks before the training, where none is stored yet."""
    cache = cell.config["model"]["init_args"].get("teacher_cache")
    if cache == "still":
        return 1
    data = ungrouped(cell.config["data"])
    views = int(data.get("views") or 0) if cache else 0
    # One view a pass, in turn, as `limited_views` lists them.
    epochs = int(cell.config["trainer"].get("max_epochs") or views)
    once = data.get("sampling", "natural") == "natural" and int(data.get("loader.least_batches") or 1) == 1
    return min(views, epochs) if once else views


def _unlabelled_asked(cell: Cell) -> int:
    """Returns how many photographs without labels the teacher is asked about before the training, once each."""
    data = ungrouped(cell.config["data"])
    if not data.get("unlabelled") or not cell.config["model"]["init_args"].get("teacher_cache"):
        return 0
    found = read_source(Path(data["unlabelled"]), require_labels=False, columns=data.get("unlabelled_columns"))
    return len(found.table)
