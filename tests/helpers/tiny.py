"""The smallest networks and settings that still have four stages."""

import lightning.pytorch as pl

from kd_convnext import DistillModule, SpecimenDataModule, TeacherModule
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.loading.flat_options import grouped
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.manifest.splits import SplitSpec
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules.optim import OptimSpec

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}
SWIN_SPEC = BackboneSpec(name="swin_tiny_patch4_window7_224", image_size=32, args=SWIN)
CONVNEXT_SPEC = BackboneSpec(name="convnext_tiny", image_size=32, args=CONVNEXT)


def data(manifest, cache, **options) -> SpecimenDataModule:
    """Builds a data module; fields of its groups may be named flat."""
    settings = {
        "ratios": (0.5, 0.25, 0.25),
        "upscaler": "bicubic",
        "store_size": 40,
        "image_size": 32,
        "batch_size": 8,
        "num_workers": 0,
    }
    found = grouped({**settings, **options})
    for name, kind in {"crops": CropSpec, "split": SplitSpec, "loader": LoaderSpec}.items():
        found[name] = kind(**found[name])
    return SpecimenDataModule(str(manifest), cache_dir=cache, **found)


def teacher(source: SpecimenDataModule, **options) -> TeacherModule:
    pl.seed_everything(1, verbose=False)
    settings = {"backbone": SWIN_SPEC, "optim": OptimSpec(lr=1e-3), **options}
    return TeacherModule(source.num_classes, class_weights=source.class_weights, **settings)


def student(source: SpecimenDataModule, teacher_ckpt=None, **options) -> DistillModule:
    pl.seed_everything(1, verbose=False)
    known = {"class_weights": source.class_weights, "class_counts": source.class_counts}
    settings = {"student": CONVNEXT_SPEC, "optim": OptimSpec(lr=1e-3), **known, **options}
    ckpt = None if teacher_ckpt is None else str(teacher_ckpt)
    return DistillModule(source.num_classes, teacher_ckpt=ckpt, **settings)


def trainer(folder, epochs=1, **options) -> pl.Trainer:
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=str(folder), max_epochs=epochs, **{**settings, **options})
