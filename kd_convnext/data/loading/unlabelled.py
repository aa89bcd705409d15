"""Reads photographs without labels for distillation, and keeps lesions of the evaluation out of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from kd_convnext.common.console import shown
from kd_convnext.common.files import write_text
from kd_convnext.common.tables import guarded
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.loading.crop_source import fill_crops
from kd_convnext.data.loading.dataset import SpecimenDataset
from kd_convnext.data.loading.views import Views
from kd_convnext.data.manifest.columns import columns_given_by
from kd_convnext.data.manifest.grouping import NO_GROUP, UNLABELLED_NAME, GroupBy, group_hashes, row_hashes
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.overlap import belonging
from kd_convnext.errors import ConfigError, Finding, LeakError, ManifestError

UNLABELLED = -1
"""The label of an image without one; label terms leave it out."""

NO_CLASS = "unlabelled"
"""The only class of a training without labels."""

_MOST_NAMED, _LIST = 20, "unlabelled_judged.csv"
"""Photographs that a message names, and the file for more."""


@dataclass(frozen=True)
class Unlabelled:
    """Photographs without labels, beside a training part.

    Attributes:
        manifest: Their manifest; its labels, where it has any, are never read.
        rows: Those of the manifest that are used, int64 [U].
    """

    manifest: Manifest
    rows: npt.NDArray[np.int64]

    def hashes(self, labelled: Manifest) -> npt.NDArray[np.int64]:
        """Hashes their lesions, patients and photographs, those that the labelled manifest lists as it names them.

        Args:
            labelled: The manifest beside them. The same name in both need not be the same photograph.

        Returns:
            int64 [U, M], as of :func:`row_hashes`.
        """
        table = self.manifest.table
        known = {_place(labelled, image): image for image in labelled.table["image"].unique()}
        names = {image: known.get(_place(self.manifest, image), "") for image in table["image"].unique()}
        return row_hashes(table.assign(image=table["image"].map(names)), self.rows)

    def groups(self, labelled: Manifest) -> npt.NDArray[np.int64]:
        """Returns all that `hashes` does, and their photographs by their own names, for a card; int64, sorted.

        Args:
            labelled: See `hashes`.
        """
        table = self.manifest.table
        own = group_hashes(table.assign(image=UNLABELLED_NAME + table["image"]), self.rows, ("image",))
        return np.setdiff1d(np.union1d(self.hashes(labelled), own), [NO_GROUP])


def _place(manifest: Manifest, image: str) -> Path:
    return (manifest.root / image).resolve()


def read_without_labels(path: str | Path, **options: Any) -> Manifest:
    """Reads a manifest for a training that needs no labels: every row is of one class, ``unlabelled``.

    Args:
        path: A CSV as of :func:`read_manifest`, or a folder of photographs; labels in it are not used.
        **options: ``on_error``, ``group_by`` and ``columns`` of :func:`read_manifest`.

    Returns:
        The manifest.

    Raises:
        ManifestError: With every problem found.
    """
    found = read_manifest(path, require_labels=False, **options)
    return replace(found, table=found.table.assign(label=NO_CLASS), class_names=(NO_CLASS,))


def read_unlabelled(path: str | Path, columns: str | None = None) -> Unlabelled:
    """Reads a manifest or a folder of photographs; labels are not needed, and a class may be unknown.

    Args:
        path: A CSV as of :func:`read_manifest`, or a folder with photographs anywhere below it.
        columns: Other names of its columns.

    Returns:
        The photographs.

    Raises:
        ManifestError: There are none, or the manifest has problems.
    """
    with columns_given_by("--data.unlabelled_columns"):
        manifest = read_manifest(path, require_labels=False, on_error="skip", columns=columns)
    return Unlabelled(manifest, np.arange(len(manifest), dtype=np.int64))


def unlabelled_set(
    unlabelled: Unlabelled, cache: CropCache, views: Views, trainer: pl.Trainer | None
) -> tuple[Unlabelled, SpecimenDataset]:
    """Makes the crops of photographs without labels; those that cannot be read are left out.

    Args:
        unlabelled: The photographs.
        cache: Where crops are kept.
        views: How crops become pictures.
        trainer: Whose processes share the work; None for this process alone.

    Returns:
        Those of which there is a crop, and the crops.

    Raises:
        ManifestError: None can be read.
    """
    # Made whatever `on_miss` says: `prepare` takes manifests with labels alone.
    manifest, rows = unlabelled.manifest, unlabelled.rows
    crops = fill_crops(cache, manifest, rows, trainer, on_error="skip", on_miss="make")
    made = replace(unlabelled, rows=crops.made(rows))
    if not len(made.rows):
        remedy = "Give others, or leave the option out."
        nothing = Finding(f"--data.unlabelled {manifest.name}", "no photograph could be read", remedy)
        raise ManifestError([nothing, *crops.failed.values()])
    return made, SpecimenDataset(crops, made.rows, np.full(len(manifest), UNLABELLED, np.int64), views)


def refuse_judged(
    unlabelled: Unlabelled,
    manifest: Manifest,
    judged: npt.NDArray[np.int64],
    group_by: GroupBy,
    *,
    allow: bool,
    folder: Path,
) -> bool:
    """Refuses unlabelled photographs that belong together with those that validation or test judge by.

    Args:
        unlabelled: The photographs without labels.
        manifest: The labelled ones.
        judged: Rows of ``manifest`` in validation and test, int64.
        group_by: What no split divides: near-identical photographs are looked for by "known" alone.
        allow: Go on all the same.
        folder: Where they are listed, if they are too many for the message.

    Returns:
        Whether there are such photographs (that were allowed).

    Raises:
        LeakError: There are, and they are not allowed.
    """
    shared = belonging(unlabelled.manifest, manifest, judged, likeness=group_by == "known")
    if not shared.any():
        return False
    if not allow:
        table = unlabelled.manifest.table.loc[shared, ["row", "image"]]
        names, findings = table["image"].tolist(), []
        listed = ", ".join(names[:_MOST_NAMED])
        if len(names) > _MOST_NAMED:
            file = folder / _LIST
            try:
                write_text(file, guarded(table).to_csv(index=False, lineterminator="\n"))
                listed += f", ...; all are listed in {shown(file)}"
            except ConfigError as error:
                listed, findings = f"{listed}, ...", list(error.findings)
        what = f"{len(names)} of its photographs show lesions, patients or pictures of validation or test ({listed})"
        remedy = "Leave them out, or give --data.allow_leak true to go on; the results then say so."
        raise LeakError([Finding(f"--data.unlabelled {unlabelled.manifest.name}", what, remedy), *findings])
    return True
