"""Writes a first configuration and a manifest template: the command ``init``."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_convnext.common.configs import shipped_file
from kd_convnext.common.console import tell
from kd_convnext.common.files import write_text
from kd_convnext.common.words import command_line
from kd_convnext.errors import ConfigError, Finding

FEW_PHOTOGRAPHS = 320
"""Below so many regions of interest a batch is smaller, so that an epoch still has steps.

Not where the recipe has ``loader.least_batches``, by which an epoch makes several passes: it would see fewer images.
"""

LINEAR_TEACHER = "configs/small_cpu/teacher_vit.yaml"
BEST, BEST_TEACHER = "configs/kd_convnext_best.yaml", "configs/teacher_vit.yaml"
HEADER = ("image", "label", "lesion_id", "patient_id", "x", "y", "width", "height")
EXAMPLES = (
    ("day1/0001.jpg", "CLASS A", "case17-a", "case17", "412", "300", "260", "244"),
    ("day1/0002.jpg", "CLASS A", "case17-a", "case17", "398", "310", "255", "251"),
    ("day1/0003.jpg", "CLASS B", "case18-a", "case18", "", "", "", ""),
)


@dataclass(frozen=True)
class Recipe:
    """Names the shipped configurations of a machine.

    Attributes:
        student: Configuration of the student.
        teacher: Configuration of its teacher.
        reason: Why these.
        lacking: A sentence on another recipe, and the start weights that are not there for it; empty where none are
            lacking.
    """

    student: str
    teacher: str
    reason: str
    lacking: str = ""


def init(
    manifest: str | None = None,
    out: str = ".",
    columns: str | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    overwrite: bool = False,
) -> Path:
    """Writes a commented config.yaml for this machine and these photographs, and prints the next three commands.

    Without a manifest it writes a template of one, too: with three example rows, or with a row for each photograph of
    a folder that has no class folders.

    Args:
        manifest: CSV file, folder with one folder per class, or folder of photographs.
        out: Folder of the files.
        columns: Other names of the manifest's columns: image=file,label=diagnosis.
        device: Where networks will be trained; by default a GPU where there is one.
        overwrite: Replace files that are there.

    Returns:
        The configuration.

    Raises:
        KDConvNeXtError: The manifest cannot be used, or a file is there already.
    """
    folder = Path(out)
    config, template = folder / "config.yaml", folder / "manifest.csv"
    loose = _loose_photographs(manifest)
    unlabelled = manifest is None or loose is not None
    _refuse_existing([config, *([template] if unlabelled else [])], overwrite)
    batch = None
    if manifest is not None and not unlabelled:
        batch = 8 if _regions(manifest, columns) < FEW_PHOTOGRAPHS else None
    recipe = choose_recipe(_device(device))
    if manifest is None or unlabelled:
        write_text(template, template_text(loose))
        print(f"Wrote {template}: {'fill in the labels' if loose else 'put your photographs in place of the examples'}")
        manifest = str(template)
    write_text(config, configuration(recipe, manifest, columns, batch))
    print(f"Wrote {config}: {recipe.reason}")
    if recipe.lacking:
        print(recipe.lacking)
    print("Next:")
    print(f"  {command_line(['prepare'], config=config)} --dry_run")
    print(f"  {command_line(['fit'], config=config)}")
    print("  kd-convnext test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt")
    return config


def choose_recipe(device: str) -> Recipe:
    """Chooses by the machine, and by the start weights that are there.

    Args:
        device: ``cuda``, ``mps`` or ``cpu``.

    Returns:
        The recipe.
    """
    if device != "cpu":
        absent = _not_fetched()
        if not absent:
            reason = "a student taught by a Vision Transformer at 224 px, for this machine's GPU"
            return Recipe(BEST, BEST_TEACHER, reason)
        reason = "the paper's networks at 224 px, for this machine's GPU"
        lacking = (
            f"{BEST}, a student taught by a Vision Transformer, needs the published weights of {' and '.join(absent)}, "
            "which are not in the cache of the Hugging Face hub: with network, a fit by it fetches them."
        )
        return Recipe("configs/kd_convnext_tiny.yaml", "configs/teacher_swin_tiny.yaml", reason, lacking)
    place = _linear_teachers_weights()
    if place.is_file():
        reason = f"a student taught by the Vision Transformer in {place}, on a CPU"
        return Recipe("configs/small_cpu/best.yaml", LINEAR_TEACHER, reason)
    reason = "small networks at 64 px, for a CPU"
    lacking = (
        f"configs/small_cpu/best.yaml, a student taught by a Vision Transformer, needs its published weights as "
        f"{place}: put them there and give this command again."
    )
    return Recipe("configs/small_cpu/student.yaml", "configs/small_cpu/teacher.yaml", reason, lacking)


def configuration(recipe: Recipe, manifest: str, columns: str | None, batch_size: int | None) -> str:
    """Writes a recipe out as one commented file.

    Args:
        recipe: The shipped configurations.
        manifest: The photographs.
        columns: Other names of the manifest's columns.
        batch_size: In place of the recipe's, where that sets no least number of batches.

    Returns:
        YAML text.
    """
    settings = _shipped(recipe.student)
    data = settings["data"]
    if batch_size is not None and "least_batches" not in data.get("loader", {}):
        data = data | {"batch_size": batch_size}
    lines = [
        f"# {recipe.reason[0].upper()}{recipe.reason[1:]}; begun from {recipe.student}.",
        "# Every setting with its default: kd-convnext fit --config THIS_FILE --print_config",
        f"seed_everything: {settings['seed_everything']}",
        "# This teacher is trained first, on the same split, into RUN/teacher. For one that is trained already give",
        "# --model.teacher_ckpt RUN/checkpoints/best.ckpt in its place.",
        f"teacher_config: {recipe.teacher}",
        *_section("trainer", settings["trainer"]),
        *_section("model", settings["model"]),
        "data:",
        "  # A CSV or Excel file, or a folder with one folder per class.",
        *_section("manifest", manifest, 2),
        *(_section("columns", columns, 2) if columns else ["  # columns: image=file,label=diagnosis"]),
        "  # Real-ESRGAN enlarges small regions; kd-convnext prepare --config THIS_FILE --download fetches the weights",
        "  # that are named, once. Without, regions are enlarged bicubically.",
        "  # sr_weights: general-x4v3",
        "  # Which of the five seeded splits; patients, lesions and near-identical photographs stay together.",
        "  split: {index: 0}",
        *(line for name, value in data.items() for line in _section(name, value, 2)),
        *_section("header", {"distill_config": None}),
    ]
    return "\n".join(lines) + "\n"


def template_text(photographs: list[str] | None) -> str:
    """Writes the rows of a manifest template.

    Args:
        photographs: Files that get a row each, without a label; None for three example rows.

    Returns:
        CSV text. Regions, lesions and patients may stay empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    rows = EXAMPLES if photographs is None else ((name, *("",) * (len(HEADER) - 1)) for name in photographs)
    writer.writerows(rows)
    return text.getvalue()


def _loose_photographs(manifest: str | None) -> list[str] | None:
    """Lists the photographs of a folder without class folders, by their absolute paths; None for all else."""
    if manifest is None or not Path(manifest).is_dir():
        return None
    from kd_convnext.data.manifest.source import read_source

    table = read_source(Path(manifest), require_labels=False).table
    if (table["label"] != "").any():
        return None
    return [(Path(manifest).resolve() / name).as_posix() for name in table["image"]]


def _regions(manifest: str, columns: str | None) -> int:
    """Checks the manifest, prints what was understood, and counts its regions of interest."""
    from kd_convnext.data.manifest.manifest import read_manifest
    from kd_convnext.data.manifest.summary import describe

    found = read_manifest(manifest, columns=columns)
    tell("\n".join(describe(found)))
    return len(found)


def _device(asked: str) -> str:
    if asked == "cpu":
        return "cpu"
    if asked == "gpu":
        return "cuda"
    from kd_convnext.common.machine import device_kind

    return device_kind("auto")


def _linear_teachers_weights() -> Path:
    """Finds the start weights that the linear teacher's configuration names, or the place where they may be put."""
    from kd_convnext.data.crops.upscaling.weights import start_file

    return start_file(_shipped(LINEAR_TEACHER)["model"]["init_args"]["backbone"]["weights"])


def _not_fetched() -> list[str]:
    """Lists the networks of the best recipe whose published weights are not in their cache."""
    from kd_convnext.models.published import published

    teacher, student = (_shipped(name)["model"]["init_args"] for name in (BEST_TEACHER, BEST))
    sources = {name: published(name) for name in (teacher["backbone"]["name"], student["student"]["name"])}
    return [f"{name} ({found.address})" for name, found in sources.items() if found is not None and not found.cached]


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        remedy = "Name another folder with --out, or add --overwrite."
        raise ConfigError(Finding(str(path), "is there already", remedy) for path in there)


def _shipped(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(shipped_file(name)).read_text("utf-8"))
    return content


def _section(name: str, value: object, indent: int = 0) -> list[str]:
    """Writes one setting as YAML, short lists and mappings in one line."""
    style = None if isinstance(value, dict | list) else False
    text = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, allow_unicode=True, width=100)
    return [" " * indent + line for line in text.splitlines()]
