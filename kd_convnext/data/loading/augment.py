"""Describes the augmentations of training photographs and builds them with albumentations."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2

from kd_convnext.data.loading.augment_photographs import PhotographSpec
from kd_convnext.errors import ConfigError, Finding

if TYPE_CHECKING:
    import albumentations as A


@dataclass(frozen=True)
class AugmentSpec:
    """Describes the random augmentation of training (paper, section 4.2); validation and test have none.

    Attributes:
        horizontal_flip: Probability in 0..1.
        vertical_flip: Probability in 0..1.
        crop: Up to this fraction of the crop is cut away, in 0..1; 0.1 in the paper.
        crop_of: Whether ``crop`` is a fraction of the ``area`` or of the ``side``.
        translate: Largest shift along x and along y, as a fraction of the side; 0.1 in the paper.
        border: What a shift or turn brings into view: the ``reflect`` ed crop or ``black``.
        photograph: Further changes as between two photographs of one specimen; None for none, as in the paper.
        transforms: Further albumentations transforms, in this order, each ``{class_path: albumentations.NAME,
            init_args: {...}}``; they see the crop first.
        engine: Library that makes the changes: ``albumentations`` or ``opencv``, alike in distribution, much faster.

    Examples:
        >>> AugmentSpec(crop=0.2, engine="opencv").vertical_flip
        0.5
        >>> AugmentSpec(crop=2)
        Traceback (most recent call last):
        ...
        kd_convnext.errors.ConfigError: augment.crop: 2 is outside 0..0.9. Use a value inside.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    crop: float = 0.1
    crop_of: Literal["area", "side"] = "area"
    translate: float = 0.1
    border: Literal["reflect", "black"] = "reflect"
    engine: Literal["albumentations", "opencv"] = "albumentations"
    photograph: PhotographSpec | None = None
    transforms: list[dict[str, Any]] | None = None

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


def paper_pipeline(spec: AugmentSpec, image_size: int) -> "A.Compose":
    """Builds flips, shift and window with albumentations.

    Args:
        spec: What may change, and how much.
        image_size: Side of the result in pixels.

    Returns:
        From uint8 RGB [N, N, 3] to [image_size, image_size, 3].
    """
    _no_questions()
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


def built_transforms(described: Sequence[Mapping[str, Any]]) -> "A.Compose":
    """Builds albumentations transforms from their descriptions.

    Args:
        described: ``{class_path: albumentations.NAME, init_args: {...}}`` each; ``transforms`` among the arguments
            (of ``OneOf``, ``Compose``) are described alike.

    Returns:
        All of them, one after the other.

    Raises:
        ConfigError: A name is no transform of albumentations, or its arguments do not suit it.
    """
    _no_questions()
    import albumentations as A

    return A.Compose([_transform(each) for each in described])


def _no_questions() -> None:
    """Keeps albumentations from asking the network for its newest version when it is imported."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def _transform(described: Mapping[str, Any]) -> "A.BasicTransform | A.BaseCompose":
    import albumentations as A

    path, where = str(described.get("class_path", "")), "augment.transforms"
    package, _, name = path.rpartition(".")
    kind = getattr(A, name, None) if package == "albumentations" else None
    # Nothing but transforms: a description comes from a file that may be a stranger's.
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
        remedy = "Write for example class_path: albumentations.GridDropout."
        raise ConfigError(Finding(where, f"{path or described!r} is no transform of albumentations", remedy))
    arguments = dict(described.get("init_args") or {})
    if "transforms" in arguments:
        arguments["transforms"] = [_transform(each) for each in arguments["transforms"]]
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        raise ConfigError(Finding(f"{where} {path}", what, "See the documentation of albumentations.")) from error
