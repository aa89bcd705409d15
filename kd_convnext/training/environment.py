"""Describes the packages and the machine of a run."""

import hashlib
import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from lightning.pytorch import Trainer

from kd_convnext._version import __version__
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.modules.compiled_step import plan_compile
from kd_convnext.runs.division import DIVIDED, divided
from kd_convnext.training.changed import CROPS
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
        CROPS: _crops(trainer),
        DIVIDED: _divided(trainer),
    }


def _divided(trainer: Trainer) -> dict[str, object] | None:
    data = getattr(trainer, "datamodule", None)
    return divided(data.manifest, data.split) if isinstance(data, SpecimenDataModule) else None


def _crops(trainer: Trainer) -> str | None:
    """Hashes the names of the crops of training and validation, which are hashes of what they show."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SpecimenDataModule):
        return None
    rows = [*data.split.rows("train").tolist(), *data.split.rows("val").tolist()]
    names = sorted(data.crops.keys[row] for row in rows if row in data.crops.keys)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
