"""Trains the teacher that a student's configuration names, before the student."""

import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.common.files import atomic_write, read_bytes
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.unlabelled import read_unlabelled, refuse_judged
from kd_convnext.data.manifest.splits import SplitSpec
from kd_convnext.errors import ConfigError, Finding, ManifestWarning, Terminated
from kd_convnext.models.published import start_findings
from kd_convnext.runs.folder import RunFolder
from kd_convnext.training.run_place import TEACHER, interrupted, launcher, terminated

ENDED = "ended"
"""A file that says of this run that it has ended by itself."""

_PLACES = {"cache_dir", "on_error", "allow_leak"}
"""Options of the data that decide nothing of a teacher that could be trained."""

_OWN = {"image_size", "batch_size", "augment", "loader", "unlabelled", "unlabelled_columns", "predict_part"}
"""Options of the data that each run has for itself."""

Train = Callable[[Sequence[str]], int]
"""Runs ``fit`` from its words."""


def on_one_device(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a student's trainer that hold for its teacher, which trains in this process.

    Processes that were started for more devices would run the student's command line, not the teacher's.

    Args:
        trainer: Options of the student's trainer.
    """
    devices = trainer["devices"]
    alone = {"devices": devices[:1] if isinstance(devices, list) else 1, "num_nodes": 1, "strategy": "auto"}
    asked = {option: trainer[option] for option in ("accelerator", "precision")}
    return alone | {option: value for option, value in asked.items() if value not in (None, "auto")}


def require_start_weights(student: Any) -> None:
    """Refuses a student whose start weights are not there, before its teacher is trained.

    Args:
        student: Options of its network.

    Raises:
        ConfigError: They are not.
    """
    if findings := start_findings([("--model.student", dict(student or {}))]):
        raise ConfigError(findings)


def refuse_together(config: str, run: RunFolder, manifest: str) -> None:
    """Refuses to train a teacher first in one of several processes that a launcher has started: none waits for it.

    Args:
        config: The teacher's configuration of ``fit``.
        run: The student's run.
        manifest: The photographs.

    Raises:
        ConfigError: There are several, and the teacher is not trained yet.
    """
    own, started_by = RunFolder(run.path / TEACHER), launcher()
    if started_by is None or (own.best.is_file() and (own.path / ENDED).is_file()):
        return
    what = f"{started_by} has started several processes, of which one would train the teacher while the others need it"
    fit, place = f"kd-convnext fit --config {shlex.quote(config)}", shlex.quote(str(Path("runs") / TEACHER))
    first = f"{fit} --data.manifest {shlex.quote(manifest)} --trainer.default_root_dir {place}"
    remedy = f"First, in one process and with this student's other options of the data: {first}"
    then = f"Then give this command --model.teacher_ckpt {place}/checkpoints/best.ckpt."
    raise ConfigError(Finding("--teacher_config", what, f"{remedy} . {then}"))


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
        ConfigError: A teacher is there that was trained by another configuration, for a student that has not begun.
        LeakError: Photographs without labels show lesions, patients or pictures of validation or test.
        KDConvNeXtError: The teacher cannot be trained.
    """
    own = RunFolder(run.path / TEACHER)
    ended = own.path / ENDED
    shared = {name: value for name, value in data.items() if name not in _OWN}
    made_by, stamp = _hash(config, shared), run.path / f"{TEACHER}_options.sha256"
    if (own.last.is_file() or ended.is_file()) and stamp.is_file() and not run.last.is_file():
        _refuse_other(own, stamp.read_text(encoding="utf-8"), made_by)
    if own.best.is_file() and ended.is_file():
        return own.best
    if data["unlabelled"] is not None:
        _refuse_judged(data, run)
    shared["loader"] = {"on_miss": data["loader"]["on_miss"]}
    options = {"data": shared, "trainer": dict(trainer)}
    # JSON is YAML; the plain values of a parsed configuration have no other types.
    overlay = run.path / f"{TEACHER}_options.yaml"
    atomic_write(overlay, lambda file: file.write(json.dumps(options, indent=2).encode()))
    atomic_write(stamp, lambda file: file.write(made_by.encode()))
    print(f"The teacher first, by {config}:", flush=True)
    words = ["fit", "--config", config, "--config", str(overlay)]
    if own.last.is_file():
        words += ["--ckpt_path", str(own.last)]
    else:
        own.best.unlink(missing_ok=True)  # of a first epoch that was killed at its end
    with _of_the_student(), _environment_kept(), isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ManifestWarning)  # the student's photographs, whose warnings have been shown
        train([*words, "--trainer.default_root_dir", str(own.path), "--header.next_steps", "false"])
    # An interrupted fit leaves a best.ckpt too, of the epochs so far.
    atomic_write(ended, lambda file: file.write(b""))
    return own.best


def _hash(config: str, data: Mapping[str, Any]) -> str:
    """Hashes what decides a teacher: its configuration, and options of the student's that hold for it."""
    decides = {name: value for name, value in data.items() if name not in _PLACES}
    manifest = Path(data["manifest"]).expanduser()
    # A file that has moved with its photographs is the same.
    decides["manifest"] = hashlib.sha256(read_bytes(manifest)).hexdigest() if manifest.is_file() else manifest.resolve()
    text = json.dumps(decides, sort_keys=True, default=str)
    try:
        content = read_bytes(Path(config).expanduser())
    except OSError as error:
        what = f"{config} cannot be read ({error.strerror})"
        raise ConfigError(Finding("--teacher_config", what, "Name a configuration of fit for the teacher.")) from error
    return hashlib.sha256(content + text.encode()).hexdigest()


def _refuse_other(own: RunFolder, made_by: str, wanted: str) -> None:
    """Refuses a teacher that was made, or is being made, by another configuration."""
    if made_by != wanted:
        what = "was trained by other options or on other photographs than this student asks for"
        remedy = "Give the student a folder of its own (--trainer.default_root_dir), or delete this one."
        raise ConfigError(Finding(str(own.path), what, remedy))


def _refuse_judged(data: Mapping[str, Any], run: RunFolder) -> None:
    """Refuses photographs without labels that show what the student is judged on, before anything is trained."""
    student = SpecimenDataModule(
        data["manifest"],
        classes=data["classes"],
        on_error=data["on_error"],
        columns=data["columns"],
        labels=data["labels"],
        split=SplitSpec(**data["split"]),
    )
    judged = np.concatenate([student.split.rows("val"), student.split.rows("test")])
    by, allow = student.split_spec.group_by, data["allow_leak"]
    others = read_unlabelled(data["unlabelled"], data["unlabelled_columns"])
    refuse_judged(others, student.manifest, judged, by, allow=allow, folder=run.path)


@contextmanager
def _of_the_student() -> Iterator[None]:
    """Says of a teacher's fit that was stopped how the student's goes on: that one the user has begun."""
    try:
        yield
    except Terminated:
        raise terminated("fit") from None
    except KeyboardInterrupt:
        raise interrupted("fit") from None


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undoes what a fit tells the processes it starts: those of the student are told anew."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
