"""Augments each view of a crop by the paper's pipeline, reproducibly from the view's seed."""

import random
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.loading.augment import AugmentSpec, built_transforms, paper_pipeline
from kd_convnext.data.loading.augment_opencv import augmented
from kd_convnext.data.loading.augment_photographs import photographed


class Views:
    """Turns a stored crop into the picture a network sees.

    Attributes:
        image_size: Side of the result in pixels.
        in_chans: Channels of the result, 1 or 3.
    """

    def __init__(
        self,
        image_size: int,
        in_chans: int,
        augment: AugmentSpec | None = None,
        resize: Literal["stretch", "pad"] = "stretch",
    ) -> None:
        """Composes the steps.

        Args:
            image_size: Side of the square result in pixels.
            in_chans: 3 for RGB, 1 for luminance.
            augment: The random changes; ``None`` for validation and test.
            resize: How crops that were kept whole (``store_size: null``) become square, as `CropSpec.resize`.
        """
        self.image_size = image_size
        self.in_chans = in_chans
        self.resize = resize
        self.random = augment is not None
        self._spec = augment
        self._further = built_transforms(augment.transforms) if augment and augment.transforms else None
        self._augment = paper_pipeline(augment, image_size) if augment and augment.engine == "albumentations" else None

    def at(self, image_size: int) -> "Views":
        """Draws the same views at another size.

        Args:
            image_size: Side of the result in pixels.
        """
        return Views(image_size, self.in_chans, self._spec, self.resize)

    def identity(self) -> dict[str, Any]:
        """Returns, as plain values, all that decides which picture a crop and a seed give."""
        engine = self._spec.engine if self._spec else "opencv"
        drawn_by = {"opencv": cv2.__version__, "numpy": np.__version__}
        if engine == "albumentations" or self._further is not None:
            drawn_by["albumentations"] = version("albumentations")
        augment = asdict(self._spec) if self._spec else None
        for name in ("photograph", "transforms"):
            if augment and augment[name] is None:
                del augment[name]  # named as before there were any: what is stored stays valid
        if augment and "photograph" in augment and not augment["photograph"]["scale"]:
            del augment["photograph"]["scale"]
        if augment and "photograph" in augment and augment["border"] == "black":
            drawn_by["turned"] = "black"  # earlier versions reflected the crop there
        sizes = {"image_size": self.image_size, "in_chans": self.in_chans, "resize": self.resize}
        return {**sizes, "augment": augment, "drawn_by": drawn_by}

    def __call__(self, crop: Pixels, seed: int) -> Pixels:
        """Draws one view.

        Args:
            crop: uint8 [h, w, 3].
            seed: Decides the draw: equal seeds give equal views, in whatever process or order.

        Returns:
            uint8 [image_size, image_size, in_chans].
        """
        crop = _squared(crop, self.resize)
        if self._further is not None:
            self._further.set_random_state(np.random.default_rng((seed, 2)), random.Random(seed))
            crop = np.asarray(self._further(image=crop)["image"], dtype=np.uint8)
        if self._spec is not None and self._spec.photograph is not None:
            crop = photographed(crop, self._spec.photograph, seed, reflect=self._spec.border == "reflect")
        if self._augment is not None:
            # Not `set_random_seed`: it gives every step the same draw, so that flips would only come in pairs.
            self._augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
            crop = np.asarray(self._augment(image=crop)["image"], dtype=np.uint8)
        elif self._spec is not None:
            crop = augmented(crop, self._spec, self.image_size, seed)
        return still_view(crop, self.image_size, self.in_chans, self.resize)


def still_view(crop: Pixels, image_size: int, in_chans: int, resize: Literal["stretch", "pad"] = "stretch") -> Pixels:
    """Brings a crop to the size and channels of a network, as validation, test and new photographs are seen.

    Args:
        crop: uint8 RGB [h, w, 3].
        image_size: Side of the square result in pixels.
        in_chans: 3 for RGB, 1 for luminance.
        resize: How crops that were kept whole (``store_size: null``) become square, as `CropSpec.resize`.

    Returns:
        uint8 [image_size, image_size, in_chans].
    """
    picture = _squared(crop, resize)
    if picture.shape[0] != image_size:
        picture = np.asarray(cv2.resize(picture, (image_size,) * 2, interpolation=cv2.INTER_AREA), np.uint8)
    if in_chans == 1:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)
    return picture.reshape(image_size, image_size, in_chans)


def _squared(crop: Pixels, resize: Literal["stretch", "pad"]) -> Pixels:
    """Makes crops kept whole (`store_size: null`) square: of others a square window would cut more than asked."""
    height, width = crop.shape[:2]
    side = max(height, width)
    if height == width:
        return crop
    if resize == "stretch":
        return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    edges = (top, side - height - top, left, side - width - left)
    return np.asarray(cv2.copyMakeBorder(crop, *edges, cv2.BORDER_CONSTANT, value=0), np.uint8)
