"""Writes and reads the tables of a run: metrics, predictions, environment."""

from typing import TYPE_CHECKING

from kd_convnext.common.files import read_bytes, write_text
from kd_convnext.common.reading import json_of
from kd_convnext.common.tables import guarded
from kd_convnext.data.manifest.units import GROUP, stored_groups
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.folder import RunFolder

if TYPE_CHECKING:
    from kd_convnext.data.manifest.manifest import Manifest
    from kd_convnext.evaluation.answers import Evaluation

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

FIDELITY = "fidelity/"
"""Prefix, after the part's, of how faithful the enlarged crops are: ``psnr_median``, ``psnr_worst``, ``changed``."""

_BOX = ["x", "y", "width", "height"]


def write_metrics(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """Writes numbers into ``metrics.json``, keeping those of other names that stand there.

    Args:
        folder: The run.
        metrics: Names with their prefix (``test/f1_macro``, ``val/lesion/accuracy``) and values. A value that
            is not finite (an area under the curve with one class only) is written as ``null``.

    Raises:
        ConfigError: The file cannot be written, or what stands there is not ours.
    """
    merged = read_metrics(folder) | dict(metrics)
    clean = {name: float(value) if math.isfinite(value) else None for name, value in merged.items()}
    text = json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
    write_text(folder.metrics, text)


def read_metrics(folder: RunFolder) -> dict[str, float]:
    """Reads ``metrics.json``.

    Args:
        folder: The run.

    Returns:
        Names and values; ``null`` comes back as NaN. Empty if the run has no such file.

    Raises:
        ConfigError: The file is not a table of numbers.
    """
    if not folder.metrics.exists():
        return {}
    try:
        found = json_of(read_bytes(folder.metrics))
        return {str(name): math.nan if value is None else float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        what = f"is not a table of metrics ({error})"
        raise ConfigError(Finding(str(folder.metrics), what, "Move the file away and test again.")) from error


def class_table(evaluation: "Evaluation") -> pd.DataFrame:
    """Tabulates the per-class metrics.

    Args:
        evaluation: Of a part with known labels.

    Returns:
        One row a class: ``class``, ``support`` (labelled so), ``predicted`` (predicted so), ``precision``,
        ``recall``, ``f1`` (0 to 1).
    """
    matrix, metrics, names = evaluation.confusion_matrix(), evaluation.metrics(), evaluation.class_names
    table = {"class": names, "support": matrix.sum(axis=1), "predicted": matrix.sum(axis=0)}
    scores = {score: [metrics[f"{score}/{name}"] for name in names] for score in ("precision", "recall", "f1")}
    return pd.DataFrame({**table, **scores})


def prediction_table(evaluation: "Evaluation", manifest: "Manifest") -> pd.DataFrame:
    """Tabulates the predictions of an evaluation.

    Args:
        evaluation: Its ``index`` holds rows of ``manifest``.
        manifest: The manifest that was evaluated.

    Returns:
        One row an ROI, in the manifest's order: ``image``, ``lesion_id``, ``label`` (empty if unknown),
        ``prediction``, ``prob_<class>`` for each class, where the manifest has boxes ``x``, ``y``, ``width``,
        ``height`` (several ROIs may share a photograph), and ``group`` (what is taken as independent, as
        ``patient:<hash>``, ``lesion:<hash>`` or ``group:<hash>``).
    """
    names = np.array([*evaluation.class_names, ""], dtype=object)  # label -1 is the last: unknown
    rows = manifest.table.iloc[evaluation.index].reset_index(drop=True)
    frame = rows[["image", "lesion_id"]].copy()
    frame["label"] = names[evaluation.labels]
    frame["prediction"] = names[evaluation.predictions]
    for column, name in enumerate(evaluation.class_names):
        frame[f"prob_{name}"] = evaluation.probabilities[:, column]
    if manifest.table["x"].notna().any():
        frame[_BOX] = rows[_BOX]
    return frame.assign(**{GROUP: stored_groups(manifest, evaluation.index)})


def write_cost(folder: RunFolder, cost: Mapping[str, float]) -> None:
    """Writes ``cost.json``, what a network costs.

    Args:
        folder: The run.
        cost: ``parameters``, ``multiply_adds``, ``ms_per_photograph``.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(folder.cost, json.dumps(dict(cost), indent=2) + "\n")


def read_cost(folder: RunFolder) -> dict[str, float]:
    """Reads ``cost.json``; empty where a run has none, or none that can be read."""
    try:
        found = json_of(read_bytes(folder.cost))
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as CSV (UTF-8, numbers with 8 digits, no row numbers, formulas neutralised).

    Args:
        path: The file, replaced at once.
        frame: The table, such as ``prediction_table``.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(path, table_text(frame))


def table_text(frame: pd.DataFrame) -> str:
    """Returns a table as `write_table` writes it."""
    return str(guarded(frame).to_csv(index=False, float_format="%.8g"))


def write_predictions(folder: RunFolder, evaluation: "Evaluation", manifest: "Manifest") -> None:
    """Writes ``predictions.csv``.

    Args:
        folder: The run.
        evaluation: See ``prediction_table``.
        manifest: See ``prediction_table``.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_table(folder.predictions, prediction_table(evaluation, manifest))
