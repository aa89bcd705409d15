"""Describes data, networks and training in words, from the run folders."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_convnext.checkpoints.flat_arguments import TERMS, modern_arguments
from kd_convnext.checkpoints.naming import network_name
from kd_convnext.common.counting import count_words
from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import json_of, yaml_of
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS
from kd_convnext.experiment.report.results import Arm, CellResult
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import read_cost

Config = Mapping[str, Any]

_MONITOR = "val/f1_macro"

_TOLD = ("temperature", "tau", "gamma")
"""Numbers of a term that are told beside its class and weight."""

BY_MACRO_F1 = "best macro F1 on validation"
"""How the epoch is chosen unless a configuration says otherwise."""


def look(config: Config | None, path: str, default: Any = None) -> Any:
    """Finds a value of a configuration.

    Args:
        config: Nested mappings.
        path: Names with dots between: ``data.image_size``.
        default: Where it is absent or null.

    Returns:
        The value.
    """
    found: Any = config
    for name in path.split("."):
        if not isinstance(found, Mapping):
            return default
        found = found.get(name)
    return default if found is None else found


def describe(arm: Arm) -> tuple[str, ...]:
    """Describes how a method was trained, by its first repeat: one text for each of :data:`DESCRIBED`."""
    config = arm.results[0].config
    network = _network(config)
    size = look(network, "image_size", look(config, "data.image_size"))
    return (
        arm.title,
        f"{network_words(arm)}{_trained(config)}",
        _start(network),
        "not recorded" if size is None else f"{size} px",
        _crops(config),
        _loss(config),
        "-" if _regressed(config) else str(look(config, "trainer.max_epochs", "not recorded")),
        str(look(config, "data.batch_size", "not recorded")),
        "-" if _regressed(config) else _optimiser(config),
        _teacher(config),
    )


def _regressed(config: Config | None) -> bool:
    """Whether the network is frozen and its head was solved for, without epochs or an optimiser."""
    return bool(look(config, "model.init_args.finetune") == "linear")


def _trained(config: Config | None) -> str:
    """Describes which parameters learned, "" where all did."""
    finetune = look(config, "model.init_args.finetune", "full")
    if _regressed(config):
        strength = look(config, "model.init_args.linear_c")
        return f"; frozen, logistic regression{'' if strength is None else f', C {strength}'}"
    return "" if finetune == "full" else f"; finetune {finetune}"


def epoch_choice(arms: Sequence[Arm]) -> str:
    """Describes how the epoch that is tested was chosen.

    Args:
        arms: Methods; each goes by its first repeat.

    Returns:
        `BY_MACRO_F1`, ``best val/loss``, or several, with "or" between.
    """
    found = {str(look(arm.results[0].config, "checkpoint.monitor", _MONITOR)) for arm in arms}
    words = (BY_MACRO_F1 if name == _MONITOR else f"best {name}" for name in sorted(found))
    return " or ".join(words) or "not recorded"


def network_words(arm: Arm) -> str:
    """Describes a method's network: name, changed arguments, and size where a test has recorded it."""
    name = network_name(_network(arm.results[0].config))
    costs = [cost for result in arm.results if (cost := read_cost(result.run)).get("parameters")]
    return f"{name}, {count_words(costs[0]['parameters'])} parameters" if costs else name


def _teacher(config: Config | None) -> str:
    """Names the network of the teacher's run, where its configuration is at hand."""
    paths = teacher_files(config)
    if not paths:
        return "-"
    return "; ".join(_teacher_network(path) for path in paths)


def teacher_files(config: Config | None) -> list[str]:
    """Lists the teacher checkpoints in a student's configuration; empty for a network trained alone."""
    several = look(config, "model.init_args.teachers", {})
    files = list(several.values()) if isinstance(several, Mapping) else []
    return [str(path) for path in (look(config, "model.init_args.teacher_ckpt"), *files) if path]


def _teacher_network(path: str) -> str:
    run = RunFolder(Path(path).parent.parent)
    try:
        own = yaml_of(read_bytes(run.config))
    except (OSError, ValueError):
        return "a teacher whose run is not at hand"
    name, cost = network_name(_network(own)), read_cost(run)
    return f"{name}, {count_words(cost['parameters'])} parameters" if cost.get("parameters") else name


DESCRIBED = ("Method", "Network", "Starts from", "Input", "Crops", "Loss", "Epochs", "Batch", "Optimiser", "Taught by")


def environments(results: Iterable[CellResult]) -> list[tuple[str, str, str]]:
    """Describes the machines that the finished cells ran on.

    Args:
        results: Of any cells.

    Returns:
        Device and precision, platform, and versions, each different combination once.
    """
    found: dict[tuple[str, str, str], None] = {}
    for result in results:
        values = _environment(result.run) if result.finished else {}
        if values:
            versions = look(values, "versions", {})
            found[
                (
                    f"{values.get('device', 'unknown device')}, {values.get('precision', '')}",
                    f"Python {values.get('python', '?')} on {values.get('platform', '?')}",
                    ", ".join(f"{name} {version}" for name, version in versions.items()),
                )
            ] = None
    return list(found)


def _environment(run: RunFolder) -> dict[str, Any]:
    try:
        values = json_of(read_bytes(run.environment))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _network(config: Config | None) -> Config:
    found = look(config, "model.init_args.student") or look(config, "model.init_args.backbone") or {}
    return found if isinstance(found, Mapping) else {}


def _start(network: Config) -> str:
    weights = look(network, "weights")
    if weights is not None:
        return f"weights {Path(str(weights)).parent.name}/{Path(str(weights)).name}"
    if not network:
        return "not recorded"
    return "timm's published weights" if look(network, "pretrained", False) else "random weights"


def _crops(config: Config | None) -> str:
    if look(config, "data") is None:
        return "not recorded"
    weights, upscaler = look(config, "data.sr_weights"), look(config, "data.upscaler", "auto")
    if upscaler == "auto":
        upscaler = "spandrel" if weights else "bicubic"
    if upscaler in NETWORKS:
        upscaler = f"super-resolved by {Path(str(weights)).name}"
    return f"{upscaler}, {look(config, 'data.resize', 'stretch')}"


def _loss(config: Config | None) -> str:
    options = look(config, "model.init_args", {})
    if look(options, "student") is None:
        kind = look(options, "loss", "not recorded").replace("_", " ")
        return f"{kind}, gamma {look(options, 'gamma')}" if kind == "focal" else kind
    objective = look(modern_arguments(options), "objective", {})
    given = look(objective, "init_args", {})
    if isinstance(terms := look(given, "terms"), Mapping):
        return " + ".join(_term(str(name), term) for name, term in terms.items())
    kept = [name for name in TERMS if name not in (look(given, "drop") or ())]
    numbers = [f"{name} {look(given, name)}" for name in ("alpha", "beta", "temperature") if name in given]
    return f"{' + '.join(kept)}; {', '.join(numbers)}" if numbers else " + ".join(kept)


def _term(name: str, term: Any) -> str:
    weight, kind = look(term, "init_args.weight"), str(look(term, "class_path", name)).rpartition(".")[2]
    numbers = [f"{one} {look(term, f'init_args.{one}')}" for one in _TOLD if look(term, f"init_args.{one}") is not None]
    told = f"{kind} ({', '.join(numbers)})" if numbers else kind
    return told if weight is None else f"{weight} {told}"


def _optimiser(config: Config | None) -> str:
    options = look(config, "model.init_args.optim", {})
    if not options:
        return "not recorded"
    parts = [str(look(options, "name", "")), f"lr {look(options, 'lr')}", f"decay {look(options, 'weight_decay')}"]
    return ", ".join([*parts, str(look(options, "schedule", "constant"))])
