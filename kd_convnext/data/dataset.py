"""Crops as tensors, and the order in which training sees them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from kd_convnext.data.prepared import Crops
from kd_convnext.data.teacher_answers import TeacherAnswers
from kd_convnext.data.transforms import Pixels, Views


class Batch(TypedDict):
    """What a loader yields.

    Attributes:
        image: uint8 [B, C, H, W]; networks normalise on the device.
        label: int64 [B], positions in the class names.
        index: int64 [B], rows of the manifest.
        teacher_logits: float16 [B, K], where the teacher's answers are stored.
        teacher_maps: float16 [B, C, H, W] of each tapped stage, where they are stored.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    teacher_logits: NotRequired[Tensor]
    teacher_maps: NotRequired[list[Tensor]]


class Sample(TypedDict):
    """One element of a batch: image uint8 [C, H, W], label and row of the manifest, and what the teacher said."""

    image: Tensor
    label: int
    index: int
    teacher_logits: NotRequired[Tensor]
    teacher_maps: NotRequired[list[Tensor]]


class View(NamedTuple):
    """Which crop of a part, and which of its random views."""

    position: int
    seed: int


class SpecimenDataset(Dataset[Sample]):
    """The crops of one part.

    Attributes:
        rows: int64 [N], rows of the manifest.
        shape: [C, H, W] of a picture.
        answers: What the teacher said about views, to be loaded with them; None where it is asked live.
    """

    answers: TeacherAnswers | None = None

    def __init__(self, crops: Crops, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], views: Views) -> None:
        """Binds the parts together.

        Args:
            crops: Where the crops come from.
            rows: int64 [N], the rows of this part.
            labels: int64 [M], labels of all rows of the manifest.
            views: How a crop becomes a picture.
        """
        self.crops = crops
        self.rows = rows
        self.labels = labels[rows]
        self.views = views
        self.shape = (views.in_chans, views.image_size, views.image_size)

    def __len__(self) -> int:
        """Returns N."""
        return len(self.rows)

    def __getitem__(self, key: int | View) -> Sample:
        """Loads one crop.

        Args:
            key: A position in 0..N-1, or a position with the seed of a view; stored answers come with views alone.
        """
        image = np.empty(self.shape, np.uint8)
        position, row = self._draw(key, image)
        sample: Sample = {"image": torch.from_numpy(image), "label": int(self.labels[position]), "index": row}
        if self.answers is not None and isinstance(key, View):
            sample["teacher_logits"], sample["teacher_maps"] = self._answer(self.answers, row, key.seed)
        return sample

    def batch(self, keys: Sequence[int | View], into: Pixels | None = None) -> Batch:
        """Loads several crops; the same as `__getitem__` and torch's `default_collate`, without their copies.

        Args:
            keys: As of `__getitem__`, B of them.
            into: uint8 [B, C, H, W], where the pictures are written; by default new memory.

        Returns:
            The batch; its ``image`` lies in ``into``.
        """
        images = np.empty((len(keys), *self.shape), np.uint8) if into is None else into
        drawn = [self._draw(key, image) for key, image in zip(keys, images, strict=True)]
        positions, rows = np.array(drawn, np.int64).reshape(-1, 2).T
        labels = torch.from_numpy(self.labels[positions].astype(np.int64))
        batch: Batch = {"image": torch.from_numpy(images), "label": labels, "index": torch.from_numpy(rows.copy())}
        if self.answers is not None and all(isinstance(key, View) for key in keys):
            seeds = [cast(View, key).seed for key in keys]
            said = [self._answer(self.answers, row, seed) for row, seed in zip(rows.tolist(), seeds, strict=True)]
            batch["teacher_logits"], batch["teacher_maps"] = default_collate(said)
        return batch

    def _draw(self, key: int | View, image: Pixels) -> tuple[int, int]:
        """Writes a picture into uint8 [C, H, W]; returns its position and its row of the manifest."""
        position, seed = key if isinstance(key, View) else View(key, key)
        row = int(self.rows[position])
        cv2.split(self.views(self.crops.load(row), seed), list(image))  # a sixth of NumPy's time
        return position, row

    def _answer(self, answers: TeacherAnswers, row: int, seed: int) -> tuple[Tensor, list[Tensor]]:
        logits, maps = answers.load(self.crops.key(row), seed)
        return torch.from_numpy(logits), [torch.from_numpy(values) for values in maps]


def view_seeds(seed: int, rows: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Names a limited number of views of each crop.

    Args:
        seed: Decides all of them.
        rows: int64 [N], rows of the manifest: the same views whatever the split.
        numbers: int64 [N], which view of each.

    Returns:
        int64 [N] in 0..2**32-1.
    """
    mixed = pd.util.hash_array(np.full(len(rows), seed, np.uint64))
    for values in (rows, numbers):
        mixed = pd.util.hash_array(mixed + values.astype(np.uint64))
    return (mixed >> np.uint64(32)).astype(np.int64)


class ViewSampler(DistributedSampler[View]):
    """Shuffles (or balances) training, and names the view of every crop.

    Order and views depend on the seed and the epoch alone, not on workers or on where a run was resumed. A subclass of
    the distributed sampler, so that Lightning sets its epoch and does not wrap it again.
    """

    def __init__(
        self,
        dataset: SpecimenDataset,
        *,
        seed: int,
        class_balanced: bool = False,
        views: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Prepares the draw.

        Args:
            dataset: The training part.
            seed: Decides order and views.
            class_balanced: Draw with replacement, every class equally often; else each crop once an epoch.
            views: How many views there are of each crop: one an epoch in turn, or by chance where classes are
                balanced. None for new ones in every epoch.
            num_replicas: Processes that share an epoch.
            rank: This process, 0..num_replicas-1.
        """
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.rows, self.views = dataset.rows, views
        self.weights: Tensor | None = None
        if class_balanced:
            counts = np.bincount(dataset.labels)
            self.weights = torch.from_numpy(1.0 / counts[dataset.labels])

    def __iter__(self) -> Iterator[View]:
        """Yields this process's share of the epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        count = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is None:
            order = torch.randperm(count, generator=generator)
        else:
            order = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        order = order.repeat(-(-self.total_size // count))[: self.total_size]
        # Drawn for the whole epoch, so that the views do not depend on the number of processes.
        seeds = torch.randint(2**32, (self.total_size,), generator=generator)
        if self.views is not None:
            numbers = torch.full_like(order, self.epoch) if self.weights is None else seeds
            seeds = torch.from_numpy(view_seeds(self.seed, self.rows[order], (numbers % self.views).numpy()))
        mine = slice(self.rank, self.total_size, self.num_replicas)
        return map(View, order[mine].tolist(), seeds[mine].tolist())
