"""Reads the parts of every run from its split file, and finds leaks between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.common.files import sha256_of
from kd_convnext.common.tables import read_table
from kd_convnext.data.manifest.grouping import lesion_names
from kd_convnext.data.manifest.splits import PARTS, written_hash
from kd_convnext.errors import ConfigError
from kd_convnext.experiment.report.results import CellResult
from kd_convnext.runs.division import DRAWN, Divided, read_divided
from kd_convnext.runs.left_out import left_out_words, read_used


@dataclass(frozen=True, eq=False)
class Division:
    """One split of the photographs, read from a run's split file.

    Attributes:
        repeat: Which of the seeded splits.
        sha256: Of the file.
        hash: Of photographs and parts, as checkpoint and model card name the split.
        group_by: What was kept together.
        table: One row a used region: ``image``, ``label``, ``lesion_id``, ``patient_id``, ``split``, ``lesion``.
        left_out: What could not be read, in words; "" where all could.
        divided: How photographs came into parts.
    """

    repeat: int
    sha256: str
    hash: str
    group_by: str
    table: pd.DataFrame
    left_out: str = ""
    divided: Divided = DRAWN

    def is_of(self, result: CellResult) -> bool:
        """Tells whether a run was divided so."""
        return result.run.split.is_file() and sha256_of(result.run.split) == self.sha256

    def photographs(self, part: str, label: str | None = None) -> int:
        """Counts regions of interest of a part, of one class or of all."""
        return len(self._rows(part, label))

    def lesions(self, part: str, label: str | None = None) -> int:
        """Counts lesions of a part, of one class or of all."""
        return int(self._rows(part, label)["lesion"].nunique())

    def _rows(self, part: str, label: str | None) -> pd.DataFrame:
        rows = self.table[self.table["split"] == part]
        return rows if label is None else rows[rows["label"] == label]

    @cached_property
    def leaks(self) -> dict[str, int]:
        """How many of the named lesions and patients, photographs and sets of like ones are in more than one part."""
        kinds = {name: column for name, column in _KINDS.items() if (self.table[column] != "").any()}
        found = {name: _divided(self.table, column) for name, column in kinds.items()}
        alike = self.divided.alike
        return found | ({"sets of near-identical photographs": alike} if alike else {})

    def names(self, kind: str) -> bool:
        """Says whether any row names its lesion or patient (``lesion``, ``patient``)."""
        return bool((self.table[f"{kind}_id"] != "").any())

    @property
    def unnamed(self) -> int:
        """Regions that name neither lesion nor patient: each photograph then counts as a lesion."""
        return int(((self.table["lesion_id"] == "") & (self.table["patient_id"] == "")).sum())


_KINDS = {"lesions": "lesion_id", "patients": "patient_id", "photographs": "image"}


def read_divisions(results: Sequence[CellResult]) -> tuple[list[Division], list[str]]:
    """Reads the splits of finished cells, and checks that the cells of a repeat have the same one.

    Args:
        results: Of any cells.

    Returns:
        One division for each different split, by repeat, and what a reader must know: methods of one repeat on
        different splits, tested photographs that are not of the test part.
    """
    found: dict[str, Division] = {}
    users: dict[int, dict[str, list[str]]] = {}
    remarks = []
    for result in results:
        if not result.finished or not result.run.split.is_file():
            continue
        record, name = result.record, sha256_of(result.run.split)
        try:
            found[name] = found.get(name) or _read(result, name)
        except (ConfigError, KeyError, ValueError) as error:
            remarks.append(f"{record.title}, repeat {record.repeat}: its split file cannot be read ({error})")
            continue
        users.setdefault(record.repeat, {}).setdefault(name, []).append(record.title)
        stray = _strays(result, found[name])
        if stray:
            remarks.append(
                f"{record.title}, repeat {record.repeat}: {counted(stray, 'tested photograph')} outside its test part"
            )
    for repeat, splits in sorted(users.items()):
        if len(splits) > 1:
            groups = "; ".join(", ".join(sorted(set(titles))) for titles in splits.values())
            remarks.append(f"repeat {repeat} was not the same split for all: {groups}. Only common photographs compare")
    return sorted(found.values(), key=lambda division: division.repeat), remarks


def _read(result: CellResult, name: str) -> Division:
    columns = ["image", "label", "lesion_id", "patient_id", "split"]
    table = read_used(result.run, columns)[columns]
    table = table.assign(lesion=lesion_names(table))
    group_by = str(((result.config or {}).get("data") or {}).get("group_by", "lesion"))
    found = written_hash(read_table(result.run.split))
    return Division(
        result.record.repeat, name, found, group_by, table, left_out_words(result.run), read_divided(result.run)
    )


def _strays(result: CellResult, division: Division) -> int:
    """Counts answers about photographs that the split does not have in its test part."""
    if result.predictions is None:
        return 0
    tested = division.table.loc[division.table["split"] == PARTS[2], "image"]
    return int((~result.predictions["image"].isin(tested)).sum())


def _divided(table: pd.DataFrame, column: str) -> int:
    named = table[table[column] != ""]
    return int((named.groupby(column)["split"].nunique() > 1).sum())
