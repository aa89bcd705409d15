"""Runs the paper's experiment on any photographs: the command ``paper``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from kd_convnext.common.console import complain, duration, tell
from kd_convnext.common.counting import counted
from kd_convnext.common.files import atomic_write, default_cache_dir
from kd_convnext.common.parsing import require_at_least, warn_of_idle
from kd_convnext.common.words import command_line
from kd_convnext.errors import CellError, ConfigError, Finding
from kd_convnext.experiment.plan.cells import Cell, Choice, chosen_repeats, plan_cells, selected, whole
from kd_convnext.experiment.plan.grid import Grid
from kd_convnext.experiment.plan.record import CELL_FILE, CellRecord, read_cell
from kd_convnext.experiment.plan.start_weights import require_start_weights
from kd_convnext.experiment.running.cell import Workplace, finished, run_cell
from kd_convnext.experiment.running.launch import run_on_ray, run_serial, slurm_script
from kd_convnext.runs.folder import require_empty, require_writable

EXPERIMENT = "experiment.yaml"


@dataclass(frozen=True)
class PaperSummary:
    """The folder and the records of a run of the experiment.

    Attributes:
        out: Its folder.
        records: The wanted cells, in the order of the plan.
    """

    out: Path
    records: tuple[CellRecord, ...] = ()


def paper(
    manifest: str,
    grid: Grid,
    out: str = "runs/paper",
    methods: list[str] | str | None = None,
    repeats: int | list[int] = 5,
    seed: int = 0,
    super_resolution: bool = False,
    sweep: bool = False,
    cache_dir: str | None = None,
    sr_weights: str | None = None,
    columns: str | None = None,
    overlays: list[str] | None = None,
    launcher: Literal["serial", "ray", "slurm"] = "serial",
    workers: int = 1,
    sbatch: str = "--gres=gpu:1 --cpus-per-task=8",
    isolate: bool = True,
    bootstrap: int = 2000,
    by: str | None = None,
    prevalence: str | None = None,
    thresholds: str | None = None,
    cell: int | None = None,
    collect: bool = False,
    dry_run: bool = False,
    resume: bool = False,
) -> PaperSummary:
    """Runs the paper's experiment: every method on the same seeded splits, then tables, figures and a report.

    Args:
        manifest: CSV file, or folder of class folders.
        grid: Methods and settings: --config configs/paper.yaml.
        out: Folder of the experiment.
        methods: Only these, such as convnext,kd_both; the teachers they need come along.
        repeats: So many splits, or these: [3,4].
        seed: Of the splits; a cell trains with this plus its repeat.
        super_resolution: Also compare the crops of grid.super_resolution.
        sweep: Also search over grid.sweep, on the validation part only.
        cache_dir: Where crops are stored; by default $KD_CONVNEXT_CACHE, else ~/.cache/kd-convnext.
        sr_weights: Real-ESRGAN weights file.
        columns: Other names of the manifest's columns: image=file,label=diagnosis.
        overlays: Configurations laid over every cell, such as [configs/wandb.yaml].
        launcher: One cell after the other, on Ray, or a printed script for SLURM.
        workers: Cells at a time on Ray.
        sbatch: Options of sbatch in the printed script.
        isolate: Processes of its own for each cell (some seconds each); without, a crash ends the experiment.
        bootstrap: Resamples behind intervals and tests.
        by: Extra columns of the manifest to show subgroups by, with commas between: site,device.
        prevalence: Shares of classes where the model is to be used, for predictive values: MEL=0.02,NV=0.9.
        thresholds: Probabilities from which classes are called, for sensitivity and specificity: MEL=0.2,MEL=0.5.
        cell: Run only the cell of this number (as --dry_run lists them) and write no tables.
        collect: Run nothing; write tables, figures and report of what is finished.
        dry_run: List the cells with the time and memory they are expected to take.
        resume: Go on in a folder that is not empty: finished cells are kept, failed ones tried again.

    Returns:
        The records of the wanted cells.

    Raises:
        KDConvNeXtError: The description or the data cannot be used: all findings.
        CellError: Cells have failed; everything else is done and written.
    """
    _check(bootstrap, seed, workers, launcher)
    shown = _given(by=by, prevalence=prevalence, thresholds=thresholds)
    choice = Choice(
        out=Path(out),
        data=_given(manifest=manifest, cache_dir=cache_dir, sr_weights=sr_weights, columns=columns),
        seed=seed,
        repeats=chosen_repeats(repeats),
        methods=selected(methods, grid),
        super_resolution=super_resolution,
        sweep=sweep,
        overlays=tuple(overlays or ()),
    )
    cells = _planned(grid, choice, cell, kept=resume or collect or dry_run, crops=not collect and launcher != "slurm")
    if dry_run:
        return _estimate(cells, choice.out, workers if launcher == "ray" else 1)
    place = Workplace(choice.out, isolate, group=choice.out.name)
    if cell is not None:
        return _one(cells, cell, place)
    if not collect:
        _begin(cells, choice, grid, shown, methods=methods, repeats=repeats, bootstrap=bootstrap)
    if launcher == "slurm" and not collect:
        return _print_script(cells, choice.out, sbatch)
    records = _standing(cells, choice.out) if collect else _launch(cells, place, launcher, workers)
    return _summary(_write_outputs(grid, choice, bootstrap, shown), records)


def _check(bootstrap: int, seed: int, workers: int, launcher: str) -> None:
    require_at_least(bootstrap=(bootstrap, 1), seed=(seed, 0), workers=(workers, 1))
    warn_of_idle(workers=(workers > 1 and launcher != "ray", "without --launcher ray"))


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _planned(grid: Grid, choice: Choice, alone: int | None, *, kept: bool, crops: bool) -> list[Cell]:
    """Plans the cells, and checks folders and start weights before anything is measured or run.

    Args:
        grid: Methods and settings.
        choice: Which cells, on which data.
        alone: The one cell that is to run here; None for all.
        kept: Whether the experiment's folder may hold something.
        crops: Whether crops are made on this machine; else their folder may be read-only, or on others alone, as files
            of weights may.

    Raises:
        ConfigError: A folder cannot be used, or weights are not there: all findings.
    """
    cells = plan_cells(grid, choice)
    cache = cells[0].config["data"].get("cache_dir")
    checks: list[Callable[[], None]] = [lambda: require_empty(choice.out, permitted=kept, option="--resume true")]
    if crops:
        checks.append(lambda: require_writable(Path(cache).expanduser() if cache else default_cache_dir()))
        wanted = [cell for place, cell in enumerate(cells) if alone in (None, place)]
        checks.append(lambda: require_start_weights([cell for cell in wanted if finished(cell, choice.out) is None]))
    findings: list[Finding] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            findings += error.findings
    if findings:
        raise ConfigError(findings)
    return cells


def _print_script(cells: Sequence[Cell], out: Path, sbatch: str) -> PaperSummary:
    print(slurm_script(cells, out / EXPERIMENT, out, sbatch), end="")
    return PaperSummary(out)


def _estimate(cells: Sequence[Cell], out: Path, workers: int) -> PaperSummary:
    from kd_convnext.experiment.running.estimate import print_estimate

    print_estimate(cells, out, workers)
    return PaperSummary(out)


def _launch(cells: Sequence[Cell], place: Workplace, launcher: str, workers: int) -> list[CellRecord]:
    kept = sum(finished(cell, place.out) is not None for cell in cells)
    print(f"{counted(len(cells), 'cell')}, {kept} of them finished already; folder {place.out}", flush=True)
    clock = _Clock(len(cells))
    if launcher == "ray":
        return run_on_ray(cells, place, workers, clock.told)
    return run_serial(cells, place, clock.told)


class _Clock:
    """Prints how each cell ended."""

    def __init__(self, cells: int) -> None:
        self.cells, self.done = cells, 0

    def told(self, record: CellRecord, seconds: float) -> None:
        self.done += 1
        how = "finished" if record.status == "finished" else f"FAILED: {record.error}"
        print(
            f"[{self.done}/{self.cells}] {record.method} {record.setting} repeat {record.repeat}: {how} "
            f"({duration(seconds)} now, {duration(record.seconds)} in all)",
            flush=True,
        )


def _one(cells: Sequence[Cell], number: int, place: Workplace) -> PaperSummary:
    if not 0 <= number < len(cells):
        what = f"there is no cell {number}"
        raise ConfigError(Finding("--cell", what, f"Cells are numbered 0 to {len(cells) - 1}; see --dry_run true."))
    record = run_cell(cells[number], place)
    print(f"{cells[number].label}: {record.status}")
    return _summary(place.out, [record])


def _begin(cells: Sequence[Cell], choice: Choice, grid: Grid, shown: Mapping[str, str], **asked: object) -> None:
    """Checks manifest, splits and what the report is to show before the first cell runs; writes the description.

    Args:
        cells: The plan.
        choice: Which cells, on which data.
        grid: Methods and settings.
        shown: What the report shows by choice, as it was asked for.
        **asked: Further options as they were asked for, where the choice holds what became of them.
    """
    from kd_convnext.experiment.plan.division import manifest_of, split_of
    from kd_convnext.experiment.report.wishes import require_possible, wishes

    manifest = manifest_of(cells[0])
    require_possible(wishes(**shown), manifest.class_names, manifest.path, cells[0].config["data"].get("columns"))
    for cell in {cell.repeat: cell for cell in cells}.values():
        split_of(cell, manifest)
    _write_experiment(choice, grid, **asked, **shown)


def _write_experiment(choice: Choice, grid: Grid, **asked: object) -> None:
    """Writes the description that repeats this experiment: ``kd-convnext paper --config experiment.yaml``.

    Args:
        choice: Which cells, on which data.
        grid: Methods and settings.
        **asked: Options as they were asked for, where the choice holds what became of them.
    """
    chosen = {name: getattr(choice, name) for name in ("seed", "super_resolution", "sweep", "overlays")}
    options = {**choice.data, **asked, **chosen, "grid": asdict(grid)}
    text = yaml.safe_dump(_plain(options), sort_keys=False, allow_unicode=True)
    atomic_write(choice.out / EXPERIMENT, lambda file: file.write(text.encode("utf-8")))


def _plain(value: object) -> object:
    """Replaces tuples by lists, for YAML."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _standing(cells: Sequence[Cell], out: Path) -> list[CellRecord]:
    """Reads the existing records of these cells."""
    records = []
    for cell in cells:
        if (out / cell.path / CELL_FILE).exists():
            record = read_cell(out / cell.path)
            if record.config_hash == cell.config_hash:
                records.append(record)
    return records


def _write_outputs(grid: Grid, choice: Choice, bootstrap: int, shown: Mapping[str, str]) -> Path:
    """Writes tables, figures and report of the wanted repeats, also of what was finished before; returns the folder."""
    from kd_convnext.experiment.report.enlarging import crop_lines
    from kd_convnext.experiment.report.outputs import write_outputs
    from kd_convnext.experiment.report.wishes import wishes

    records = _standing(whole(grid, choice), choice.out)
    there = [path.parent.name.removeprefix("repeat") for path in choice.out.glob(f"cells/*/*/*/{CELL_FILE}")]
    wanted = {str(repeat) for repeat in choice.repeats}
    # A copy that somebody made beside a cell ("repeat0_old") is none.
    stale = sum(repeat in wanted for repeat in there) - len(records)
    if stale:
        complain(f"{counted(stale, 'cell')} of another configuration left out of the tables")
    if not any(record.status == "finished" for record in records):
        complain("No cell is finished: no tables are written")
        return choice.out
    analysis = write_outputs(
        choice.out,
        records,
        baseline=grid.baseline,
        seed=choice.seed,
        bootstrap=bootstrap,
        title=grid.title,
        command=command_line(["paper"], config=choice.out / EXPERIMENT, out="NEW_FOLDER", **shown),
        wishes=wishes(**shown),
    )
    for line in crop_lines(analysis):
        tell(line)
    print(f"{choice.out / 'report.html'}, tables.md, results.csv, figures/")
    return choice.out


def _summary(out: Path, records: Sequence[CellRecord]) -> PaperSummary:
    """Returns the records where none has failed."""
    remedy = "See log.txt there; --resume true tries again."
    failed = [
        Finding(
            str(record.folder),
            (record.error or "failed").removeprefix(f"{record.folder}: ").replace(f"{record.folder}/", ""),
            remedy,
        )
        for record in records
        if record.status == "failed"
    ]
    if failed:
        raise CellError(failed)
    return PaperSummary(out, tuple(records))
