"""Loads manifest, split, crops and batches in one LightningDataModule."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from kd_convnext.common.console import say
from kd_convnext.common.files import default_cache_dir
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.packed import pack
from kd_convnext.data.crops.cache.prepared import Crops, OnMiss, PreparedCrops
from kd_convnext.data.crops.preparing.announce import announcement
from kd_convnext.data.crops.spec import CropSpec, Resize, UpscalerChoice
from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.card import DataCard, Groups, salted
from kd_convnext.data.loading.class_weights import inverse_frequency
from kd_convnext.data.loading.dataset import SpecimenDataset, View
from kd_convnext.data.loading.loader import specimen_loader
from kd_convnext.data.loading.mixing import MixedDataset, MixedSampler, unlabelled_share
from kd_convnext.data.loading.sampler import Sampling, ViewSampler
from kd_convnext.data.loading.unlabelled import UNLABELLED, Unlabelled, read_unlabelled, refuse_judged
from kd_convnext.data.loading.views import Views
from kd_convnext.data.loading.workers import Workers, unmeasured_workers
from kd_convnext.data.manifest.grouping import KEPT_APART, GroupBy, Part, group_hashes
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.splits import Split, make_split
from kd_convnext.errors import ConfigError, Finding, ManifestError

PARTS: tuple[Part, ...] = ("train", "val", "test")


class SpecimenDataModule(pl.LightningDataModule):
    """Loads batches ``{image, label, index}`` from photographs and a manifest: checks, crops, splits, augments.

    ``image`` is uint8 [B, C, H, W]: networks normalise on the device. Crops are made once, into the cache.

    Attributes:
        manifest: The checked manifest (read on first use).
        split: Which row belongs to which part (made on first use).
        crops: The stored crops, after ``setup``.
        train_set: The training part, after ``setup("fit")``.
        val_set: The validation part, after ``setup("fit")`` or ``setup("validate")``.
        test_set: The test part, after ``setup("test")``.
        predict_set: The rows of ``predict_part``, after ``setup("predict")``.
        workers: Loader processes of the last fit, and why so many.

    Examples:
        >>> from kd_convnext.data.drawn.specimens import draw_specimens
        >>> manifest = draw_specimens(Path("drawn"), seed=0, lesions_per_class={"AIS": 4, "MIA": 4}, progress=False)
        >>> sizes = {"store_size": 64, "image_size": 64, "batch_size": 4, "ratios": (0.5, 0.25, 0.25)}
        >>> data = SpecimenDataModule(str(manifest), cache_dir="crops", upscaler="bicubic", num_workers=0, **sizes)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["image"].shape
        torch.Size([4, 3, 64, 64])
    """

    crops: PreparedCrops
    train_set: SpecimenDataset
    val_set: SpecimenDataset
    test_set: SpecimenDataset
    predict_set: SpecimenDataset

    def __init__(
        self,
        manifest: str,
        classes: list[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        group_by: GroupBy = "known",
        ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        split_index: int = 0,
        few_groups: Literal["warn", "error"] = "warn",
        cache_dir: str | None = None,
        upscaler: UpscalerChoice = "auto",
        sr_weights: str | None = None,
        sr_denoise: float | None = None,
        sr_wdn_weights: str | None = None,
        roi_margin: float = 0.0,
        sr_max_side: int | None = 512,
        store_size: int | None = 256,
        resize: Resize = "stretch",
        packed: bool = False,
        on_miss: OnMiss = "make",
        image_size: int = 224,
        in_chans: Literal[1, 3] = 3,
        augment: AugmentSpec | None = None,
        sampling: Sampling = "natural",
        class_balanced: bool = False,
        unlabelled: str | None = None,
        unlabelled_ratio: float = 1.0,
        batch_size: int = 32,
        num_workers: int | None = None,
        view_seed: int = 0,
        views: int | None = None,
        predict_part: Literal["all", "train", "val", "test"] = "all",
        allow_leak: bool = False,
        columns: str | None = None,
    ) -> None:
        """Describes the data; nothing is read yet.

        Args:
            manifest: CSV file, or folder of class folders.
            classes: Class names in the order of the outputs; by default the paper's order or the alphabet's.
            on_error: Whether an unreadable photograph stops everything (``raise``) or is left out, counted and listed.
            group_by: What must not be divided: all that is ``known`` to belong together (patients, lesions, identical
                and near-identical photographs), or less by choice: the patient, the lesion, or only the photograph.
            ratios: Shares of training, validation and test.
            split_seed: Decides the five repeats of the split.
            split_index: Which repeat, from 0.
            few_groups: What to do with a class of fewer than three groups.
            cache_dir: Where crops are stored; by default ``$KD_CONVNEXT_CACHE``, else ``~/.cache/kd-convnext``.
            upscaler: How crops are enlarged; ``auto`` is ``ncnn`` or ``spandrel`` where ``sr_weights`` are given, else
                ``bicubic``.
            sr_weights: Real-ESRGAN weights: a file, or the name of an official release that ``prepare`` has fetched.
            sr_denoise: Denoising strength of general-x4v3, 0 to 1, by blending with its wdn weights; null for 1.
            sr_wdn_weights: Weights to blend with; by default those that belong to ``sr_weights``.
            roi_margin: Added on each side of a box, as a fraction of that side.
            sr_max_side: Longer crops are first reduced to this many pixels; null for never.
            store_size: Side of stored crops in pixels; null keeps the enlarged crop.
            resize: ``stretch`` crops to the square as the paper does, or ``pad`` them.
            packed: Read all crops of the manifest from one memory-mapped file, made once from the cache.
            on_miss: Whether a crop that is not in the cache, or whose entry is damaged, is made (``make``), or is an
                error (``raise``) that says how to prepare it.
            image_size: Side of the network's input in pixels.
            in_chans: 3 for colour, 1 for grey.
            augment: The random changes of training; by default the paper's.
            sampling: How often training draws a class: ``natural``, ``square_root`` of its share, or ``balanced``.
            class_balanced: The same as ``sampling: balanced``.
            unlabelled: Photographs without labels for a teacher to answer for: a manifest, or a folder. None of their
                lesions, patients or files may be in validation or test.
            unlabelled_ratio: Unlabelled images for each labelled one in a batch; ``batch_size`` counts labelled ones.
            batch_size: Images a batch and process.
            num_workers: Loader processes; by default a fit measures how many keep up with its steps (0 where loading
                hardly takes time), and judging takes as many as the cores allow, at most 8.
            view_seed: Decides order and augmentation of training.
            views: Augmented views of each crop: one an epoch, in turn; null for new ones in every epoch. A number lets
                a teacher's answers be stored (``--model.teacher_cache``).
            predict_part: What ``predict`` answers for.
            allow_leak: Go on where lesions of a judged part were in training of the network or its teacher.
            columns: Other names of the manifest's columns: ``image=file,label=diagnosis``.

        Raises:
            ConfigError: A value that cannot work.
        """
        super().__init__()
        augment = augment or AugmentSpec()
        _check(image_size, batch_size, num_workers, views, unlabelled_ratio)
        self.path, self.classes, self.on_error = manifest, classes, on_error
        self.group_by: GroupBy = group_by
        self.columns = columns
        self.ratios, self.split_seed, self.split_index = ratios, split_seed, split_index
        self.few_groups = few_groups
        self.cache_dir = cache_dir
        self.crop_spec = CropSpec(
            roi_margin=roi_margin,
            sr_max_side=sr_max_side,
            store_size=store_size,
            resize=resize,
            upscaler=upscaler,
            sr_weights=sr_weights,
            sr_denoise=sr_denoise,
            sr_wdn_weights=sr_wdn_weights,
        )
        self.packed, self.on_miss = packed, on_miss
        self.image_size, self.in_chans, self.augment = image_size, in_chans, augment
        self.sampling: Sampling = "balanced" if class_balanced else sampling
        self.batch_size = batch_size
        self.unlabelled_path, self.unlabelled_ratio = unlabelled, unlabelled_ratio
        self.num_workers = num_workers
        self.workers = unmeasured_workers(num_workers)
        self._measure: Callable[[Iterable[View]], Workers] | None = None
        self.view_seed, self.views = view_seed, views
        self.predict_part, self.allow_leak = predict_part, allow_leak
        self._unlabelled_leak = False

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read and checked on first use.

        Raises:
            ManifestError: With every problem found.
        """
        return read_manifest(
            self.path, classes=self.classes, on_error=self.on_error, group_by=self.group_by, columns=self.columns
        )

    @cached_property
    def split(self) -> Split:
        """The division into parts, made on first use.

        Raises:
            SplitError: It cannot be made as asked.
        """
        return make_split(
            self.manifest,
            index=self.split_index,
            seed=self.split_seed,
            ratios=(self.ratios[0], self.ratios[1], self.ratios[2]),
            group_by=self.group_by,
            few_groups=self.few_groups,
        )

    @cached_property
    def unlabelled(self) -> Unlabelled | None:
        """The photographs without labels, read on first use; None where none are given.

        Raises:
            ManifestError: They cannot be read.
        """
        return None if self.unlabelled_path is None else read_unlabelled(self.unlabelled_path)

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the outputs."""
        return list(self.manifest.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.manifest.class_names)

    @property
    def class_weights(self) -> list[float]:
        """Inverse frequency of each class in the training part, mean 1 (alpha_t of the paper's Eq. 4)."""
        labels = self.manifest.labels[self.split.rows("train")]
        if not len(labels):
            # Photographs to be judged only; a fit refuses an empty training part by itself.
            return [1.0] * self.num_classes
        return inverse_frequency(np.bincount(labels, minlength=self.num_classes).tolist())

    @property
    def class_counts(self) -> list[int]:
        """Images of each class in the training part; 1 each where it is empty (photographs to be judged only)."""
        labels = self.manifest.labels[self.split.rows("train")]
        counts: list[int] = np.bincount(labels[labels >= 0], minlength=self.num_classes).tolist()
        return counts if any(counts) else [1] * self.num_classes

    def setup(self, stage: str) -> None:
        """Makes the missing crops of the parts that a stage needs, and its datasets.

        Under several processes each makes its share.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            KDConvNeXtError: The data cannot be used; every problem found is named.
        """
        rows = {name: self._rows(name) for name in _NEEDED[stage] if not hasattr(self, f"{name}_set")}
        if not rows:
            return
        crops = self._fill(np.unique(np.concatenate(list(rows.values()))))
        labels = self.manifest.labels
        still = Views(self.image_size, self.in_chans, resize=self.crop_spec.resize)
        moving = Views(self.image_size, self.in_chans, self.augment, self.crop_spec.resize)
        for name, wanted in rows.items():
            kept = wanted[~np.isin(wanted, list(self.crops.failed))]
            if not len(kept):
                remedy = "Check the ratios, the `split` column, and the photographs."
                raise ManifestError(Finding(self.path, f"the {name} part is empty", remedy))
            views = moving if name == "train" else still
            setattr(self, f"{name}_set", SpecimenDataset(crops, kept, labels, views))
        if "train" in rows and self.unlabelled is not None:
            self.train_set = MixedDataset(self.train_set, self._unlabelled_set(self.unlabelled, moving))

    def measure_workers(self, measure: Callable[[Iterable[View]], Workers]) -> None:
        """Takes a measurement of the loader processes a fit needs, run once when its training loader is built.

        Args:
            measure: From the views that will be loaded to the choice; unused where ``num_workers`` is given.
        """
        self._measure = measure if self.num_workers is None else None

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns shuffled, augmented training batches; a last batch of one image is dropped."""
        trainer, part = self.trainer, self.train_set
        options: dict[str, Any] = {
            "seed": self.view_seed,
            "sampling": self.sampling,
            "views": self.views,
            "num_replicas": trainer.world_size if trainer else 1,
            "rank": trainer.global_rank if trainer else 0,
        }
        sampler: ViewSampler
        size = self.batch_size
        if isinstance(part, MixedDataset):
            sampler = MixedSampler(part, block=size, ratio=self.unlabelled_ratio, **options)
            size += unlabelled_share(size, self.unlabelled_ratio)
        else:
            sampler = ViewSampler(part, **options)
        if trainer and trainer.training and self._measure:
            self.workers, self._measure = self._measure(sampler), None
        return self._loader(part, self.workers, size, sampler=sampler, drop_last=len(sampler) % size == 1)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the validation part in order."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._loader(self.val_set, self.workers if fitting else None)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the test part in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Returns the rows of ``predict_part`` in order."""
        return self._loader(self.predict_set)

    def view_loader(self, views: Sequence[View]) -> DataLoader[Any]:
        """Returns batches of chosen views of the training part, in their order."""
        return self._loader(self.train_set, sampler=views)

    def judged_groups(self, part: Part) -> Groups:
        """Returns the hashes of what the split keeps apart in a part, to compare with what a network has seen."""
        return self._hashes(part, KEPT_APART[self.group_by])

    def shared_with(self, card: DataCard, part: Part) -> Groups:
        """Finds what a part shares with all that a network has seen.

        The division that the network was trained with may divide what it was told to (a patient, where divided by
        lesion); other photographs are compared by patients, lesions and photographs alike.

        Args:
            card: Of the network.
            part: The part to be judged.

        Returns:
            Hashes, int64.
        """
        own = card.split_hash == self.split.hash
        judged = self._hashes(part, KEPT_APART[self.group_by] if own else KEPT_APART["known"])
        return card.shared(judged)

    def _hashes(self, part: Part, kinds: Sequence[GroupBy]) -> Groups:
        return group_hashes(self.manifest.table, self.split.rows(part), kinds, as_written=True)

    def card(self) -> DataCard:
        """Describes data and split for a checkpoint trained on them."""
        seen = group_hashes(self.manifest.table, self.split.rows("train"))
        if self.unlabelled is not None:
            seen = np.union1d(seen, self.unlabelled.groups)
        return DataCard(
            class_names=self.manifest.class_names,
            image_size=self.image_size,
            in_chans=self.in_chans,
            crop=self.crop_spec.to_dict(),
            crop_identity=self.crop_spec.identity(),
            split_hash=self.split.hash,
            group_by=self.group_by,
            seen_groups=salted(seen, self.split.hash),
            leak_allowed=self.unlabelled is not None and self._unlabelled_leak,
            salt=self.split.hash,
        )

    def _unlabelled_set(self, unlabelled: Unlabelled, views: Views) -> SpecimenDataset:
        judged = np.concatenate([self.split.rows("val"), self.split.rows("test")])
        self._unlabelled_leak = refuse_judged(unlabelled, self.manifest, judged, allow=self.allow_leak)
        crops = self._cache().fill(unlabelled.manifest, unlabelled.rows, on_error="skip")
        kept = unlabelled.rows[~np.isin(unlabelled.rows, list(crops.failed))]
        return SpecimenDataset(crops, kept, np.full(len(unlabelled.rows), UNLABELLED, np.int64), views)

    def still_loader(self, image_size: int, views: Sequence[View]) -> DataLoader[Any]:
        """Returns batches of training crops, labelled or not, without augmentation.

        Args:
            image_size: Side of the pictures in pixels; a teacher may see another size than its student.
            views: Which crops, in this order.
        """
        still, part = Views(image_size, self.in_chans, resize=self.crop_spec.resize), self.train_set
        return self._loader(part.seen_through(still), sampler=views)

    def _rows(self, name: str) -> npt.NDArray[np.int64]:
        if name == "predict":
            if self.predict_part == "all":
                return np.arange(len(self.manifest.table), dtype=np.int64)
            return self.split.rows(self.predict_part)
        return self.split.rows(cast(Part, name))

    def _cache(self) -> CropCache:
        root = default_cache_dir() if self.cache_dir is None else Path(self.cache_dir).expanduser()
        trainer = self.trainer
        device = "cuda" if trainer and trainer.strategy.root_device.type == "cuda" else "cpu"
        cache = CropCache(root, self.crop_spec, device)
        self.crop_spec = cache.spec
        return cache

    def _fill(self, rows: npt.NDArray[np.int64]) -> Crops:
        """Makes sure that rows can be loaded; returns where from."""
        trainer, cache = self.trainer, self._cache()
        if self.packed:
            # Packed whole, so that all repeats of the split share the file.
            rows = np.arange(len(self.manifest.table), dtype=np.int64)
        if self.on_miss == "raise":
            cache.require(self.manifest, rows)
        if trainer and trainer.is_global_zero:
            coming = announcement(cache, self.manifest, cache.survey(self.manifest, rows))
            if coming:
                say(trainer, coming)
        if trainer and trainer.world_size > 1:
            cache.fill(self.manifest, rows[trainer.global_rank :: trainer.world_size], on_error="skip")
            trainer.strategy.barrier("crops")
        crops = replace(cache.fill(self.manifest, rows, on_error=self.on_error), on_miss=self.on_miss)
        if hasattr(self, "crops"):
            earlier = self.crops
            crops = replace(
                crops,
                regions=earlier.regions | crops.regions,
                keys=earlier.keys | crops.keys,
                failed=earlier.failed | crops.failed,
            )
        self.crops = crops
        if not self.packed:
            return crops
        if trainer and trainer.local_rank != 0:
            trainer.strategy.barrier("packed")
            return pack(crops)
        packed = pack(crops)
        if trainer:
            trainer.strategy.barrier("packed")
        return packed

    def _loader(
        self, dataset: SpecimenDataset, workers: Workers | None = None, size: int | None = None, **options: Any
    ) -> DataLoader[Any]:
        trainer, workers = self.trainer, workers or unmeasured_workers(self.num_workers)
        pinned = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return specimen_loader(dataset, size or self.batch_size, workers.count, pin_memory=pinned, **options)


_NEEDED: dict[str, tuple[str, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


def _check(
    image_size: int, batch_size: int, num_workers: int | None, views: int | None, unlabelled_ratio: float
) -> None:
    values: Sequence[tuple[str, int, int]] = (
        ("image_size", image_size, 8),
        ("batch_size", batch_size, 1),
        ("num_workers", 0 if num_workers is None else num_workers, 0),
        ("views", 1 if views is None else views, 1),
    )
    findings = [
        Finding(f"--data.{name}", f"{value} is too small", f"Use at least {least}.")
        for name, value, least in values
        if value < least
    ]
    if not unlabelled_ratio > 0:
        findings.append(Finding("--data.unlabelled_ratio", f"{unlabelled_ratio} is not above 0", "Use for example 2."))
    if findings:
        raise ConfigError(findings)
