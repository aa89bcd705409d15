"""Crops as tensors, and the order in which training sees them."""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.cache.prepared import Crops
from kd_convnext.data.loading.teacher_outputs import TeacherAnswers
from kd_convnext.data.loading.views import Views


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
