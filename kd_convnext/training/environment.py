"""Describes the packages and the machine of a run."""

import hashlib
import platform
import sys
from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from lightning.pytorch import Trainer

from kd_convnext._version import __version__
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.mixing import MixedDataset
from kd_convnext.modules.compiled_step import plan_compile
from kd_convnext.runs.division import DIVIDED, divided
from kd_convnext.training.changed import CROPS, UNLABELLED_CROPS
from kd_convnext.training.header import device_name

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "scikit-learn",
    "spandrel",
    "wandb",
)


def environment(trainer: Trainer) -> dict[str, object]:
    """Describes the machine and the library versions of a fit.

    Args:
        trainer: At the start of a fit.

    Returns:
        Start time, command, device, precision, how steps were planned to run, processes, Python, platform, versions of
        packages, a hash of the crops, and how photographs came into their parts.
    """
    asked = getattr(trainer.lightning_module, "compile_asked", None)
    versions = {"kd-convnext": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": device_name(trainer),
        "precision": trainer.precision,
        "steps": None if asked is None else str(plan_compile(asked, trainer)),
        "processes": trainer.world_size,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        **_crops(trainer),
        DIVIDED: _divided(trainer),
    }


def _divided(trainer: Trainer) -> dict[str, object] | None:
    data = getattr(trainer, "datamodule", None)
    return divided(data.manifest, data.split) if isinstance(data, SpecimenDataModule) else None


def _crops(trainer: Trainer) -> dict[str, object]:
    data = getattr(trainer, "datamodule", None)
    return hashed_crops(data) if isinstance(data, SpecimenDataModule) else {CROPS: None, UNLABELLED_CROPS: None}


def hashed_crops(data: SpecimenDataModule) -> dict[str, object]:
    """Hashes the names of the crops of a fit, which are hashes of what they show.

    Args:
        data: Set up for a fit.

    Returns:
        Hash of those of training and validation, and of those without labels, None where there are none.
    """
    rows = [*data.split.rows("train").tolist(), *data.split.rows("val").tolist()]
    names = [data.crops.keys[row] for row in rows if row in data.crops.keys]
    part, others = data.train_set, None
    if isinstance(part, MixedDataset):
        others = _hash(part.unlabelled.crops.key(row) for row in part.unlabelled.rows.tolist())
    return {CROPS: _hash(names), UNLABELLED_CROPS: others}


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
