"""Compares finished runs in tables, tests, figures and a page: the commands ``compare`` and ``report``."""

import contextlib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kd_convnext.common.counting import counted
from kd_convnext.common.files import is_utf8, read_bytes
from kd_convnext.common.parsing import require_at_least
from kd_convnext.common.reading import yaml_of
from kd_convnext.common.words import command_line
from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.experiment.plan.record import CELL_FILE, CellRecord, read_cell
from kd_convnext.runs.folder import RunFolder, require_empty

_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")


def compare(
    runs: list[str],
    out: str = "runs/compare",
    baseline: str | None = None,
    show: str | None = None,
    seed: int = 0,
    bootstrap: int = 2000,
    overwrite: bool = False,
    by: str | None = None,
    prevalence: str | None = None,
    thresholds: str | None = None,
) -> Path:
    """Compares tested runs: tables, intervals and tests by patient or lesion, figures, report.html.

    Runs of one name on different splits (data.split.index) are repeats of one method.

    Args:
        runs: Folders of runs that `kd-convnext test` has judged.
        out: Folder of the comparison.
        baseline: Name of the run that the others are compared with; by default the first.
        show: Name of the run whose classes, curves and subgroups are shown; by default that of the best validation.
        seed: Of the resampling.
        bootstrap: Resamples.
        overwrite: Write into a folder that is not empty.
        by: Extra columns of the manifest to show subgroups by, with commas between: site,device.
        prevalence: Shares of classes where the model is to be used, for predictive values: MEL=0.02,NV=0.9.
        thresholds: Probabilities from which classes are called, for sensitivity and specificity: MEL=0.2,MEL=0.5.

    Returns:
        The folder.

    Raises:
        ConfigError: Folders that are no tested runs, all of them; or runs on different classes.
    """
    require_at_least(bootstrap=(bootstrap, 1), seed=(seed, 0))
    require_empty(Path(out), permitted=overwrite, option="--overwrite true")
    cells = _cells(runs)
    names = list(dict.fromkeys(cell.method for cell in cells))
    chosen = names[0] if baseline is None else baseline
    wrong = {option: name for option, name in (("--baseline", chosen), ("--show", show)) if name not in (*names, None)}
    if wrong:
        remedy = f"The runs are {', '.join(names)}."
        raise ConfigError([Finding(option, f"no run is called {name}", remedy) for option, name in wrong.items()])
    from kd_convnext.experiment.report.outputs import write_outputs
    from kd_convnext.experiment.report.wishes import wishes

    wished = wishes(prevalence, by, thresholds)
    shared = {"seed": seed, "bootstrap": bootstrap, "by": by, "prevalence": prevalence, "thresholds": thresholds}
    command = command_line(["compare", *runs], out=out, baseline=chosen, show=show, **shared)
    write_outputs(
        Path(out),
        cells,
        baseline=chosen,
        best=show,
        seed=seed,
        bootstrap=bootstrap,
        title=f"Comparison of {counted(len(cells), 'run')}",
        command=command,
        wishes=wished,
    )
    page = Path(out) / "report.html"
    print(f"{counted(len(cells), 'run')} compared with {chosen}: {page}, tables.md, results.csv, figures/")
    return Path(out)


def report(
    run: str,
    out: str | None = None,
    seed: int = 0,
    bootstrap: int = 2000,
    by: str | None = None,
    prevalence: str | None = None,
    thresholds: str | None = None,
) -> Path:
    """Writes report.html for one tested run: data, results with intervals by patient or lesion, limits, how to repeat.

    Args:
        run: Folder of a run that `kd-convnext test` has judged.
        out: Folder of report.html; by default the run's.
        seed: Of the resampling.
        bootstrap: Resamples.
        by: Extra columns of the manifest to show subgroups by, with commas between: site,device.
        prevalence: Shares of classes where the model is to be used, for predictive values: MEL=0.02,NV=0.9.
        thresholds: Probabilities from which classes are called, for sensitivity and specificity: MEL=0.2,MEL=0.5.

    Returns:
        The page.

    Raises:
        ConfigError: The folder is no tested run, or the page cannot be written.
    """
    require_at_least(bootstrap=(bootstrap, 1), seed=(seed, 0))
    (cell,) = _cells([run])
    from kd_convnext.experiment.report.analysis import AnalysisOptions, analyse
    from kd_convnext.experiment.report.figures import all_figures
    from kd_convnext.experiment.report.page import write_report
    from kd_convnext.experiment.report.wishes import wishes

    words = {"by": by, "prevalence": prevalence, "thresholds": thresholds}
    shown = {"seed": seed, "bootstrap": bootstrap, **words}
    settings = AnalysisOptions(
        f"Run {cell.title}", cell.method, seed, bootstrap, _again(run, shown), wishes(prevalence, by, thresholds)
    )
    analysis = analyse([cell], settings)
    if analysis.failed:
        raise ConfigError(Finding(run, str(analysis.failed[0].error), "Test the run again."))
    path = RunFolder(Path(out if out is not None else run)).report
    write_report(path, analysis, all_figures(analysis))
    print(f"Report: {path}")
    return path


def _again(run: str, options: Mapping[str, object]) -> str:
    """Writes the commands that repeat a run and its report; the report's alone where the run has no configuration."""
    config, new = RunFolder(Path(run)).config, RunFolder(Path(f"{run.rstrip('/')}-again"))
    if not config.is_file():
        return command_line(["report", run], **options)
    fit = command_line(["fit"], config=config, **{"trainer.default_root_dir": new.path})
    test = command_line(["test"], config=new.config, ckpt_path=new.best)
    return "\n".join([fit, test, command_line(["report", str(new.path)], **options)])


def _cells(runs: Sequence[str]) -> list[CellRecord]:
    """Makes cells of run folders; a folder named twice counts once."""
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    findings = [finding for folder in folders if (finding := _finding(folder)) is not None]
    if findings:
        raise ConfigError(findings)
    cells = [_cell(folder) for folder in folders]
    used = Counter((cell.method, cell.repeat) for cell in cells)
    alike = {method for (method, _), times in used.items() if times > 1}
    # Two runs of one name on one split are no repeats: each stands for itself.
    tails = _tails([cell.folder for cell in cells if cell.method in alike])
    return [replace(cell, setting=tails.get(cell.folder, cell.setting)) for cell in cells]


def _tails(folders: Sequence[Path]) -> dict[Path, str]:
    """Names folders by their last parts, as few as make the names unique."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for length in range(1, max((len(names) for names in parts.values()), default=0) + 1):
        tails = {folder: "/".join(names[-length:]) for folder, names in parts.items()}
        if len(set(tails.values())) == len(folders):
            return tails
    return {}


def _finding(folder: Path) -> Finding | None:
    run = RunFolder(folder)
    if not folder.is_dir():
        return Finding(str(folder), "there is no such folder", "Name the folder of a run.")
    if not is_utf8(folder.resolve()):
        return Finding(str(folder), "its name is not in UTF-8", "Rename it: tables and figures name it.")
    if (folder / "cells").is_dir():
        again = command_line(["paper"], config=folder / "experiment.yaml", out=folder, collect="true")
        remedy = f"{again} reports on it."
        return Finding(str(folder), "is an experiment, not a run", remedy)
    if not run.predictions.exists() and not (folder / CELL_FILE).exists():
        remedy = command_line(["test"], config=run.config, ckpt_path=run.best)
        return Finding(str(folder), f"has no {run.predictions.name}: it is no tested run", f"Test it: {remedy}")
    return None


def _cell(folder: Path) -> CellRecord:
    if (folder / CELL_FILE).exists():
        return replace(read_cell(folder), family="run")
    run, name = RunFolder(folder), folder.resolve().name
    # runs/<name>/<time> is called by its name, any other folder by its own.
    name = folder.resolve().parent.name if _TIME.fullmatch(name) else name
    text = b""
    with contextlib.suppress(OSError):
        text = read_bytes(run.config)
    try:
        config = yaml_of(text) or {}
        repeat, seed = int(ungrouped(config["data"])["split_index"]), int(config["seed_everything"])
    except (KeyError, TypeError, ValueError, AttributeError):
        repeat, seed = 0, 0
    return CellRecord(
        folder=folder,
        method=name,
        title=name,
        family="run",
        setting="default",
        repeat=repeat,
        seed=seed,
        config_hash=hashlib.sha256(text).hexdigest(),
        status="finished",
        error=None,
        seconds=math.nan,
    )
