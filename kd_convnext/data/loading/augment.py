"""Describes the augmentations of training photographs and builds them with albumentations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2

from kd_convnext.errors import ConfigError, Finding

if TYPE_CHECKING:
    import albumentations as A


@dataclass(frozen=True)
class AugmentSpec:
    """The random changes of training (paper, section 4.2); none is made in validation and test.

    Attributes:
        horizontal_flip: Probability in 0..1.
        vertical_flip: Probability in 0..1.
        crop: Up to this fraction of the crop is cut away, in 0..1; 0.1 in the paper.
        crop_of: Whether ``crop`` is a fraction of the ``area`` or of the ``side``.
        translate: Largest shift along x and along y, as a fraction of the side; 0.1 in the paper.
        border: What a shift brings into view: the ``reflect`` ed crop or ``black``.
        engine: Who makes the changes: ``albumentations``, or plain ``opencv``, equal in distribution and much faster.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    crop: float = 0.1
    crop_of: Literal["area", "side"] = "area"
    translate: float = 0.1
    border: Literal["reflect", "black"] = "reflect"
    engine: Literal["albumentations", "opencv"] = "albumentations"

    def __post_init__(self) -> None:
        """Refuses values that cannot work, all together."""
        findings = [
            Finding(f"augment.{name}", f"{getattr(self, name)} is outside {low}..{high}", "Use a value inside.")
            for name, low, high in (
                ("horizontal_flip", 0, 1),
                ("vertical_flip", 0, 1),
                ("crop", 0, 0.9),
                ("translate", 0, 0.9),
            )
            if not low <= getattr(self, name) <= high
        ]
        if findings:
            raise ConfigError(findings)


def _augmentations(spec: AugmentSpec, image_size: int) -> "A.Compose":
    # Seconds of import, which answering for one photograph does not need.
    import albumentations as A

    steps: list[A.BasicTransform] = []
    if spec.horizontal_flip:
        steps.append(A.HorizontalFlip(p=spec.horizontal_flip))
    if spec.vertical_flip:
        steps.append(A.VerticalFlip(p=spec.vertical_flip))
    if spec.translate:
        shift = (-spec.translate, spec.translate)
        border = cv2.BORDER_REFLECT_101 if spec.border == "reflect" else cv2.BORDER_CONSTANT
        steps.append(A.Affine(translate_percent={"x": shift, "y": shift}, border_mode=border, p=1.0))
    if spec.crop:
        kept = 1 - spec.crop if spec.crop_of == "area" else (1 - spec.crop) ** 2
        steps.append(
            A.RandomResizedCrop(
                (image_size, image_size),
                scale=(kept, 1.0),
                ratio=(1.0, 1.0),
                area_for_downscale="image",  # as validation and test are resized: no aliasing that only training sees
                p=1.0,
            )
        )
    return A.Compose(steps)
