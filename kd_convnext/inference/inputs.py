"""Lists the photographs that a user names: files, folders, manifests."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from kd_convnext.common.counting import counted
from kd_convnext.common.tables import TABLE_SUFFIXES
from kd_convnext.data.loading.card import DataCard
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.formats import IMAGE_SUFFIXES, OTHER_SUFFIXES
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import ConfigError, Finding, ManifestError
from kd_convnext.inference.prediction import Failure, Photograph
from kd_convnext.runs.folder import require_empty

LesionBy = Literal["manifest", "folder", "all"]
"""Which photographs show one lesion: those of one lesion_id, of one folder, or all of them."""

_NAMED = 3  # files that a warning names


def photographs_of(
    photos: Sequence[str], *, box: str | None = None, lesion_by: LesionBy = "manifest", columns: str | None = None
) -> tuple[list[Photograph], list[Failure]]:
    """Lists the photographs behind paths.

    Args:
        photos: Image files, folders (every image file below them), and manifests (.csv, .xlsx; labels not needed).
        box: ``x,y,width,height`` in pixels, for a single image file.
        lesion_by: See `LesionBy`.
        columns: Other names of the manifests' columns.

    Returns:
        The photographs in the order given (folders in the order of names), each region once, and those of manifests
        that cannot be read.

    Raises:
        ConfigError: An empty name, a folder without images, or a box that is none or is not for one file.
        ManifestError: A manifest has problems other than unreadable photographs, or two have lesions of one id or
            give one region two lesions.
    """
    if not all(word.strip() for word in photos):
        # As a path it would be the whole working folder.
        what = "a name is empty, as an unset variable of the shell is"
        raise ConfigError(Finding("photos", what, "Name files, folders or manifests; . is the working folder."))
    named: list[tuple[str, Photograph]] = []
    failures: list[Failure] = []
    for word in photos:
        path = Path(word).expanduser()
        if path.is_dir():
            listed = _folder(path)
        elif path.suffix.lower() in TABLE_SUFFIXES:
            listed, unreadable = _manifest(path, columns)
            failures += unreadable
        else:
            listed = [Photograph(path)]
        named += [(word, photograph) for photograph in listed]
    named = _once(named, lesion_by)
    if lesion_by == "manifest":
        _refuse_shared_lesions(named)
    found = [photograph for _, photograph in named]
    if box is not None:
        if len(found) != 1 or found[0].box is not None:
            what = f"one box for {counted(len(found), 'photograph')}"
            raise ConfigError(Finding("--box", what, "Write a manifest with the columns image,x,y,width,height."))
        found = [replace(found[0], box=_box(box))]
    if lesion_by != "manifest":
        found = [replace(photograph, lesion_id=_lesion(photograph, lesion_by)) for photograph in found]
    return found, failures


def opened(
    photos: Sequence[str],
    out: str,
    *,
    overwrite: bool,
    box: str | None = None,
    lesion_by: LesionBy = "manifest",
    columns: str | None = None,
) -> tuple[Path, list[Photograph], list[Failure]]:
    """Checks the folder of a tool's results and lists the photographs that it is asked about.

    Args:
        photos: See `photographs_of`.
        out: The folder.
        overwrite: Write into a folder that is not empty.
        box: See `photographs_of`.
        lesion_by: See `LesionBy`.
        columns: See `photographs_of`.

    Returns:
        The folder, the photographs, and those of manifests that cannot be read.

    Raises:
        ConfigError: The folder is not empty, or as `photographs_of`.
        ManifestError: As `photographs_of`.
    """
    folder = Path(out).expanduser()
    require_empty(folder, permitted=overwrite, option="--overwrite true")
    return folder, *photographs_of(photos, box=box, lesion_by=lesion_by, columns=columns)


def refuse_failures(failures: Sequence[Failure], on_error: Literal["raise", "skip"]) -> None:
    """Raises what has failed, after everything else is done.

    Args:
        failures: Photographs without a result.
        on_error: ``skip`` raises nothing.

    Raises:
        ManifestError: With every photograph that has failed.
    """
    if failures and on_error == "raise":
        raise ManifestError(failure.finding for failure in failures)


def _once(named: Sequence[tuple[str, Photograph]], lesion_by: LesionBy) -> list[tuple[str, Photograph]]:
    """Leaves out regions that were named before: twice they would count twice in their lesion.

    Of the equal ones the first stays; by manifest the first with a lesion, in its place, and two lesions are refused.
    """
    kept: dict[tuple[str, Box | None], tuple[str, Photograph]] = {}
    again, findings = [], []
    for word, photograph in named:
        key = (os.path.realpath(str(photograph.image)), photograph.box)
        before, known = kept.setdefault(key, (word, photograph))
        if known is photograph:
            continue
        again.append(photograph)
        if lesion_by != "manifest" or photograph.lesion_id in ("", known.lesion_id):
            continue
        if known.lesion_id:
            what = f"one region is of the lesions {known.lesion_id!r} ({before}) and {photograph.lesion_id!r} ({word})"
            remedy = "Correct the lesion_id in one of them, or ask about each manifest alone."
            findings.append(Finding(str(photograph), what, remedy))
        else:
            kept[key] = (word, photograph)
    if findings:
        raise ManifestError(findings)
    if again:
        what = f"{counted(len(again), 'region')} named more than once, judged once (first: {again[0]})"
        warnings.warn(what, stacklevel=4)
    return [*kept.values()]


def _refuse_shared_lesions(named: Sequence[tuple[str, Photograph]]) -> None:
    """Refuses lesion ids of several manifests: nothing says whether they are one lesion, or two of two hospitals."""
    tables: dict[str, list[str]] = {}
    for word, photograph in named:
        if photograph.lesion_id and word not in tables.setdefault(photograph.lesion_id, []):
            tables[photograph.lesion_id].append(word)
    shared = [(lesion, words) for lesion, words in tables.items() if len(words) > 1]
    if shared:
        lesion, words = shared[0]
        what = f"{counted(len(shared), 'lesion id')} in several manifests (first: {lesion!r} in {' and '.join(words)})"
        remedy = "If they are the same lesions, put the rows into one manifest; if not, ask about each manifest alone."
        raise ManifestError(Finding("photos", what, remedy))


_FAR = 3.0
"""How many times smaller than the smallest, or larger than the largest region of a training, a region is strange."""


def region_warnings(card: DataCard, photographs: Sequence[Photograph]) -> list[str]:
    """Compares the regions that are asked about with those of a network's training.

    Args:
        card: What the network knows of its training.
        photographs: As they are asked about.

    Returns:
        Sentences for whoever asks; empty where regions are as in the training, or nothing is known of that.
    """
    share, found = card.regions.get("share", 0.0), []
    whole = [photograph for photograph in photographs if photograph.box is None]
    if whole and share > 0.5:
        found.append(
            f"judged whole: {len(whole)} of {counted(len(photographs), 'photograph')} ({whole[0]}); the network was "
            "trained on regions of photographs, and answers otherwise for the whole: give boxes (--box, or a manifest)"
        )
    smallest, largest = card.regions.get("smallest"), card.regions.get("largest")
    if smallest is not None and largest is not None:
        far = [
            photograph
            for photograph in photographs
            if photograph.box is not None
            and not smallest / _FAR <= max(photograph.box.width, photograph.box.height) <= largest * _FAR
        ]
        if far:
            found.append(
                f"{counted(len(far), 'region')} far larger or smaller than those of the training ({far[0]}; there "
                f"{smallest:.0f} to {largest:.0f} pixels): such answers are worth little"
            )
    if whole and 0 < len(whole) < len(photographs) and share <= 0.5:
        found.append(f"judged whole, without a box: {len(whole)} of {counted(len(photographs), 'photograph')}")
    return found


def _warn_of_others(folder: Path, others: Sequence[Path]) -> None:
    """Names files that are no photographs by their names: archives keep DICOM without an ending."""
    if others:
        named = ", ".join(str(path.relative_to(folder)) for path in others[:_NAMED])
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        what = "left out, which are no photographs by their names"
        warnings.warn(f"{folder}: {named}{more} {what}; name a file itself to have it read", stacklevel=4)


def _folder(folder: Path) -> list[Photograph]:
    # Also what is a picture by its name and cannot be read (raw formats, pipes, dead links): it becomes a failure.
    suffixes = IMAGE_SUFFIXES | OTHER_SUFFIXES
    denied: list[OSError] = []
    shown: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=denied.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown += [Path(place) / name for name in names if not name.startswith(".")]
    shown.sort()
    visible = [path for path in shown if path.suffix.lower() in suffixes]
    _warn_of_others(folder, [path for path in shown if path.suffix.lower() not in suffixes])
    visible += [Path(error.filename) for error in denied]
    if not visible:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(Finding(str(folder), f"there are no photographs ({kinds})", "Name another folder."))
    return [Photograph(path) for path in visible]


def _manifest(path: Path, columns: str | None) -> tuple[list[Photograph], list[Failure]]:
    manifest = read_manifest(path, require_labels=False, on_error="skip", columns=columns)
    listed = [
        Photograph(
            manifest.image_path(row),
            manifest.box(row),
            name=str(manifest.table.at[row, "image"]),
            lesion_id=str(manifest.table.at[row, "lesion_id"]),
        )
        for row in range(len(manifest))
    ]
    return listed, [Failure(Photograph(path, name=finding.where), finding) for finding in manifest.skipped]


def _box(text: str) -> Box:
    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError as error:
        what = f"{text!r} is not four whole numbers"
        raise ConfigError(Finding("--box", what, "Give x,y,width,height in pixels: 412,300,260,244.")) from error
    return Box(x, y, width, height)


def _lesion(photograph: Photograph, lesion_by: LesionBy) -> str:
    if lesion_by == "all":
        return "all"
    return str(photograph.image.parent) if isinstance(photograph.image, Path) else ""
