"""Opens the photographs of a checkpoint's run, for calibration and export: those its training has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values
from kd_convnext.common.configs import data_options
from kd_convnext.common.counting import Unit
from kd_convnext.common.files import default_cache_dir
from kd_convnext.common.tables import read_table
from kd_convnext.data.crops.cache.cache import CropCache, OnError
from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.data.loading.card import DataCard
from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.data.manifest.columns import columns_given_by
from kd_convnext.data.manifest.grouping import KEPT_APART, NO_GROUP, GroupBy, Part, group_hashes, row_hashes
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.once import warned_once
from kd_convnext.data.manifest.overlap import belonging
from kd_convnext.data.manifest.splits import Split, make_split
from kd_convnext.data.manifest.units import unit_word, units_of
from kd_convnext.errors import CheckpointError, ConfigError, Finding, LeakError
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.gate import Features
from kd_convnext.runs.folder import RunFolder

_CHUNK = 64  # pictures held at once
_IDENTITY = ["image", "x", "y", "width", "height"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunSource:
    """Paths of a run's photographs.

    Attributes:
        manifest: CSV file, or folder of class folders.
        cache_dir: Crop cache; None for the default one.
        sr_weights: Super-resolution weights; None for those of the training.
        columns: Other names of the manifest's columns.
        on_error: Whether a photograph that cannot be read is an error or is left out, as in the run.
    """

    manifest: str
    cache_dir: str | None = None
    sr_weights: str | None = None
    columns: str | None = None
    on_error: OnError = "raise"


@dataclass(frozen=True, eq=False)
class LabelledAnswers:
    """Predictions for labelled photographs.

    Attributes:
        logits: float64 [N, K].
        features: float32 [N, D].
        appearances: float64 [N, M].
        labels: int64 [N].
        lesions: str [N].
        groups: str [N], what is taken as independent: all that is known to belong together, lesions at least.
        kinds: str [N], ``patient`` where a group is one; see `units_of`.
    """

    logits: Values
    features: Features
    appearances: Values
    labels: Rows
    lesions: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    kinds: npt.NDArray[np.str_]

    @property
    def unit(self) -> Unit:
        """What the groups are."""
        return unit_word(self.lesions, self.groups, self.kinds)

    @classmethod
    def of(cls, parts: Sequence["LabelledAnswers"]) -> "LabelledAnswers":
        """Returns all of several."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


def source_of(
    run: RunFolder, manifest: str | None, cache_dir: str | None, sr_weights: str | None, columns: str | None = None
) -> RunSource:
    """Fills in what was not given from the run's ``config.yaml``.

    Args:
        run: The checkpoint's run.
        manifest: As given.
        cache_dir: As given.
        sr_weights: As given.
        columns: As given.

    Raises:
        ConfigError: The manifest is neither given nor known to the run.
    """
    manifest = manifest or recorded_manifest(run)
    if manifest is None:
        what = f"{run.config} does not say which photographs the checkpoint was trained on"
        raise ConfigError(Finding("--manifest", what, "Give their manifest, or --config of the fit."))
    found = recorded_source(run, manifest)
    given: dict[str, Any] = {"cache_dir": cache_dir, "sr_weights": sr_weights, "columns": columns}
    return replace(found, **{name: value for name, value in given.items() if value})


def recorded_manifest(run: RunFolder) -> str | None:
    """Reads which photographs a run was trained on; None where its ``config.yaml`` does not say."""
    return _recorded(run).get("manifest")


def recorded_source(run: RunFolder, manifest: str) -> RunSource:
    """Reads how a run reads photographs.

    Args:
        run: With a ``config.yaml`` or without.
        manifest: The photographs, the run's own or others.

    Returns:
        The manifest with the run's columns, cache, weights and what it does about unreadable photographs.
    """
    options = _recorded(run)
    named = {name: options[name] for name in ("cache_dir", "sr_weights", "columns", "on_error") if options.get(name)}
    return RunSource(manifest, **named)


def _recorded(run: RunFolder) -> dict[str, Any]:
    return ungrouped(data_options(str(run.config)) or {}) if run.config.is_file() else {}


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Runs a network on the photographs of its run, part by part.

    Attributes:
        manifest: The photographs.
        split: The checkpoint's own division; None for further photographs, which are all for calibration.
        cache: Of their crops.
        predictor: The network, not calibrated.
        on_error: Whether a photograph that cannot be read is an error or is left out.
    """

    manifest: Manifest
    split: Split | None
    cache: CropCache
    predictor: Predictor
    on_error: OnError = "raise"

    def rows(self, part: Part) -> Rows:
        """Returns the rows of a part, all of them where there is no split."""
        return np.arange(len(self.manifest), dtype=np.int64) if self.split is None else self.split.rows(part)

    def crops(self, rows: Rows) -> tuple[PreparedCrops, Rows]:
        """Makes the crops of rows.

        Returns:
            The crops, and the rows that have one.

        Raises:
            CacheError: Photographs cannot be read, and are not to be left out.
        """
        crops = self.cache.fill(self.manifest, rows, on_error=self.on_error)
        return crops, crops.made(rows)

    def hashes(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Hashes lesions, patients or photographs of rows: those that the checkpoint's split kept apart, else all."""
        return np.setdiff1d(self.row_hashes(rows), [NO_GROUP])

    def row_hashes(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Hashes, for each row, what `hashes` names; int64 [N, M], `NO_GROUP` where a row lacks an id."""
        kinds = KEPT_APART["known" if self.split is None else _group_by(self.predictor.network.card)]
        return row_hashes(self.manifest.table, rows, kinds, as_written=True, unlabelled=self.split is None)

    def labelled(self, rows: Rows) -> Rows:
        """Returns those of some rows that have a label.

        Raises:
            ConfigError: None has.
        """
        found = rows[self.manifest.labels[rows] >= 0]
        if not len(found):
            raise self._nothing()
        return found

    def _nothing(self) -> ConfigError:
        what = "no labelled photographs to calibrate on"
        return ConfigError(Finding(self.manifest.name, what, "Use a split with a validation part."))

    def answers(self, rows: Rows) -> LabelledAnswers:
        """Runs the network on some rows.

        Args:
            rows: Of the manifest; such without a label are left out.

        Raises:
            CacheError: Photographs cannot be read.
        """
        rows = self.labelled(rows)
        crops, rows = self.crops(rows)
        logits, features, appearances = [], [], []
        for start in range(0, len(rows), _CHUNK):
            pictures = [self.predictor.picture(crops.load(int(row))) for row in rows[start : start + _CHUNK]]
            found = self.predictor.outputs(pictures)
            logits.append(found[0])
            features.append(found[1])
            appearances += [appearance_of(picture) for picture in pictures]
        if not logits:
            raise self._nothing()
        units = units_of(self.manifest, rows)
        named = (units[name].to_numpy(np.str_) for name in ("lesion", "unit", "kind"))
        outputs = (np.concatenate(logits), np.concatenate(features), np.stack(appearances))
        return LabelledAnswers(*outputs, self.manifest.labels[rows], *named)


def own_data(predictor: Predictor, source: RunSource, run: RunFolder) -> CalibrationData:
    """Opens the data that a checkpoint was trained on, divided as it was then.

    Args:
        predictor: The checkpoint's network.
        source: Where the photographs are.
        run: Its ``split.csv`` says which is in which part; else the manifest's ``split`` column does.

    Raises:
        KDConvNeXtError: The photographs or the division are not those of the checkpoint.
    """
    card = predictor.network.card
    manifest = own_photographs(card, source, run)
    with warned_once():
        split = make_split(manifest, group_by=_group_by(card))
    if split.hash != card.split_hash:
        what = f"the photographs and parts in {source.manifest} are not those the checkpoint was trained with"
        raise CheckpointError(Finding("--ckpt_path", what, "Give the manifest and the run folder of its training."))
    return CalibrationData(manifest, split, _cache(predictor, source), predictor, source.on_error)


def own_photographs(card: DataCard, source: RunSource, run: RunFolder) -> Manifest:
    """Reads the photographs of a run, each with its part in the column ``split``.

    Args:
        card: Of the run's network.
        source: Where the photographs are.
        run: See `own_data`.

    Raises:
        KDConvNeXtError: They cannot be read, or nothing says which part they were in.
    """
    with warned_once():
        manifest = read_manifest(
            source.manifest,
            classes=card.class_names,
            on_error=source.on_error,
            group_by=_group_by(card),
            columns=source.columns,
        )
    if run.split.is_file():
        return _with_parts(manifest, run.split)
    if (manifest.table["split"] == "").any():
        what = f"there is no {run.split}, and the manifest has no split column"
        raise ConfigError(Finding("--manifest", what, "Keep the checkpoint in its run folder."))
    return manifest


def further_data(
    predictor: Predictor, manifest: str, columns: str | None, source: RunSource, own: CalibrationData
) -> CalibrationData:
    """Opens further labelled photographs, of lesions that neither training nor validation nor test has.

    Args:
        predictor: The checkpoint's network.
        manifest: The further photographs.
        columns: Other names of its columns.
        source: Whose cache is used.
        own: The checkpoint's data.

    Raises:
        LeakError: It shares lesions, patients or photographs with the checkpoint's data, or near-identical ones.
    """
    card = predictor.network.card
    with columns_given_by("--extra_columns"):
        table = read_manifest(manifest, classes=card.class_names, group_by=_group_by(card), columns=columns)
    table = replace(table, table=table.table.assign(split=""))
    data = CalibrationData(table, None, _cache(predictor, source), predictor)
    everything, looked_at = np.arange(len(own.manifest), dtype=np.int64), _group_by(card) == "known"
    held = belonging(table, own.manifest, everything, likeness=looked_at)
    if looked_at:  # a name that both have is no sign then
        card = card.without(group_hashes(own.manifest.table, everything, ("image",)))
    seen = card.shared(data.hashes(data.rows("val")))
    _refuse(max(len(seen), int(held.sum())), manifest)
    return data


def refuse_leak(data: CalibrationData, part: Part) -> None:
    """Refuses to calibrate, or to judge, on lesions that the training has seen.

    Raises:
        LeakError: There are such lesions in the part.
    """
    _refuse(len(data.predictor.network.card.shared(data.hashes(data.rows(part)))), f"the {part} part")


def _refuse(shared: int, where: str) -> None:
    if shared:
        what = f"it has seen {shared} of the lesions, patients or photographs of {where}, in training or in the split"
        remedy = "A model is sure of what it was trained on: calibrate on other lesions."
        raise LeakError(Finding("--ckpt_path", what, remedy))


def _with_parts(manifest: Manifest, file: Path) -> Manifest:
    """Reads the parts from a run's ``split.csv``; rows it did not have are left out."""
    written = read_table(file, (*_IDENTITY, "split"))
    parts = {tuple(row[:-1]): row[-1] for row in written[[*_IDENTITY, "split"]].to_numpy().tolist()}
    identity = manifest.table[_IDENTITY].astype(object)
    keys = identity.where(identity.notna(), "").astype(str).to_numpy().tolist()
    found = [parts.get(tuple(key), "") for key in keys]
    table = manifest.table.assign(split=found)
    return replace(manifest, table=table[table["split"] != ""].reset_index(drop=True))


def _cache(predictor: Predictor, source: RunSource) -> CropCache:
    root = Path(source.cache_dir).expanduser() if source.cache_dir else default_cache_dir()
    return CropCache(root, predictor.spec, str(predictor.network.device))


def _group_by(card: DataCard) -> GroupBy:
    return card.group_by  # type: ignore[return-value]
