"""Loads crops as tensors, one or a batch at a time."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.cache.prepared import Crops
from kd_convnext.data.loading.teacher_outputs import StoredTeacher
from kd_convnext.data.loading.views import Views


class Batch(TypedDict):
    """Batch that a loader yields. Stored outputs of a teacher of another name than ``teacher`` are under that name.

    Attributes:
        image: uint8 [B, C, H, W]; networks normalise on the device.
        label: int64 [B], positions in the class names; -1 for an image without a label.
        index: int64 [B], rows of the manifest; ``-1 - row`` for rows of the unlabelled manifest.
        teacher_logits: float16 [B, K], where the teacher's outputs are stored.
        teacher_maps: float16 [B, C, H, W] of each tapped stage, where they are stored.
        teacher_embedding: float16 [B, D], what the teacher's head sees, where it is stored.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    teacher_logits: NotRequired[Tensor]
    teacher_maps: NotRequired[list[Tensor]]
    teacher_embedding: NotRequired[Tensor]


class Sample(TypedDict):
    """One element of a batch: image uint8 [C, H, W], label and row of the manifest, and the teacher's outputs."""

    image: Tensor
    label: int
    index: int
    teacher_logits: NotRequired[Tensor]
    teacher_maps: NotRequired[list[Tensor]]
    teacher_embedding: NotRequired[Tensor]


class View(NamedTuple):
    """Selects a crop of a part, and one of its random views."""

    position: int
    seed: int


class Place(NamedTuple):
    """Locates a crop: its source, its row there, its label (-1 without), its ``index`` in a batch."""

    crops: Crops
    row: int
    label: int
    number: int


class SpecimenDataset(Dataset[Sample]):
    """The crops of one part.

    Attributes:
        rows: int64 [N], rows of the manifest.
        labels: int64 [N].
        shape: [C, H, W] of a picture.
        answers: Stored outputs by the name of their teacher, to be loaded with the views; None where all run live.
    """

    answers: Mapping[str, StoredTeacher] | None = None

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

    def place(self, position: int) -> Place:
        """Finds a crop.

        Args:
            position: 0..N-1.

        Returns:
            Where it comes from.
        """
        row = int(self.rows[position])
        return Place(self.crops, row, int(self.labels[position]), row)

    def seen_through(self, views: Views) -> "SpecimenDataset":
        """Returns the same crops as other pictures, without stored outputs.

        Args:
            views: How a crop becomes a picture.
        """
        other = copy(self)
        other.views, other.answers = views, None
        other.shape = (views.in_chans, views.image_size, views.image_size)
        return other

    def __getitem__(self, key: int | View) -> Sample:
        """Loads one crop.

        Args:
            key: A position in 0..N-1, or a position with the seed of a view; stored outputs come with views alone.
        """
        image = np.empty(self.shape, np.uint8)
        place = self._draw(key, image)
        sample: Sample = {"image": torch.from_numpy(image), "label": place.label, "index": place.number}
        if self.answers is not None and isinstance(key, View):
            sample.update(self._answer(self.answers, place, key.seed))  # type: ignore[typeddict-item]
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
        places = [self._draw(key, image) for key, image in zip(keys, images, strict=True)]
        numbers = np.array([(place.label, place.number) for place in places], np.int64).reshape(-1, 2)
        labels, index = (torch.from_numpy(column.copy()) for column in numbers.T)
        batch: Batch = {"image": torch.from_numpy(images), "label": labels, "index": index}
        if self.answers is not None and all(isinstance(key, View) for key in keys):
            seeds = [cast(View, key).seed for key in keys]
            said = [self._answer(self.answers, place, seed) for place, seed in zip(places, seeds, strict=True)]
            batch.update(default_collate(said))
        return batch

    def _draw(self, key: int | View, image: Pixels) -> Place:
        """Writes a picture into uint8 [C, H, W]; returns where its crop comes from."""
        position, seed = key if isinstance(key, View) else View(key, key)
        place = self.place(position)
        cv2.split(self.views(place.crops.load(place.row), seed), list(image))  # a sixth of NumPy's time
        return place

    def _answer(self, answers: Mapping[str, StoredTeacher], place: Place, seed: int) -> dict[str, Any]:
        key, found = place.crops.key(place.row), dict[str, Any]()
        for name, (store, shared) in answers.items():
            stored = store.load(key, seed if shared is None else shared)
            found[f"{name}_logits"] = torch.from_numpy(stored.logits)
            found[f"{name}_maps"] = [torch.from_numpy(values) for values in stored.maps]
            if stored.embedding is not None:
                found[f"{name}_embedding"] = torch.from_numpy(stored.embedding)
        return found
