"""Finds photographs of one manifest that belong together with photographs of another: leaks between the two."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.data.manifest.grouping import group_names
from kd_convnext.data.manifest.ids import ID_COLUMNS, normal_id
from kd_convnext.data.manifest.inspection import first_of_same_bytes
from kd_convnext.data.manifest.likeness import Looks, first_alike, look_at
from kd_convnext.data.manifest.manifest import Manifest


def belonging(own: Manifest, other: Manifest, rows: NDArray[np.int64], *, likeness: bool) -> NDArray[np.bool_]:
    """Tells which photographs of a manifest belong together with some of another, whatever the files are called.

    That is by lesion or patient, as the same bytes, or as near-identical photographs; chains count.

    Args:
        own: The manifest.
        other: The other one.
        rows: Its rows to compare with, int64.
        likeness: Also compare what photographs look like.

    Returns:
        bool [N], of each row of `own`.
    """
    both = [_with_paths(other, rows), _with_paths(own, np.arange(len(own), dtype=np.int64))]
    table = pd.concat(both, ignore_index=True)
    paths = sorted(set(table["path"]))
    first = first_of_same_bytes(paths, [path.stat().st_size if path.is_file() else 0 for path in paths])
    names = {path: str(paths[first.get(position, position)]) for position, path in enumerate(paths)}
    twins = _alike(own, other, set(paths)) if likeness else {}
    table["photograph"] = table["path"].map(names)
    table["alike"] = [twins.get(path, "") for path in table["path"]]
    for column in ID_COLUMNS:
        table[column] = table[column].map(normal_id)
    groups = group_names(table, "known")
    return np.isin(groups[len(rows) :], groups[: len(rows)])


def _with_paths(manifest: Manifest, rows: NDArray[np.int64]) -> pd.DataFrame:
    chosen = manifest.table.iloc[rows][list(ID_COLUMNS)]
    paths = [manifest.image_path(row).absolute() for row in rows.tolist()]
    return chosen.assign(path=pd.Series(paths, index=chosen.index, dtype=object))


def _alike(own: Manifest, other: Manifest, wanted: set[Path]) -> dict[Path, str]:
    """Names the first of near-identical photographs of two manifests, for each that is not alone."""
    looks, paths = [], []
    for manifest in (other, own):
        # All of a manifest, as its own checks do: what is known of its photographs is kept in one file.
        images = [manifest.root / image for image in sorted(set(manifest.table["image"]))]
        found = look_at(images, manifest.root)
        kept = np.array([path.absolute() in wanted for path in images], np.bool_)
        looks.append(found.chosen(kept))
        paths += [path.absolute() for path, there in zip(images, kept, strict=True) if there]
    first = first_alike(Looks.of(looks))
    return {paths[position]: str(paths[place]) for position, place in first.items()}
