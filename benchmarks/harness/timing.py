"""What all benchmarks share: interleaved timing, the table, the record."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from kd_convnext.common.machine import available_cores

PACKAGES = (
    "torch",
    "opencv-python-headless",
    "albumentations",
    "spandrel",
    "ncnn",
    "realesrgan",
    "lightning",
    "timm",
    "onnxruntime",
    "openvino",
)


@dataclass(frozen=True)
class Ratio:
    """One comparison: how often ``better`` fits into ``other``, from interleaved rounds.

    Attributes:
        name: What is compared.
        better: The side that should be faster, and its median seconds.
        other: The other side, and its median seconds.
        better_seconds: Median.
        other_seconds: Median.
        ratio: Median of the rounds' ratios, other / better.
        spread: Half the distance between the rounds' quartiles of the ratio.
        target: What it should reach at least, or None where it is only for the record.
    """

    name: str
    better: str
    other: str
    better_seconds: float
    other_seconds: float
    ratio: float
    spread: float
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        return None if self.target is None else self.ratio >= self.target


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Times each side once a round, in turn, after one round that does not count.

    Args:
        sides: Name to what is timed.
        rounds: Rounds that count.
        clock: In seconds.

    Returns:
        Name to seconds, float64 [rounds].
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, run in sides.items():
            start = clock()
            run()
            if round_number:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def compared(
    name: str, seconds: Mapping[str, np.ndarray], better: str, other: str, target: float | None = None
) -> Ratio:
    """Sums up two sides of `interleaved`."""
    ratios = seconds[other] / seconds[better]
    low, high = np.quantile(ratios, (0.25, 0.75))
    medians = float(np.median(seconds[better])), float(np.median(seconds[other]))
    return Ratio(name, better, other, *medians, float(np.median(ratios)), float(high - low) / 2, target)


def machine() -> dict[str, object]:
    """Describes what the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = available_cores()
    return {"cpu": cpu, "cores": cores, "load": load, "python": platform.python_version(), **versions}


def report(title: str, ratios: Sequence[Ratio], notes: Sequence[str], path: Path | None) -> None:
    """Prints machine, table and notes; writes them as JSON where a file is named."""
    known = machine()
    console = Console(width=150)
    console.print(", ".join(f"{name} {value}" for name, value in known.items()))
    table = Table(title=title)
    for column in ("", "side A", "side B", "A", "B", "B / A", "target", ""):
        table.add_column(column, justify="right" if column in ("A", "B", "B / A", "target") else "left")
    for ratio in ratios:
        said = "" if ratio.met is None else ("met" if ratio.met else "NOT MET")
        target = "" if ratio.target is None else f">= {ratio.target:g}"
        times = f"{ratio.better_seconds * 1e3:.1f} ms", f"{ratio.other_seconds * 1e3:.1f} ms"
        shown = f"{ratio.ratio:.2f} +- {ratio.spread:.2f}"
        table.add_row(ratio.name, ratio.better, ratio.other, *times, shown, target, said)
    console.print(table)
    for note in notes:
        console.print(note)
    if path is not None:
        record = {"title": title, "date": time.strftime("%Y-%m-%d"), "machine": known, "notes": list(notes)}
        path.write_text(json.dumps(record | {"ratios": [asdict(ratio) for ratio in ratios]}, indent=2) + "\n")


def arguments(description: str) -> argparse.ArgumentParser:
    """Returns a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full", action="store_true", help="as many rounds and crops as the figures were made with")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    return parser


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []
