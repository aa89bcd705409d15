"""Reads and writes a checkpoint's calibration: ``calibration.json`` and ``calibration.safetensors``."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from kd_convnext.common.arrays import Values
from kd_convnext.common.counting import Unit, percent
from kd_convnext.common.files import atomic_write_all, read_bytes
from kd_convnext.common.reading import json_of
from kd_convnext.common.words import command_line
from kd_convnext.errors import CheckpointError, Finding, KDConvNeXtError
from kd_convnext.inference.trust.gate import NO_DISTANCE, Distances, Gate
from kd_convnext.inference.trust.prediction_sets import ClassThresholds, Few

NOT_CALIBRATED = "not calibrated: nothing says when to trust this model"
FILE = "calibration.json"
FORMAT_VERSION = 4

_DAMAGE = (AttributeError, LookupError, OSError, TypeError, ValueError, KDConvNeXtError)
"""What reading a file raises whose entries are missing, of other types, or out of range."""


@dataclass(frozen=True)
class Level:
    """Thresholds of one level, single photographs or whole lesions.

    Attributes:
        classes: Thresholds of the prediction sets.
        gate: Largest distances that the gate lets pass.
    """

    classes: ClassThresholds
    gate: Distances


@dataclass(frozen=True)
class Decision:
    """Prediction set, gate score and abstention for one prediction; see `Prediction`."""

    prediction_set: tuple[str, ...] | None
    gate_score: float | None
    abstain: bool
    reasons: tuple[str, ...]


UNDECIDED = Decision(None, None, True, (NOT_CALIBRATED,))
"""Without calibration nobody knows when to trust a model: a person decides."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Temperature, prediction sets and gate of one checkpoint.

    Attributes:
        checkpoint_sha256: Of the checkpoint it was made for; no other one may use it.
        class_names: K names in the order of the outputs.
        temperature: Divides the logits.
        tta: Whether each photograph was seen with its mirror images.
        coverage: What the sets promise, in 0..1.
        few: What became of classes with too few lesions.
        gate_false_alarms: Share of ordinary photographs that the gate may stop.
        photograph: Decides for single photographs.
        lesion: Decides for lesions.
        gate: What is kept of the training photographs.
        record: Whatever else is worth keeping: data, counts, scores before and after.
    """

    checkpoint_sha256: str
    class_names: tuple[str, ...]
    temperature: float
    tta: bool
    coverage: float
    few: Few
    gate_false_alarms: float
    photograph: Level
    lesion: Level
    gate: Gate
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What a class needs enough of, as which it was counted: ``lesion``, ``patient`` or ``group``."""
        return next((unit for unit in get_args(Unit) if unit == self.record.get("unit")), "lesion")

    def decide(self, level: Level, probabilities: Values, distances: Distances) -> Decision:
        """Applies sets and gate to one answer.

        Args:
            level: `photograph` or `lesion`.
            probabilities: [K], not scaled by the temperature: that was fitted on the lesions the thresholds stand on.
            distances: From the training photographs.

        Returns:
            The decision; abstains unless the set holds one class, which the calibration has seen enough of, and the
            gate lets the photograph pass.
        """
        inside = level.classes.sets(probabilities[None])[0]
        chosen = tuple(name for name, held in zip(self.class_names, inside, strict=True) if held)
        unlike = {name: far / limit for name, far, limit in zip(distances._fields, distances, level.gate, strict=True)}
        words = self.reasons()
        reasons = [words[name] for name, ratio in unlike.items() if ratio > 1]
        always = level.classes.always
        plausible = [name for name in chosen if name not in always]
        if len(chosen) != 1 or not plausible:
            key = "several" if len(plausible) > 1 else "few" if chosen else "none"
            reasons.append(words[key].format(count=len(plausible), classes=", ".join(always)))
        return Decision(chosen, max(unlike.values()), bool(reasons), tuple(reasons))

    def reasons(self) -> dict[str, str]:
        """Returns the words for each reason to abstain.

        Returns:
            Of a distance by its name in `Distances`, of a set without a class ``none``, of one with more than one
            plausible class ``several``, where their ``{count}`` is to be filled in, and of one that others are in only
            because too few lesions were there to calibrate on ``few``, where their names ``{classes}`` are.
        """
        return {
            "appearance": "unlike the training photographs in colour and texture",
            "features": "unlike the training photographs in the network's features",
            "detail": "unlike the training photographs in fine detail: texture, sharpness, noise or white balance",
            "none": f"no class is plausible at {percent(self.coverage)}% coverage",
            "several": f"{{count}} classes cannot be ruled out at {percent(self.coverage)}% coverage",
            "few": f"too few {self.unit}s to calibrate on: {{classes}} can never be ruled out",
        }

    def write(self, folder: Path) -> Path:
        """Writes both files.

        Args:
            folder: Of the checkpoint.

        Returns:
            The JSON file.

        Raises:
            OSError: They cannot be written.
        """
        from safetensors.numpy import save

        tensors = save(self.gate.tensors())
        state = {item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name != "gate"}
        state |= {"format_version": FORMAT_VERSION, "gate_sha256": hashlib.sha256(tensors).hexdigest()}
        text = json.dumps(state, indent=2, ensure_ascii=False)
        path = folder / FILE
        # Together: one that is newer than the other would leave no calibration.
        atomic_write_all(
            {
                path.with_suffix(".safetensors"): lambda file: file.write(tensors),
                path: lambda file: file.write(f"{text}\n".encode()),
            }
        )
        return path


def read_calibration(path: Path, checkpoint_sha256: str, class_names: tuple[str, ...], ckpt: str | Path) -> Calibration:
    """Reads the calibration of a checkpoint.

    Args:
        path: ``calibration.json``; the other file lies beside it.
        checkpoint_sha256: The checkpoint it must be of.
        class_names: The checkpoint's classes.
        ckpt: The checkpoint's path, for the remedy.

    Returns:
        The calibration.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another checkpoint.
    """
    remedy = f"Classify with --calibration none, or calibrate: {command_line(['calibrate'], ckpt_path=ckpt)}"
    try:
        state = json_of(read_bytes(path))
        version, owner = state["format_version"], state["checkpoint_sha256"]
        if not isinstance(version, int) or not isinstance(owner, str):
            raise TypeError("format_version and checkpoint_sha256 are not what is written there")
    except (OSError, ValueError, KeyError, TypeError) as error:
        finding = Finding(str(path), f"is not a calibration that can be read ({_line(error)})", remedy)
        raise CheckpointError(finding) from error
    if version > FORMAT_VERSION:
        what = f"has format {version}, this version reads up to {FORMAT_VERSION}"
        raise CheckpointError(Finding(str(path), what, "Update kd-convnext."))
    if owner != checkpoint_sha256:
        what = f"was made for another checkpoint (sha256 {owner[:12]}..., this one is {checkpoint_sha256[:12]}...)"
        raise CheckpointError(Finding(str(path), what, remedy))
    try:
        found = _from_state(state, _read_gate(path.with_suffix(".safetensors"), state["gate_sha256"]))
        fits = found.class_names == class_names
    except _DAMAGE as error:
        finding = Finding(str(path), f"is damaged ({_line(error)})", remedy)
        raise CheckpointError(finding) from error
    if not fits:
        raise CheckpointError(Finding(str(path), f"knows the classes {', '.join(found.class_names)}", remedy))
    return found


def _read_gate(path: Path, digest: str) -> Gate:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path.name} is of another calibration")
    try:
        return Gate.of(load(content))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _from_state(state: dict[str, Any], gate: Gate) -> Calibration:
    values = {name: value for name, value in state.items() if name not in ("format_version", "gate_sha256")}
    values["class_names"] = tuple(values["class_names"])
    for name in ("photograph", "lesion"):
        level = dict(values[name])
        classes = {key: tuple(value) for key, value in level["classes"].items()}
        classes["values"] = tuple(_number(value) for value in classes["values"])
        classes["merged"] = tuple(tuple(group) for group in classes["merged"])
        limits = [_number(limit) for limit in level["gate"]] + [NO_DISTANCE] * (gate.detail is None)
        values[name] = Level(ClassThresholds(**classes), Distances(*limits))
    found = Calibration(gate=gate, **values)
    _require_possible(found)
    return found


def _require_possible(found: Calibration) -> None:
    """Refuses values that no calibration has: a file may have been edited."""
    for name, least, most in (("temperature", 1e-3, 1e3), ("coverage", 0, 1), ("gate_false_alarms", 0, 1)):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} {value!r}")
    for level in (found.photograph, found.lesion):
        # No comparison with what is no number holds: all photographs would pass, and no class be plausible.
        if not all(limit >= 0 for limit in level.gate) or any(math.isnan(value) for value in level.classes.values):
            raise ValueError(f"gate {[*level.gate]}, thresholds {[*level.classes.values]}"[:120])
    if not isinstance(found.tta, bool) or found.few not in get_args(Few) or not isinstance(found.record, Mapping):
        raise ValueError(f"tta {found.tta!r}, few {found.few!r}, record {found.record!r}"[:80])


def _plain(value: Any) -> Any:
    """Returns JSON types; infinity, which JSON does not know, becomes null."""
    if isinstance(value, ClassThresholds | Level):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
