"""Fits the networks of the demo: a teacher that has seen many lesions, and students that have seen few."""

from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.judged import data_name
from kd_convnext.tools.demo_sets import DrawnSets

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from kd_convnext.data.loading.datamodule import SpecimenDataModule
    from kd_convnext.losses.objective import Objective
    from kd_convnext.modules.classifier import ClassifierModule

Method = Literal["teacher", "alone", "paper", "best"]

METHODS: dict[Method, str] = {
    "teacher": "Swin (teacher)",
    "alone": "ConvNeXt alone",
    "paper": "KD_ConvNeXt (Eq. 5)",
    "best": "KD_ConvNeXt, best recipe",
}
"""The rows of the table."""

SWIN: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4}
CONVNEXT: dict[str, Any] = {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 160], "ls_init_value": 1.0}
"""Arguments of timm's networks that have shipped weights: a Swin and a ConvNeXt of about a million parameters."""

STUDENT: dict[str, Any] = {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128], "ls_init_value": 1.0}
"""Arguments of the students, which start from scratch."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes that let two CPU cores finish in minutes.

    Attributes:
        image_size: Side of the networks' input in pixels.
        store_size: Side of the stored crops in pixels.
        sr_max_side: Crops are first reduced to this many pixels, so that super-resolution is quick.
        batch_size: Labelled images a step.
        unlabelled_ratio: Unlabelled images for each labelled one, in the best recipe.
        views: Views of a crop that the teacher answers for, in the best recipe.
        teacher_epochs: Epochs of the teacher, the first of them its head alone.
        epochs: Epochs of each student, by its labelled images.
        judged_every: Epochs of a student from one validation to the next.
        teacher_lr: Largest learning rate of the teacher.
        lr: Largest learning rate of all students.
        weight_decay: Of all networks.
        ema_decay: Of the averaged weights of the best recipe, a step.
    """

    image_size: int = 64
    store_size: int = 72
    sr_max_side: int = 48
    batch_size: int = 16
    unlabelled_ratio: float = 2.0
    views: int = 16
    teacher_epochs: int = 8
    epochs: int = 48
    judged_every: int = 4
    teacher_lr: float = 5e-4
    lr: float = 2e-3
    weight_decay: float = 0.05
    ema_decay: float = 0.98


class DemoFits:
    """Fits and tests one network after another in the folders ``teacher``, ``alone-0``, ``paper-0``, ..."""

    def __init__(self, folder: Path, sets: DrawnSets, settings: DemoSettings) -> None:
        """Takes where and what from.

        Args:
            folder: Of the demo.
            sets: The drawn photographs.
            settings: Sizes and epochs.
        """
        self.folder, self.sets, self.settings = folder, sets, settings

    def run_of(self, method: Method, seed: int) -> RunFolder:
        """Returns the folder of a network; the teacher is the same for all seeds."""
        return RunFolder(self.folder / (method if method == "teacher" else f"{method}-{seed}"))

    def tested(self, method: Method, seed: int) -> RunFolder:
        """Returns the folder of a network's test; the teacher is tested on other photographs than it was fitted on."""
        run = self.run_of(method, seed)
        return RunFolder(run.external / data_name(str(self.sets.labelled))) if method == "teacher" else run

    def done(self, method: Method, seed: int) -> bool:
        """Tells whether a network was fitted and tested before; its predictions are written last."""
        return self.tested(method, seed).predictions.is_file()

    def train(self, method: Method, seed: int) -> None:
        """Fits one network and tests its best checkpoint on the labelled set's test part.

        Args:
            method: Which.
            seed: Decides start weights, order and augmentation of a student.

        Raises:
            KDConvNeXtError: The data or a checkpoint cannot be used.
        """
        import lightning.pytorch as pl

        pl.seed_everything(seed, verbose=False)
        run, students = self.run_of(method, seed), self.data("alone", seed)
        data = students if method in ("alone", "paper") else self.data(method, seed)
        trainer = self._trainer(run, method)
        with as_file(files("kd_convnext") / "assets") as assets:
            module = self._module(method, seed, data, assets)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=students, ckpt_path=str(run.best), verbose=False)

    def data(self, method: Method, seed: int) -> "SpecimenDataModule":
        """Describes the photographs a network learns from.

        Args:
            method: Which network.
            seed: Decides order and augmentation.
        """
        from kd_convnext.data.crops.spec import CropSpec
        from kd_convnext.data.loading.augment import AugmentSpec
        from kd_convnext.data.loading.datamodule import SpecimenDataModule
        from kd_convnext.data.loading.spec import LoaderSpec
        from kd_convnext.data.manifest.splits import SplitSpec

        settings, best = self.settings, method == "best"
        loader = LoaderSpec(
            num_workers=0,
            seed=seed,
            sampling="square_root" if best else "natural",
            unlabelled_ratio=settings.unlabelled_ratio,
            views=settings.views if best else None,
            views_seed=0 if best else None,  # all seeds share the teacher's answers
        )
        return SpecimenDataModule(
            str(self.sets.teacher if method == "teacher" else self.sets.labelled),
            split=SplitSpec(seed=seed),
            cache_dir=str(self.folder / "cache"),
            upscaler="spandrel",
            sr_weights="drawn-specimens-x4",
            crops=CropSpec(sr_max_side=settings.sr_max_side, store_size=settings.store_size),
            image_size=settings.image_size,
            augment=AugmentSpec(engine="opencv"),
            unlabelled=str(self.sets.unlabelled) if best else None,
            batch_size=settings.batch_size,
            loader=loader,
        )

    def _trainer(self, run: RunFolder, method: Method) -> "pl.Trainer":
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger

        from kd_convnext.training.checkpoint_files import BackgroundWriter
        from kd_convnext.training.checkpointing import RunCheckpoint
        from kd_convnext.training.command import CHECKPOINT_DEFAULTS
        from kd_convnext.training.moving_averaging import MovingAveraging
        from kd_convnext.training.previews import AugmentationPreview, CurveFigures
        from kd_convnext.training.progress_bar import DataWaitBar
        from kd_convnext.training.record import RunRecord

        settings, teaches = self.settings, method == "teacher"
        callbacks = [
            RunCheckpoint(dirpath=str(run.checkpoints), **CHECKPOINT_DEFAULTS),
            AugmentationPreview(),
            RunRecord(),
            CurveFigures(),
            DataWaitBar(),
        ]
        if method == "best":
            callbacks.append(MovingAveraging(settings.ema_decay))
        return pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=min(settings.teacher_epochs, settings.epochs) if teaches else settings.epochs,
            check_val_every_n_epoch=1 if teaches else min(settings.judged_every, settings.epochs),
            default_root_dir=str(run.path),
            logger=CSVLogger(str(run.path), name="", version=""),
            callbacks=callbacks,
            plugins=[BackgroundWriter()],
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            log_every_n_steps=10,
        )

    def _module(self, method: Method, seed: int, data: "SpecimenDataModule", assets: Path) -> "ClassifierModule":
        from kd_convnext.models.backbones import BackboneSpec
        from kd_convnext.modules.optim import OptimSpec
        from kd_convnext.modules.student import DistillModule
        from kd_convnext.modules.teacher import TeacherModule

        settings = self.settings
        known: dict[str, Any] = {
            "num_classes": data.num_classes,
            "class_names": data.class_names,
            "class_weights": data.class_weights,
        }
        optim = OptimSpec(
            lr=settings.teacher_lr if method == "teacher" else settings.lr,
            weight_decay=settings.weight_decay,
            schedule="cosine",
            warmup_epochs=1,
        )
        if method == "teacher":
            # As in the paper the teacher fine-tunes: its body has seen a thousand other lesions (assets/README.md).
            weights = str(assets / "demo_swin.safetensors")
            size = settings.image_size
            swin = BackboneSpec("swin_tiny_patch4_window7_224", image_size=size, args=SWIN, weights=weights)
            return TeacherModule(**known, backbone=swin, finetune="head_first", head_epochs=1, optim=optim)
        convnext = BackboneSpec("convnext_atto", image_size=settings.image_size, args=STUDENT)
        if method == "alone":
            return TeacherModule(**known, backbone=convnext, optim=optim)
        shared: dict[str, Any] = {
            "student": convnext,
            "teacher_ckpt": str(self.run_of("teacher", seed).best),
            "optim": optim,
        }
        if method == "paper":
            return DistillModule(**known, **shared)
        recipe: dict[str, Any] = {
            "objective": best_objective(),
            "teacher_cache": True,
            "class_counts": data.class_counts,
        }
        return DistillModule(**known, **shared, **recipe)


def best_objective() -> "Objective":
    """Builds the objective of ``configs/small_cpu/best.yaml``: labels, the teacher's soft answers and its embedding."""
    from kd_convnext.losses import BalancedSoftmax, CosineEmbedding, Objective, SoftTargets

    return Objective(
        {
            "labels": BalancedSoftmax(weight=0.5, tau=0.5),
            "soft": SoftTargets(temperature=2.0),
            "embedding": CosineEmbedding(standardise=True, projector="linear"),
        }
    )


def described(settings: DemoSettings, **more: Any) -> dict[str, Any]:
    """Describes a demo for its ``config.yaml``; equal descriptions are equal demos."""
    return asdict(settings) | {"swin": SWIN, "student": STUDENT} | more
