"""Draws the photographs of the demo: few with labels, many for the teacher, and many whose labels nobody wrote down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kd_convnext.common.tables import read_table
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.tables import write_table

LABELLED: Mapping[str, int] = {"Grade 1": 4, "Grade 2": 16, "Grade 3": 6, "AIS": 5, "MIA": 9}
"""Labelled lesions a student trains on: 1 to 4 between the rarest and the commonest, in the order of the paper's."""

TINTS: Mapping[str, tuple[float, float, float]] = {
    "Grade 1": (1.0, 0.88, 0.88),
    "Grade 2": (1.0, 1.12, 0.88),
    "Grade 3": (1.0, 0.88, 1.12),
    "AIS": (1.0, 1.0, 1.0),
    "MIA": (1.0, 1.12, 1.12),
}
"""Factors on red, green and blue by class. A network from scratch finds texture only after thousands of steps; a faint
colour, which the white balance of each photograph blurs, it can learn in minutes."""

PHOTOGRAPHS = (2, 2)
"""Fewest and most photographs of a lesion."""


@dataclass(frozen=True)
class SetSizes:
    """Sizes of the drawn sets, in lesions, as multiples of the labelled ones.

    Attributes:
        teacher: Lesions of each class in the teacher's set, times the mean of the labelled classes.
        unlabelled: Lesions without labels, times the labelled ones of each class: as uneven as they are.
        validation: Lesions of each class that the best epoch is chosen by, times the mean of the labelled classes.
        test: Lesions of each class that all networks are judged by, times the mean of the labelled classes.
    """

    teacher: float = 5.0
    unlabelled: float = 6.0
    validation: float = 0.5
    test: float = 2.5


@dataclass(frozen=True)
class DrawnSets:
    """Manifests of the drawn photographs; no lesion is in two of them.

    Attributes:
        labelled: The students' few, with the parts ``train``, ``val`` and ``test`` in its column ``split``.
        teacher: The teacher's many.
        unlabelled: Photographs without labels.
    """

    labelled: Path
    teacher: Path
    unlabelled: Path

    @staticmethod
    def below(folder: Path) -> "DrawnSets":
        """Names the manifests below a folder, drawn or not."""
        return DrawnSets(*(folder / name / "manifest.csv" for name in ("labelled", "teacher", "unlabelled")))


def labelled_counts(lesions: list[int] | None) -> dict[str, int]:
    """Reads the option ``--lesions``.

    Args:
        lesions: Labelled training lesions of each of the five classes; None for :data:`LABELLED`.

    Returns:
        Lesions by class.

    Raises:
        ConfigError: They are not five numbers of at least three.
    """
    if lesions is None:
        return dict(LABELLED)
    if len(lesions) != len(LABELLED) or min(lesions) < 3:
        what = f"{lesions} are not five numbers of at least three"
        raise ConfigError(Finding("--lesions", what, f"Give for example {list(LABELLED.values())}."))
    return dict(zip(LABELLED, lesions, strict=True))


def draw_sets(folder: Path, counts: Mapping[str, int], seed: int, sizes: SetSizes | None = None) -> DrawnSets:
    """Draws all sets; equal arguments draw equal bytes.

    Args:
        folder: Gets one folder for each set.
        counts: Labelled training lesions by class.
        seed: Decides all photographs.
        sizes: Of the sets.

    Returns:
        The manifests.

    Raises:
        ConfigError: The folder cannot be written.
    """
    sizes = sizes or SetSizes()
    found = DrawnSets.below(folder)
    mean = sum(counts.values()) / len(counts)
    judged = {"val": math.ceil(sizes.validation * mean), "test": math.ceil(sizes.test * mean)}
    wanted = {
        found.labelled: {name: count + sum(judged.values()) for name, count in counts.items()},
        found.teacher: dict.fromkeys(counts, math.ceil(sizes.teacher * mean)),
        found.unlabelled: {name: math.ceil(sizes.unlabelled * count) for name, count in counts.items()},
    }
    for number, (manifest, lesions) in enumerate(wanted.items()):
        draw_specimens(
            manifest.parent,
            # Each set's own: lesions of different seeds are different lesions.
            seed=len(wanted) * seed + number,
            lesions_per_class=lesions,
            photos_per_lesion=PHOTOGRAPHS,
            tints=TINTS,
        )
    _divide(found.labelled, judged)
    write_table(found.unlabelled, read_table(found.unlabelled).drop(columns="label"))
    return found


def _divide(manifest: Path, judged: Mapping[str, int]) -> None:
    """Writes the column ``split``: of each class the last lesions are judged, the first are trained on."""
    table = read_table(manifest)
    lesions = table[["label", "lesion_id"]].drop_duplicates()
    # Counted from the end, so that validation and test have the same size in every class.
    left = lesions.groupby("label").cumcount(ascending=False)
    parts = pd.Series("train", index=lesions.index)
    parts[left < sum(judged.values())] = "val"
    parts[left < judged["test"]] = "test"
    part_of = dict(zip(lesions["lesion_id"], parts, strict=True))
    write_table(manifest, table.assign(split=table["lesion_id"].map(part_of)))
