"""The sides of the step benchmark: one training step each, on equal weights and batches of the same loader."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from timm.task.distillation import FeatureDistillationTask
from torch import Tensor, nn

from kd_convnext import DistillModule, SpecimenDataModule, TeacherModule
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.data.loading.dataset import Batch
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.modules.optim import OptimSpec, build_optimizer
from kd_convnext.training.header import RunHeader
from kd_convnext.training.progress_bar import DataWaitBar

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        folder: For drawn specimens, crops, checkpoints.
        batch: Images a step.
        size: Side of the images in pixels.
        teacher: The teacher.
        student: The student.
    """

    folder: Path
    batch: int
    size: int
    teacher: BackboneSpec
    student: BackboneSpec

    def data(self, **options: Any) -> SpecimenDataModule:
        """Prepared drawn specimens; the loader works in the step's own process, so that nothing of it hides."""
        manifest = self.folder / "drawn" / "manifest.csv"
        if not manifest.exists():
            lesions = dict.fromkeys(("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"), 12)
            manifest = draw_specimens(self.folder / "drawn", seed=0, lesions_per_class=lesions)
        loader = LoaderSpec(num_workers=0, **options)
        settings: dict[str, Any] = {"upscaler": "bicubic", "batch_size": self.batch, "image_size": self.size}
        return SpecimenDataModule(str(manifest), cache_dir=str(self.folder / "cache"), loader=loader, **settings)

    def teacher_checkpoint(self) -> Path:
        """A teacher with random weights, saved as a fit saves it."""
        path = self.folder / "teacher.ckpt"
        if not path.exists():
            pl.seed_everything(0, verbose=False)
            module, data = TeacherModule(5, backbone=self.teacher, optim=OptimSpec(lr=1e-5)), self.data()
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = pl.Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", **quiet)
            trainer.fit(module, datamodule=data)
            trainer.save_checkpoint(path)
        return path


class Turns(pl.Callback):
    """Lets a fit, in a thread of its own, take one step whenever it is asked to."""

    def __init__(self, fit: Callable[["Turns"], None]) -> None:
        """Starts the fit and waits for the end of its first step."""
        self._asked, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._error, self._threads = False, None, torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(fit,), daemon=True)
        self._thread.start()
        self._await()

    def __call__(self) -> None:
        """Takes a step: from the end of the last one to the end of the next, with all that lies between."""
        self._asked.release()
        self._await()

    def close(self) -> None:
        """Ends the fit."""
        self._over = True
        self._asked.release()
        self._thread.join()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Waits for the next turn."""
        self._done.release()
        self._asked.acquire()
        trainer.should_stop = self._over

    def _run(self, fit: Callable[["Turns"], None]) -> None:
        torch.set_num_threads(self._threads)  # counted for each thread
        try:
            fit(self)
        except BaseException as error:  # said by the thread that waits
            self._error = error
        self._done.release()

    def _await(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error


def lightning_side(setting: Setting, module: Callable[[], pl.LightningModule], name: str, **data: Any) -> Turns:
    """A whole Lightning fit: loader, hooks, metrics, progress bar, CSV logger, optimiser, schedule."""

    def fit(turns: Turns) -> None:
        pl.seed_everything(0, verbose=False)
        logger = CSVLogger(str(setting.folder), name=name, version="")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=10_000,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=logger,
            default_root_dir=str(setting.folder / name),
            callbacks=[RunHeader(), DataWaitBar(refresh_rate=1), turns],
        )
        trainer.fit(module(), datamodule=setting.data(**data))

    return Turns(fit)


def ours(setting: Setting, **options: Any) -> DistillModule:
    """The module under test."""
    teacher = str(setting.teacher_checkpoint())
    return DistillModule(5, teacher_ckpt=teacher, student=setting.student, optim=OptimSpec(lr=1e-5), **options)


def batches(setting: Setting) -> Iterator[Batch]:
    """Endless batches of the same loader."""
    data = setting.data()
    data.setup("fit")
    return itertools.chain.from_iterable(data.train_dataloader() for _ in itertools.count())


def backbones(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """Teacher, frozen, and student, with the weights that the others begin with."""
    checkpoint = torch.load(setting.teacher_checkpoint(), weights_only=True)["state_dict"]
    teacher = build_backbone(setting.teacher, 5).eval().requires_grad_(False)
    teacher.load_state_dict({name.removeprefix("backbone."): value for name, value in checkpoint.items()})
    pl.seed_everything(0, verbose=False)
    return teacher, build_backbone(setting.student, 5).train()


def bare(setting: Setting) -> tuple[Step, Step]:
    """A teacher's forward pass, and a student's training step, on one batch that is there already."""
    teacher, student = backbones(setting)
    batch = next(batches(setting))
    optimizer = build_optimizer(OptimSpec(lr=1e-5), student.parameters(), [])

    def step() -> None:
        loss = nn.functional.cross_entropy(student(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return torch.no_grad()(lambda: teacher(batch["image"])), step


def by_hand(setting: Setting) -> Step:
    """The best loop we can write: hooks on four stages of both, three losses, nothing kept for a dashboard."""
    (teacher, student), feed = backbones(setting), batches(setting)
    channels = [[stage.channels for stage in network.stages] for network in (student, teacher)]
    regressors = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(*channels, strict=True))
    caught: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, network in (("teacher", teacher), ("student", student)):
        for stage in network.stages:
            last = stage.channels_last
            network.network.get_submodule(stage.name).register_forward_hook(
                lambda _, __, out, name=name, last=last: caught[name].append(out.permute(0, 3, 1, 2) if last else out)
            )
    optimizer = build_optimizer(OptimSpec(lr=1e-5), student.parameters(), regressors.parameters())

    def step() -> None:
        batch = next(feed)
        images, labels = batch["image"], batch["label"]
        caught["teacher"], caught["student"] = [], []
        with torch.no_grad():
            said = teacher(images)
        logits = student(images)
        pairs = zip(regressors, caught["student"], caught["teacher"], strict=True)
        feature = sum(nn.functional.mse_loss(layer(mine), other) for layer, mine, other in pairs) / 4
        soft = nn.functional.cross_entropy(logits / 4, (said / 4).softmax(1)) * 16
        log_p = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        focal = -((1 - log_p.exp()) ** 2 * log_p).mean()
        (0.5 * feature + 0.5 * soft + focal).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timm_task(setting: Setting) -> Step:
    """Timm's feature distillation in its own loop: one pooled vector, cross-entropy and MSE."""
    (teacher, student), feed = backbones(setting), batches(setting)
    task = FeatureDistillationTask(
        student.network, teacher.network, criterion=nn.CrossEntropyLoss(), device=torch.device("cpu"), verbose=False
    )
    task.train()
    optimizer = build_optimizer(OptimSpec(lr=1e-5), task.trainable_module.parameters(), [])

    def step() -> None:
        batch = next(feed)
        task(student.normalise(batch["image"]), batch["label"])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchdistill_box(setting: Setting) -> Step:
    """Torchdistill with the same four taps, regressors and terms (cross-entropy in place of the focal term).

    Raises:
        ImportError: It is not installed (``pip install --no-deps torchdistill``).
    """
    from torchdistill.core.distillation import DistillationBox

    (teacher, student), feed = backbones(setting), batches(setting)
    mine, other = _Tapped(student, teacher), _Permuted(teacher)
    hint = {
        f"stage{n}": {
            "criterion": {"key": "MSELoss", "kwargs": {}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {
                    "input": {"is_from_teacher": False, "module_path": f"regressors.{n}", "io": "output"},
                    "target": {"is_from_teacher": True, "module_path": f"layouts.{n}", "io": "output"},
                },
            },
            "weight": 0.125,
        }
        for n in range(4)
    }
    paths = {"student_module_path": ".", "student_module_io": "output"}
    paths |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    soft = {"criterion": {"key": "KDLoss", "kwargs": {**paths, "temperature": 4.0, "alpha": 0.5}}, "weight": 1.0}
    config = {
        "num_epochs": 1,
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "forward_hook": {"output": [f"layouts.{n}" for n in range(4)]},
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"output": [f"regressors.{n}" for n in range(4)]},
        },
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-5, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {**hint, "soft": soft}}},
    }
    box = DistillationBox(other, mine, {}, config, torch.device("cpu"), None, False, 1)
    other.eval()

    def step() -> None:
        batch = next(feed)
        box.post_forward_process(box.forward_process(batch["image"], batch["label"], None))

    return step


class _Tapped(nn.Module):
    """The student with its regressors as modules whose outputs can be named."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        stages = zip(student.stages, teacher.stages, strict=True)
        self.regressors = nn.ModuleList(nn.Conv2d(mine.channels, other.channels, 1) for mine, other in stages)
        for stage, layer in zip(student.stages, self.regressors, strict=True):
            student.network.get_submodule(stage.name).register_forward_hook(
                lambda _, __, out, layer=layer: _use(layer, out)
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)


class _Permuted(nn.Module):
    """The teacher with its stages' outputs as modules that put the channels first."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.layouts = nn.ModuleList(nn.Identity() for _ in teacher.stages)
        for stage, layer in zip(teacher.stages, self.layouts, strict=True):
            last = stage.channels_last
            teacher.network.get_submodule(stage.name).register_forward_hook(
                lambda _, __, out, layer=layer, last=last: _use(layer, out.permute(0, 3, 1, 2) if last else out)
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)


def _use(layer: nn.Module, values: Tensor) -> None:
    layer(values)
