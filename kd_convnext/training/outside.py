"""Looks for copies of a network's training photographs among others that it is tested on."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from kd_convnext.common.console import say
from kd_convnext.common.counting import counted
from kd_convnext.data.loading.card import DataCard, Groups
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.manifest.grouping import Part, group_hashes
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.data.manifest.overlap import belonging
from kd_convnext.errors import Finding, KDConvNeXtError, LeakError
from kd_convnext.inference.run_data import Rows, own_photographs, source_of
from kd_convnext.runs.folder import run_of_checkpoint

_NAMED = 5


def refuse_copies(trainer: Trainer, data: SpecimenDataModule, part: Part) -> None:
    """Refuses copies of training photographs under other names and ids; warns of what merely looks alike.

    Known ids need no photographs to be found: the module itself compares them. It compares paths too: those of other
    photographs than the training's are taken out of its card.

    Args:
        trainer: At the start of ``test`` or ``validate``, on other photographs than those of the network's run.
        data: Those.
        part: Which of them are judged.

    Raises:
        LeakError: Some have the bytes of training photographs, and leaks are not allowed.
    """
    module: Any = trainer.lightning_module
    own = _own(trainer, module.card)
    if own is None:
        if not len(data.shared_with(module.card, part)):
            what = "the run's own photographs are not at hand: copies of them among these cannot be found"
            say(trainer, f"Warning: {what}")
        return
    trained = np.flatnonzero(own.table["split"] == "train").astype(np.int64)
    judged = data.split.rows(part)
    close = belonging(data.manifest, own, trained, likeness=True)[judged]
    module.card = module.card.without(_namesakes(data, judged[~close], own, trained))
    if len(data.shared_with(module.card, part)):
        return  # refused, or allowed, by the module
    alike = judged[close]
    if not len(alike):
        return
    same = judged[belonging(data.manifest, own, trained, likeness=False)[judged]]
    if len(same) and not data.allow_leak:
        what = f"{counted(len(same), 'photograph')} of the training are among those to be judged ({_names(data, same)})"
        remedy = "Leave them out, or give --data.allow_leak true to go on; the results then say so."
        raise LeakError(Finding("--data.manifest", what, remedy))
    if len(same):
        module.card = replace(module.card, leak_allowed=True)
    else:
        what = f"{counted(len(alike), 'photograph')} near-identical to such of the training ({_names(data, alike)})"
        say(trainer, f"Warning: {what}: look at them; copies make results too good")


def _namesakes(data: SpecimenDataModule, rows: Rows, own: Manifest, trained: Rows) -> Groups:
    """Hashes the names that photographs share with such of the training though they show something else."""
    names = group_hashes(data.manifest.table, rows, ("image",))
    return np.intersect1d(names, group_hashes(own.table, trained, ("image",)))


def _own(trainer: Trainer, card: DataCard) -> Manifest | None:
    """Reads the photographs of the checkpoint's run; None where they are not at hand."""
    run = run_of_checkpoint(trainer.ckpt_path or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit has said them
            return own_photographs(card, source_of(run, None, None, None), run)
    except KDConvNeXtError:
        return None


def _names(data: SpecimenDataModule, rows: Rows) -> str:
    names = data.manifest.table["image"].iloc[rows].tolist()
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
