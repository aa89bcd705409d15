"""Collects the results of finished cells: scores of each, and the predictions of a method over all its repeats."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import yaml_of
from kd_convnext.common.tables import read_numbers, read_table
from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.data.manifest.grouping import lesion_names
from kd_convnext.data.manifest.units import with_units
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.evaluation.direction import Choice
from kd_convnext.evaluation.statistics import METRICS, GroupCounts, class_scores, count_groups, scores
from kd_convnext.experiment.plan.record import CellRecord
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import FIDELITY, read_metrics

SHOWN = (*METRICS, "auroc_macro", "ece")
"""Metrics of results.csv, in its order; then the same of the lesions."""

_BOX = ["x", "y", "width", "height"]
_PROBABILITY = "prob_"
_SAME = 1e-4
"""Largest difference between metrics.json and predictions.csv that rounding explains."""


@dataclass(frozen=True, eq=False)
class CellResult:
    """Scores and predictions of a cell.

    Attributes:
        record: The cell; its status is ``failed`` also where its files cannot be read.
        part: The part that was judged: a sweep's cells are judged on validation only.
        metrics: Names of ``metrics.json`` without the part: ``accuracy``, ``lesion/f1_macro``, ``recall/<class>``,
            ``fidelity/psnr_median``.
        validation: Macro F1 of the best checkpoint on validation, NaN if unknown.
        class_names: In the order of the model's outputs.
        predictions: The test part's answers, None where it was not judged: ``repeat``, ``image``, ``lesion_id``,
            ``label``, ``prediction``, ``x``, ``y``, ``width``, ``height`` (-1 for the whole photograph), ``prob_...``.
        config: The run's resolved configuration.
        remarks: What a reader of the results must know about this cell.
    """

    record: CellRecord
    part: Literal["test", "val"] = "test"
    metrics: dict[str, float] | None = None
    validation: float = math.nan
    class_names: tuple[str, ...] = ()
    predictions: pd.DataFrame | None = None
    config: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def run(self) -> RunFolder:
        """The cell's files."""
        return RunFolder(self.record.folder)

    @property
    def finished(self) -> bool:
        """Whether the cell has results."""
        return self.record.status == "finished"


@dataclass(frozen=True, eq=False)
class Arm:
    """A method in one setting, with all its finished repeats.

    Attributes:
        results: Its cells, by repeat; at least one.
    """

    results: tuple[CellResult, ...]

    @property
    def record(self) -> CellRecord:
        """The first cell's record: method, family and setting are the same in all."""
        return self.results[0].record

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.record.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the model's outputs."""
        return self.results[0].class_names

    @cached_property
    def answers(self) -> pd.DataFrame:
        """The test answers of all repeats, with lesions and units named; empty where nothing was tested."""
        frames = [result.predictions for result in self.results if result.predictions is not None]
        if not frames:
            return pd.DataFrame()
        # One repeat that names no groups leaves none for the others.
        return with_units(pd.concat(frames, ignore_index=True, join="inner"))

    @cached_property
    def counts(self) -> GroupCounts:
        """The answers by group."""
        return count_groups(self.answers, self.class_names)

    def values(self, metric: str) -> npt.NDArray[np.float64]:
        """Returns a metric of each repeat, float64 [repeats]; NaN where a cell lacks it."""
        return np.array([(result.metrics or {}).get(metric, math.nan) for result in self.results])

    @property
    def minutes(self) -> float:
        """Median of the minutes that its cells took; NaN where none is known."""
        seconds = [result.record.seconds for result in self.results if result.record.seconds > 0]
        return statistics.median(seconds) / 60 if seconds else math.nan

    @property
    def validation(self) -> dict[int, float]:
        """The best checkpoint's macro F1 on validation, of each repeat for which it is known."""
        return {one.record.repeat: one.validation for one in self.results if math.isfinite(one.validation)}


def read_results(cells: Sequence[CellRecord]) -> list[CellResult]:
    """Reads the outputs of finished cells; a cell that cannot be read counts as failed, with the reason.

    Args:
        cells: Any set of cells.

    Returns:
        One result a cell, in the same order.
    """
    found = []
    for record in cells:
        try:
            found.append(_read(record) if record.status == "finished" else CellResult(record))
        except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
            lost = replace(record, status="failed", error=f"its files cannot be read: {error}")
            found.append(CellResult(lost))
    _require_same_classes(found)
    return found


def group_arms(results: Iterable[CellResult]) -> list[Arm]:
    """Gathers the finished repeats of each method and setting, in the order in which they first occur."""
    groups: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in results:
        if result.finished:
            record = result.record
            groups.setdefault((record.family, record.method, record.setting), []).append(result)
    return [Arm(tuple(sorted(group, key=lambda result: result.record.repeat))) for group in groups.values()]


def results_table(results: Sequence[CellResult], root: Path) -> pd.DataFrame:
    """Tabulates all cells in one table, ``results.csv``.

    Args:
        results: Of any cells.
        root: The folder that the column ``folder`` is relative to, where a cell lies in it.

    Returns:
        One row a cell. It holds no times, so that the same cells give the same table wherever they ran.
    """
    names = [*SHOWN, *(f"lesion/{name}" for name in SHOWN)]
    rows = []
    for result in results:
        record, metrics = result.record, result.metrics or {}
        folder = record.folder
        rows.append(
            {
                **{name: getattr(record, name) for name in ("method", "repeat", "seed")},
                **{name: metrics.get(name, math.nan) for name in names},
                **{name: getattr(record, name) for name in ("family", "setting", "title", "status")},
                "part": result.part,
                "images": metrics.get("images", math.nan),
                "lesions": metrics.get("lesions", math.nan),
                "val_f1_macro": result.validation,
                "config_hash": record.config_hash,
                "folder": folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder),
                "error": record.error or "",
            }
        )
    return pd.DataFrame(rows).astype({"images": "Int64", "lesions": "Int64"})


def read_predictions(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Reads ``predictions.csv``.

    Args:
        path: The file.

    Returns:
        The labelled answers (see ``CellResult.predictions``, without ``repeat``) and the class names.

    Raises:
        OSError: It cannot be read.
        ValueError: It has other columns than it should, or answers that are no class.
    """
    frame = read_table(path)
    lacking = {"image", "lesion_id", "label", "prediction"} - set(frame)
    if lacking:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(lacking))}")
    columns = [str(name) for name in frame if str(name).startswith(_PROBABILITY)]
    names = tuple(name.removeprefix(_PROBABILITY) for name in columns)
    frame = frame[frame["label"] != ""].reset_index(drop=True)
    strange = sorted(set(frame["prediction"]).union(frame["label"]) - set(names))
    if strange:
        raise ValueError(f"{path} names {', '.join(strange)}, which have no column {_PROBABILITY}<class>")
    frame[columns] = frame[columns].astype(np.float64)
    for name in _BOX:
        frame[name] = pd.to_numeric(frame[name]).fillna(-1).astype(np.int64) if name in frame else -1
    return frame, names


def _read(record: CellRecord) -> CellResult:
    run = RunFolder(record.folder)
    config = yaml_of(read_bytes(run.config)) if run.config.exists() else {}
    if isinstance(config, dict) and isinstance(config.get("data"), dict):
        config["data"] = ungrouped(config["data"])
    stored = read_metrics(run)
    config = config if isinstance(config, dict) else {}
    result = CellResult(record, validation=_validation(run, stored, config), config=config)
    if record.family == "sweep" or not run.predictions.exists():
        metrics = {name.removeprefix("val/"): value for name, value in stored.items() if name.startswith("val/")}
        if not metrics or record.family != "sweep":
            remedy = "Run kd-convnext test on its best.ckpt."
            raise ConfigError(Finding(str(run.path), f"has no {run.predictions.name}: it was not tested", remedy))
        return replace(result, part="val", metrics=metrics)
    frame, names = read_predictions(run.predictions)
    metrics = _test_metrics(frame, names)
    faithful = f"test/{FIDELITY}"
    metrics |= {name.removeprefix("test/"): value for name, value in stored.items() if name.startswith(faithful)}
    remarks = []
    if stored.get("test/leak_allowed") or stored.get("val/leak_allowed"):
        remarks.append("lesions it was judged on were in its training (allow_leak): its results are no test")
    apart = [name for name in METRICS if abs(stored.get(f"test/{name}", metrics[name]) - metrics[name]) > _SAME]
    if apart:
        remarks.append(f"metrics.json and predictions.csv disagree on {', '.join(apart)}; the latter is used")
    frame.insert(0, "repeat", record.repeat)
    return replace(result, metrics=metrics, class_names=names, predictions=frame, remarks=tuple(remarks))


def _test_metrics(frame: pd.DataFrame, names: tuple[str, ...]) -> dict[str, float]:
    """Computes the metrics of predictions: scores by `statistics`, areas and calibration by the test stage's code."""
    from kd_convnext.evaluation.answers import Evaluation

    groups = lesion_names(frame)
    found = Evaluation(
        part="test",
        index=np.arange(len(frame)),
        labels=pd.Index(list(names)).get_indexer(pd.Index(frame["label"])).astype(np.int64),
        probabilities=frame[[f"{_PROBABILITY}{name}" for name in names]].to_numpy(np.float64),
        class_names=names,
    )
    total = count_groups(frame.assign(lesion=groups), names).total
    metrics = found.metrics()
    metrics |= {str(name): float(value) for name, value in scores(total).items()}
    for score, values in class_scores(total).items():
        metrics |= {f"{score}/{name}": float(value) for name, value in zip(names, values, strict=True)}
    metrics |= {f"lesion/{name}": value for name, value in found.by_group(groups).metrics().items()}
    return metrics | {"images": float(len(frame)), "lesions": float(len(np.unique(groups)))}


def _validation(run: RunFolder, stored: dict[str, float], config: dict[str, Any]) -> float:
    """Finds the best checkpoint's macro F1 on validation: that of the epoch whose score chose it."""
    path = run.path / "metrics.csv"
    if path.exists() and path.stat().st_size:
        frame = read_numbers(path)
        choice = Choice.of(config)
        if "val/f1_macro" in frame and choice.monitor in frame:
            curve = frame.dropna(subset=["val/f1_macro", choice.monitor])
            if len(curve):
                scores = curve[choice.monitor]
                place = int(scores.argmin() if choice.mode == "min" else scores.argmax())
                return float(curve["val/f1_macro"].iloc[place])
    return stored.get("val/f1_macro", math.nan)


def _require_same_classes(results: Iterable[CellResult]) -> None:
    named = [result for result in results if result.class_names]
    findings = [
        Finding(
            str(result.record.folder),
            f"has other classes ({', '.join(result.class_names)}) than {named[0].record.folder}",
            "Compare runs on the same classes in the same order.",
        )
        for result in named
        if result.class_names != named[0].class_names
    ]
    if findings:
        raise ConfigError(findings)
