"""Names the units of intervals and calibration: groups of photographs that may be wrong together."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.common.counting import Unit
from kd_convnext.data.manifest.grouping import group_names, lesion_names
from kd_convnext.data.manifest.ids import hidden

if TYPE_CHECKING:
    from kd_convnext.data.manifest.manifest import Manifest

GROUP = "group"
"""Column of predictions: the kind of the group of each answer and a salted hash of its name."""

_SALT = ["image", "lesion_id", "patient_id", "x", "y", "width", "height"]
"""What the salt is made of: not of labels, which are corrected between two repeats, and not of parts."""

NO_GROUPS = (
    "predictions.csv is of an earlier version and does not say which lesions belong together; each is taken as "
    "independent, also those of one patient: test again for intervals by patient"
)


def units_of(manifest: "Manifest", rows: NDArray[np.int64]) -> pd.DataFrame:
    """Names lesion and unit of rows: the unit is all that is known to belong together, however they were divided.

    Args:
        manifest: The photographs.
        rows: Rows of it, int64 [N].

    Returns:
        N rows: ``lesion``, ``unit`` and ``kind`` (``patient`` where the unit is one patient).
    """
    units = manifest.groups("known")
    patients = manifest.table["patient_id"]
    several = patients[patients != ""].groupby(units[patients != ""]).nunique()
    counts = pd.Series(units).map(several).fillna(0).to_numpy()
    kinds = np.select([counts == 1, counts > 1], ["patient", "group"], "lesion")
    found = {"lesion": manifest.groups("lesion"), "unit": units, "kind": kinds}
    return pd.DataFrame({name: values[rows] for name, values in found.items()})


def stored_groups(manifest: "Manifest", rows: NDArray[np.int64]) -> list[str]:
    """Names the units of rows for a file: ``patient:4be1...``, the same hash for all rows of a unit.

    The salt is of the photographs and their ids: all splits of one manifest share it, so that a patient whose
    lesions are tested in several repeats is one unit.

    Args:
        manifest: The photographs.
        rows: Rows of it, int64 [N].

    Returns:
        N names, for the column `GROUP`.
    """
    found, salt = units_of(manifest, rows), salt_of(manifest)
    return [f"{kind}:{hidden(unit, salt)}" for kind, unit in zip(found["kind"], found["unit"], strict=True)]


def salt_of(manifest: "Manifest") -> str:
    """Makes the salt of names in tables that leave the machine: the SHA-256 of all names and ids of a manifest.

    It is written into no file. The hash of a split is, in checkpoints and published models: with it as a salt a list
    of likely ids could be hashed and looked up.

    Args:
        manifest: The photographs; all splits of them have one salt.
    """
    rows = manifest.table[_SALT].astype(str).itertuples(index=False, name=None)
    return hashlib.sha256("\n".join(sorted(json.dumps(row) for row in rows)).encode()).hexdigest()


def with_units(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds lesion and unit to answers, those of several repeats together.

    Args:
        frame: ``image``, ``lesion_id`` ("" where unknown) and, but in files of earlier versions, `GROUP`.

    Returns:
        A copy with ``lesion``, ``unit`` (both str) and ``by``, the same `Unit` in all rows. Without `GROUP` each
        lesion is a unit.
    """
    lesions = lesion_names(frame)
    if GROUP not in frame:
        return frame.assign(lesion=lesions, unit=lesions, by="lesion")
    # Where the manifest was changed between two repeats a group has two hashes; its photographs join them.
    table = frame[["image", "lesion_id"]].assign(photograph=frame["image"], patient_id="", alike=frame[GROUP])
    units = group_names(table, "known")
    kinds = frame[GROUP].str.partition(":")[0].to_list()
    return frame.assign(lesion=lesions, unit=units, by=unit_word(lesions, units, kinds))


def unit_word(lesions: Iterable[str], units: Iterable[str], kinds: Iterable[str]) -> Unit:
    """Returns what the units of answers are.

    Args:
        lesions: N names, the lesion of each.
        units: N names, the unit of each.
        kinds: N kinds of the units; see `units_of`.

    Returns:
        ``lesion`` where no unit holds two of them, ``patient`` where each unit is one, else ``group``.
    """
    if len(set(units)) == len(set(lesions)):
        return "lesion"
    return "patient" if set(kinds) == {"patient"} else "group"
