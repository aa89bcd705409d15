"""Objects planted in every file that a command reads: the commands end by themselves or in words, and build none."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml
from helpers.bad_files import Payload
from helpers.command_line import TINY, convnext
from helpers.fake_cells import fake_cell, golden
from helpers.inference import copy_run

from kd_convnext.checkpoints.format import KEY
from kd_convnext.cli import main
from kd_convnext.experiment.plan.cells import Choice, plan_cells
from kd_convnext.experiment.plan.grid import Grid, MethodSpec
from kd_convnext.inference.publishing.hub import PublishedModel


@pytest.fixture
def mark(tmp_path):
    """What a payload that runs leaves; that it can is tried first."""
    tried = tmp_path / "tried"
    pickle.loads(pickle.dumps(Payload(tried)))
    assert tried.exists()
    return tmp_path / "mark"


def plant(file, mark):
    """Puts objects where the format of a file has room for them."""
    objects = np.array([Payload(mark)], dtype=object)
    match file.suffix:
        case ".npy":
            np.save(file, objects, allow_pickle=True)
        case ".npz":
            np.savez(file, names=objects, stamps=objects, rows=objects)
        case ".yaml" | ".yml":
            file.write_text(f"model: !!python/object/apply:pathlib.Path.touch [{str(mark)!r}]\n")
        case ".json" | ".jsonl" | ".safetensors":
            file.write_bytes(pickle.dumps(Payload(mark)))
        case _:
            torch.save({KEY: Payload(mark), "state_dict": Payload(mark), "hyper_parameters": Payload(mark)}, file)


def ended(words, capsys):
    code = main([str(word) for word in words])
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error, error
    return code, error


@pytest.mark.slow
def test_stores_of_a_cache(tiny_run, tiny_manifest, tmp_path, mark, capsys, monkeypatch):
    cache, run = tmp_path / "cache", tmp_path / "run"
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(cache))
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={cache}", "--data.loader.packed=true"]
    data += ["--data.loader.views=1"]
    teacher = [f"--model.teacher_ckpt={tiny_run}", "--model.teacher_cache=true"]
    student = ["--config", "configs/small_cpu/student.yaml", *TINY, *convnext("student")]
    words = ["fit", *student, *data, *teacher, f"--trainer.default_root_dir={run}"]
    code, error = ended(words, capsys)
    assert code == 0, error
    kinds = set()
    for file in sorted(path for path in cache.rglob("*") if path.is_file()):
        kinds.add(file.suffix)
        file.chmod(0o644)
        plant(file, mark)
    assert {".npy", ".npz", ".json", ".jsonl", ".png"} <= kinds
    ended(["prepare", "--manifest", tiny_manifest, "--cache_dir", cache, "--upscaler", "bicubic"], capsys)
    ended([*words, "--trainer.default_root_dir", tmp_path / "again"], capsys)
    ended(["test", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "best.ckpt"], capsys)
    assert not mark.exists()


def test_files_beside_a_checkpoint(tiny_run, tiny_manifest, tmp_path, mark, capsys):
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    photo = next(tiny_manifest.parent.glob("*.png"))
    names = ("calibration.json", "calibration.safetensors")
    for name in names:
        plant(checkpoint.parent / name, mark)
    out = tmp_path / "out"
    for words in (
        ["classify", photo, "--ckpt_path", checkpoint, "--out", out],
        ["explain", photo, "--ckpt_path", checkpoint, "--out", out],
        ["card", "--ckpt_path", checkpoint],
        ["export", "--ckpt_path", checkpoint, "--out", out],
        ["publish", "--ckpt_path", checkpoint, "--out", out],
        ["classify", photo, "--ckpt_path", checkpoint, "--calibration", checkpoint.parent / names[0], "--out", out],
    ):
        assert ended(words, capsys)[0] == 2, words
    for name in ("config.yaml", "split.csv", "metrics.json", "predictions.csv", "judged.json", "environment.json"):
        plant(checkpoint.parent.parent / name, mark)
    for words in (["report", checkpoint.parent.parent], ["card", "--ckpt_path", checkpoint], ["test", "--config"]):
        given = [checkpoint.parent.parent / "config.yaml", "--ckpt_path", checkpoint] if words[-1] == "--config" else []
        assert ended([*words, *given], capsys)[0] == 2, words
    assert not mark.exists()


def test_files_of_a_published_folder(tiny_run, tiny_manifest, tmp_path, mark, capsys):
    checkpoint, whole = copy_run(tiny_run, tmp_path / "run"), tmp_path / "whole"
    assert ended(["publish", "--ckpt_path", checkpoint, "--out", whole], capsys)[0] == 0
    for name in ("config.json", "model.safetensors", "README.md", "calibration.json"):
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        plant(folder / name, mark)
        try:
            PublishedModel.from_pretrained(str(folder))
        except Exception as error:
            assert "Unpickling" not in type(error).__name__
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.pt2", "model.bin"])
def test_an_export_given_as_a_checkpoint(name, tiny_manifest, tmp_path, mark, capsys):
    plain, archive = tmp_path / "plain", tmp_path / name
    plant(plain, mark)
    photo = next(tiny_manifest.parent.glob("*.png"))
    shutil.copyfile(plain, archive)
    for form in ("saved", "archive"):
        if form == "archive":
            with zipfile.ZipFile(archive, "w") as parts:
                parts.writestr("archive_format", "pt2")
                parts.writestr("model/data/sample_inputs/model.pt", plain.read_bytes())
                parts.writestr("model/data.pkl", pickle.dumps(Payload(mark)))
                parts.writestr("model/constants.pkl", pickle.dumps(Payload(mark)))
        for words in (
            ["classify", photo, "--ckpt_path", archive, "--out", tmp_path / "out"],
            ["page", "--ckpt_path", archive],
            ["test", "--ckpt_path", archive, "--data.manifest", tiny_manifest],
            ["fit", "--data.manifest", tiny_manifest, "--ckpt_path", archive, "--config", "configs/convnext_tiny.yaml"],
            ["prepare", "--manifest", tiny_manifest, "--sr_weights", archive, "--dry_run", "true"],
        ):
            assert ended(words, capsys)[0] == 2, words
    assert not mark.exists()


@pytest.mark.parametrize("place", ["paper", "cell", "wandb", "config"])
def test_tags_in_yaml(place, tiny_manifest, tmp_path, mark, capsys):
    cell, paper = tmp_path / "cell.yaml", tmp_path / "paper.yaml"
    cell.write_text("model: {class_path: kd_convnext.TeacherModule}\n")
    grid = {"title": "tiny", "baseline": "net", "methods": {"net": {"title": "Net", "config": str(cell)}}}
    paper.write_text(yaml.safe_dump({"repeats": 1, "seed": 0, "grid": grid}))
    plant({"paper": paper, "cell": cell}.get(place, cell), mark)
    if place in ("paper", "cell"):
        words = ["paper", "--config", paper, "--manifest", tiny_manifest, "--out", tmp_path / "out"]
        assert ended([*words, "--dry_run", "true"], capsys)[0] == 2
        assert ended([*words, "--collect", "true"], capsys)[0] == 2
        assert ended(words, capsys)[0] == 2
    for command in ("fit", "test", "predict", "validate", "calibrate", "prepare", "classify"):
        assert ended([command, "--config", cell if place != "paper" else paper], capsys)[0] == 2
    assert not mark.exists()


def test_finished_cells_of_a_paper(tiny_manifest, tmp_path, mark, capsys):
    cell, paper, out = tmp_path / "cell.yaml", tmp_path / "paper.yaml", tmp_path / "out"
    cell.write_text("model: {class_path: kd_convnext.TeacherModule}\n")
    grid = {"title": "tiny", "baseline": "net", "methods": {"net": {"title": "Net", "config": str(cell)}}}
    paper.write_text(yaml.safe_dump({"repeats": 1, "seed": 0, "grid": grid}))
    folder = out / "cells" / "net" / "default" / "repeat0"
    words = ["paper", "--config", paper, "--manifest", tiny_manifest, "--out", out, "--bootstrap", 5]
    plan = Grid({"net": MethodSpec("Net", str(cell))}, baseline="net")
    (planned,) = plan_cells(plan, Choice(out, {"manifest": str(tiny_manifest)}, 0, (0,), ("net",)))
    fake_cell(folder, golden(), method="net", config_hash=planned.config_hash)
    shutil.copytree(folder, folder.with_name("repeat0_old"))
    assert ended([*words, "--collect", "true"], capsys)[0] == 0
    assert (out / "report.html").is_file()
    for name in ("metrics.csv", "environment.json", "config.yaml", "predictions.csv", "split.csv", "cell.json"):
        plant(folder / name, mark)
        code, _ = ended([*words, "--collect", "true"], capsys)
    assert code == 2 and not mark.exists()
