"""Trains the teacher that a student's configuration names, before the student, on the same data and split."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_convnext.common.files import atomic_write
from kd_convnext.runs.folder import RunFolder

FOLDER = "teacher"
"""Where the teacher's run lies in the student's."""

_OWN = {"image_size", "batch_size", "augment", "loader", "unlabelled", "predict_part"}
"""Options of the data that teacher and student each have for themselves."""


def trained_teacher(
    config: str, run: RunFolder, data: Mapping[str, Any], train: Callable[[Sequence[str]], int]
) -> Path:
    """Trains a teacher into the folder of its student, unless it is there.

    Args:
        config: The teacher's configuration of ``fit``.
        run: The student's run.
        data: Options of the student's data; those that decide photographs, crops and split hold for the teacher too.
        train: Runs ``fit`` from its words.

    Returns:
        The teacher's checkpoint.

    Raises:
        KDConvNeXtError: The teacher cannot be trained.
    """
    teacher = RunFolder(run.path / FOLDER)
    if teacher.best.is_file():
        return teacher.best
    # JSON is YAML; the plain values of a parsed configuration have no other types.
    shared = {name: value for name, value in data.items() if name not in _OWN}
    shared["loader"] = {"on_miss": data["loader"]["on_miss"]}
    overlay = run.path / f"{FOLDER}_data.yaml"
    atomic_write(overlay, lambda file: file.write(json.dumps({"data": shared}, indent=2).encode()))
    print(f"The teacher first, by {config}:", flush=True)
    words = ["fit", "--config", config, "--config", str(overlay)]
    if teacher.last.is_file():
        words += ["--ckpt_path", str(teacher.last)]
    with _environment_kept():
        train([*words, "--trainer.default_root_dir", str(teacher.path)])
    return teacher.best


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undoes what a fit tells the processes it starts: those of the student are told anew."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
