"""Runs everything on drawn specimens, from photographs to a distilled student: the command ``demo``.

The task is drawn, the training is real: nothing in the printed table is known beforehand. As in the paper, all networks
fine-tune: teacher and students start from weights that learned to name the classes of other drawn lesions
(``assets/README.md``), and get new heads.
"""

import math
import time
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_convnext.common.process import quiet_libraries
from kd_convnext.data.drawn.specimens import DEMO_LESIONS, draw_specimens
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.folder import RunFolder, require_empty

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from kd_convnext.data.loading.datamodule import SpecimenDataModule
    from kd_convnext.modules.classifier import ClassifierModule

METHODS = {"teacher": "Swin (teacher)", "alone": "ConvNeXt alone", "distilled": "ConvNeXt distilled"}
"""The three networks: their folder, and their name in the table."""

SWIN: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4}
CONVNEXT: dict[str, Any] = {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 160], "ls_init_value": 1.0}
"""Arguments of timm's networks: a Swin and a ConvNeXt of about a million parameters."""

COLUMNS = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper")


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demonstration, which takes minutes on two CPU cores.

    Attributes:
        image_size: Side of the networks' input in pixels.
        store_size: Side of the stored crops in pixels.
        ratios: Shares of training, validation and test; test is large so that every class has 8 lesions in it.
        batch_size: Images a step.
        teacher_epochs: Epochs of the teacher, the first ``head_epochs`` of them the head alone.
        head_epochs: See above.
        student_epochs: Epochs of each student.
        teacher_lr: Largest learning rate of the teacher.
        student_lr: Largest learning rate of the students.
        weight_decay: Of all three.
    """

    image_size: int = 64
    store_size: int = 96
    ratios: tuple[float, float, float] = (0.5, 0.16, 0.34)
    batch_size: int = 16
    teacher_epochs: int = 8
    head_epochs: int = 1
    student_epochs: int = 16
    teacher_lr: float = 5e-4
    student_lr: float = 1e-3
    weight_decay: float = 0.05


def demo(
    out: str = "runs/demo",
    seed: int = 0,
    overwrite: bool = False,
    lesions: list[int] | None = None,
    epochs: int | None = None,
) -> Path:
    """Draws specimens, then runs everything: crops, cache, split, teacher, student alone and distilled, test, table.

    Args:
        out: Folder of the run.
        seed: Decides the specimens, the split and the training.
        overwrite: Write into a folder that is not empty.
        lesions: Lesions of each of the five classes, for a smaller or larger task; at least three each.
        epochs: Epochs of every network, where fewer are wanted.

    Returns:
        The folder: ``results.csv``, ``figures/``, and one run folder for each of the three networks.

    Raises:
        KDConvNeXtError: The folder is not empty or cannot be written.
    """
    start = time.perf_counter()
    folder = RunFolder(Path(out))
    require_empty(folder.path, permitted=overwrite, option="--overwrite true")
    counts = _counts(lesions)
    print(f"Drawing {sum(counts.values())} lesions of five classes (1 to {_imbalance(counts)}) into {folder.path}")
    manifest = draw_specimens(folder.path / "specimens", seed=seed, lesions_per_class=counts)
    quiet_libraries()
    runs = _Runs(folder, manifest, seed, epochs)
    modules = {}
    for method in METHODS:
        modules[method] = runs.train(method)
    _summarise(folder, runs, modules, seed)
    print(f"Run folder: {folder.path} (results.csv, figures/, one folder per network), {_minutes(start)}")
    return folder.path


class _Runs:
    """Data shared by the three networks, and their fits."""

    def __init__(self, folder: RunFolder, manifest: Path, seed: int, epochs: int | None) -> None:
        from kd_convnext.data.crops.spec import CropSpec
        from kd_convnext.data.loading.datamodule import SpecimenDataModule
        from kd_convnext.data.loading.spec import LoaderSpec
        from kd_convnext.data.manifest.splits import SplitSpec

        self.folder, self.seed, self.epochs = folder, seed, epochs
        self.settings = settings = DemoSettings()
        self.data: SpecimenDataModule = SpecimenDataModule(
            str(manifest),
            split=SplitSpec(ratios=settings.ratios, seed=seed),
            cache_dir=str(folder.path / "cache"),
            upscaler="spandrel",
            sr_weights="drawn-specimens-x4",
            crops=CropSpec(store_size=settings.store_size),
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            loader=LoaderSpec(seed=seed),
        )

    def train(self, method: str) -> "ClassifierModule":
        """Fits one network and tests its best checkpoint."""
        import lightning.pytorch as pl

        pl.seed_everything(self.seed, verbose=False)
        run = RunFolder(self.folder.path / method)
        print(f"\n{METHODS[method]}: fine-tuning")
        trainer = self._trainer(run, method)
        with as_file(files("kd_convnext") / "assets") as assets:
            module = self._module(method, assets)
        trainer.fit(module, datamodule=self.data)
        trainer.test(module, datamodule=self.data, ckpt_path=str(run.best), verbose=False)
        return module

    def _trainer(self, run: RunFolder, method: str) -> "pl.Trainer":
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger

        from kd_convnext.training.checkpoint_files import BackgroundWriter
        from kd_convnext.training.checkpointing import RunCheckpoint
        from kd_convnext.training.command import CHECKPOINT_DEFAULTS
        from kd_convnext.training.loader_tuning import LoaderTuning
        from kd_convnext.training.previews import AugmentationPreview, CurveFigures
        from kd_convnext.training.progress_bar import DataWaitBar
        from kd_convnext.training.record import RunRecord

        epochs = self.settings.teacher_epochs if method == "teacher" else self.settings.student_epochs
        return pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=self.epochs or epochs,
            default_root_dir=str(run.path),
            logger=CSVLogger(str(run.path), name="", version=""),
            callbacks=[
                RunCheckpoint(dirpath=str(run.checkpoints), **CHECKPOINT_DEFAULTS),
                LoaderTuning(),
                AugmentationPreview(),
                RunRecord(),
                CurveFigures(),
                DataWaitBar(),
            ],
            plugins=[BackgroundWriter()],
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            log_every_n_steps=10,
        )

    def _module(self, method: str, assets: Path) -> "ClassifierModule":
        from kd_convnext.models.backbones import BackboneSpec
        from kd_convnext.modules.optim import OptimSpec
        from kd_convnext.modules.student import DistillModule
        from kd_convnext.modules.teacher import TeacherModule

        settings, data = self.settings, self.data
        known: dict[str, Any] = {
            "num_classes": data.num_classes,
            "class_names": data.class_names,
            "class_weights": data.class_weights,
        }
        size = settings.image_size
        optim = OptimSpec(
            lr=settings.teacher_lr if method == "teacher" else settings.student_lr,
            weight_decay=settings.weight_decay,
            schedule="cosine",
            warmup_epochs=1,
        )
        if method == "teacher":
            start = str(assets / "demo_swin.safetensors")
            swin = BackboneSpec("swin_tiny_patch4_window7_224", image_size=size, args=SWIN, weights=start)
            return TeacherModule(
                **known, backbone=swin, finetune="head_first", head_epochs=settings.head_epochs, optim=optim
            )
        start = str(assets / "demo_convnext.safetensors")
        convnext = BackboneSpec("convnext_atto", image_size=size, args=CONVNEXT, weights=start)
        if method == "alone":
            return TeacherModule(**known, backbone=convnext, optim=optim)
        teacher = RunFolder(self.folder.path / "teacher").best
        return DistillModule(**known, student=convnext, teacher_ckpt=str(teacher), optim=optim)


def _summarise(folder: RunFolder, runs: _Runs, modules: "dict[str, ClassifierModule]", seed: int) -> None:
    import pandas as pd
    import yaml

    from kd_convnext.runs.tables import write_table

    rows = []
    for method, module in modules.items():
        assert module.evaluation is not None
        metrics = {name: value for name, value in module.evaluation.metrics().items() if "/" not in name}
        rows.append({"method": method, "repeat": 0, "seed": seed, **metrics})
    results = pd.DataFrame(rows)
    write_table(folder.path / "results.csv", results)
    settings = asdict(runs.settings) | {"swin": SWIN, "convnext": CONVNEXT, "seed": seed}
    folder.config.write_text(yaml.safe_dump(settings | {"ratios": list(runs.settings.ratios)}, sort_keys=False))
    _draw(folder, runs.data, modules)
    _print_table(results, runs.data)


def _draw(folder: RunFolder, data: "SpecimenDataModule", modules: "dict[str, ClassifierModule]") -> None:
    import numpy as np
    import pandas as pd

    from kd_convnext.common.figures import save_figure
    from kd_convnext.runs.figures import Subject, confusion_matrix, crop_grid, method_curves

    shown = [row for label in range(data.num_classes) for row in np.flatnonzero(data.manifest.labels == label)[:4]]
    titles = [data.class_names[data.manifest.labels[row]] for row in shown]
    rows = data.crops.rows
    pictures = [(data.crops.load(int(row)), title) for row, title in zip(shown, titles, strict=True) if row in rows]
    caption = f"Drawn specimens, four of each of {data.num_classes} classes: crops as the networks get them."
    save_figure(
        folder.figure("examples"), crop_grid([p for p, _ in pictures], [t for _, t in pictures], caption=caption)
    )
    curves = {METHODS[method]: pd.read_csv(folder.path / method / "metrics.csv") for method in modules}
    caption = "Macro F1 on the validation part of drawn specimens, judged per photograph."
    save_figure(folder.figure("curves"), method_curves(curves, "val/f1_macro", caption))
    evaluation = modules["distilled"].evaluation
    assert evaluation is not None
    lesions = len(modules["distilled"].lesion_evaluation or ())
    subject = Subject("test", "photograph", len(evaluation), lesions, f"{METHODS['distilled']}, drawn specimens")
    caption = subject.says("Confusion matrix, rows are true classes")
    figure = confusion_matrix(evaluation.confusion_matrix(), evaluation.class_names, caption=caption)
    save_figure(folder.figure("confusion_matrix"), figure)


def _print_table(results: Any, data: "SpecimenDataModule") -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import f1_score

    train, test = (data.manifest.labels[data.split.rows(part)] for part in ("train", "test"))
    lesions = data.manifest.groups("lesion")[data.split.rows("test")]
    counts = [len(set(lesions[test == label])) for label in range(data.num_classes)]
    named = ", ".join(f"{name} {count}" for name, count in zip(data.class_names, counts, strict=True))
    table = Table(title=f"Test part: {len(test)} photographs, lesions: {named}")
    table.add_column("")
    for name in ("accuracy", "macro precision", "macro recall", "macro F1", "paper's F1"):
        table.add_column(name, justify="right")
    for row in results.to_dict("records"):
        table.add_row(METHODS[row["method"]], *(f"{row[name]:.3f}" for name in COLUMNS))
    by_method = results.set_index("method")
    gain = by_method.loc["distilled"] - by_method.loc["alone"]
    table.add_row("distilled minus alone", *(f"{gain[name]:+.3f}" for name in COLUMNS), style="bold")
    guesses = [
        DummyClassifier(strategy="stratified", random_state=seed).fit(train[:, None], train).predict(test[:, None])
        for seed in range(100)
    ]
    chance = np.mean([f1_score(test, guess, average="macro", zero_division=0) for guess in guesses])
    right = np.mean([np.mean(guess == test) for guess in guesses])
    table.add_row("chance (by frequency)", f"{right:.3f}", "", "", f"{chance:.3f}", "", style="dim")
    Console(width=max(100, Console().width)).print(table)
    print(
        "All start from weights that have seen other drawn lesions of these classes. One split, one seed: a difference"
    )
    print("of a few points between the students is noise.")


def _counts(lesions: list[int] | None) -> dict[str, int]:
    if lesions is None:
        return dict(DEMO_LESIONS)
    if len(lesions) != len(DEMO_LESIONS) or min(lesions) < 3:
        what = f"{lesions} are not five numbers of at least three"
        raise ConfigError(Finding("--lesions", what, f"Give for example {list(DEMO_LESIONS.values())}."))
    return dict(zip(DEMO_LESIONS, lesions, strict=True))


def _imbalance(counts: dict[str, int]) -> str:
    return f"{max(counts.values()) / min(counts.values()):.3g}"


def _minutes(start: float) -> str:
    seconds = time.perf_counter() - start
    return f"{math.floor(seconds / 60)} min {seconds % 60:.0f} s in all"
