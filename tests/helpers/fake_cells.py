"""Finished cells without training: run folders with seeded answers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from helpers.paper import CONFUSION
from kd_convnext.experiment.plan.record import CellRecord, write_cell
from kd_convnext.runs.tables import write_table

PAPER = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")


def answers(labels, predictions, names, lesions=None, images=None, sure=0.9):
    """A predictions.csv: names of classes for labels and predictions, all N of them."""
    count = len(labels)
    frame = pd.DataFrame(
        {
            "image": images if images is not None else [f"i{number:04d}.jpg" for number in range(count)],
            "lesion_id": lesions if lesions is not None else [""] * count,
            "label": labels,
            "prediction": predictions,
        }
    )
    for name in names:
        frame[f"prob_{name}"] = np.where(frame["prediction"] == name, sure, (1 - sure) / (len(names) - 1))
    return frame


def golden():
    """The answers behind the paper's last row: 209 photographs, each a lesion of its own."""
    pairs = [(row, column) for row, column in np.ndindex(5, 5) for _ in range(CONFUSION[row][column])]
    return answers([PAPER[row] for row, _ in pairs], [PAPER[column] for _, column in pairs], PAPER)


def specimens(repeat, right, names=PAPER, lesions=12, views=2, seed=0):
    """Test answers of one repeat; `right` is the chance that a lesion is answered rightly, its views alike."""
    rng = np.random.default_rng([seed, repeat, round(1000 * right)])
    rows = []
    for name in names:
        for lesion in range(lesions):
            guess = name if rng.random() < right else names[rng.integers(len(names))]
            # The same lesion comes back in other repeats.
            number = (lesion + repeat) % (2 * lesions)
            rows += [
                (f"{names.index(name)}/{number}_{view}.jpg", f"{name}-{number}", name, guess) for view in range(views)
            ]
    images, ids, labels, guesses = zip(*rows, strict=True)
    return answers(labels, guesses, names, ids, images, sure=0.7)


def split_of(frame, names):
    """A split file in which the answered photographs are the test part, with others to train on."""
    parts = [frame[["image", "label", "lesion_id"]].assign(split="test")]
    for part, views in (("train", 4), ("val", 1)):
        rows = [(f"{part}{k}_{view}.jpg", name, f"{part}{k}") for k, name in enumerate(names) for view in range(views)]
        parts.append(pd.DataFrame(rows, columns=["image", "label", "lesion_id"]).assign(split=part))
    return pd.concat(parts).assign(patient_id="", x="", y="", width="", height="")


def fake_cell(folder, frame, *, method="kd_both", family="ablation", names=PAPER, record=True, **fields) -> CellRecord:
    """Writes a finished cell (or, without record, a tested run) with these answers."""
    folder = Path(folder)
    repeat = fields.get("repeat", 0)
    (folder / "checkpoints").mkdir(parents=True)
    config = {
        "seed_everything": repeat,
        "trainer": {"max_epochs": 3},
        "model": {
            "class_path": "kd_convnext.TeacherModule",
            "init_args": {
                "backbone": {"name": "convnext_tiny", "pretrained": True, "image_size": 224},
                "loss": "focal",
                "gamma": 2.0,
                "optim": {"name": "adamw", "lr": 0.001, "weight_decay": 0.0005, "schedule": "constant"},
            },
        },
        "data": {"upscaler": "bicubic", "split_index": repeat, "batch_size": 8, "ratios": [0.8, 0.1, 0.1]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_table(folder / "predictions.csv", frame)
    write_table(folder / "split.csv", split_of(frame, names))
    rows = [
        {"epoch": epoch, "step": epoch, "val/f1_macro": 0.2 * (epoch + 1), "val/loss": 1 / (epoch + 1)}
        for epoch in range(3)
    ]
    rows += [{"epoch": epoch, "step": epoch, "train/loss": 1.1 / (epoch + 1)} for epoch in range(3)]
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    environment = {"device": "CPU (1 thread)", "precision": "32-true", "python": "3.11.7", "platform": "Linux"}
    (folder / "environment.json").write_text(json.dumps({**environment, "versions": {"kd-convnext": "0.1.0"}}))
    values = {
        "folder": folder,
        "method": method,
        "title": method,
        "family": family,
        "setting": "default",
        "repeat": repeat,
        "seed": repeat,
        "config_hash": "0123456789abcdef",
        "status": "finished",
        "error": None,
        "seconds": 60.0,
    }
    cell = CellRecord(**{**values, **fields})
    if record:
        write_cell(cell)
    return cell


def grid(folder, chances, repeats=2, **options):
    """Cells of several methods on the same splits: chance of a right answer by method."""
    return [
        fake_cell(
            Path(folder) / "cells" / method / "default" / f"repeat{repeat}",
            specimens(repeat, chance, **options),
            method=method,
            repeat=repeat,
            names=options.get("names", PAPER),
            family="rival" if method in ("coatnet", "davit", "efficientnetv2") else "ablation",
        )
        for repeat in range(repeats)
        for method, chance in chances.items()
    ]
