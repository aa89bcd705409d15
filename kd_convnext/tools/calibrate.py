"""Calibrates a checkpoint on lesions that its training has not seen: the command ``calibrate``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd_convnext.common.console import shown, tell
from kd_convnext.common.counting import counted, percent
from kd_convnext.common.parsing import warn_of_idle
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.inference.trust.prediction_sets import Few, check_options, lesions_needed

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from matplotlib.figure import Figure

    from kd_convnext.inference.calibrating.fit import CalibrationOptions
    from kd_convnext.inference.calibrating.foreign import Stopped
    from kd_convnext.inference.calibrating.inputs import CalibrationInputs
    from kd_convnext.inference.calibrating.judgement import Judgement
    from kd_convnext.inference.run_data import CalibrationData, LabelledAnswers
    from kd_convnext.inference.trust.calibration import Calibration
    from kd_convnext.inference.trust.prediction_sets import Coverage
    from kd_convnext.runs.folder import RunFolder


def calibrate(
    ckpt_path: str,
    manifest: str | None = None,
    cache_dir: str | None = None,
    sr_weights: str | None = None,
    columns: str | None = None,
    extra_manifest: str | None = None,
    extra_columns: str | None = None,
    coverage: float = 0.9,
    merge: str | None = None,
    few: Few = "include",
    also: str | None = None,
    gate_false_alarms: float = 0.05,
    tta: bool = False,
    test: bool = False,
    out: str | None = None,
    overwrite: bool = False,
    wandb_project: str | None = None,
    device: str = "cpu",
) -> Path:
    """Fits temperature, prediction sets and gate of a checkpoint, on the validation part of its own split.

    Writes calibration.json and calibration.safetensors beside the checkpoint, where classify finds them, and figures
    into the run's folder. An earlier calibration is replaced.

    Args:
        ckpt_path: The checkpoint, in its run folder.
        manifest: The photographs it was trained with; by default as the run's config.yaml says.
        cache_dir: Crop cache; by default as the run's config.yaml says.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        columns: Other names of the manifest's columns: image=file,label=diagnosis; by default as the run's config.yaml
            says.
        extra_manifest: Further labelled photographs, of other lesions, to calibrate on too.
        extra_columns: Other names of the columns of extra_manifest.
        coverage: How often a prediction set must hold the true class, for each class by itself.
        merge: Classes counted together where one alone has too few lesions: "Grade 1+Grade 3", several with commas.
        few: What becomes of a class with too few lesions; include it in every set, or judge it by the pooled threshold
            of all classes, which promises nothing for that class.
        also: Checkpoints of other repeats of the split, with commas. Lesions that they have held out are counted in
            where a class has too few: near the coverage as far as the networks are alike, without a proven bound.
        gate_false_alarms: Share of ordinary photographs that the gate may stop.
        tta: Average over the mirror images of each photograph; classify then does so too.
        test: Also judge the calibration on the test part.
        out: Folder for everything in place of the checkpoint's and the run's.
        overwrite: Write into an --out that is not empty.
        wandb_project: Also log scores, figures and coverage to this project of Weights & Biases.
        device: Where the network runs, as torch names it.

    Returns:
        The JSON file.

    Raises:
        KDConvNeXtError: The checkpoint, its data or an option cannot be used, or there would be a leak.
    """
    from kd_convnext.checkpoints.format import require_file
    from kd_convnext.inference.calibrating.fit import CalibrationOptions, checked_transfer, fit_calibration
    from kd_convnext.inference.calibrating.inputs import open_inputs
    from kd_convnext.inference.predictor import Predictor
    from kd_convnext.inference.run_data import source_of
    from kd_convnext.runs.folder import RunFolder, run_of_checkpoint

    warn_of_idle(extra_columns=(extra_columns is not None and extra_manifest is None, "without --extra_manifest"))
    require_file(ckpt_path)
    run = run_of_checkpoint(ckpt_path)
    _require_place(run, out, overwrite=overwrite)
    source = source_of(run, manifest, cache_dir, sr_weights, columns)
    predictor = Predictor.from_checkpoint(
        ckpt_path, sr_weights=source.sr_weights, device=device, calibration="none", tta=tta, per_pass=16
    )
    options = CalibrationOptions(coverage, _mergers(merge), few, gate_false_alarms)
    _check(predictor.network.card.class_names, options)
    inputs = open_inputs(predictor, source, run, also, extra_manifest, extra_columns, test=test)
    data, folder = inputs.data, run if out is None else RunFolder(Path(out))
    with _wandb_run(wandb_project, folder) as logger:
        answers, others = inputs.answers(), [other.answers() for other in inputs.others]
        calibration = fit_calibration(data, answers, options, others)
        transfer = checked_transfer(calibration, answers, others)
        judgements = _judged(calibration, data, answers, test=test)
        stopped = _gate_stops(calibration, data)
        calibration = _recorded(calibration, inputs, judgements, transfer, stopped)
        path = calibration.write(Path(out) if out else Path(ckpt_path).expanduser().parent)
        _report(calibration, judgements, transfer, stopped)
        figures = _publish(folder, judgements, logger)
    print(f"Wrote {shown(path)} and figures in {shown(figures)}")
    return path


def _require_place(run: "RunFolder", out: str | None, *, overwrite: bool) -> None:
    from kd_convnext.runs.folder import require_empty, require_writable

    if out is None:
        require_writable(run.path)
    else:
        require_empty(Path(out), permitted=overwrite, option="--overwrite true")


def _judged(
    calibration: "Calibration", data: "CalibrationData", answers: "LabelledAnswers", *, test: bool
) -> "dict[str, Judgement]":
    """Judges a calibration on the answers it was fitted to, and by choice on the test part."""
    from kd_convnext.inference.calibrating.fit import judge_fit
    from kd_convnext.inference.calibrating.judgement import judge

    found = {"val": judge_fit(calibration, answers)}
    if test:
        found["test"] = judge(calibration, data.answers(data.rows("test")), "test")
    return found


def _gate_stops(calibration: "Calibration", data: "CalibrationData") -> "list[Stopped]":
    """Measures what the gate of a calibration stops, on the validation part of a run."""
    from kd_convnext.inference.calibrating.foreign import measure_gate

    data.predictor.calibration = calibration
    return measure_gate(data.predictor, data, data.rows("val"))


def _recorded(
    calibration: "Calibration",
    inputs: "CalibrationInputs",
    judgements: "Mapping[str, Judgement]",
    transfer: "Coverage | None",
    stopped: "Sequence[Stopped]",
) -> "Calibration":
    """Adds to a calibration's record what it was made of and how it was judged."""
    made_of = {**asdict(inputs.data.predictor.network.info), **inputs.record()}
    judged = {part: found.summary() for part, found in judgements.items()}
    record = {**calibration.record, **made_of, "transfer": asdict(transfer) if transfer else None, **judged}
    record["gate_stops"] = [asdict(found) for found in stopped]
    return replace(calibration, record=record)


def _publish(folder: "RunFolder", judgements: "dict[str, Judgement]", logger: "WandbLogger | None") -> Path:
    """Saves the figures of judgements and logs them where there is a logger; returns their folder."""
    from kd_convnext.common.figures import save_figure

    figures = _figures(judgements)
    for name, figure in figures.items():
        save_figure(folder.figures / f"calibration_{name}.png", figure)
    if logger is not None:
        _log(logger, judgements, figures)
    return folder.figures


def _mergers(merge: str | None) -> tuple[tuple[str, ...], ...]:
    groups = (merge or "").split(",") if merge else []
    return tuple(tuple(name.strip() for name in group.split("+")) for group in groups)


def _check(class_names: Sequence[str], options: "CalibrationOptions") -> None:
    check_options(class_names, options.coverage, options.merged)
    if not 0 < options.false_alarms < 1:
        what = f"{options.false_alarms} is not between 0 and 1"
        raise ConfigError(Finding("--gate_false_alarms", what, "Give for example 0.05."))


def _report(
    calibration: "Calibration",
    judgements: Mapping[str, "Judgement"],
    transfer: "Coverage | None",
    stopped: "Sequence[Stopped]",
) -> None:
    from kd_convnext.inference.calibrating.judgement import scores_line
    from kd_convnext.inference.trust.temperature import scores

    kept = calibration.temperature != 1.0
    why = "" if kept else ": probabilities stay as they are; scaling would not improve those of unseen lesions"
    tell(f"Temperature {calibration.temperature:.3f}{why}")
    print(f"  {'photographs':<30}{'NLL':>8}{'Brier':>8}{'ECE':>8}")
    for part, found in judgements.items():
        print(scores_line(f"{part}, before", scores(found.before), found.groups))
        after = f"{part}, after" + (" (cross-fitted)" if part == "val" else "")
        print(scores_line(after, scores(found.after), found.groups))
    _report_sets(calibration)
    if transfer is not None:
        _report_transfer(calibration, transfer)
    for part, found in judgements.items():
        _report_judgement(part, found)
    _report_gate(stopped)


def _report_sets(calibration: "Calibration") -> None:
    classes = calibration.lesion.classes
    needed = counted(lesions_needed(calibration.coverage), calibration.unit)
    tell(f"Prediction sets at {percent(calibration.coverage)}% coverage of each class ({needed} needed)")
    crossed = classes.crossed or (0,) * len(classes.class_names)
    width = max(20, *map(len, classes.class_names))
    columns = (classes.class_names, classes.lesions, classes.guaranteed, crossed)
    for name, count, promised, with_others in zip(*columns, strict=True):
        group = classes.together(name)
        together = f", together with {', '.join(other for other in group if other != name)}" if group else ""
        without = "judged with all classes" if calibration.few == "pooled" else "in every set"
        verdict = f"promised{' of the merger alone' if group else ''}" if promised else f"NO guarantee: {without}"
        if with_others:
            number = counted(with_others, calibration.unit)
            verdict = f"NO guarantee: about, by {number} with those that other networks have held out"
        tell(f"  {name:<{width}} {counted(count, calibration.unit):>12}: {verdict}{together}")
    if calibration.few == "include" and not all(np.isfinite(classes.values)):
        tell(
            "  A class in every set leaves hardly an answer without abstaining. Ways out: more labelled lesions "
            '(--extra_manifest FILE), a merger (--merge "A+B"), lesions that the checkpoints of other repeats have '
            "held out (--also FILE,FILE), or --few pooled."
        )


def _report_transfer(calibration: "Calibration", found: "Coverage") -> None:
    tell(
        f"  Thresholds from other networks' lesions alone hold the true class in {found.covered} of {found.lesions} "
        f"of its own (95 % interval {found.low:.2f} to {found.high:.2f}, asked for {calibration.coverage:g})"
    )
    if found.high < calibration.coverage:
        tell("  WARNING: the networks are not alike; leave --also out")


def _report_judgement(part: str, found: "Judgement") -> None:
    from kd_convnext.evaluation.proportions import digits

    summary = found.summary()
    answered, places = summary["accuracy_answered"], digits(found.groups) - 2
    tell(
        f"{_PARTS[part]} part: {found.behind}, answers {summary['answered']:.0%} of them"
        + (f", right in {answered:.{places}%}" if answered is not None else "")
        + f"; were it to answer all, right in {summary['accuracy']:.{places}%}"
        + f"; the gate stops {summary['stopped_by_gate']:.{places}%}"
    )
    if part == "val":
        tell("  (sets and gate were fitted on these lesions; --test true judges them on others)")
        return
    width = max(20, *(len(item.class_name) for item in found.coverage))
    for item in found.coverage:
        interval = f"95 % interval {item.low:.2f} to {item.high:.2f}, for all classes together"
        tell(
            f"  {item.class_name:<{width}} true class in {item.covered} of {counted(item.lesions, 'set')} ({interval})"
        )


def _report_gate(stopped: "Sequence[Stopped]") -> None:
    if stopped:
        print("The gate stops, of validation photographs altered on purpose:")
    for found in stopped:
        print(f"  {found.kind:<28} {found.stopped:>4} of {found.photographs}")


_PARTS = {"val": "Validation", "test": "Test"}


def _figures(judgements: Mapping[str, "Judgement"]) -> "dict[str, Figure]":
    from kd_convnext.inference.calibrating.figures import risk_coverage
    from kd_convnext.runs.figures import reliability_diagram

    figures = {}
    for part, found in judgements.items():
        behind = f"{counted(len(found.before), 'photograph')} of {found.behind}"
        title = "Calibration: how often answers are right against how sure they are"
        for when, judged in (("before", found.before), ("after", found.after)):
            caption = f"{title}, {when} temperature scaling. {_PARTS[part]} part: {behind}."
            figures[f"{part}_{when}"] = reliability_diagram(judged, caption=caption)
        confidence = found.lesions.probabilities.max(axis=1)
        figures[f"{part}_risk_coverage"] = risk_coverage(
            confidence,
            found.right,
            found.answered,
            f"Error among the answers given. {_PARTS[part]} part, {found.behind}.",
        )
    return figures


def _log(logger: "WandbLogger", judgements: Mapping[str, "Judgement"], figures: "Mapping[str, Figure]") -> None:
    import pandas as pd

    from kd_convnext.runs.loggers import log_figure, log_table

    for part, found in judgements.items():
        summary = found.summary()
        scores = {f"{when}_{name}": value for when in ("before", "after") for name, value in summary[when].items()}
        scores |= {name: summary[name] for name in ("answered", "accuracy_answered", "stopped_by_gate")}
        known = {f"calibration/{part}/{name}": value for name, value in scores.items() if value is not None}
        logger.log_metrics(known, 0)
        log_table([logger], f"calibration/{part}/coverage", pd.DataFrame(summary["coverage"]), 0)
    for name, figure in figures.items():
        log_figure([logger], f"calibration/{name}", figure, 0)


@contextmanager
def _wandb_run(project: str | None, folder: "RunFolder") -> "Iterator[WandbLogger | None]":
    """Opens a W&B run of its own, beside those of fit and test; None where no project is named.

    Raises:
        ConfigError: W&B is not installed, or refuses the run.
    """
    if project is None:
        yield None
        return
    from lightning.pytorch.loggers import WandbLogger

    from kd_convnext.runs.loggers import keep_console, wandb_in_words

    keep_console()
    place = folder.path.absolute()
    try:
        logger = WandbLogger(
            project=project, name="/".join(place.parts[-2:]), save_dir=str(place), job_type="calibrate"
        )
    except ModuleNotFoundError as error:
        raise ConfigError(Finding("--wandb_project", "wandb is not installed", "pip install wandb.")) from error
    with wandb_in_words():
        run = logger.experiment
        try:
            yield logger
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
