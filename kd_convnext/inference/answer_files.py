"""Writes predictions: ``answers.csv``, ``answers.json``, ``lesions.csv``, ``failures.csv``."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from kd_convnext.checkpoints.network import ModelInfo
from kd_convnext.common.files import write_texts
from kd_convnext.common.reading import json_text
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.inference.prediction import Failure, Prediction
from kd_convnext.inference.trust.calibration import Calibration
from kd_convnext.runs.tables import table_text

_OWN = {
    "answers.csv": {"image", "prediction", "checkpoint_sha256"},
    "lesions.csv": {"lesion_id", "photographs", "prediction", "checkpoint_sha256"},
    "failures.csv": {"image", "problem", "remedy"},
    "answers.json": {"model", "answers", "lesions", "failures"},
}
"""Columns, or names, by which each file is known to be of a classification."""


def require_replaceable(folder: Path, photos: Sequence[str]) -> None:
    """Refuses a folder where answers would replace the tables that are asked about, or others' of the same names.

    Args:
        folder: Of the answers.
        photos: What is asked about: photographs, folders, manifests.

    Raises:
        ConfigError: All such files.
    """
    asked = {Path(word).expanduser().resolve() for word in photos}
    remedy = "Name another folder with --out, or move this file."
    findings = []
    for file in (folder / name for name in _OWN):
        if file.resolve() in asked:
            findings.append(Finding(str(file), "is asked about, and would be replaced by the answers", remedy))
        elif file.exists() and not _is_own(file):
            what = "is of no classification, and would be replaced by the answers"
            findings.append(Finding(str(file), what, remedy))
    if findings:
        raise ConfigError(findings)


def _is_own(file: Path) -> bool:
    """Says whether a classification has written a file; an empty one may be lost."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            found = json.load(lines) if file.suffix == ".json" else next(csv.reader(lines), None)
    except (OSError, ValueError, csv.Error, RecursionError):
        return file.is_file() and file.stat().st_size == 0
    return found is None or _OWN[file.name] <= {*map(str, found if isinstance(found, list | dict) else ())}


def write_answers(
    folder: Path,
    answers: Sequence[Prediction],
    lesions: Sequence[Prediction],
    failures: Sequence[Failure],
    info: ModelInfo,
    calibration: Calibration | None,
) -> None:
    """Writes all files of a classification, or none of them.

    Args:
        folder: Where to; files of other names in it are left alone.
        answers: One a photograph.
        lesions: One a lesion; without any there is no ``lesions.csv``.
        failures: Photographs without an answer; without any there is no ``failures.csv``.
        info: Which model answered.
        calibration: What it was calibrated with.

    Raises:
        ConfigError: The folder cannot be written.
    """
    tables = {
        "answers.csv": pd.DataFrame([_photograph_row(answer, info) for answer in answers]),
        "lesions.csv": pd.DataFrame([_lesion_row(answer, info) for answer in lesions]),
        "failures.csv": pd.DataFrame([_failure(failure) for failure in failures]),
    }
    texts = {folder / name: table_text(table) for name, table in tables.items() if len(table)}
    content = answers_content(answers, lesions, failures, info, calibration)
    write_texts({**texts, folder / "answers.json": json_text(content)})
    for name, table in tables.items():
        if not len(table) and (folder / name).is_file() and _is_own(folder / name):
            (folder / name).unlink()


def answers_content(
    answers: Sequence[Prediction],
    lesions: Sequence[Prediction],
    failures: Sequence[Failure],
    info: ModelInfo,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Returns what ``answers.json`` holds; the arguments are those of `write_answers`."""
    return {
        "model": asdict(info),
        "calibration": _calibration(calibration),
        "answers": [_entry(answer) for answer in answers],
        "lesions": [_entry(answer) for answer in lesions],
        "failures": [_failure(failure) for failure in failures],
    }


def _photograph_row(answer: Prediction, info: ModelInfo) -> dict[str, Any]:
    box = asdict(answer.box) if answer.box else dict.fromkeys(("x", "y", "width", "height"), pd.NA)
    return {"image": answer.name, "lesion_id": answer.lesion_id, **box, **_verdict(answer, info)}


def _lesion_row(answer: Prediction, info: ModelInfo) -> dict[str, Any]:
    return {"lesion_id": answer.lesion_id, "photographs": answer.photographs, **_verdict(answer, info)}


def _verdict(answer: Prediction, info: ModelInfo) -> dict[str, Any]:
    return {
        "prediction": answer.predicted,
        "probability": float(answer.probabilities.max()),
        **{f"prob_{name}": float(p) for name, p in zip(answer.class_names, answer.probabilities, strict=True)},
        "prediction_set": None if answer.prediction_set is None else "|".join(answer.prediction_set),
        "abstain": answer.abstain,
        "reasons": "; ".join(answer.reasons),
        "gate_score": answer.gate_score,
        "model": info.name,
        "checkpoint_sha256": info.checkpoint_sha256,
        "kd_convnext": info.kd_convnext,
    }


def _entry(answer: Prediction) -> dict[str, Any]:
    return {
        "image": answer.name,
        "lesion_id": answer.lesion_id,
        "photographs": answer.photographs,
        "box": asdict(answer.box) if answer.box else None,
        "prediction": answer.predicted,
        "probabilities": dict(zip(answer.class_names, answer.probabilities.tolist(), strict=True)),
        "prediction_set": None if answer.prediction_set is None else list(answer.prediction_set),
        "abstain": answer.abstain,
        "reasons": list(answer.reasons),
        "gate_score": answer.gate_score,
    }


def _failure(failure: Failure) -> dict[str, str]:
    return {"image": str(failure.photograph), "problem": failure.finding.what, "remedy": failure.finding.remedy}


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    classes = calibration.lesion.classes
    promises = list(zip(classes.class_names, classes.guaranteed, strict=True))
    return {
        "temperature": calibration.temperature,
        "tta": calibration.tta,
        "coverage": calibration.coverage,
        "lesions": dict(zip(classes.class_names, classes.lesions, strict=True)),
        # Of the classes of a merger only together: that the set holds one of them.
        "guaranteed": {name: promised and not classes.together(name) for name, promised in promises},
        "guaranteed_together": [list(group) for group in classes.merged if all(dict(promises)[name] for name in group)],
        "crossed": dict(zip(classes.class_names, classes.crossed, strict=False)),
        "merged": [list(group) for group in classes.merged],
        "few": calibration.few,
        "gate_false_alarms": calibration.gate_false_alarms,
        "gate_stops": list(calibration.record.get("gate_stops", [])),
    }
