"""Analyses an experiment for its report: arms, intervals, comparisons, the best cell, the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.units import GROUP, NO_GROUPS
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.comparisons import Comparison, Pair, compare_pairs, make_pair
from kd_convnext.evaluation.proportions import Interval
from kd_convnext.evaluation.statistics import Metric, intervals
from kd_convnext.experiment.plan.record import CellRecord
from kd_convnext.experiment.report.descriptions import teacher_files
from kd_convnext.experiment.report.paper_values import METHODS
from kd_convnext.experiment.report.results import Arm, CellResult, group_arms, read_results
from kd_convnext.experiment.report.splits import Division, read_divisions
from kd_convnext.experiment.report.wishes import NO_WISHES, Wishes, class_findings, column_findings


@dataclass(frozen=True)
class AnalysisOptions:
    """The options of an analysis.

    Attributes:
        title: Of the report.
        baseline: Key of the method that others are compared with.
        seed: Of the resampling.
        resamples: Of bootstrap and exchange test.
        command: That made it, for the section on repeating.
        wishes: What is shown by choice.
    """

    title: str
    baseline: str
    seed: int
    resamples: int
    command: str | None
    wishes: Wishes = NO_WISHES


@dataclass(frozen=True, eq=False)
class Analysis:
    """The numbers of an experiment.

    Attributes:
        settings: The options of an analysis.
        results: All cells, in the order given.
        arms: Methods and settings with a finished cell, tested ones and sweeps.
        intervals: 95 % intervals of the pooled answers of each tested arm.
        comparisons: Each method with the baseline.
        resolution: Each upscaler with the method's own setting.
        teachers: Each student with the network that taught it.
        best: The arm whose classes are shown; None where nothing was tested.
        chosen_by: How ``best`` was chosen.
        divisions: The splits.
        remarks: What a reader must know.
    """

    settings: AnalysisOptions
    results: tuple[CellResult, ...]
    arms: tuple[Arm, ...]
    intervals: Mapping[Arm, Mapping[Metric, Interval]]
    comparisons: tuple[Comparison, ...]
    resolution: tuple[Comparison, ...]
    teachers: tuple[Comparison, ...]
    best: Arm | None
    chosen_by: str
    divisions: tuple[Division, ...]
    remarks: tuple[str, ...]

    @property
    def failed(self) -> tuple[CellRecord, ...]:
        """Cells that failed."""
        return tuple(result.record for result in self.results if not result.finished)

    @property
    def unit(self) -> str:
        """What intervals and tests take as independent: ``lesion``, ``patient`` or ``group``."""
        return self.best.counts.unit if self.best and len(self.best.answers) else "lesion"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the models' outputs; empty where nothing was tested."""
        return self.best.class_names if self.best else ()

    def of_family(self, *families: str) -> tuple[Arm, ...]:
        """Returns the arms of some families."""
        return tuple(arm for arm in self.arms if arm.record.family in families)

    @property
    def methods(self) -> tuple[Arm, ...]:
        """The tested arms that are compared with the baseline."""
        return self.of_family("ablation", "rival", "run")


def analyse(cells: Sequence[CellRecord], settings: AnalysisOptions, best: str | None = None) -> Analysis:
    """Reads cells and computes everything.

    Args:
        cells: Any set of cells, also incomplete or failed.
        settings: What is asked for.
        best: Key of the method whose classes are shown; by default the one with the best validation.

    Returns:
        The analysis.

    Raises:
        ConfigError: The cells are on different classes, or an option names another class or column.
    """
    results = read_results(cells)
    names = next((result.class_names for result in results if result.class_names), ())
    arms = sorted(group_arms(results), key=_paper_order)
    tested = [arm for arm in arms if arm.record.family != "sweep"]
    methods = [arm for arm in tested if arm.record.family != "super_resolution"]
    no_choice: list[str] = []
    chosen, chosen_by = _best(methods or tested, best, no_choice)
    findings = class_findings(settings.wishes, names) if names else []
    findings += column_findings(settings.wishes, chosen)
    if findings:
        raise ConfigError(findings)
    divisions, remarks = read_divisions(results)
    remarks = [
        *(f"{cell_name(result.record)}: {text}" for result in results for text in result.remarks),
        *remarks,
    ]
    old = [result for result in results if result.predictions is not None and GROUP not in result.predictions]
    remarks += [f"{counted(len(old), 'cell')}: {NO_GROUPS}"] if old else []
    comparisons = _with_baseline(methods, settings, remarks)
    resolution = _with_own_setting(tested, settings)
    remarks += no_choice
    return Analysis(
        settings=settings,
        results=tuple(results),
        arms=tuple(arms),
        intervals={arm: intervals(arm.counts, settings.resamples, settings.seed) for arm in tested},
        comparisons=tuple(comparisons),
        resolution=tuple(resolution),
        teachers=tuple(_with_teacher(methods, settings, remarks)),
        best=chosen,
        chosen_by=chosen_by,
        divisions=tuple(divisions),
        remarks=tuple(remarks),
    )


def _paper_order(arm: Arm) -> int:
    """Sorts methods in the paper's order; others follow in their own."""
    known = list(METHODS)
    return known.index(arm.record.method) if arm.record.method in known else len(known)


def cell_name(record: CellRecord) -> str:
    """Names a cell in sentences."""
    return f"{record.name}, repeat {record.repeat}"


def _with_baseline(methods: Sequence[Arm], settings: AnalysisOptions, remarks: list[str]) -> list[Comparison]:
    """Compares every method with the baseline, or remarks why it cannot."""
    baseline = next((arm for arm in methods if arm.record.method == settings.baseline), None)
    others = [arm for arm in methods if arm is not baseline]
    if baseline is None:
        if len(methods) > 1:
            remarks.append(f"the baseline {settings.baseline} has no finished cell: nothing is compared with it")
        return []
    pairs = []
    for arm in others:
        pair = _pair(arm, baseline)
        if pair is None:
            remarks.append(f"{arm.title} and {baseline.title} have no tested photograph in common: not compared")
        else:
            pairs.append(pair)
    return compare_pairs(pairs, settings.resamples, settings.seed)


def _with_own_setting(tested: Sequence[Arm], settings: AnalysisOptions) -> list[Comparison]:
    """Compares each upscaler with the same method as the experiment runs it."""
    own = {arm.record.method: arm for arm in tested if arm.record.setting == "default"}
    switched = [arm for arm in tested if arm.record.family == "super_resolution" and arm.record.setting != "default"]
    pairs = [_pair(arm, own[arm.record.method]) for arm in switched if arm.record.method in own]
    return compare_pairs([pair for pair in pairs if pair], settings.resamples, settings.seed)


def teacher_of(arm: Arm, others: Sequence[Arm]) -> Arm | None:
    """Finds the arm of a student's teacher; None where the teacher's run is not among them.

    A configuration names its teacher by the whole path: in an experiment that was moved it is known by the place of
    its cell (``cells/METHOD/SETTING/repeatN``).
    """
    paths = teacher_files(arm.results[0].config)
    if not paths:
        return None
    folder = Path(paths[0]).resolve().parent.parent
    places = [(one, cell.run.path.resolve()) for one in others for cell in one.results]
    own = next((one for one, place in places if place == folder), None)
    if own is not None or folder.exists() or folder.parts[-4:-3] != ("cells",):
        return own
    return next((one for one, place in places if place.parts[-4:] == folder.parts[-4:]), None)


def _with_teacher(methods: Sequence[Arm], settings: AnalysisOptions, remarks: list[str]) -> list[Comparison]:
    """Compares every student with its own teacher, where that was tested too."""
    pairs = []
    for arm in methods:
        teacher = teacher_of(arm, methods)
        pair = None if teacher is None else _pair(arm, teacher)
        if pair is not None:
            pairs.append(pair)
        elif teacher is not None:
            remarks.append(f"{arm.title} and its teacher have no tested photograph in common: not compared")
    return compare_pairs(pairs, settings.resamples, settings.seed)


def _pair(arm: Arm, other: Arm) -> Pair | None:
    return make_pair(arm.title, arm.answers, other.title, other.answers, arm.class_names)


def _best(methods: Sequence[Arm], named: str | None, remarks: list[str]) -> tuple[Arm | None, str]:
    """Chooses the method whose classes are shown, by validation where that is known, else by test."""
    if not methods:
        return None, ""
    if named is not None:
        chosen = next((arm for arm in methods if arm.record.method == named), None)
        if chosen is not None:
            return chosen, "named in the command or the description"
        remarks.append(f"{named} has no finished cell: the classes of another method are shown")
    if len(methods) == 1:
        return methods[0], "the only one"
    # Splits differ in difficulty: only on the same ones are means to be compared.
    judged = [arm for arm in methods if arm.validation]
    everywhere = {repeat for arm in judged for repeat in arm.validation}
    shared = sorted(repeat for repeat in everywhere if all(repeat in arm.validation for arm in judged))
    if shared:
        means = [np.mean([arm.validation[repeat] for repeat in shared]) for arm in judged]
        fewer = f" of the repeats that all methods have ({', '.join(map(str, shared))})"
        reason = f"best mean macro F1 on validation{fewer if len(shared) < len(everywhere) else ''}"
        return judged[int(np.argmax(means))], reason
    if judged:
        remarks.append("no repeat has validation scores of all methods: their validation means are not compared")
    test = [arm.values("f1_macro").mean() for arm in methods]
    return methods[int(np.argmax(test))], "best mean macro F1 on test, for lack of validation scores: optimistic"
