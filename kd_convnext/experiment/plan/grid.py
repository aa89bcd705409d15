"""Defines the grid of an experiment, the form of ``configs/paper.yaml``."""

from dataclasses import dataclass, field
from typing import Any, Literal

from kd_convnext.data.crops.spec import UpscalerChoice


@dataclass(frozen=True)
class MethodSpec:
    """A row of the tables.

    Attributes:
        title: Its name in tables.
        config: A configuration of ``fit``; ``configs/...`` is found in the installed package too.
        family: ``ablation`` (the paper's Table 2) or ``rival`` (its Fig. 7).
        teacher: Key of the method whose checkpoint of the same split teaches this one.
        overlay: Laid over the configuration, such as
            ``{model: {init_args: {objective: {init_args: {drop: [feature]}}}}}``.
    """

    title: str
    config: str
    family: Literal["ablation", "rival"] = "ablation"
    teacher: str | None = None
    overlay: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuperResolution:
    """The paper's Fig. 3 as a comparison: one method on crops enlarged in other ways.

    Attributes:
        method: Key of the method; its teacher, if it has one, is trained on the same crops.
        upscalers: Compared with the experiment's own upscaler.
    """

    method: str
    upscalers: tuple[UpscalerChoice, ...] = ("bicubic", "none")


@dataclass(frozen=True)
class Sweep:
    """The search behind alpha 0.5 and beta 1: every combination, judged on the validation part only.

    Attributes:
        method: Key of a distilled method.
        alpha: Weights of the feature term.
        beta: Weights of the focal term.
        temperature: Values of T.
        repeats: Splits to search on, from the first.
    """

    method: str
    alpha: tuple[float, ...] = (0.25, 0.5, 0.75)
    beta: tuple[float, ...] = (0.5, 1.0, 2.0)
    temperature: tuple[float, ...] = (1.0, 4.0)
    repeats: int = 1


@dataclass(frozen=True)
class Grid:
    """Methods and settings.

    Attributes:
        methods: By key: the name of a cell's folder and of the rows of results.csv.
        common: Laid over the configuration of every method: data, trainer, optimiser.
        baseline: Key of the method that others are compared with.
        super_resolution: Run by ``--super_resolution true``.
        sweep: Run by ``--sweep true``.
        title: Of the report.
    """

    methods: dict[str, MethodSpec]
    common: dict[str, Any] = field(default_factory=dict)
    baseline: str = "convnext"
    super_resolution: SuperResolution | None = None
    sweep: Sweep | None = None
    title: str = "The paper's experiment"
