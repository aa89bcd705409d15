"""Writes what a run leaves: split, environment, predictions, metrics and figures, in files and loggers.

Configurations name the callbacks of a fit (``DataWaitBar``, ``RunHeader`` and others) by this module too.
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from kd_convnext.common.console import say, shown
from kd_convnext.common.counting import counted
from kd_convnext.common.figures import save_for_print
from kd_convnext.common.files import write_text
from kd_convnext.common.reading import json_text
from kd_convnext.common.words import command_line
from kd_convnext.data.crops.preparing.faithful import fidelity_figures
from kd_convnext.data.crops.resize import reduced_size, resize_to
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.views import still_view
from kd_convnext.data.manifest.ids import hidden_ids
from kd_convnext.data.manifest.units import salt_of, unit_word, units_of
from kd_convnext.errors import KDConvNeXtError
from kd_convnext.evaluation.answers import UNKNOWN, Evaluation
from kd_convnext.evaluation.statistics import GroupCounts, class_intervals, count_groups
from kd_convnext.runs.figures import Subject, confusion_matrix, crop_grid, per_class_bars, reliability_diagram
from kd_convnext.runs.judged import Judged, results_recorded
from kd_convnext.runs.loggers import log_confusion, log_files, log_table
from kd_convnext.runs.tables import (
    FIDELITY,
    class_table,
    prediction_table,
    write_cost,
    write_metrics,
    write_predictions,
    write_table,
)
from kd_convnext.training.checkpointing import choosing, will_be_best
from kd_convnext.training.environment import environment
from kd_convnext.training.header import RunHeader
from kd_convnext.training.outputs import (
    _data,
    begin_files,
    begin_results,
    judges_others,
    left_out_file,
    model_words,
    run_folder,
    shareable,
    show_figure,
)
from kd_convnext.training.previews import AugmentationPreview, CurveFigures
from kd_convnext.training.progress_bar import DataWaitBar
from kd_convnext.training.summary import best_epoch_line, score_lines

if TYPE_CHECKING:
    from kd_convnext.models.backbones import Backbone

__all__ = ["AugmentationPreview", "CurveFigures", "DataWaitBar", "RunHeader", "RunRecord", "run_folder"]

_GRID = 36
"""Pictures of the grid of wrong predictions at most."""


_PICTURES_LEAVE = "Weights & Biases gets photographs of this data (--wandb.pictures true), and ids as salted hashes."
_PICTURES_STAY = "Weights & Biases gets no photographs (--wandb.pictures true sends them), and ids as salted hashes."


class RunRecord(Callback):
    """Writes a run's record into its folder and gives the same to the loggers.

    At the start of a fit the split and the environment; at the end of ``test`` the predictions, metrics and
    figures; at the end of ``validate`` metrics and figures.
    """

    def __init__(
        self,
        max_pictures: int = 200,
        picture_size: int = 96,
        log_validation: bool = False,
        heat_maps: int = 0,
        artifacts: bool = False,
        overwrite: bool = False,
        wandb_pictures: bool = False,
    ) -> None:
        """Sets what the loggers get.

        Args:
            max_pictures: Rows of the prediction table: wrong ones first, the surest of them on top, then
                right ones from the least sure on. ``predictions.csv`` always has all. 0 for no table.
            picture_size: Longer side of the table's pictures, in pixels.
            log_validation: Give the loggers the confusion matrix of every validation during a fit.
            heat_maps: Test photographs to show with the evidence for the predicted class over them, in the table's
                order, and beside each that of the teacher, where its checkpoint is at hand; each map costs about
                fifty forward passes.
            artifacts: Give W&B split and best checkpoint of a fit, and metrics, predictions and report of a test; ids
                of lesions and patients in these tables are salted hashes.
            overwrite: Replace results of another checkpoint; by default that is refused.
            wandb_pictures: Send photographs, and reports that may show some, to W&B too (``--wandb.pictures true``).
        """
        super().__init__()
        self.wandb_pictures = wandb_pictures
        self.overwrite = overwrite
        self.heat_maps = heat_maps
        self.artifacts = artifacts
        self.max_pictures = max_pictures
        self.picture_size = picture_size
        self.log_validation = log_validation
        self._begun = 0.0
        self._best: tuple[int, Evaluation] | None = None
        self._judged: Judged | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``split.csv``, ``environment.json`` and what configuration and curve begin with: all, or none.

        A checkpoint to go on from is accepted by then: a resume that is refused, or that no disk has room for, changes
        no record of the run.
        """
        if not trainer.is_global_zero:
            return
        self._begun, self._best = time.perf_counter(), None
        folder, data = run_folder(trainer), _data(trainer)
        found = json_text(environment(trainer)).encode()
        files = {folder.split: data.split.text(data.manifest), folder.environment: found}
        begin_files(trainer, files | left_out_file(trainer, "train", "val"))
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            say(trainer, _PICTURES_LEAVE if self.wandb_pictures else _PICTURES_STAY)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints which epoch was the best; logs the split and the best checkpoint to W&B, if asked for."""
        # Without labels there is one class, and it is always right.
        before = choosing(trainer) if trainer.ckpt_path else None  # of a fit that went on
        chosen = self._best is not None or (before is not None and before.best_model_score is not None)
        if trainer.is_global_zero and chosen and not _data(trainer).ignores_labels:
            best = None if self._best is None else (self._best[0], _group_counts(trainer, self._best[1]))
            say(trainer, best_epoch_line(best, time.perf_counter() - self._begun))
            say(trainer, f"Figures: {shown(run_folder(trainer).figures)}")
        if self.artifacts and trainer.is_global_zero:
            folder = run_folder(trainer)
            log_files(trainer.loggers, "split", "split", shareable(folder, [folder.split], _data(trainer)))
            log_files(trainer.loggers, "checkpoint", "model", [folder.best])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to replace results of another checkpoint, where it is no part of a fit."""
        if trainer.state.fn == "validate":
            self._judged = begin_results(trainer, "val", overwrite=self.overwrite)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to replace results of another checkpoint."""
        self._judged = begin_results(trainer, "test", overwrite=self.overwrite)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to replace answers of another checkpoint."""
        self._judged = begin_results(trainer, f"predict_{_data(trainer).predict_part}", overwrite=self.overwrite)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records ``validate``; within a fit gives the loggers the confusion matrix, if asked for."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None or trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._keep_best(trainer, found)
        if trainer.state.fn == "validate":
            with results_recorded(run_folder(trainer), "val", self._judged):
                self._record(trainer, pl_module, found)
        elif self.log_validation:
            log_confusion(trainer.loggers, "val/confusion_matrix", found, trainer.global_step)

    def _keep_best(self, trainer: Trainer, found: Evaluation) -> None:
        """Keeps the answers of the best epoch, that of ``best.ckpt``: its interval is said at the end."""
        chosen = will_be_best(trainer)
        if chosen is None:
            score = found.metrics(per_class=False).get("f1_macro", math.nan)
            chosen = score > (-math.inf if self._best is None else self._best[1].metrics(per_class=False)["f1_macro"])
        if chosen:
            self._best = (trainer.current_epoch, found)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records ``test``: ``predictions.csv``, ``metrics.json``, ``figures/``."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None:
            return
        with results_recorded(run_folder(trainer), "test", self._judged):
            self._write_test(trainer, pl_module, found)
        if self.max_pictures:
            self._show_predictions(trainer, pl_module, found)
        if self.heat_maps:
            self._show_heat_maps(trainer, pl_module, found)
        if self.artifacts:
            folder = run_folder(trainer)
            tables = shareable(folder, [folder.predictions], _data(trainer))
            report = [folder.report] if self.wandb_pictures else []
            log_files(trainer.loggers, "results", "report", [folder.metrics, *tables, *report])

    def _write_test(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Writes predictions, cost, metrics and figures of the test part."""
        from kd_convnext.training.cost import network_cost  # timm imports wandb where it is installed

        folder = run_folder(trainer)
        write_predictions(folder, found, _data(trainer).manifest)
        write_cost(folder, network_cost(cast("Backbone", module.classifier)))
        faithful = fidelity_figures(_data(trainer).crops, found.index)
        write_metrics(folder, {f"test/{FIDELITY}{name}": value for name, value in faithful.items()})
        for path, content in left_out_file(trainer, "test").items():
            write_text(path, content.decode())
        self._record(trainer, module, found)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the answers: ``predictions_<part>.csv``."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None:
            return
        data = _data(trainer)
        folder = run_folder(trainer)
        path = folder.predictions_of(data.predict_part)
        with results_recorded(folder, f"predict_{data.predict_part}", self._judged):
            write_table(path, prediction_table(found, data.manifest))
        say(trainer, f"Answers for {counted(len(found), 'region')} of interest: {shown(path)}")

    def _record(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Writes metrics and figures of the images and, where there are lesions, of those."""
        lesions = _evaluation(trainer, module, "lesion_evaluation")
        if getattr(getattr(module, "card", None), "leak_allowed", False):
            write_metrics(run_folder(trainer), {f"{found.part}/leak_allowed": 1.0})
            say(
                trainer, "Warning: lesions of the judged parts were in training (allow_leak): these results are no test"
            )
        for prefix, evaluation in ((found.part, found), (f"{found.part}/lesion", lesions)):
            metrics = evaluation.metrics() if evaluation else {}
            if not evaluation or not metrics:
                continue
            write_metrics(run_folder(trainer), {f"{prefix}/{name}": value for name, value in metrics.items()})
            subject = _subject(found, lesions, module, "photograph" if evaluation is found else "lesion")
            behind = _group_counts(trainer, evaluation)
            self._draw(trainer, prefix, evaluation, subject, behind)
            log_table(trainer.loggers, f"{prefix}/per_class_table", class_table(evaluation), trainer.global_step)
        self._say_scores(trainer, found, lesions)

    def _say_scores(self, trainer: Trainer, found: Evaluation, lesions: Evaluation | None) -> None:
        """Prints the scores, and where the rest is."""
        if not (found.labels != UNKNOWN).any():
            return
        own = None if lesions is None else _group_counts(trainer, lesions)
        named = {"val": "validation"}.get(found.part, found.part)
        folder = run_folder(trainer)
        for line in score_lines(named, _group_counts(trainer, found), own, found.class_names):
            say(trainer, line)
        say(trainer, f"Figures: {shown(folder.figures)}; all numbers: {shown(folder.metrics)}")
        if judges_others(trainer):
            what = "Other photographs than the run's own: their results have a folder of their own, and a section in"
            say(trainer, f"{what} {command_line(['card'], ckpt_path=shown(Path(trainer.ckpt_path or '')))}")
        elif found.part == "test":
            say(trainer, f"Next: {command_line(['report', shown(folder.path)])}")

    def _draw(
        self, trainer: Trainer, prefix: str, evaluation: Evaluation, subject: Subject, behind: GroupCounts
    ) -> None:
        """Draws confusion matrix, scores of the classes and calibration."""
        name, caption = f"{prefix}/confusion_matrix", subject.says("Confusion matrix, rows are true classes")
        figure = confusion_matrix(evaluation.confusion_matrix(), evaluation.class_names, caption=caption)
        save_for_print(run_folder(trainer).figure(name), figure)
        log_confusion(trainer.loggers, name, evaluation, trainer.global_step, caption)
        few = f"† fewer than ten {behind.unit}s"
        caption = subject.says(f"Scores of each class with 95 % intervals {behind.by} ({few})")
        numbers = [int(count) for count in behind.per_class()]
        bars = per_class_bars(evaluation, class_intervals(behind), numbers, caption, behind.unit)
        show_figure(trainer, f"{prefix}/per_class", bars)
        caption = subject.says("How often answers are right against how sure they are")
        show_figure(trainer, f"{prefix}/reliability", reliability_diagram(evaluation, caption=caption))

    def _show_predictions(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Gives the loggers the table of predictions with pictures, and a grid of wrong ones."""
        data = _data(trainer)
        chosen = most_telling(found)[: self.max_pictures]
        crops = [data.crops.load(int(row)) for row in found.index[chosen]]
        pictures = [resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], self.picture_size)) for crop in crops]
        table = prediction_table(found, data.manifest).iloc[chosen].reset_index(drop=True)
        # Files have them all in predictions.csv; ids of lesions stay on this machine.
        salt = salt_of(data.manifest)
        table = hidden_ids(table, salt)
        here = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger | WandbLogger)]
        log_table(here, "test/predictions", table, trainer.global_step, pictures)
        sent = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if sent:
            unnamed = table.assign(image=hidden_ids(table[["image"]], salt, images=True)["image"])
            log_table(sent, "test/predictions", unnamed, trainer.global_step, pictures if self.wandb_pictures else None)
        wrong = table[(table["label"] != "") & (table["label"] != table["prediction"])]
        if len(wrong):
            shown_ones = wrong.head(_GRID)
            subject = _subject(found, _evaluation(trainer, module, "lesion_evaluation"), module, "photograph")
            mistakes = int(((found.labels >= 0) & (found.labels != found.predictions)).sum())
            caption = subject.says(
                f"{len(shown_ones)} of {counted(mistakes, 'wrong answer')}, the most confident first"
            )
            titles = [_mistake(row) for _, row in shown_ones.iterrows()]
            grid = crop_grid(pictures[: len(titles)], titles, caption=caption)
            show_figure(trainer, "test/misclassified", grid, photographs=True)

    def _show_heat_maps(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Shows where the evidence for the predicted classes lies, the surest mistakes first, and the teacher's."""
        # timm imports wandb wherever it is installed; runs without heat maps do without.
        from kd_convnext.models.heatmaps import evidence_over, resized

        data, backbone, teacher = _data(trainer), cast("Backbone", module.classifier), _teacher(trainer, module)
        resize, pictures, titles = data.crops.spec.resize, [], []
        for place in most_telling(found)[: self.heat_maps]:
            crop = data.crops.load(int(found.index[place]))
            seen = still_view(crop, backbone.image_size, backbone.in_chans, resize)
            predicted, label = int(found.predictions[place]), int(found.labels[place])
            pictures.append(evidence_over(backbone, seen, predicted, crop, padded=resize == "pad"))
            wrong = f" ({found.class_names[label]})" if label not in (predicted, -1) else ""
            titles.append(f"{found.class_names[predicted]}{wrong}")
            if teacher is not None:
                seen = resized(seen, teacher.image_size)
                pictures.append(evidence_over(teacher, seen, predicted, crop, padded=resize == "pad"))
                titles.append(f"teacher, {found.class_names[predicted]}")
        together = 1 if teacher is None else 2
        subject = _subject(found, _evaluation(trainer, module, "lesion_evaluation"), module, "photograph")
        caption = subject.says("Evidence for the predicted class (in brackets the true one), surest mistakes first")
        show_figure(trainer, "test/heat_maps", crop_grid(pictures, titles, together, caption), photographs=True)


def _mistake(row: "pd.Series[Any]") -> str:
    """Writes under a picture what it is, what was said, how sure, and which file it is."""
    label, said = str(row["label"]), str(row["prediction"])
    return (
        f"is {label} ({row[f'prob_{label}']:.0%})\nsaid {said} ({row[f'prob_{said}']:.0%})\n{Path(row['image']).name}"
    )


def _subject(
    found: Evaluation, lesions: Evaluation | None, module: LightningModule, unit: Literal["photograph", "lesion"]
) -> Subject:
    """Tells what figures of a run are about."""
    known = None if lesions is None else int((lesions.labels != UNKNOWN).sum())
    return Subject(found.part, unit, int((found.labels != UNKNOWN).sum()), known, model_words(module))


def _group_counts(trainer: Trainer, evaluation: Evaluation) -> GroupCounts:
    """Counts answers by group; without our data each is a lesion of its own."""
    names, known = np.array([*evaluation.class_names]), evaluation.labels != UNKNOWN
    data = getattr(trainer, "datamodule", None)
    answers = pd.DataFrame({"label": names[evaluation.labels], "prediction": names[evaluation.predictions]})[known]
    rows = evaluation.index[known]
    if isinstance(data, SpecimenDataModule):
        units = units_of(data.manifest, rows)
        answers = answers.assign(unit=units["unit"].to_numpy(), by=unit_word(*(units[name] for name in units)))
    else:
        answers = answers.assign(lesion=rows.astype(str))
    return count_groups(answers, evaluation.class_names)


def most_telling(evaluation: Evaluation) -> npt.NDArray[np.intp]:
    """Orders samples by what there is to learn from looking at them.

    Args:
        evaluation: N samples.

    Returns:
        N positions: wrong answers from the surest on, then the others from the least sure on.
    """
    wrong = (evaluation.labels >= 0) & (evaluation.labels != evaluation.predictions)
    confidence = evaluation.probabilities.max(axis=1)
    return np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))


def _teacher(trainer: Trainer, module: LightningModule) -> "Backbone | None":
    """Loads the first teacher of a distilled student, where its checkpoint is at hand."""
    from kd_convnext.checkpoints.network import load_network

    files = getattr(module, "teachers", {})
    _, path = next(iter(files.values()), ("", ""))
    if not Path(path).is_file():
        return None
    try:
        with torch.inference_mode(False):  # its weights take part in gradients
            return load_network(path, str(module.device)).backbone
    except KDConvNeXtError as error:
        say(trainer, f"Heat maps are shown without the teacher's: {error}")
        return None


def _evaluation(trainer: Trainer, module: LightningModule, name: str) -> Evaluation | None:
    """Reads what the module has collected; None in all processes but the first."""
    return cast("Evaluation | None", getattr(module, name, None)) if trainer.is_global_zero else None
