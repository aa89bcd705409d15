"""Records the regions that a run left out as unreadable, and counts its split without them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.common.tables import read_table
from kd_convnext.runs.folder import RunFolder

if TYPE_CHECKING:
    from kd_convnext.data.manifest.manifest import Manifest
    from kd_convnext.data.manifest.splits import Split
    from kd_convnext.errors import Finding

_IDENTITY = ["image", "x", "y", "width", "height"]
_COLUMNS = ["where", "reason", *_IDENTITY, "label", "split"]
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def left_out_table(
    manifest: "Manifest", split: "Split", failed: Mapping[int, "Finding"], parts: Collection[str]
) -> pd.DataFrame:
    """Tabulates what could not be read.

    Args:
        manifest: What was divided; photographs that it skipped belong to no part.
        split: Its division.
        failed: Rows of the manifest whose crops could not be made, with the reason.
        parts: Those whose rows are wanted.

    Returns:
        One row a region, or a photograph that was skipped: where it stands, why, what it is, label and part.
    """
    found: list[dict[str, object]] = [{"where": finding.where, "reason": finding.what} for finding in manifest.skipped]
    for row, finding in sorted(failed.items()):
        if split.parts[row] in parts:
            region = {name: manifest.table.at[row, name] for name in (*_IDENTITY, "label")}
            found.append({"where": finding.where, "reason": finding.what, **region, "split": split.parts[row]})
    return pd.DataFrame(found, columns=_COLUMNS, dtype=object)


def read_left_out(run: RunFolder) -> pd.DataFrame:
    """Reads what a run has left out; no rows where it left out nothing.

    Args:
        run: Of any fit or test.

    Raises:
        ConfigError: The record was changed.
    """
    return read_table(run.left_out, _COLUMNS) if run.left_out.is_file() else pd.DataFrame(columns=_COLUMNS)


def read_used(run: RunFolder, needed: Sequence[str]) -> pd.DataFrame:
    """Reads a run's split without what could not be read.

    Args:
        run: With a ``split.csv``.
        needed: Columns that it must have.

    Raises:
        ConfigError: A file cannot be read, or was changed.
    """
    split, gone = read_table(run.split, needed), read_left_out(run)
    if gone.empty:
        return split
    lacking = set(gone[_IDENTITY].itertuples(index=False, name=None))
    return split[[row not in lacking for row in split[_IDENTITY].itertuples(index=False, name=None)]]


def left_out_words(run: RunFolder) -> str:
    """Says how many regions and photographs a run left out; "" where none.

    Args:
        run: Of any fit or test.
    """
    gone = read_left_out(run)
    found = {name: int((gone["split"] == part).sum()) for part, name in _PARTS.items()}
    by_part = ", ".join(f"{name} {count}" for name, count in found.items() if count)
    words = []
    if by_part:
        words.append(f"{counted(sum(found.values()), 'region')} of the division ({by_part})")
    if skipped := int((gone["split"] == "").sum()):
        words.append(f"{counted(skipped, 'photograph')} before it was divided")
    return f"Could not be read and left out, not counted here: {' and '.join(words)}." if words else ""
