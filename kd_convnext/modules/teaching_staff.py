"""Holds the frozen teachers of a fit: loads, checks, and stores the outputs of each."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.teacher_outputs import STILL, StoredTeacher
from kd_convnext.data.manifest.labels import canonical
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.losses.logits.prior_removed import PriorRemoved
from kd_convnext.losses.objective import Objective
from kd_convnext.losses.term import TEACHER, Needs, Widths
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.taps import TapSpec
from kd_convnext.modules.frozen_features import headed_features
from kd_convnext.modules.frozen_teacher import ARGUMENT, FrozenTeacher
from kd_convnext.modules.guard import leaks
from kd_convnext.modules.stored_teacher import stored_answers


def teacher_files(teachers: Mapping[str, str] | None, teacher_ckpt: str | None) -> dict[str, tuple[str, str]]:
    """Joins the two ways of naming teachers.

    Args:
        teachers: Files by name.
        teacher_ckpt: File of the one that is called ``teacher``.

    Returns:
        Name to the option that named it and its file.

    Raises:
        ConfigError: Both name a ``teacher``, or a name cannot be one.
    """
    found = {name: (f"--model.teachers.{name}", path) for name, path in (teachers or {}).items()}
    findings = [
        Finding(argument, f"{name!r} cannot be a teacher's name", "Use letters, digits and _.")
        for name, (argument, _) in found.items()
        if not name.isidentifier()
    ]
    if teacher_ckpt is not None and TEACHER in found:
        findings.append(Finding(ARGUMENT, "teachers names a teacher of this name too", "Give one of both."))
    if findings:
        raise ConfigError(findings)
    return found if teacher_ckpt is None else {TEACHER: (ARGUMENT, teacher_ckpt), **found}


class TeachingStaff:
    """The frozen teachers that the terms of an objective learn from, each run once a batch.

    Attributes:
        live: The teachers by name.
    """

    def __init__(self, files: Mapping[str, tuple[str, str]], objective: Objective, taps: TapSpec) -> None:
        """Loads the teachers, each with the union of its terms' needs.

        Args:
            files: Option and file of each, by name.
            objective: Whose terms name the teachers.
            taps: Modules to tap where maps are needed.

        Raises:
            ConfigError: A term's teacher has no file, no term learns from a teacher, or a tap is unknown.
            CheckpointError: A file cannot be used as a teacher.
        """
        if findings := unnamed(files, objective):
            raise ConfigError(findings)
        self.objective = objective
        self.live = {
            name: FrozenTeacher(path, objective.needs(name), taps.of_teacher(name), argument)
            for name, (argument, path) in files.items()
        }

    @property
    def widths(self) -> dict[str, Widths]:
        """Sizes of each teacher's outputs."""
        return {name: teacher.widths for name, teacher in self.live.items()}

    @property
    def description(self) -> dict[str, Any]:
        """Files, widths and taps of the teachers as plain values, for a checkpoint."""
        sizes = {name: [w.classes, list(w.channels), w.embedding] for name, w in self.widths.items()}
        return {
            "files": {name: Path(teacher.path).name for name, teacher in self.live.items()},
            "widths": sizes,
            "taps": {name: list(teacher.probe.tap_names) for name, teacher in self.live.items()},
        }

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves every teacher."""
        for teacher in self.live.values():
            teacher.to(device, dtype)

    def check(self, student: Backbone, class_names: Sequence[str], data: SpecimenDataModule | None) -> None:
        """Refuses teachers of other classes or channels, and those that have seen what is judged by.

        Args:
            student: Whom they teach.
            class_names: The data's, or empty where they are not known.
            data: Of the fit; None where it is not ours.

        Raises:
            CheckpointError: A teacher does not fit; all findings together.
            LeakError: One was trained on lesions of the validation or test part.
        """
        findings = []
        for teacher in self.live.values():
            findings += _misfits(teacher, student, class_names)
        if findings:
            raise CheckpointError(findings)
        for teacher in self.live.values():
            if data is not None:
                leaks(f"{teacher.argument} {teacher.path}", teacher.card, data, ("val", "test"))

    def warn_of_in_sample_answers(self, data: SpecimenDataModule, *, stored: bool) -> None:
        """Names the linear teachers whose answers for training crops are little more than the labels.

        Args:
            data: Of the fit.
            stored: Whether outputs are computed ahead of the training.
        """
        for teacher in self.live.values():
            if found := teacher.in_sample_answers(data, stored=stored):
                warnings.warn(str(found), stacklevel=3)

    def warn_of_removed_priors(self) -> None:
        """Names the terms that take a prior out of a teacher which was trained to have none."""
        for name, term in self.objective.named_terms().items():
            removed = any(isinstance(part, PriorRemoved) and part.tau > 0 for part in term.modules())
            taught = [self.live[one] for one in self.objective.asked_by(term)] if removed else []
            for teacher in (one for one in taught if one.weighs_classes):
                what = f"was trained with classes weighted: it has no prior left that the term {name} could take out"
                warnings.warn(f"{teacher.argument} {teacher.path} {what}: leave PriorRemoved out", stacklevel=3)

    def store(self, data: SpecimenDataModule | None, trainer: pl.Trainer, *, still: bool) -> None:
        """Runs every teacher ahead of the training, and lets the loader bring the outputs with the pictures.

        Args:
            data: Of the fit.
            trainer: Whose fit begins.
            still: Once a crop without augmentation, in place of once a view.

        Raises:
            ConfigError: The views are not limited, or maps are needed of crops without augmentation.
            CacheError: The outputs do not fit on the disk, or cannot be written.
        """
        # Not later: before the fit's first hook Lightning starts the loader's workers, with the data as it is then.
        if findings := unstorable(self.objective, data, still=still):
            raise ConfigError(findings)
        assert data is not None
        split = data.split.hash
        answers = {}
        for name, teacher in self.live.items():
            c = teacher.held_out_c(split)
            # A linear head repeats the labels of its own crops: views too are answered by heads without their lesion.
            if still or c is not None:
                found = headed_features(teacher.backbone, data, trainer, c, teacher.looks, views=not still)
                answers[name] = StoredTeacher(found, STILL if still else None)
            else:
                answers[name] = StoredTeacher(stored_answers(teacher, data, trainer))
        data.teach(answers)


def unnamed(files: Mapping[str, tuple[str, str]], objective: Objective) -> list[Finding]:
    """Finds teachers without a file, and files of teachers that no term learns from.

    Args:
        files: Option and file of each teacher, by name; none is opened.
        objective: Whose terms name the teachers.
    """
    return [_missing(name) for name in objective.teachers if name not in files] + [
        Finding(argument, f"no term learns from {name!r}", "Leave it out, or name it in a term.")
        for name, (argument, _) in files.items()
        if name not in objective.teachers
    ]


def unstorable(objective: Objective, data: SpecimenDataModule | None, *, still: bool) -> list[Finding]:
    """Finds why the outputs of teachers cannot be stored ahead of the training.

    Args:
        objective: Whose terms say what is stored.
        data: Of the fit; None where it is not ours.
        still: Once a crop without augmentation, in place of once a view.
    """
    findings = [
        Finding("--model.teacher_cache", f"a term needs maps of {name!r}, which still outputs do not have", "Use true.")
        for name in objective.teachers
        if still and Needs.MAPS in objective.needs(name)
    ]
    if data is None or (data.loader.views is None and not still):
        what = "the views of the training must be limited, so that each can be answered beforehand"
        remedy = (
            "Give --data.loader.views a number (as many as there are epochs changes nothing else), or leave it off."
        )
        findings.append(Finding("--model.teacher_cache", what, remedy))
    return findings


def _missing(name: str) -> Finding:
    if name == TEACHER:
        remedy = "Train a teacher first and give its best.ckpt, or leave out the terms that learn from it."
        return Finding(ARGUMENT, "distillation needs a teacher", remedy)
    return Finding(f"--model.teachers.{name}", f"a term learns from {name!r}", "Give its checkpoint.")


def _misfits(teacher: FrozenTeacher, student: Backbone, class_names: Sequence[str]) -> list[Finding]:
    findings = []
    names = tuple(class_names)
    compared = Needs.LOGITS in teacher.probe.needs  # embeddings and maps need no classes in common
    unlike = teacher.backbone.num_classes != student.num_classes or (
        names and canonical(teacher.class_names) != canonical(names)
    )
    if compared and unlike:
        what = f"the teacher knows {', '.join(teacher.class_names)}, the data has {', '.join(names)}"
        findings.append(Finding(teacher.argument, what, "Train a teacher on these classes."))
    if teacher.backbone.in_chans != student.in_chans:
        what = f"the teacher takes {teacher.backbone.in_chans} channels, the student {student.in_chans}"
        findings.append(Finding(teacher.argument, what, "Use the same in_chans for both."))
    return findings
