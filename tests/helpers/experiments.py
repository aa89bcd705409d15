"""A grid of the smallest networks, for the command line."""

import copy
import json
from pathlib import Path

import yaml

from helpers.paths import CONFIGS
from helpers.tiny import CONVNEXT, SWIN

STUDENT = {"name": "convnext_tiny", "image_size": 32, "args": CONVNEXT, "pretrained": False}
TEACHER = {"name": "swin_tiny_patch4_window7_224", "image_size": 32, "args": SWIN, "pretrained": False}
LOGITS_ALONE = {"init_args": {"drop": ["feature"]}}


def description(**changes) -> dict:
    """Three methods at 32 px, one epoch of two steps; ``changes`` go to the grid."""
    data = {"ratios": [0.5, 0.25, 0.25], "store_size": 40, "image_size": 32, "batch_size": 8, "num_workers": 0}
    common = {
        "data": {"upscaler": "bicubic", **data},
        "trainer": {"accelerator": "cpu", "precision": "32-true", "max_epochs": 1, "limit_train_batches": 2},
    }
    methods = {
        "swin": method("Swin", "teacher_swin_tiny.yaml", backbone=TEACHER),
        "kd_both": method("Distilled", "kd_convnext_tiny.yaml", teacher="swin", student=STUDENT),
        "kd_logits": method("Logits", "kd_convnext_tiny.yaml", teacher="swin", student=STUDENT, objective=LOGITS_ALONE),
        "convnext": method("ConvNeXt", "convnext_tiny.yaml", backbone=STUDENT),
    }
    return {"common": common, "baseline": "swin", "methods": methods, **changes}


def method(title: str, config: str, teacher: str | None = None, **arguments) -> dict:
    """A row of the grid whose module gets ``arguments``."""
    overlay = {"model": {"init_args": copy.deepcopy(arguments)}}  # tests change what they are given
    return {"title": title, "config": str(CONFIGS / config), "teacher": teacher, "overlay": overlay}


def write(folder: Path, grid: dict) -> str:
    """Writes a description and returns its file."""
    path = folder / f"paper{len(list(folder.glob('paper*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump({"grid": grid}, sort_keys=False))
    return str(path)


def record(cell: Path) -> dict:
    """The record in a cell's folder."""
    return json.loads((cell / "cell.json").read_text())


def cells(out: Path) -> dict[str, Path]:
    """Folders of the cells that have a record, by their path below ``cells``."""
    return {str(path.parent.relative_to(out / "cells")): path.parent for path in out.glob("cells/*/*/*/cell.json")}
