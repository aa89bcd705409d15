"""init: a configuration that fit takes, a manifest to fill in, and commands that work."""

import json

import pandas as pd
import pytest
import yaml
from helpers.command_line import TINY, convnext
from huggingface_hub import constants

from kd_convnext.cli import main
from kd_convnext.tools import init as tool


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def commands(printed):
    return [line.split()[1:] for line in printed.splitlines() if line.startswith("  kd-convnext")]


def test_without_photographs_it_writes_a_template_too(at, capsys):
    assert main(["init", "--device=cpu"]) == 0
    table = pd.read_csv("manifest.csv")
    assert list(table.columns) == list(tool.HEADER) and len(table) == 3
    config = yaml.safe_load((at / "config.yaml").read_text())
    assert config["data"]["manifest"] == "manifest.csv" and config["teacher_config"] == "configs/small_cpu/teacher.yaml"
    assert [words[0] for words in commands(capsys.readouterr().out)] == ["prepare", "fit", "test"]
    # What a person has edited is not overwritten; both files are named at once.
    assert main(["init", "--device=cpu"]) == 2
    assert "2 problems found" in capsys.readouterr().err
    assert main(["init", "--device=gpu", "--overwrite"]) == 0
    assert yaml.safe_load((at / "config.yaml").read_text())["teacher_config"] == "configs/teacher_swin_tiny.yaml"


def test_a_manifest_is_checked_and_counted_and_the_next_command_works(at, tiny_manifest, capsys):
    assert main(["init", str(tiny_manifest), "--device=cpu", "--out=study"]) == 0
    printed = capsys.readouterr().out
    assert "Grade 1" in printed and "12 (12, 6" in printed and not (at / "study" / "manifest.csv").exists()
    assert yaml.safe_load((at / "study" / "config.yaml").read_text())["data"]["batch_size"] == 8
    prepare, fit, _ = commands(printed)
    assert main([*prepare, "--cache_dir=cache"]) == 0
    assert main([*fit, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out.partition("# lightning")[2].partition("\n")[2])
    assert shown["model"]["init_args"]["student"]["name"] == "convnext_atto"
    assert main(["init", "nowhere.csv", "--out=other"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err and not (at / "other").exists()


def test_a_folder_without_class_folders_gets_a_row_for_each_photograph(at, tiny_manifest, capsys):
    assert main(["init", str(tiny_manifest.parent), "--device=cpu"]) == 0
    table = pd.read_csv("manifest.csv", dtype=str, keep_default_na=False)
    assert len(table) == 60 and set(table["label"]) == {""}
    assert all((at / name).is_file() for name in table["image"])
    assert "fill in the labels" in capsys.readouterr().out


def test_on_a_gpu_the_hubs_cache_decides_and_what_it_lacks_is_named(at, capsys):
    assert main(["init", "--device=gpu"]) == 0
    lacking = capsys.readouterr().out
    assert yaml.safe_load((at / "config.yaml").read_text())["teacher_config"] == "configs/teacher_swin_tiny.yaml"
    assert "configs/kd_convnext_best.yaml" in lacking and "timm/vit_base_patch14_dinov2.lvd142m" in lacking
    for name in ("vit_base_patch14_dinov2.lvd142m", "convnext_tiny.in12k_ft_in1k"):
        assert f"timm/{name}" in lacking
        folder = at / "hub" / f"models--timm--{name}"
        for file, content in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/model.safetensors", "weights")):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content)
    assert main(["init", "--device=gpu", "--overwrite"]) == 0
    assert "configs/kd_convnext_best.yaml, a student" not in capsys.readouterr().out
    settings = yaml.safe_load((at / "config.yaml").read_text())
    assert settings["teacher_config"] == "configs/teacher_vit.yaml" and settings["data"]["loader"]["views"] == 16


def test_on_a_cpu_the_place_of_the_missing_weights_is_named(at, capsys):
    assert main(["init", "--device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "configs/small_cpu/best.yaml" in said
    assert str(at / "cache/weights/vit_small_patch14_dinov2.safetensors") in said


def test_weights_that_are_there_decide_the_recipe(monkeypatch, tmp_path):
    place = tmp_path / "cache" / "weights" / "vit_small_patch14_dinov2.safetensors"
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert tool.choose_recipe("cpu").student == "configs/small_cpu/student.yaml"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    recipe = tool.choose_recipe("cpu")
    assert recipe.teacher == tool.LINEAR_TEACHER and str(place) in recipe.reason
    settings = yaml.safe_load(tool.configuration(recipe, "photos: all.csv", "image=file", 8))
    # Few photographs are no reason for smaller batches where an epoch makes several passes.
    assert settings["data"]["loader"]["least_batches"] == 50 and settings["data"]["batch_size"] == 32
    assert settings["data"]["manifest"] == "photos: all.csv" and settings["data"]["columns"] == "image=file"
    # The teacher sees what the student sees.
    assert settings["model"]["init_args"]["teacher_cache"] is True and settings["data"]["loader"]["views"] == 16
    # In fewer epochs the recipe is no better than labels alone.
    assert settings["trainer"]["max_epochs"] == 60


@pytest.mark.slow
def test_the_configuration_trains_teacher_and_student(at, tiny_manifest, tiny_cache):
    assert main(["init", str(tiny_manifest), "--device=cpu"]) == 0
    smaller = [*TINY, *convnext("student"), f"--data.cache_dir={tiny_cache}", "--name=first"]
    assert main(["fit", "--config=config.yaml", *smaller]) == 0
    (run,) = (at / "runs" / "first").iterdir()
    assert main(["test", f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/best.ckpt"]) == 0
    assert "test/f1_macro" in json.loads((run / "metrics.json").read_text())
