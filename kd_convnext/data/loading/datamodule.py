"""Loads manifest, split, crops and batches in one LightningDataModule."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from kd_convnext.common.console import say
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.prepared import Crops, PreparedCrops
from kd_convnext.data.crops.spec import CropSpec, UpscalerChoice
from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.card import DataCard, Groups, regions_of, salted
from kd_convnext.data.loading.class_weights import class_counts, inverse_frequency
from kd_convnext.data.loading.crop_source import fill_crops, open_cache, packed_crops
from kd_convnext.data.loading.dataset import SpecimenDataset, View
from kd_convnext.data.loading.flat_options import with_flat
from kd_convnext.data.loading.loader import specimen_loader
from kd_convnext.data.loading.mixing import MixedDataset, drops_last, often_drawn, training_sampler
from kd_convnext.data.loading.spec import LoaderSpec, check_sizes
from kd_convnext.data.loading.teacher_outputs import StoredTeacher
from kd_convnext.data.loading.unlabelled import (
    Unlabelled,
    read_unlabelled,
    read_without_labels,
    refuse_judged,
    unlabelled_set,
)
from kd_convnext.data.loading.views import Views
from kd_convnext.data.loading.workers import Workers, unmeasured_workers
from kd_convnext.data.manifest.grouping import KEPT_APART, Part, group_hashes
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.splits import Split, SplitSpec
from kd_convnext.errors import Finding, ManifestError

_CROPS, _SPLIT, _LOADER = CropSpec(), SplitSpec(), LoaderSpec()


class SpecimenDataModule(pl.LightningDataModule):
    """Loads batches ``{image, label, index}`` from photographs and a manifest: checks, crops, splits, augments.

    ``image`` is uint8 [B, C, H, W]: networks normalise on the device. Crops are made once, into the cache.

    Attributes:
        manifest: The checked manifest (read on first use).
        split: Which row belongs to which part (made on first use).
        crops: The stored crops, after ``setup``.
        workers: Loader processes of the last fit, and why so many.

    Examples:
        >>> from pathlib import Path
        >>> from kd_convnext.data.drawn.specimens import draw_specimens
        >>> manifest = draw_specimens(Path("drawn"), seed=0, lesions_per_class={"AIS": 4, "MIA": 4}, progress=False)
        >>> spec = CropSpec(upscaler="bicubic", store_size=64)
        >>> split = SplitSpec(ratios=(0.5, 0.25, 0.25))
        >>> options = {"cache_dir": "crops", "image_size": 64, "batch_size": 4, "loader": LoaderSpec(num_workers=0)}
        >>> data = SpecimenDataModule(str(manifest), crops=spec, split=split, **options)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["image"].shape
        torch.Size([4, 3, 64, 64])
    """

    crops: PreparedCrops

    def __init__(
        self,
        manifest: str,
        classes: list[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        columns: str | None = None,
        labels: Literal["read", "ignore"] = "read",
        cache_dir: str | None = None,
        sr_weights: str | None = None,
        upscaler: UpscalerChoice | None = None,
        crops: CropSpec = _CROPS,
        split: SplitSpec = _SPLIT,
        image_size: int = 224,
        in_chans: Literal[1, 3] = 3,
        augment: AugmentSpec | None = None,
        unlabelled: str | None = None,
        unlabelled_columns: str | None = None,
        batch_size: int = 32,
        loader: LoaderSpec = _LOADER,
        predict_part: Literal["all", "train", "val", "test"] = "all",
        allow_leak: bool = False,
        **flat: Any,
    ) -> None:
        """Describes the data; nothing is read yet.

        Args:
            manifest: CSV file, or folder of class folders.
            classes: Class names in the order of the outputs; by default the paper's order or the alphabet's.
            on_error: Whether an unreadable photograph stops everything (``raise``) or is left out, counted and listed.
            columns: Other names of the manifest's columns: ``image=file,label=diagnosis``.
            labels: ``ignore`` for a student that learns a teacher's features alone: the manifest needs no labels, those
                it has are not used, and every photograph is of one class, ``unlabelled``.
            cache_dir: Where crops are stored; by default ``$KD_CONVNEXT_CACHE``, else ``~/.cache/kd-convnext``.
            sr_weights: Real-ESRGAN weights, a file or the name of an official release; holds over ``crops.sr_weights``.
            upscaler: How crops are enlarged; holds over ``crops.upscaler``.
            crops: How a region of interest becomes a stored picture.
            split: How the manifest is divided into training, validation and test.
            image_size: Side of the network's input in pixels.
            in_chans: 3 for colour, 1 for grey.
            augment: The random changes of training; by default the paper's.
            unlabelled: Photographs without labels for a teacher to answer for: a manifest, or a folder. None of their
                lesions, patients or files may be in validation or test.
            unlabelled_columns: Other names of the columns of ``unlabelled``: ``image=file``.
            batch_size: Images a batch and process.
            loader: How batches are loaded: loader processes, order, views, sampling, packed crops.
            predict_part: What ``predict`` answers for.
            allow_leak: Go on where lesions of a judged part were in training of the network or its teacher.
            **flat: Fields of ``crops``, ``split`` and ``loader`` by their names of before (``store_size``, ``ratios``,
                ``split_seed``, ``num_workers``), read with a warning.

        Raises:
            ConfigError: A value that cannot work.
            TypeError: An argument of no name above.
        """
        super().__init__()
        crops, split, loader = with_flat(flat, crops, split, loader)
        check_sizes(image_size, batch_size)
        self.path, self.classes, self.on_error, self.columns = manifest, classes, on_error, columns
        self.ignores_labels, self.cache_dir = labels == "ignore", cache_dir
        self.crop_spec = crops.with_upscaler(upscaler, sr_weights)
        self.split_spec, self.loader = split, loader
        self.image_size, self.in_chans, self.augment = image_size, in_chans, augment or AugmentSpec()
        self.batch_size = batch_size
        self.unlabelled_path, self.unlabelled_columns = unlabelled, unlabelled_columns
        self.workers = unmeasured_workers(loader.num_workers)
        self._measure: Callable[[Iterable[View]], Workers] | None = None
        self.predict_part, self.allow_leak = predict_part, allow_leak
        self._unlabelled_leak, self._left_out = False, cast(str | None, None)
        self._sets: dict[str, SpecimenDataset] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read and checked on first use.

        Raises:
            ManifestError: With every problem found.
        """
        options: dict[str, Any] = {"on_error": self.on_error, "columns": self.columns}
        options["group_by"] = self.split_spec.group_by
        if self.ignores_labels:
            return read_without_labels(self.path, **options)
        return read_manifest(self.path, classes=self.classes, **options)

    @cached_property
    def split(self) -> Split:
        """The division into parts, made on first use.

        Raises:
            SplitError: It cannot be made as asked.
        """
        return self.split_spec.apply(self.manifest)

    @cached_property
    def unlabelled(self) -> Unlabelled | None:
        """The photographs without labels, read on first use; None where none are given.

        Raises:
            ManifestError: They cannot be read.
        """
        path = self.unlabelled_path
        return None if path is None else read_unlabelled(path, self.unlabelled_columns)

    @property
    def train_set(self) -> SpecimenDataset:
        """The training part, after ``setup("fit")``."""
        return self._part("train")

    @property
    def val_set(self) -> SpecimenDataset:
        """The validation part, after ``setup("fit")`` or ``setup("validate")``."""
        return self._part("val")

    @property
    def test_set(self) -> SpecimenDataset:
        """The test part, after ``setup("test")``."""
        return self._part("test")

    @property
    def predict_set(self) -> SpecimenDataset:
        """The rows of ``predict_part``, after ``setup("predict")``."""
        return self._part("predict")

    def _part(self, name: str) -> SpecimenDataset:
        if name not in self._sets:
            raise AttributeError(f"there is no {name} part before setup()")
        return self._sets[name]

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
        return inverse_frequency(self.class_counts)

    @property
    def class_counts(self) -> list[int]:
        """Images of each class that training uses; 1 each where it has none (photographs to be judged only)."""
        return class_counts(self.manifest.labels[self.used("train")], self.num_classes)

    def used(self, part: Part) -> npt.NDArray[np.int64]:
        """Returns the rows of a part, int64 [N]; what cannot be read is known, and left out, after ``setup``."""
        rows = self.split.rows(part)
        return self.crops.made(rows) if hasattr(self, "crops") else rows

    @isolate_rng()  # what a network that enlarges crops draws is not drawn where they are made already
    def setup(self, stage: str) -> None:
        """Makes the missing crops of the parts that a stage needs, and its datasets.

        Under several processes each makes its share.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            KDConvNeXtError: The data cannot be used; every problem found is named.
        """
        rows = {name: self._rows(name) for name in _NEEDED[stage] if name not in self._sets}
        if not rows:
            return
        if "train" in rows and self.unlabelled is not None:  # before crops are made, which takes long
            judged = np.concatenate([self.split.rows("val"), self.split.rows("test")])
            by, allow = self.split_spec.group_by, self.allow_leak
            folder = Path(self.trainer.default_root_dir if self.trainer else ".")
            self._unlabelled_leak = refuse_judged(
                self.unlabelled, self.manifest, judged, by, allow=allow, folder=folder
            )
        crops = self._fill(np.unique(np.concatenate(list(rows.values()))))
        labels = self.manifest.labels
        still = Views(self.image_size, self.in_chans, resize=self.crop_spec.resize)
        moving = Views(self.image_size, self.in_chans, self.augment, self.crop_spec.resize)
        for name, wanted in rows.items():
            kept = self.crops.made(wanted)
            if not len(kept):
                remedy = "Check the ratios, the `split` column, and the photographs."
                raise ManifestError(Finding(self.path, f"the {name} part is empty", remedy))
            views = moving if name == "train" else still
            self._sets[name] = SpecimenDataset(crops, kept, labels, views)
        if "train" in rows and self.unlabelled is not None and self.loader.unlabelled_ratio:
            self.unlabelled, others = unlabelled_set(self.unlabelled, self._cache(), moving, self.trainer)
            self._sets["train"] = both = MixedDataset(self.train_set, others)
            if self.trainer and (told := often_drawn(both, self.loader, self.batch_size)):
                say(self.trainer, f"Warning: {told}")

    def use_unlabelled(self, *, wanted: bool) -> None:
        """Uses the photographs without labels in the fit to come, or leaves them out: no teacher answers for them."""
        if (self._left_out if wanted else self.unlabelled_path) is None:
            return
        self.unlabelled_path, self._left_out, self._unlabelled_leak = self._left_out, self.unlabelled_path, False
        vars(self).pop("unlabelled", None)
        if self._sets.pop("train", None) is not None:
            self.setup("fit")

    def measure_workers(self, measure: Callable[[Iterable[View]], Workers]) -> None:
        """Takes a measurement of the loader processes a fit needs, run once when its training loader is built.

        Args:
            measure: From the views that will be loaded to the choice; unused where ``num_workers`` is given.
        """
        self._measure = measure if self.loader.num_workers is None else None

    def teach(self, answers: Mapping[str, StoredTeacher] | None) -> None:
        """Loads stored outputs of teachers with the training views.

        Args:
            answers: By the teacher's name; None for no more.
        """
        self.train_set.answers = answers

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns shuffled, augmented training batches; a last batch of a few is dropped."""
        trainer, part = self.trainer, self.train_set
        ranks: dict[str, Any] = {"num_replicas": trainer.world_size, "rank": trainer.global_rank} if trainer else {}
        sampler, size = training_sampler(part, self.loader, self.batch_size, **ranks)
        if len(sampler) < 2:
            remedy = "Give more photographs, or larger ratios for training; a step compares several at once."
            raise ManifestError(Finding(self.path, "the training part has one photograph for each process", remedy))
        if trainer and trainer.training and self._measure:
            self.workers, self._measure = self._measure(sampler), None
        return self._loader(part, self.workers, size, sampler=sampler, drop_last=drops_last(sampler, self.batch_size))

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Returns the validation part in order; nothing in a fit that ignores the labels it would be judged by."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.ignores_labels:
            return []
        return self._loader(self.val_set, self.workers if fitting else None)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the test part in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Returns the rows of ``predict_part`` in order."""
        return self._loader(self.predict_set)

    def view_loader(self, views: Sequence[View], drawn: Views | None = None) -> DataLoader[Any]:
        """Returns batches of chosen views of the training part, labelled or not, in their order.

        Args:
            views: Which.
            drawn: How crops become pictures; as in the training where None.
        """
        part = self.train_set
        return self._loader(part if drawn is None else part.seen_through(drawn), sampler=views)

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
        kinds = KEPT_APART[self.split_spec.group_by] if own else KEPT_APART["known"]
        rows = self.split.rows(part)
        return card.shared(group_hashes(self.manifest.table, rows, kinds, as_written=True, unlabelled=not own))

    def card(self) -> DataCard:
        """Describes data and split for a checkpoint trained on them."""
        rows = self.used("train")
        seen = group_hashes(self.manifest.table, rows)
        if self.unlabelled is not None:
            seen = np.union1d(seen, self.unlabelled.groups(self.manifest))
        return DataCard(
            class_names=self.manifest.class_names,
            image_size=self.image_size,
            in_chans=self.in_chans,
            crop=self.crop_spec.to_dict(),
            crop_identity=self.crop_spec.identity(),
            split_hash=self.split.hash,
            group_by=self.split_spec.group_by,
            seen_groups=salted(seen, self.split.hash),
            leak_allowed=self.unlabelled is not None and self._unlabelled_leak,
            salt=self.split.hash,
            regions=regions_of(self.manifest.table.iloc[rows]),
        )

    def _rows(self, name: str) -> npt.NDArray[np.int64]:
        part = self.predict_part if name == "predict" else cast(Part, name)
        if part == "all":
            return np.arange(len(self.manifest.table), dtype=np.int64)
        return self.split.rows(part)

    def _cache(self) -> CropCache:
        cache = open_cache(self.cache_dir, self.crop_spec, self.trainer)
        self.crop_spec = cache.spec
        return cache

    def _fill(self, rows: npt.NDArray[np.int64]) -> Crops:
        """Makes sure that rows can be loaded; returns where from."""
        if self.loader.packed:
            # Packed whole, so that all repeats of the split share the file.
            rows = np.arange(len(self.manifest.table), dtype=np.int64)
        cache, on_miss, earlier = self._cache(), self.loader.on_miss, getattr(self, "crops", None)
        self.crops = fill_crops(
            cache, self.manifest, rows, self.trainer, on_error=self.on_error, on_miss=on_miss, earlier=earlier
        )
        return packed_crops(self.crops, self.trainer) if self.loader.packed else self.crops

    def _loader(
        self, dataset: SpecimenDataset, workers: Workers | None = None, size: int | None = None, **options: Any
    ) -> DataLoader[Any]:
        trainer, workers = self.trainer, workers or unmeasured_workers(self.loader.num_workers)
        pinned = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return specimen_loader(dataset, size or self.batch_size, workers.count, pin_memory=pinned, **options)


_Parts = tuple[str, ...]
_NEEDED: dict[str, _Parts] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
