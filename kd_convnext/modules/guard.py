"""Checks that a model and data belong together: the same classes, the same crops, no lesion on both sides."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_convnext.common.counting import counted
from kd_convnext.data.crops.spec import comparable
from kd_convnext.data.loading.card import DataCard, check_leak
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.data.manifest.labels import canonical
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.evaluation.answers import EvaluatedPart
from kd_convnext.modules.checkpointed import CheckpointedModule


def check_classes(class_names: Sequence[str], num_classes: int, data: SpecimenDataModule | None) -> None:
    """Refuses data of other classes than the model's.

    Args:
        class_names: The model's, in the order of its outputs; empty where it does not know them yet.
        num_classes: Number of its outputs, K.
        data: The data; None where they are no data module of ours, which passes.

    Raises:
        CheckpointError: Other names, another order, or another number of classes.
    """
    if data is None:
        return
    if class_names and canonical(class_names) != canonical(data.class_names):
        what = f"it knows the classes {', '.join(class_names)}, the data has {', '.join(data.class_names)}"
        remedy = "Use data of the same classes, or give --data.classes in this order."
        raise CheckpointError(Finding("this model", what, remedy))
    if num_classes != data.num_classes:
        what = f"it has {counted(num_classes, 'output')}, the data has {counted(data.num_classes, 'class')}"
        raise CheckpointError(Finding("this model", what, "Use data of the same classes."))


def check_size(image_size: int, data: SpecimenDataModule) -> None:
    """Refuses pictures of another size than the network's.

    Args:
        image_size: Side of the network's input in pixels.
        data: The data.

    Raises:
        ConfigError: They are of another size.
    """
    if data.image_size != image_size:
        what = f"the data gives {data.image_size} px, the network takes {image_size}"
        raise ConfigError(Finding("--data.image_size", what, "Give both the same size."))


def check_labels(data: SpecimenDataModule | None) -> None:
    """Refuses to judge answers for data whose labels are ignored.

    Args:
        data: The data; None passes.

    Raises:
        ConfigError: Its labels are ignored.
    """
    if data is not None and data.ignores_labels:
        remedy = "Give --data.labels read, and photographs with labels."
        raise ConfigError(Finding("--data.labels", "answers are judged by labels, which are ignored", remedy))


def leave_out_unlabelled(model: CheckpointedModule, data: SpecimenDataModule | None, *, first: bool) -> None:
    """Leaves out photographs without labels where nothing learns from them, so that they cost no time; warns of it.

    Args:
        model: What is trained.
        data: Of the fit; None passes.
        first: Whether this process is the first of several, which warns for all.
    """
    if data is None:
        return
    warned = first and data.unlabelled_path is not None and not model.learns_unlabelled
    data.use_unlabelled(wanted=model.learns_unlabelled)  # perhaps an earlier fit of the same data did without them
    if warned:
        what = "unlabelled has no effect: nothing in this training learns from a teacher's answers for them"
        warnings.warn(f"--data: {what}", stacklevel=2)


def require_labels(part: EvaluatedPart, *, fitting: bool) -> None:
    """Refuses to choose the best epoch of a fit by a part without a label.

    Args:
        part: A part in which no photograph has a label.
        fitting: Whether a fit is judged by it.

    Raises:
        ConfigError: One is.
    """
    if fitting:
        remedy = "Fill in labels, or give --trainer.limit_val_batches 0: then the network of the last epoch is kept."
        raise ConfigError(
            Finding(f"the {part} part", "none of its photographs has a label to choose an epoch by", remedy)
        )


def check_crops(card: DataCard | None, data: SpecimenDataModule | None) -> None:
    """Refuses crops made otherwise than those of the training: answers for them would be worth nothing.

    Args:
        card: What the model knows of its training data; None passes.
        data: The data; None passes.

    Raises:
        CheckpointError: Other crops; one finding for each difference.
    """
    if data is None or card is None:
        return
    # Not by `data.card()`, for which photographs without labels are read.
    now = {"crop_identity": data.crop_spec.identity(), "image_size": data.image_size, "in_chans": data.in_chans}
    findings = [
        Finding(
            "this checkpoint",
            f"its {name} was {getattr(card, name)}, the data's is {value}",
            "Use the config.yaml of its run (and the same Real-ESRGAN weights).",
        )
        for name, value in now.items()
        if _compared(name, value) != _compared(name, getattr(card, name))
    ]
    if findings:
        raise CheckpointError(findings)


def _compared(name: str, value: Any) -> object:
    return comparable(value) if name == "crop_identity" else value


def leaks(who: str, card: DataCard | None, data: SpecimenDataModule, parts: Sequence[EvaluatedPart]) -> bool:
    """Finds lesions of the training among those that are to be judged.

    Args:
        who: The model, for the message.
        card: What it knows of its training data; None has seen nothing.
        data: The data; their ``allow_leak`` turns the refusal into a warning.
        parts: Which parts are to be judged.

    Returns:
        Whether there are such lesions, and they are allowed.

    Raises:
        LeakError: There are such lesions.
    """
    if card is None:
        return False
    found, groups = False, (card.group_by, data.split_spec.group_by)
    for part in parts:
        shared = data.shared_with(card, part)  # type: ignore[arg-type]
        rows = data.split.rows(part)  # type: ignore[arg-type]
        paths = group_hashes(data.manifest.table, rows, ("image",), unlabelled=True)
        by_path = bool(np.isin(shared, paths).all())
        found |= check_leak(shared, who=who, part=part, allow=data.allow_leak, group_by=groups, by_path=by_path)
    return found
