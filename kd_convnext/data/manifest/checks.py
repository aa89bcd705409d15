"""Checks the rows of a manifest. Each check returns its findings; none stops at the first."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.columns import BOX_COLUMNS
from kd_convnext.data.manifest.inspection import PhotographFile, first_of_same_bytes, inspect_files
from kd_convnext.data.manifest.likeness import first_alike, look_at
from kd_convnext.errors import Finding, ManifestWarning

PARTS = ("train", "val", "test")
_ROUNDING = 1e-6  # of a pixel
_NAMED = 3  # examples in a warning
_LARGEST = 2**31  # a coordinate beyond this is a mistake, and must not overflow


def parse_boxes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Turns the four text columns into whole numbers, fractions rounded outward.

    Args:
        table: Columns where, x, y, width, height as text.

    Returns:
        A copy with Int64 columns, NA in all four where no usable box is given, and a column `box_is_bad`; and
        the findings.
    """
    text = table[list(BOX_COLUMNS)]
    given = text != ""
    numbers = text.apply(lambda column: pd.to_numeric(column, errors="coerce")).to_numpy(dtype=np.float64, copy=True)
    sound = np.isfinite(numbers) & (np.abs(numbers) < _LARGEST)
    complete = given.all(axis=1)
    half = given.any(axis=1) & ~complete
    broken = complete & pd.Series(~sound.all(axis=1), table.index)
    shares = complete & ~broken & pd.Series(_are_shares(numbers), table.index)
    numbers = _outward(numbers, (complete & ~broken & ~shares).to_numpy(), table)
    flat = complete & ~broken & pd.Series((numbers[:, 2:] <= 0).any(axis=1), table.index)

    findings = per_row(
        table[half],
        lambda row: "half a box: " + _box_text(row),
        "Give x, y, width and height, or leave all four empty for the whole photograph.",
    )
    findings += per_row(table[broken], lambda row: "not numbers: " + _box_text(row), "Give the box in pixels.")
    findings += per_row(
        table[flat], lambda row: "an empty box: " + _box_text(row), "Width and height must be 1 or more."
    )
    if shares.any():
        first, others = table[shares].iloc[0], int(shares.sum()) - 1
        more = f" (and {counted(others, 'more row')})" if others else ""
        what = f"fractions of the photograph's sides: {_box_text(first)}{more}"
        findings.append(Finding(first["where"], what, "Give the box in pixels."))
    usable = (complete & ~broken & ~shares & ~flat).to_numpy()
    numbers[~usable] = np.nan
    parsed = table.copy()
    for position, name in enumerate(BOX_COLUMNS):
        parsed[name] = pd.array(numbers[:, position], dtype="Float64").astype("Int64")
    parsed["box_is_bad"] = half | broken | shares | flat
    return parsed, findings


def _are_shares(boxes: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Finds boxes that no photograph can have in pixels: of a pixel at most, at the upper left, with fractions."""
    inside = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    found: NDArray[np.bool_] = inside & (boxes != np.round(boxes)).any(axis=1)
    return found


def _outward(numbers: NDArray[np.floating[Any]], sound: NDArray[np.bool_], table: pd.DataFrame) -> NDArray[np.float64]:
    """Rounds fractions of pixels outwards, so that no part of a box is cut off, and warns once."""
    boxes = numbers.astype(np.float64)
    fractional = (
        sound & (np.where(sound[:, None], numbers, 0.0) % 1 != 0).any(axis=1) & (numbers[:, 2:] > 0).all(axis=1)
    )
    part = numbers[fractional]
    low = np.floor(part[:, :2] + _ROUNDING)
    boxes[fractional] = np.concatenate([low, np.ceil(part[:, :2] + part[:, 2:] - _ROUNDING) - low], axis=1)
    if fractional.any():
        first = table[fractional].iloc[0]
        number = counted(int(fractional.sum()), "box")
        said = f"{number} with fractions of pixels, rounded outward (first: {first['where']}"
        warnings.warn(f"{said}, {_box_text(first)})", ManifestWarning, stacklevel=4)
    return boxes


def outside_findings(table: pd.DataFrame) -> list[Finding]:
    """Checks that each box lies in its photograph.

    Args:
        table: Columns where, x, y, width, height (Int64), image_width, image_height (0 = unreadable).

    Returns:
        The findings.
    """
    sized = table[(table["image_width"] > 0) & table["x"].notna()]
    right, bottom = sized["x"] + sized["width"], sized["y"] + sized["height"]
    outside = (sized["x"] < 0) | (sized["y"] < 0)
    outside |= (right > sized["image_width"]) | (bottom > sized["image_height"])
    return per_row(
        sized[outside.astype(bool)],
        lambda row: (
            f"the box {_box_text(row)} reaches outside the photograph of {row.image_width} x {row.image_height} pixels"
        ),
        "Give pixels of the photograph as a viewer shows it (after EXIF rotation), origin at the upper left.",
    )


def repeated_findings(table: pd.DataFrame) -> list[Finding]:
    """Checks that no region of a photograph stands in two rows.

    Args:
        table: Columns where, image, label, x, y, width, height (Int64), box_is_bad.

    Returns:
        The findings, each at the later row.
    """
    sound = table[~table["box_is_bad"] & (table["image"] != "")]
    keys = ["image", *BOX_COLUMNS]
    again = sound.duplicated(keys)
    involved = sound[sound.duplicated(keys, keep=False)]
    first = involved.groupby(keys, dropna=False)[["where", "label"]].transform("first")
    frame = involved.assign(first=first["where"], first_label=first["label"])[again[involved.index]]
    return per_row(
        frame,
        lambda row: (
            f"the same photograph and region as {row.first}"
            + ("" if row.label == row.first_label else f", there labelled {row.first_label!r}, here {row.label!r}")
        ),
        "Delete one of the two rows.",
    )


def split_findings(table: pd.DataFrame) -> list[Finding]:
    """Checks that the split column holds train, val, test in every row, or nothing at all.

    Args:
        table: Columns where, split.

    Returns:
        The findings.
    """
    filled = table["split"] != ""
    bad = filled & ~table["split"].isin(PARTS)
    findings = per_row(table[bad], lambda row: f"{row.split!r} is not a part of a split", "Write train, val or test.")
    if filled.any() and not filled.all():
        empty = table[~filled]
        more = f" (and {counted(len(empty) - 1, 'more row')})" if len(empty) > 1 else ""
        what = f"the split is empty{more}, elsewhere it is given"
        findings.append(Finding(empty["where"].iloc[0], what, "Fill in every row, or empty the whole column."))
    return findings


def crossing_findings(table: pd.DataFrame, keys: Sequence[tuple[str, str]]) -> list[Finding]:
    """Checks that no patient, lesion or photograph is in two parts of the split column.

    Args:
        table: Columns where, split and those of `keys`.
        keys: Pairs of a column and its word in the message; a row is reported under the first that crosses.

    Returns:
        The findings, one for each lesion, photograph or patient.
    """
    rest = table[table["split"].isin(PARTS)]
    findings = []
    for column, word in keys:
        known = rest[rest[column] != ""]
        crossing = known[known.groupby(column)["split"].transform("nunique") > 1]
        for name, rows in crossing.groupby(column, sort=False):
            parts = rows.drop_duplicates("split")
            spread = ", ".join(f"{part} ({where})" for part, where in zip(parts["split"], parts["where"], strict=True))
            what = f"the {word} {name!r} is in more than one part: {spread}"
            findings.append(Finding(parts["where"].iloc[1], what, f"Put all rows of one {word} into one part."))
        rest = rest.drop(crossing.index)
    return findings


def warn_of_mixed_ids(table: pd.DataFrame, place: str) -> None:
    """Warns, once each, of lesions with several labels and of lesions under several patients.

    Args:
        table: Columns image, label, lesion_id, patient_id.
        place: The manifest's name.
    """
    lesion = table["lesion_id"].where(table["lesion_id"] != "", table["image"])
    advice = {
        "label": "Right for a photograph of many cells; otherwise correct the labels",
        "patient_id": "Where lesions are numbered anew for each patient, put the patient into lesion_id",
    }
    for column, hint in advice.items():
        known = table[table[column] != ""]
        kinds = known.groupby(lesion[known.index])[column].nunique()
        mixed = kinds[kinds > 1]
        if len(mixed):
            word = "labels" if column == "label" else "patients"
            first = known.loc[lesion[known.index] == mixed.index[0], column].unique()
            example = f"{mixed.index[0]!r}: {', '.join(first)}"
            message = f"{place}: several {word} in {len(mixed)} of {counted(len(kinds), 'lesion')} (first {example})"
            warnings.warn(f"{message}. {hint}.", ManifestWarning, stacklevel=3)


def add_file_facts(
    table: pd.DataFrame, root: Path, *, likeness: bool = False
) -> tuple[pd.DataFrame, dict[str, Finding]]:
    """Reads the headers of all photographs and finds files of the same bytes, by choice of the same picture.

    Args:
        table: Columns where, image.
        root: Folder that `image` is relative to.
        likeness: Look for near-identical photographs, which reads all of them once.

    Returns:
        A copy with image_width, image_height (0 = unreadable), photograph (the first image of the same
        bytes) and alike (the first of near-identical photographs, "" for others); and a finding for each
        unreadable photograph, by image.
    """
    images = sorted(set(table["image"]) - {""})
    paths = [root / image for image in images]
    files = inspect_files(paths)
    first = first_of_same_bytes(paths, [file.size for file in files])
    names = {image: images[first.get(position, position)] for position, image in enumerate(images)}
    sizes = {image: (file.width, file.height) for image, file in zip(images, files, strict=True)}
    both = np.array([sizes.get(image, (0, 0)) for image in table["image"]], dtype=np.int64).reshape(-1, 2)
    facts = table.assign(image_width=both[:, 0], image_height=both[:, 1])
    facts["photograph"] = [names.get(image, image) for image in table["image"]]
    twins = _near_identical(images, [file.width for file in files], names, root) if likeness else {}
    facts["alike"] = [twins.get(image, "") for image in table["image"]]
    return facts, _unreadable(table, dict(zip(images, files, strict=True)))


def _near_identical(images: list[str], widths: list[int], names: dict[str, str], root: Path) -> dict[str, str]:
    """Returns the first image of each set of near-identical photographs, for each image of such a set."""
    chosen = [image for image, width in zip(images, widths, strict=True) if width and names[image] == image]
    first = first_alike(look_at([root / image for image in chosen], root))
    return {chosen[position]: chosen[place] for position, place in first.items()}


def warn_of_twins(table: pd.DataFrame, place: str, group_by: str) -> None:
    """Warns, once, of near-identical photographs under several lesions or with none, and names examples.

    Args:
        table: Columns image, lesion_id, patient_id, alike.
        place: The manifest's name.
        group_by: What splits do not divide: only by "known" are such photographs kept in one part.
    """
    twins = table[table["alike"] != ""].drop_duplicates("image")
    lesion = twins["lesion_id"].where(twins["lesion_id"] != "", twins["image"])
    new = lesion.groupby(twins["alike"]).transform("nunique") > 1  # others are together already
    sets = [rows["image"].tolist() for _, rows in twins[new].groupby("alike", sort=False)]
    if sets:
        examples = "; ".join(" and ".join(names[:_NAMED]) for names in sets[:_NAMED]) + (
            "; ..." if sets[_NAMED:] else ""
        )
        given = (table["split"] != "").all()
        kept = "kept in one part" if group_by == "known" else f"which grouping by {group_by} may divide"
        kept = "in the parts of the split column" if given else kept
        what = f"{place}: near-identical photographs, {kept}: {int(new.sum())} in {counted(len(sets), 'set')}"
        hint = "Look at them: give them one lesion_id, or delete copies"
        if group_by == "known" and not given:
            less = "patient" if (table["patient_id"] != "").any() else "lesion"
            hint += f"; where they show different lesions, --data.split.group_by {less} does not keep them together"
        warnings.warn(f"{what} ({examples}). {hint}.", ManifestWarning, stacklevel=3)


def _unreadable(table: pd.DataFrame, files: dict[str, PhotographFile]) -> dict[str, Finding]:
    bad = {image: file.problem for image, file in files.items() if file.problem is not None}
    rows = table[table["image"].isin(list(bad))]
    counts = rows["image"].value_counts()
    first = rows.drop_duplicates("image")
    found = {}
    for image, where in zip(first["image"], first["where"], strict=True):
        problem, others = bad[image], counts[image] - 1
        more = f" (and {counted(others, 'more row')} of this photograph)" if others else ""
        what = f"{problem.what}: {problem.where}{more}"
        found[image] = Finding(where, what, problem.remedy)
    return found


def empty_path_findings(table: pd.DataFrame) -> list[Finding]:
    """Checks that each row names a photograph."""
    return per_row(table[table["image"] == ""], lambda row: "the image is empty", "Name the photograph's file.")


def copy_findings(table: pd.DataFrame) -> list[Finding]:
    """Checks that different files of the same bytes belong to one lesion and one part.

    Args:
        table: Columns where, image, photograph, label, lesion_id, split.

    Returns:
        The findings, one for each set of copies that leaks.
    """
    files = table.groupby("photograph")["image"].transform("nunique")
    copies = table[files > 1]
    findings = []
    for _, rows in copies.groupby("photograph", sort=False):
        by_file = rows.drop_duplicates("image")
        first, second = by_file.iloc[0], by_file.iloc[1]
        lesions = sorted(set(rows["lesion_id"]))
        pair = f"{second['image']} has the same bytes as {first['image']} ({first['where']})"
        if lesions == [""]:
            remedy = "Delete one of the files, or give both rows the same lesion_id."
            findings.append(Finding(second["where"], f"{pair}, and no lesion_id ties them together", remedy))
        elif len(lesions) > 1:
            names = ", ".join(repr(lesion) for lesion in lesions)
            remedy = "Delete one of the files, or give all their rows the same lesion_id."
            findings.append(Finding(second["where"], f"{pair}, but their lesions differ: {names}", remedy))
        elif rows["split"].isin(PARTS).all() and rows["split"].nunique() > 1:
            parts = ", ".join(sorted(set(rows["split"])))
            remedy = "Delete one of the files, or put both into one part."
            findings.append(Finding(second["where"], f"{pair}, but they are in different parts: {parts}", remedy))
    return findings


def _box_text(row: Any) -> str:
    return ", ".join(f"{name}={getattr(row, name)}" for name in BOX_COLUMNS)


def per_row(rows: pd.DataFrame, what: Callable[[Any], str], remedy: str) -> list[Finding]:
    """Makes one finding for each row.

    Args:
        rows: With a column where.
        what: What is wrong with a row.
        remedy: What to do about each.
    """
    return [Finding(str(row.where), what(row), remedy) for row in rows.itertuples(index=False)]
