"""Groups photographs that must stay in one part, and hashes the groups to find leaks."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.data.manifest.ids import normal_id

Part = Literal["train", "val", "test"]


GroupBy = Literal["known", "patient", "lesion", "image"]
"""What no split divides: everything that is known to belong together, or less by explicit choice."""

KEPT_APART: dict[GroupBy, tuple[GroupBy, ...]] = {
    "image": ("image",),
    "lesion": ("lesion", "image"),
    "patient": ("patient", "lesion", "image"),
    "known": ("patient", "lesion", "image"),
}
"""What no two parts share. A split by lesion may divide a patient, one by photograph a lesion: that is no leak."""

_WORDS: dict[str, str] = {
    "known": "patient, lesion, photograph and near-identical photographs",
    "patient": "patient, lesion and photograph",
    "lesion": "lesion and photograph, not by patient",
    "image": "photograph alone, neither by lesion nor by patient",
}
_COLUMNS = {"patient": "patient_id", "lesion": "lesion_id", "image": "photograph"}


def kept_together(group_by: str, given: bool = False) -> str:
    """Describes in words what a split keeps together: "by ...".

    Args:
        group_by: As in configurations and checkpoints.
        given: Whether the manifest gave the parts, which nobody asked to keep near-identical photographs together.
    """
    words = _WORDS.get("patient" if given and group_by == "known" else group_by, group_by)
    return f"by {words}{' (the manifest gave the parts)' if given else ''}"


UNLABELLED_NAME = "unlabelled:"
"""Begins the names of photographs without labels: they are relative to another folder than those with labels."""

NO_GROUP = 0
"""Stands for the hash of an id that a row lacks."""


def group_hashes(
    table: pd.DataFrame,
    rows: NDArray[np.int64],
    kinds: Sequence[GroupBy] = ("lesion", "patient", "image"),
    *,
    as_written: bool = False,
    unlabelled: bool = False,
) -> NDArray[np.int64]:
    """Hashes the lesions, patients and photographs of some rows, to find them again in another manifest.

    Args:
        table: A manifest's table.
        rows: Rows of it, int64.
        kinds: What to hash.
        as_written: Also hash ids as written, to find them in checkpoints of versions that did not normalise.
        unlabelled: Also hash photographs as such without labels, to find them in checkpoints that learnt from those.

    Returns:
        int64 [M], sorted, each once, 63 bits of the sha256 of "lesion:<id>", "patient:<id>", "image:<path>", ids
        as `normal_id` spells them.
    """
    return np.setdiff1d(row_hashes(table, rows, kinds, as_written=as_written, unlabelled=unlabelled), [NO_GROUP])


def row_hashes(
    table: pd.DataFrame,
    rows: NDArray[np.int64],
    kinds: Sequence[GroupBy] = ("lesion", "patient", "image"),
    *,
    as_written: bool = False,
    unlabelled: bool = False,
) -> NDArray[np.int64]:
    """Hashes lesion, patient and photograph of each row.

    Args:
        table: See `group_hashes`.
        rows: See `group_hashes`.
        kinds: See `group_hashes`.
        as_written: See `group_hashes`.
        unlabelled: See `group_hashes`.

    Returns:
        int64 [N, M], M hashes a row; `NO_GROUP` where a row has no such id.
    """
    chosen = table.iloc[rows]
    columns: list[NDArray[np.int64]] = []
    for word, column in (("lesion", "lesion_id"), ("patient", "patient_id"), ("image", "image")):
        if word not in kinds:
            continue
        values, place = np.unique(chosen[column].astype(str).to_numpy(object), return_inverse=True)
        if word == "image" or as_written:
            columns.append(_hashes([f"{word}:{value}" if value else "" for value in values])[place])
        if word != "image":
            columns.append(_hashes([f"{word}:{normal_id(value)}" if value else "" for value in values])[place])
        elif unlabelled:
            columns.append(_hashes([f"{word}:{UNLABELLED_NAME}{value}" for value in values])[place])
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0), np.int64)


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    digests = (hashlib.sha256(name.encode()).digest()[:8] if name else bytes(8) for name in names)
    return np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=np.int64)


def group_names(table: pd.DataFrame, group_by: GroupBy) -> NDArray[np.str_]:
    """Names the connected group of each row, see :meth:`Manifest.groups`.

    Args:
        table: ``photograph``, and ``lesion_id`` and ``patient_id`` where the grouping asks for them ("" = unknown);
            by "known" also ``alike`` where there is one: the first of near-identical photographs, "" for others.
        group_by: What must not be divided.

    Returns:
        str [N].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    columns = [_COLUMNS[kind] for kind in KEPT_APART[group_by]]
    if group_by == "known" and "alike" in table:
        columns.append("alike")
    words = {"photograph": "image", "lesion_id": "lesion", "patient_id": "patient", "alike": "alike"}
    nodes: list[str] = []
    members = []
    for column in columns:
        codes, names = pd.factorize(table[column].where(table[column] != ""), sort=True)
        members.append(np.where(codes < 0, -1, codes + len(nodes)))
        nodes += [f"{words[column]}:{name}" for name in names]
    photographs = members[columns.index("photograph")]
    edges = [(codes[codes >= 0], photographs[codes >= 0]) for codes in members]
    rows = np.concatenate([np.zeros(0, np.int64), *(edge[0] for edge in edges)])
    columns_ = np.concatenate([np.zeros(0, np.int64), *(edge[1] for edge in edges)])
    # scipy 1.11 finds no components where places are 64 bits wide.
    places = (rows.astype(np.int32), columns_.astype(np.int32))
    graph = coo_array((np.ones(len(rows), np.int8), places), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    # Nodes are ordered by kind and name: the first of a component names it, whatever the order of rows.
    _, first = np.unique(component, return_index=True)
    names_of_rows: NDArray[np.str_] = np.array(nodes, dtype=np.str_)[first][component[photographs]]
    return names_of_rows


def lesion_names(frame: pd.DataFrame) -> NDArray[np.str_]:
    """Names the lesion of each answer as splits do: photographs of one lesion, regions of one photograph.

    Args:
        frame: ``image`` and ``lesion_id`` ("" where unknown).

    Returns:
        str [N].
    """
    table = frame[["image", "lesion_id"]].assign(photograph=frame["image"])
    return group_names(table, "lesion")
