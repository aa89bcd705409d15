"""Splits photographs into training, validation and test parts that share no lesion (or patient)."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.common.counting import counted
from kd_convnext.common.files import atomic_write
from kd_convnext.common.tables import guarded
from kd_convnext.data.manifest.grouping import GroupBy, Part, kept_together
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.data.manifest.stratify import scarce_classes, stratify
from kd_convnext.errors import Finding, ManifestWarning, SplitError

PARTS: tuple[Part, ...] = get_args(Part)

_IDENTITY = ["image", "x", "y", "width", "height"]
_WRITTEN = ["image", "label", "lesion_id", "patient_id", "x", "y", "width", "height"]


@dataclass(frozen=True)
class SplitSpec:
    """Describes how a manifest is divided into training, validation and test part.

    Attributes:
        group_by: What must not be divided: all that is ``known`` to belong together (patients, lesions, identical and
            near-identical photographs), or less by choice: the patient, the lesion, or only the photograph.
        ratios: Shares of training, validation and test.
        seed: Decides the five repeats of the split.
        index: Which repeat, from 0.
        few_groups: What to do with a class of fewer than three groups.
        train_fraction: Share of each class's training groups that is used, above 0 to 1; a smaller share is part of a
            larger one, and validation and test stay: for learning curves.

    Examples:
        >>> SplitSpec(ratios=(0.6, 0.2, 0.2), index=3).group_by
        'known'
    """

    group_by: GroupBy = "known"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    index: int = 0
    few_groups: Literal["warn", "error"] = "warn"
    train_fraction: float = 1.0

    def apply(self, manifest: Manifest) -> "Split":
        """Divides a manifest, see `make_split`.

        Args:
            manifest: A checked manifest.

        Raises:
            SplitError: It cannot be divided as asked.
        """
        ratios = (self.ratios[0], self.ratios[1], self.ratios[2])
        whole = make_split(
            manifest,
            index=self.index,
            seed=self.seed,
            ratios=ratios,
            group_by=self.group_by,
            few_groups=self.few_groups,
        )
        return whole if self.train_fraction == 1 else with_less_training(whole, manifest, self.train_fraction)


@dataclass(frozen=True, eq=False)
class Split:
    """One division of a manifest.

    Attributes:
        parts: Part of each row: "train", "val" or "test", or "" where it is not used, str [N].
        index: Which repeat, from 0.
        seed: Seed of all repeats.
        ratios: Shares asked for, of sum 1.
        group_by: What is never divided.
        hash: sha256 over photographs, boxes and parts: equal for the same split, wherever the folder lies and
            however its rows are ordered.
    """

    parts: NDArray[np.str_]
    index: int
    seed: int
    ratios: tuple[float, float, float]
    group_by: GroupBy
    hash: str

    def rows(self, part: Part) -> NDArray[np.int64]:
        """Returns the manifest's rows (ascending) of one part, int64."""
        return np.flatnonzero(self.parts == part).astype(np.int64)

    def write(self, path: str | Path, manifest: Manifest) -> None:
        """Writes the split as a manifest with a `split` column.

        Placed beside the photographs (in the manifest's folder) it reads back to a split of the same hash; of a
        split by image with `group_by="image"`.

        Args:
            path: CSV file, written whole or not at all.
            manifest: The manifest that was divided.

        Raises:
            OSError: The file cannot be written.
        """
        atomic_write(Path(path), lambda file: file.write(self.text(manifest)))

    def text(self, manifest: Manifest) -> bytes:
        """Returns what `write` writes.

        Args:
            manifest: The manifest that was divided.
        """
        table = manifest.table[_WRITTEN].assign(split=self.parts)[self.parts != ""]
        return guarded(table).to_csv(index=False, lineterminator="\n").encode("utf-8")


def make_split(
    manifest: Manifest,
    *,
    index: int = 0,
    seed: int = 0,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    group_by: GroupBy = "known",
    few_groups: Literal["warn", "error"] = "warn",
) -> Split:
    """Divides a manifest into training, validation and test part.

    A `split` column is obeyed to the image. Otherwise groups are divided so that each class's count of images
    comes as near to the ratios as the groups allow (training rounded up), and every class is in every part. The
    result depends on the manifest's content and these arguments alone, not on the order of rows.

    Args:
        manifest: A checked manifest.
        index: Which repeat; each gives another division.
        seed: Seed of all repeats.
        ratios: Shares of train, val and test, in any scale (8, 1, 1); val or test may be 0.
        group_by: What is never divided: all that is known to belong together (patients, lesions, photographs,
            near-identical photographs), a patient (with all lesions), a lesion, or only a photograph.
        few_groups: A class with fewer groups than parts stays in training, with a warning; or is an error.

    Returns:
        The split.

    Raises:
        SplitError: Wrong arguments; another repeat of a given split; a given split that divides a group; no
            patient_id to group by; rows without label; with few_groups="error" a class missing in a part.
    """
    shares = _checked(manifest, index, ratios, group_by)
    groups = manifest.groups(group_by)
    if manifest.parts_given:
        # What merely looks alike was warned of when the manifest was read: whoever gave the parts has decided.
        given = manifest.table["split"].tolist()
        for part, lacking in missing_classes(manifest.table["label"].tolist(), given, manifest.class_names).items():
            message = f"{manifest.name}: the split column has {absent(part, lacking)}"
            warnings.warn(message, ManifestWarning, stacklevel=2)
        parts = _given(manifest, manifest.groups("patient") if group_by == "known" else groups, index, group_by)
    else:
        names, member = np.unique(groups, return_inverse=True)
        counts = np.zeros((len(names), len(manifest.class_names)), dtype=np.int64)
        np.add.at(counts, (member, manifest.labels), 1)
        order, choice = _random_numbers(names, seed, index)
        assigned = stratify(counts, shares, order, choice)
        _report_few_groups(manifest, counts, assigned, shares, group_by, few_groups)
        parts = np.array(PARTS)[assigned][member]
    return Split(parts, index, seed, shares, group_by, _hash(manifest, parts))


def with_less_training(split: Split, manifest: Manifest, fraction: float) -> Split:
    """Leaves out training groups at random, class by class; what is judged stays.

    Args:
        split: The whole division.
        manifest: What was divided.
        fraction: Share of each class's groups to keep, rounded up; above 0, up to 1. A group with several classes
            counts for its commonest. Smaller shares are parts of larger ones.

    Returns:
        The split, in which rows left out are of no part.

    Raises:
        SplitError: The fraction cannot work.
    """
    if not 0 < fraction <= 1:
        remedy = "Use a share above 0 and up to 1, such as 0.5."
        raise SplitError(Finding("split.train_fraction", f"{fraction} cannot work", remedy))
    training = split.rows("train")
    names, member = np.unique(manifest.groups(split.group_by)[training], return_inverse=True)
    counts = np.zeros((len(names), len(manifest.class_names)), dtype=np.int64)
    np.add.at(counts, (member, manifest.labels[training]), 1)
    order, _ = _random_numbers(names, split.seed, split.index)
    common, kept = counts.argmax(axis=1), np.zeros(len(names), dtype=np.bool_)
    for label in range(len(manifest.class_names)):
        own = np.flatnonzero(common == label)
        kept[own[np.argsort(order[own])][: math.ceil(fraction * len(own))]] = True
    parts = split.parts.copy()
    parts[training[~kept[member]]] = ""
    return replace(split, parts=parts, hash=_hash(manifest, parts))


def missing_classes(labels: Sequence[str], parts: Sequence[str], class_names: Sequence[str]) -> dict[str, list[str]]:
    """Finds classes without a photograph in a part that holds others.

    Args:
        labels: Of each row.
        parts: Of each row.
        class_names: The classes.

    Returns:
        The missing classes of each part that lacks some.
    """
    frame = pd.DataFrame({"label": list(labels), "part": list(parts)})
    found = {}
    for part in PARTS:
        held = set(frame.loc[frame["part"] == part, "label"])
        lacking = [name for name in class_names if name not in held]
        if held and lacking:
            found[str(part)] = lacking
    return found


def absent(part: str, names: Sequence[str]) -> str:
    """Describes the consequence of classes without a photograph in a part."""
    words = {
        "train": "cannot be learned",
        "val": "count as 0 or not at all when the best epoch is chosen by macro F1",
        "test": "have no scores, and count as 0 in means over all classes, such as macro F1",
    }
    return f"no photograph in {part} of the class{'es' * (len(names) > 1)} {', '.join(names)}: they {words[part]}"


def _checked(
    manifest: Manifest, index: int, ratios: tuple[float, float, float], group_by: GroupBy
) -> tuple[float, float, float]:
    """Returns the ratios scaled to sum 1, or raises everything that is wrong with the arguments."""
    place = manifest.name
    findings = []
    sound = len(ratios) == 3 and all(math.isfinite(share) and share >= 0 for share in ratios) and ratios[0] > 0
    if not sound:
        remedy = "Give three shares for train, val and test, such as 0.8 0.1 0.1."
        findings.append(Finding("ratios", f"{ratios} cannot divide the photographs", remedy))
    if index < 0:
        findings.append(Finding("split.index", f"{index} is below 0", "Count the repeats from 0."))
    patients = manifest.table["patient_id"] != ""
    if group_by not in get_args(GroupBy):
        findings.append(Finding("group_by", f"{group_by!r} is unknown", "Use known, patient, lesion or image."))
    elif group_by == "patient" and not patients.any():
        remedy = "Fill in the column patient_id, or group by lesion."
        findings.append(Finding(place, "there is no patient_id to group by", remedy))
    elif group_by == "patient" and not patients.all():
        message = f"{place}: {counted(int((~patients).sum()), 'row')} without patient_id, grouped by lesion"
        warnings.warn(message, ManifestWarning, stacklevel=3)
    if (manifest.labels < 0).any() and (manifest.table["split"] == "").any():
        remedy = "Fill in the labels, or read the manifest for prediction only."
        findings.append(Finding(place, f"{counted(int((manifest.labels < 0).sum()), 'row')} without a label", remedy))
    if findings:
        raise SplitError(findings)
    total = math.fsum(ratios)
    return ratios[0] / total, ratios[1] / total, ratios[2] / total


def _given(manifest: Manifest, groups: NDArray[np.str_], index: int, group_by: GroupBy) -> NDArray[np.str_]:
    """Takes the `split` column, which must not divide a group."""
    if index > 0:
        remedy = "Use split.index 0, or empty the column to have splits drawn."
        raise SplitError(Finding(manifest.name, f"its split column gives one split, not repeat {index}", remedy))
    parts = manifest.table["split"].to_numpy(dtype=np.str_)
    frame = pd.DataFrame({"group": groups, "part": parts}).drop_duplicates()
    divided = frame[frame.duplicated("group", keep=False)]
    findings = [
        Finding(
            manifest.where(int(rows.index[1])),
            f"the group {name!r} is in more than one part: {', '.join(rows['part'])}",
            f"Put it into one part, or group by less than {group_by} (--data.split.group_by).",
        )
        for name, rows in divided.groupby("group", sort=False)
    ]
    if findings:
        raise SplitError(findings)
    return parts


def _random_numbers(names: NDArray[np.str_], seed: int, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draws two numbers in [0, 1) for each group from its name alone, so that they do not depend on other groups."""
    digests = (hashlib.sha256(f"{seed}\n{index}\n{name}".encode()).digest()[:16] for name in names)
    bits = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2) >> np.uint64(11)
    uniform = bits.astype(np.float64) / 2.0**53
    return uniform[:, 0], uniform[:, 1]


def _report_few_groups(
    manifest: Manifest,
    counts: NDArray[np.int64],
    assigned: NDArray[np.int64],
    shares: tuple[float, float, float],
    group_by: GroupBy,
    few_groups: Literal["warn", "error"],
) -> None:
    """Names the classes that are not in every part."""
    scarce = scarce_classes(counts, shares)
    findings = []
    for k, name in enumerate(manifest.class_names):
        held = [int(counts[assigned == part, k].sum()) for part in range(3)]
        absent = [part for part, share, count in zip(PARTS, shares, held, strict=True) if share and not count]
        if not absent:
            continue
        where = ", ".join(absent)
        if not any(held):
            what = f"class {name!r} has no photographs"
        elif scarce[k]:
            number = int((counts[:, k] > 0).sum())
            kept = kept_together(group_by)
            what = f"class {name!r} has {counted(number, 'group')} ({kept}), enough for training but not for {where}"
        else:
            what = f"class {name!r} is not in {where}: its groups also hold other classes, needed elsewhere"
        remedy = "Add photographs of other lesions of that class, or leave the class out."
        findings.append(Finding(manifest.name, what, remedy))
    if findings and few_groups == "error":
        raise SplitError(findings)
    for finding in findings:
        warnings.warn(str(finding), ManifestWarning, stacklevel=3)


def _hash(manifest: Manifest, parts: NDArray[np.str_]) -> str:
    """Hashes which region of which photograph is in which part."""
    table = manifest.table[_IDENTITY].astype(object)
    table = table.where(table.notna(), None).assign(part=parts)
    return _hash_rows(table[parts != ""].itertuples(index=False, name=None))


def written_hash(table: pd.DataFrame) -> str:
    """Returns the hash (`Split.hash`) of a division that `Split.write` wrote.

    Args:
        table: As text: image, x, y, width, height and split.
    """
    rows = table[[*_IDENTITY, "split"]].itertuples(index=False, name=None)
    return _hash_rows((image, *(int(side) if side else None for side in box), part) for image, *box, part in rows)


def _hash_rows(rows: Iterable[tuple[Any, ...]]) -> str:
    lines = sorted(json.dumps(row, default=int) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
