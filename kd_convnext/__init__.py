"""Photographs of surgical specimens to a small, trustworthy classifier, by knowledge distillation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kd_convnext._version import __version__

if TYPE_CHECKING:
    from kd_convnext.common.process import quiet_libraries
    from kd_convnext.data.crops.spec import CropSpec
    from kd_convnext.data.loading.augment import AugmentSpec
    from kd_convnext.data.loading.datamodule import SpecimenDataModule
    from kd_convnext.data.loading.spec import LoaderSpec
    from kd_convnext.data.manifest.splits import SplitSpec
    from kd_convnext.inference.predictor import Predictor
    from kd_convnext.losses import Eq5, Objective
    from kd_convnext.modules.student import DistillModule
    from kd_convnext.modules.teacher import TeacherModule

# torch, timm and lightning cost seconds of import: each public name is loaded when it is first used.
_LAZY = {
    "SpecimenDataModule": "kd_convnext.data.loading.datamodule",
    "AugmentSpec": "kd_convnext.data.loading.augment",
    "CropSpec": "kd_convnext.data.crops.spec",
    "LoaderSpec": "kd_convnext.data.loading.spec",
    "SplitSpec": "kd_convnext.data.manifest.splits",
    "TeacherModule": "kd_convnext.modules.teacher",
    "DistillModule": "kd_convnext.modules.student",
    "Eq5": "kd_convnext.losses",
    "Objective": "kd_convnext.losses",
    "Predictor": "kd_convnext.inference.predictor",
    "quiet_libraries": "kd_convnext.common.process",
}

__all__ = [
    "AugmentSpec",
    "CropSpec",
    "DistillModule",
    "Eq5",
    "LoaderSpec",
    "Objective",
    "Predictor",
    "SpecimenDataModule",
    "SplitSpec",
    "TeacherModule",
    "__version__",
    "quiet_libraries",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """Lists the public names, loaded or not."""
    return sorted(__all__)
