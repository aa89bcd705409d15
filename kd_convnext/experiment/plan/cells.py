"""Plans the cells of an experiment: each a configuration of ``fit`` and a folder."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kd_convnext.common.configs import shipped_file
from kd_convnext.common.trust import require_trusted
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.experiment.plan.configuration import (
    hash_of,
    is_distilling,
    merged,
    modern,
    read_yaml,
    require_sections,
    with_absolute_paths,
)
from kd_convnext.experiment.plan.grid import Grid, MethodSpec
from kd_convnext.experiment.plan.record import Family

DEFAULT = "default"
"""The experiment's own setting."""

CellKey = tuple[str, str, int]
"""Method, setting, repeat."""


@dataclass(frozen=True)
class Cell:
    """One method on one split in one setting.

    Attributes:
        method: Key of the method.
        title: Its name in tables.
        family: Which comparison it belongs to.
        setting: What differs from the experiment's own setting.
        repeat: Which split.
        seed: Of the training.
        config: The whole configuration for ``fit``.
        config_hash: Hash of what the cell computes: its configuration, the content of the files it names, its teacher.
        teacher: The cell whose checkpoint teaches, if any.
        judged: The part on which the best checkpoint is judged; ``val`` in a sweep.
    """

    method: str
    title: str
    family: Family
    setting: str
    repeat: int
    seed: int
    config: dict[str, Any]
    config_hash: str
    teacher: "Cell | None"
    judged: Literal["test", "val"]

    @property
    def key(self) -> CellKey:
        """Method, setting and repeat, which name the cell."""
        return self.method, self.setting, self.repeat

    @property
    def path(self) -> Path:
        """Its folder below the experiment's."""
        return Path("cells") / self.method / self.setting / f"repeat{self.repeat}"

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.method} {self.setting} repeat {self.repeat}"


@dataclass(frozen=True)
class Choice:
    """Selects the cells of a grid, and the data they run on.

    Attributes:
        out: Folder of the experiment.
        data: Laid over the data options of every cell: manifest, cache, super-resolution weights.
        seed: Of the splits; a cell trains with this plus its repeat.
        repeats: Splits.
        methods: Keys; a teacher that they need comes along.
        super_resolution: With the comparison of crops.
        sweep: With the search on validation.
        overlays: Configurations laid over every cell.
    """

    out: Path
    data: Mapping[str, Any]
    seed: int
    repeats: tuple[int, ...]
    methods: tuple[str, ...]
    super_resolution: bool = False
    sweep: bool = False
    overlays: tuple[str, ...] = ()


def plan_cells(grid: Grid, choice: Choice) -> list[Cell]:
    """Lists the cells in the order of running: repeat after repeat, each teacher before its students.

    Args:
        grid: The experiment.
        choice: What is wanted of it.

    Returns:
        The cells; a prefix of the list holds complete repeats.

    Raises:
        ConfigError: Methods, teachers or files that do not exist; all of them together.
    """
    check_grid(grid, choice)
    cells = list(_Plan(grid, choice).cells())
    for cell in cells:
        require_trusted(cell.config, f"cell {cell.label}")
    return cells


def check_grid(grid: Grid, choice: Choice) -> None:
    """Checks a grid and reports every finding.

    Args:
        grid: The experiment.
        choice: What is wanted of it.

    Raises:
        ConfigError: All findings.
    """
    known = ", ".join(grid.methods)
    named = [("--methods", name) for name in choice.methods] + [("grid.baseline", grid.baseline)]
    named += [(f"grid.methods.{key}.teacher", spec.teacher) for key, spec in grid.methods.items() if spec.teacher]
    if choice.super_resolution and grid.super_resolution:
        named.append(("grid.super_resolution.method", grid.super_resolution.method))
    if choice.sweep and grid.sweep:
        named.append(("grid.sweep.method", grid.sweep.method))
    findings = [
        Finding(where, f"there is no method {name!r}", f"The methods are {known}.")
        for where, name in named
        if name not in grid.methods
    ]
    for switch, wanted, described in (
        ("super_resolution", choice.super_resolution, grid.super_resolution),
        ("sweep", choice.sweep, grid.sweep),
    ):
        if wanted and described is None:
            findings.append(Finding(f"--{switch}", "is not described", f"Describe it under grid.{switch}."))
    for key, spec in grid.methods.items():
        findings += _method_findings(grid, key, spec)
    if not choice.repeats or min(choice.repeats) < 0:
        findings.append(Finding("--repeats", f"{list(choice.repeats)} are no repeats", "Count from 0, at least one."))
    if findings:
        raise ConfigError(findings)


def _method_findings(grid: Grid, key: str, spec: MethodSpec) -> Iterator[Finding]:
    where = f"grid.methods.{key}"
    if not key.replace("_", "").replace("-", "").isalnum():
        yield Finding(where, "cannot name a folder", "Use letters, digits, _ and -.")
    teacher = grid.methods.get(spec.teacher or "")
    if teacher is not None and teacher.teacher is not None:
        yield Finding(f"{where}.teacher", f"{spec.teacher} is taught itself", "A teacher is trained alone.")
    if not Path(shipped_file(spec.config)).is_file():
        yield Finding(f"{where}.config", f"there is no file {spec.config}", "Name a configuration of fit.")
        return
    try:
        model = require_sections(modern(merged(read_yaml(spec.config), spec.overlay)), f"{where}.config")["model"]
    except ConfigError as error:
        yield from error.findings
        return
    class_path = str(model["class_path"])
    try:
        distilled = is_distilling(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        yield Finding(f"{where}.config", f"{class_path} cannot be imported ({error})", "Correct model.class_path.")
        return
    if distilled and spec.teacher is None and _is_taught(model.get("init_args") or {}):
        yield Finding(f"{where}.teacher", "a DistillModule needs a teacher", "Name the method that teaches.")
    if spec.teacher is not None and not distilled:
        yield Finding(f"{where}.teacher", "only a DistillModule can be taught", "Leave the teacher out.")


def _is_taught(arguments: Mapping[str, Any]) -> bool:
    """Returns whether Eq. 5 keeps a term that learns from a teacher; other objectives are checked when fitting."""
    if arguments.get("teachers") or arguments.get("teacher_ckpt"):
        return False  # named already
    options = (arguments.get("objective") or {}).get("init_args") or {}
    return "terms" not in options and not {"feature", "soft"} <= set(options.get("drop") or ())


class _Plan:
    """Makes each cell once."""

    def __init__(self, grid: Grid, choice: Choice) -> None:
        self.grid, self.choice = grid, choice
        self.made: dict[CellKey, Cell] = {}

    def cells(self) -> Iterator[Cell]:
        for repeat in self.choice.repeats:
            for cell in self._repeat(repeat):
                yield from self._new(cell)

    def _new(self, cell: Cell) -> Iterator[Cell]:
        for needed in (cell.teacher, cell):
            if needed is not None and needed.key not in self.made:
                self.made[needed.key] = needed
                yield needed

    def _repeat(self, repeat: int) -> Iterator[Cell]:
        for method in self.grid.methods:
            if method in self.choice.methods:
                yield self._cell(method, repeat)
        crops, sweep = self.grid.super_resolution, self.grid.sweep
        if self.choice.super_resolution and crops:
            for upscaler in crops.upscalers:
                data = {"data": {"upscaler": upscaler}}
                yield self._cell(crops.method, repeat, "super_resolution", f"upscaler={upscaler}", data)
        if self.choice.sweep and sweep and repeat < sweep.repeats:
            for values in itertools.product(sweep.alpha, sweep.beta, sweep.temperature):
                terms = dict(zip(("alpha", "beta", "temperature"), values, strict=True))
                setting = ",".join(f"{name}={value:g}" for name, value in terms.items())
                yield self._cell(sweep.method, repeat, "sweep", setting, _objective(terms))

    def _cell(
        self,
        method: str,
        repeat: int,
        family: Family | None = None,
        setting: str = DEFAULT,
        change: Mapping[str, Any] | None = None,
    ) -> Cell:
        spec, choice = self.grid.methods[method], self.choice
        teacher = None
        if spec.teacher is not None:
            # A teacher of a sweep is the experiment's own; one of other crops has learned from these.
            same = () if family in (None, "sweep") else (family, setting, change)
            teacher = self._cell(spec.teacher, repeat, *same)
        seed = choice.seed + repeat
        own = {
            "seed_everything": seed,
            "data": {
                **choice.data,
                "split": {"seed": choice.seed, "index": repeat},
                "loader": {"seed": seed},
            },
        }
        quiet = {"trainer": {"enable_progress_bar": False}}
        layers: list[Mapping[str, Any]] = [read_yaml(spec.config), quiet, self.grid.common, spec.overlay]
        layers += [*map(read_yaml, choice.overlays), own, change or {}]
        config: dict[str, Any] = {}
        for layer in layers:
            config = modern(merged(config, layer))
        config = with_absolute_paths(require_sections(config, f"cell {method}"))
        digest = hash_of(config, teacher.config_hash if teacher else None)
        if teacher is not None:
            checkpoint = (choice.out / teacher.path / "checkpoints" / "best.ckpt").absolute()
            config["model"]["init_args"]["teacher_ckpt"] = str(checkpoint)
        cell = Cell(
            method=method,
            title=spec.title,
            family=family or spec.family,
            setting=setting,
            repeat=repeat,
            seed=seed,
            config=config,
            config_hash=digest,
            teacher=teacher,
            judged="val" if family == "sweep" else "test",
        )
        _name_in_loggers(cell)
        return cell


def _objective(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": {"init_args": {"objective": {"class_path": "kd_convnext.Eq5", "init_args": dict(arguments)}}}}


def _name_in_loggers(cell: Cell) -> None:
    """Names the cell's run in W&B: student_from_teacher, with group and tags of the experiment."""
    loggers = cell.config["trainer"].get("logger")
    name = "/".join((backbones(cell), cell.method, cell.setting, f"repeat{cell.repeat}"))
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path", "")).endswith("WandbLogger"):
            options = logger.get("init_args")
            logger["init_args"] = {**(options if isinstance(options, Mapping) else {}), "name": name}


def backbones(cell: Cell) -> str:
    """Names a cell's networks: ``convnext_tiny_from_swin_tiny_patch4_window7_224``, or the one that is alone."""
    own = cell.config["model"]["init_args"]
    network = (own.get("student") or own.get("backbone") or {}).get("name", cell.method)
    return str(network) if cell.teacher is None else f"{network}_from_{backbones(cell.teacher)}"


def selected(methods: Iterable[str] | str | None, grid: Grid) -> tuple[str, ...]:
    """Reads ``--methods``: a list, names with commas between them, or None for all."""
    if methods is None:
        return tuple(grid.methods)
    names = methods.split(",") if isinstance(methods, str) else list(methods)
    return tuple(name.strip() for name in names)


def chosen_repeats(repeats: int | Sequence[int]) -> tuple[int, ...]:
    """Reads ``--repeats``: so many from the first, or these."""
    return tuple(range(repeats)) if isinstance(repeats, int) else tuple(repeats)


def whole(grid: Grid, choice: Choice) -> list[Cell]:
    """Lists every cell of the chosen repeats, also of methods and settings that are not chosen."""
    return plan_cells(
        grid,
        replace(
            choice,
            methods=tuple(grid.methods),
            super_resolution=grid.super_resolution is not None,
            sweep=grid.sweep is not None,
        ),
    )
