"""Reads columns of a manifest that training has no use for, such as the site or device of a photograph."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.common.nearest import did_you_mean
from kd_convnext.common.tables import read_records
from kd_convnext.data.manifest.checks import parse_boxes
from kd_convnext.data.manifest.columns import BOX_COLUMNS, parse_columns, rename
from kd_convnext.data.manifest.source import text_table
from kd_convnext.errors import ConfigError, Finding

_REGION = "image and box"
"""Column of a region's name: a wanted column may be one of the box."""


def read_further(path: Path, names: Sequence[str], columns: str | None, where: str) -> pd.DataFrame:
    """Reads further columns of a manifest.

    Args:
        path: The manifest, in any form that a fit reads.
        names: Wanted columns, as the file or the package calls them.
        columns: Other names of columns, as a fit takes them.
        where: Place of findings, such as ``--by``.

    Returns:
        Columns ``image``, the region's name, and the wanted ones as text, each region of a photograph once.

    Raises:
        ConfigError: There is no such table or column, or a region has several values: all findings.
        ManifestError: The file is no table.
    """
    if not path.is_file():
        what = f"{path} is a folder, which has no columns" if path.is_dir() else f"the manifest {path} is not there"
        raise ConfigError(Finding(where, what, "Give columns of a table." if path.is_dir() else "Put it back."))
    records = read_records(path)
    header, *rows = records.fields or [[]]
    header = [name.strip() for name in header]
    ours, _ = rename([name.lower() for name in header], parse_columns(columns), where)
    places = {name: place for called in (ours, header) for place, name in reversed(list(enumerate(called)))}
    findings = [_no_column(name, header, path, where) for name in names if name not in places]
    if "image" not in places:
        findings.append(_no_column("image", header, path, where))
    if findings:
        raise ConfigError(findings)
    kept = [(line, row) for line, row in zip(records.lines[1:], rows, strict=True) if len(row) == len(header)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fractions the fit has warned
        text, _ = text_table(path, ours, kept, decimal_comma=records.decimal_comma)
        table, _ = parse_boxes(text)
    found = pd.DataFrame({"image": table["image"], _REGION: _regions(table.fillna(dict.fromkeys(BOX_COLUMNS, -1)))})
    found = found.assign(**{name: [row[places[name]].strip() for _, row in kept] for name in names})
    found = found.drop_duplicates(ignore_index=True)
    several = found[found.duplicated(_REGION)]
    if len(several):
        what = f"{counted(len(several), 'region')} with several values in {', '.join(names)}"
        raise ConfigError(Finding(where, f"{what} (first {several['image'].iloc[0]})", "Give each region one value."))
    return found


def join_further(answers: pd.DataFrame, further: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Joins further columns to answers: by photograph where all of its regions have one value, else by region.

    Args:
        answers: With ``image`` and the columns of boxes, -1 without one.
        further: See :func:`read_further`.
        names: The columns to join; empty text where an answer is in no row.
    """
    photographs = further.drop_duplicates(["image", *names])
    alike = photographs[~photographs["image"].duplicated(keep=False)].set_index("image")[list(names)]
    by_photograph = answers[["image"]].join(alike, on="image")[list(names)]
    by_region = further.set_index(_REGION)[list(names)].reindex(_regions(answers)).set_axis(answers.index)
    return answers.join(by_photograph.fillna(by_region).fillna(""))


def _regions(boxed: pd.DataFrame) -> list[str]:
    """Names regions by photograph and box, whose values may be text."""
    boxes = boxed[list(BOX_COLUMNS)].astype("int64")
    return [f"{image} {box}" for image, box in zip(boxed["image"], boxes.to_numpy().tolist(), strict=True)]


def _no_column(name: str, header: Sequence[str], path: Path, where: str) -> Finding:
    remedy = f"{did_you_mean(name, header)}Its columns are {', '.join(header)}."
    return Finding(where, f"{path} has no column {name}", remedy)
