"""Reads columns of a manifest that training has no use for, such as the site or device of a photograph."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kd_convnext.common.nearest import did_you_mean
from kd_convnext.common.tables import read_records
from kd_convnext.data.manifest.columns import parse_columns, rename
from kd_convnext.data.manifest.source import image_name
from kd_convnext.errors import ConfigError, Finding


def read_further(path: Path, names: Sequence[str], columns: str | None, where: str) -> pd.DataFrame:
    """Reads further columns of a manifest.

    Args:
        path: The manifest, in any form that a fit reads.
        names: Wanted columns, as the file or the package calls them.
        columns: Other names of columns, as a fit takes them.
        where: Place of findings, such as ``--by``.

    Returns:
        The wanted columns as text, indexed by photograph, each once.

    Raises:
        ConfigError: There is no such table or column, or a photograph has several values: all findings.
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
    kept = [row for row in rows if len(row) == len(header)]
    found = pd.DataFrame({name: [row[places[name]].strip() for row in kept] for name in names}, dtype=str)
    found.index = pd.Index([image_name(row[places["image"]].strip(), path.parent) for row in kept], name="image")
    found = found.reset_index().drop_duplicates().set_index("image")
    several = found.index[found.index.duplicated()].unique()
    if len(several):
        what = f"photographs with several values in {', '.join(names)}: {len(several)} (first {several[0]})"
        raise ConfigError(Finding(where, what, "Give all regions of a photograph one value."))
    return found


def _no_column(name: str, header: Sequence[str], path: Path, where: str) -> Finding:
    remedy = f"{did_you_mean(name, header)}Its columns are {', '.join(header)}."
    return Finding(where, f"{path} has no column {name}", remedy)
