"""Trains what a student's configuration names before the student: its teacher, and its start without labels."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kd_convnext.common.files import atomic_write
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.unlabelled import read_unlabelled, refuse_judged, write_without_labels
from kd_convnext.data.manifest.splits import SplitSpec
from kd_convnext.runs.folder import RunFolder

TEACHER, START = "teacher", "start"
"""Where these runs lie in the student's."""

ENDED = "ended"
"""A file that says of such a run that it has ended by itself."""

_OWN = {"image_size", "batch_size", "augment", "loader", "unlabelled", "predict_part"}
"""Options of the data that each run has for itself."""

_OF_LABELS = {"manifest", "classes", "columns", "labels", "split", "allow_leak"}
"""Options that say which photographs have labels and what is done with them."""

Train = Callable[[Sequence[str]], int]
"""Runs ``fit`` from its words."""


def trained_teacher(
    config: str, run: RunFolder, data: Mapping[str, Any], trainer: Mapping[str, Any], train: Train
) -> Path:
    """Trains a teacher into the folder of its student, unless it is there.

    Args:
        config: The teacher's configuration of ``fit``.
        run: The student's run.
        data: Options of the student's data; those that decide photographs, crops and split hold for the teacher too.
        trainer: Options of the student's trainer that hold here too, such as its precision.
        train: Runs ``fit`` from its words.

    Returns:
        The teacher's checkpoint.

    Raises:
        KDConvNeXtError: The teacher cannot be trained.
    """
    shared = {name: value for name, value in data.items() if name not in _OWN}
    shared["loader"] = {"on_miss": data["loader"]["on_miss"]}
    options = {"data": shared, "trainer": dict(trainer)}
    return _trained(config, RunFolder(run.path / TEACHER), options, train, f"The teacher first, by {config}:")


def trained_start(
    config: str, run: RunFolder, data: Mapping[str, Any], trainer: Mapping[str, Any], train: Train
) -> Path:
    """Trains a student's start without labels into the student's folder, unless it is there.

    Args:
        config: Configuration of ``fit`` of a student that learns without labels.
        run: The student's run.
        data: Options of the student's data; those that decide crops hold for the start too. The start is trained on
            the photographs of ``unlabelled``, or without any on the student's own training part.
        trainer: Options of the student's trainer that hold here too, such as its precision.
        train: Runs ``fit`` from its words.

    Returns:
        The start's checkpoint, for ``student.weights``.

    Raises:
        LeakError: The photographs without labels show lesions, patients or files of validation or test.
        KDConvNeXtError: It cannot be trained.
    """
    own = SpecimenDataModule(
        data["manifest"],
        classes=data["classes"],
        on_error=data["on_error"],
        columns=data["columns"],
        split=SplitSpec(**data["split"]),
    )
    if data["unlabelled"] is None:
        source = run.path / f"{START}_photographs.csv"
        write_without_labels(own.manifest, own.split.rows("train"), source)
    else:
        source = data["unlabelled"]
        judged = np.concatenate([own.split.rows("val"), own.split.rows("test")])
        # At once, not after the start's training.
        refuse_judged(read_unlabelled(source), own.manifest, judged, allow=data["allow_leak"])
    shared = {name: value for name, value in data.items() if name not in _OWN | _OF_LABELS}
    shared |= {"manifest": str(source), "labels": "ignore"}
    where = "its training part" if data["unlabelled"] is None else "photographs without labels"
    options = {"data": shared, "trainer": dict(trainer)}
    said = f"The student's start on {where} first, by {config}:"
    return _trained(config, RunFolder(run.path / START), options, train, said)


def _trained(config: str, run: RunFolder, options: Mapping[str, Any], train: Train, said: str) -> Path:
    ended = run.path / ENDED
    if run.best.is_file() and ended.is_file():
        return run.best
    # JSON is YAML; the plain values of a parsed configuration have no other types.
    overlay = run.path.with_name(f"{run.path.name}_options.yaml")
    atomic_write(overlay, lambda file: file.write(json.dumps(options, indent=2).encode()))
    print(said, flush=True)
    words = ["fit", "--config", config, "--config", str(overlay)]
    if run.last.is_file():
        words += ["--ckpt_path", str(run.last)]
    with _environment_kept():
        train([*words, "--trainer.default_root_dir", str(run.path), "--header.next_steps", "false"])
    # An interrupted fit leaves a best.ckpt too, of the epochs so far.
    atomic_write(ended, lambda file: file.write(b""))
    return run.best


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undoes what a fit tells the processes it starts: those of the student are told anew."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
