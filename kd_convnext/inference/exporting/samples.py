"""Collects the photographs an exported network is compared on: of the checkpoint's own set, another one, or drawn."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.counting import counted
from kd_convnext.common.files import default_cache_dir
from kd_convnext.data.crops.cache.cache import CropCache, OnError
from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.data.manifest.grouping import KEPT_APART, row_hashes
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.once import warned_once
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import recorded_manifest, recorded_source
from kd_convnext.runs.folder import run_of_checkpoint

LEARNED = 64
"""Photographs of the training that int8 takes its ranges from."""

_DRAWN_SEED = 20


@dataclass(frozen=True, eq=False)
class ExportSamples:
    """Pictures as the network sees them.

    Attributes:
        source: Where they come from, in words.
        judged: uint8 [N, S, S, C], to compare on; none of them seen in training where there are such.
        labels: int64 [N]; -1 where there is no label, or where the training has seen it.
        learned: uint8 [M, S, S, C], of the training, else a second draw of ``judged``; for the ranges of int8.
    """

    source: str
    judged: Pixels
    labels: npt.NDArray[np.int64]
    learned: Pixels


def samples_of(
    predictor: Predictor,
    ckpt_path: str,
    manifest: str | None,
    columns: str | None,
    cache_dir: str | None,
    count: int,
) -> ExportSamples:
    """Collects photographs to compare on.

    Args:
        predictor: The network, with its cropping.
        ckpt_path: Its checkpoint.
        manifest: The photographs; by default those of the run's ``config.yaml``, where they are still there, else
            drawn specimens.
        columns: Other names of its columns; by default as the run's ``config.yaml`` says.
        cache_dir: Crop cache; by default as the run's ``config.yaml`` says.
        count: So many at most.

    Returns:
        The pictures.

    Raises:
        KDConvNeXtError: The photographs cannot be used.
    """
    run = run_of_checkpoint(ckpt_path)
    own = recorded_manifest(run)
    if manifest is None and own is not None and Path(own).expanduser().exists():
        manifest = own
    if manifest is None:
        return _drawn(predictor, count)
    source = recorded_source(run, manifest)
    with warned_once(lambda: manifest == own):
        photographs = read_manifest(
            manifest,
            classes=predictor.network.card.class_names,
            require_labels=False,
            on_error=source.on_error,
            columns=columns or source.columns,
        )
    root = cache_dir or source.cache_dir
    root_folder = Path(root).expanduser() if root else default_cache_dir()
    return _chosen(predictor, photographs, root_folder, count, source.on_error)


def _chosen(predictor: Predictor, manifest: Manifest, root: Path, count: int, on_error: OnError) -> ExportSamples:
    seen = _seen(predictor, manifest)
    rng = np.random.default_rng(0)
    unseen, learned = rng.permutation(np.flatnonzero(~seen)), rng.permutation(np.flatnonzero(seen))
    judged = np.sort((unseen if len(unseen) else learned)[:count])
    learned = np.sort((learned if len(learned) else unseen)[:LEARNED])
    crops = _crops(predictor, manifest, root, np.union1d(judged, learned), on_error)
    judged, learned = crops.made(judged), crops.made(learned)
    labels = np.where(seen[judged], -1, manifest.labels[judged])
    kind = "not seen" if len(unseen) else "all seen"
    return ExportSamples(
        source=f"{counted(len(judged), 'photograph')} of {manifest.name}, {kind} in training",
        judged=_pictures(predictor, crops, judged),
        labels=labels,
        learned=_pictures(predictor, crops, learned),
    )


def _drawn(predictor: Predictor, count: int) -> ExportSamples:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classes = {"Grade 1": 3, "Grade 2": 3, "Grade 3": 3, "AIS": 3, "MIA": 3}
        drawn = draw_specimens(
            folder, seed=_DRAWN_SEED, lesions_per_class=classes, photos_per_lesion=(1, 2), progress=False
        )
        manifest = read_manifest(drawn)
        rows = np.arange(min(len(manifest), count))
        pictures = _pictures(predictor, _crops(predictor, manifest, folder / "cache", rows, "raise"), rows)
    return ExportSamples(counted(len(rows), "drawn specimen"), pictures, np.full(len(rows), -1), pictures)


def _seen(predictor: Predictor, manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Returns which rows share a lesion, patient or photograph with the training, bool [N]."""
    card = predictor.network.card
    rows = np.arange(len(manifest), dtype=np.int64)
    kinds = KEPT_APART[card.group_by]  # type: ignore[index]
    hashes = row_hashes(manifest.table, rows, kinds, as_written=True)
    return np.asarray(np.isin(hashes, card.shared(np.unique(hashes))).any(axis=1), bool)


def _crops(
    predictor: Predictor, manifest: Manifest, root: Path, rows: npt.NDArray[np.int64], on_error: OnError
) -> PreparedCrops:
    cache = CropCache(root, predictor.spec, str(predictor.network.device))
    return cache.fill(manifest, rows, on_error=on_error)


def _pictures(predictor: Predictor, crops: PreparedCrops, rows: npt.NDArray[np.int64]) -> Pixels:
    return np.stack([predictor.picture(crops.load(int(row))) for row in rows])
