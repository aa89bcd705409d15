"""Flat options and files of fits are understood, in all their mixtures; a checkpoint's classes are not imported."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.paths import CONFIGS

from kd_convnext.checkpoints.format import KEY
from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.training.old_spelling import modern_words

OLD = {
    "model": {
        "class_path": "kd_convnext.DistillModule",
        "init_args": {"feature": False, "alpha": 0.3, "gamma": 1.0, "student_taps": ["stages.3"]},
    }
}
EQ5 = {"class_path": "kd_convnext.Eq5"}
NEW = {"model": {"class_path": "kd_convnext.DistillModule", "init_args": {"objective": EQ5}}}


@pytest.fixture
def files(tmp_path):
    for name, content in {"old": OLD, "new": NEW}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def words_of(*words):
    with modern_words(words) as found:
        return [word.removeprefix("--model.") for word in found]


def test_words_alone():
    assert words_of("fit", "--model=TeacherModule", "--model.gamma=1") == ["fit", "--model=TeacherModule", "gamma=1"]
    with pytest.warns(UserWarning, match=r"alpha, soft, teacher_taps of DistillModule are spelled objective\.alpha"):
        old = ["--model.alpha", "0.3", "--model.soft=false", "--model.teacher_taps=[a]"]
        found = words_of("--model", "DistillModule", *old)
    eq5 = "objective=kd_convnext.losses.Eq5"
    assert found == ["--model=DistillModule", eq5, "objective.alpha=0.3", "objective.drop=[soft]", "taps.teacher=[a]"]
    assert words_of("--model.objective.beta=2") == [eq5, "objective.beta=2"]
    assert words_of("--model.objective=My", "--model.objective.beta=2") == ["objective=My", "objective.beta=2"]


@pytest.mark.parametrize("option", ["--data.class_balanced", "--model.soft"])
def test_a_switch_that_is_no_yaml_is_refused_by_name(option):
    with pytest.raises(ConfigError, match=f"{option}: '{{' is not YAML .*Write true or false"):
        words_of("fit", option, "{")


def test_words_after_files(files):
    with pytest.warns(UserWarning, match="soft"):
        found = words_of("--config", str(files / "new.yaml"), "--model.soft=false")
    assert found == [f"--config={files / 'new.yaml'}", "objective.drop=[soft]"]
    with pytest.warns(UserWarning), modern_words([f"--config={files / 'old.yaml'}", "--model.soft=false"]) as found:
        copy = found[0].removeprefix("--config=")
        assert copy.endswith("/old.yaml")
        arguments = yaml.safe_load(Path(copy).read_text())["model"]["init_args"]
        assert arguments["objective"]["init_args"] == {"alpha": 0.3, "gamma": 1.0, "drop": ["feature"]}
        assert arguments["taps"] == {"student": ["stages.3"]}
        assert found[1:] == ["--model.objective.drop=[feature,soft]"]


def test_by_the_command_line(files, capsys):
    words = ["fit", "--config", str(files / "old.yaml"), "--data.manifest=m.csv", "--print_config"]
    with pytest.warns(UserWarning, match=r"objective\.drop: \[feature\]"):
        assert main([*words, "--model.alpha=0.4"]) == 0
    arguments = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert arguments["objective"]["init_args"]["alpha"] == 0.4
    assert arguments["objective"]["init_args"]["drop"] == ["feature"]
    assert arguments["taps"]["student"] == ["stages.3"]


def test_the_shipped_files_need_no_translation(capsys):
    for path in sorted(CONFIGS.rglob("*.yaml")):
        with modern_words(["--config", str(path)]) as found:
            assert found == [f"--config={path}"]


def test_a_checkpoint_names_no_class_to_import(tmp_path, tiny_manifest, capsys):
    objective = {"class_path": "no_such_module.Term", "init_args": {}}
    checkpoint = {
        "hyper_parameters": {"student": {"name": "convnext_tiny"}, "objective": objective},
        "state_dict": {},
        KEY: {"format_version": 2, "kind": "DistillModule", "answers_with": "student", "distilled": True, "card": None},
    }
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    words = ["test", "--model=DistillModule", "--ckpt_path", str(tmp_path / "foreign.ckpt")]
    words.append(f"--data.manifest={tiny_manifest}")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "hyper_parameters.objective.class_path" in error and "--trust no_such_module" in error


OLD_DATA = {"manifest": "m.csv", "upscaler": "none", "store_size": 64, "split_index": 2, "batch_size": 8}


def test_options_of_the_data_as_they_were(tmp_path, capsys, recwarn):
    """Flat options in a file, in a section's own file and typed: all are read, with one warning."""
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"model": {"class_path": "TeacherModule"}, "data": OLD_DATA}))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"manifest": "n.csv", "packed": True}))
    words = ["fit", "--config", str(tmp_path / "old.yaml"), f"--data={tmp_path / 'data.yaml'}", "--print_config"]
    words += ["--data.ratios=[0.6,0.2,0.2]", "--data.num_workers", "3", "--data.class_balanced", "true"]
    words += ["--data.crops.resize=pad"]
    assert main(words) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (data["manifest"], data["upscaler"], data["batch_size"]) == ("n.csv", "none", 8)
    assert (data["crops"]["store_size"], data["crops"]["resize"]) == (64, "pad")
    assert (data["split"]["index"], data["split"]["ratios"]) == (2, [0.6, 0.2, 0.2])
    loader = data["loader"]
    assert (loader["num_workers"], loader["packed"], loader["sampling"]) == (3, True, "balanced")
    told = [str(entry.message) for entry in recwarn if "old spelling" in str(entry.message)]
    assert len(told) == 1
    assert "the data: split_index, store_size, packed, ratios, num_workers, class_balanced is spelled" in told[0]
    assert "split.index, crops.store_size, loader.packed, split.ratios, loader.num_workers, loader.sampling" in told[0]


def test_a_tool_reads_options_of_crops_as_they_were(tmp_path, tiny_manifest, capsys, recwarn):
    cache = f"--cache_dir={tmp_path / 'cache'}"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"upscaler": "none", "store_size": 24}))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"data": OLD_DATA | {"manifest": str(tiny_manifest)}}))
    assert main(["prepare", "--config", str(tmp_path / "own.yaml"), f"--manifest={tiny_manifest}", cache]) == 0
    words = ["prepare", f"--config={tmp_path / 'fit.yaml'}", cache, "--dry_run=true"]
    assert main([*words, "--store_size=24"]) == 0
    assert "60 found, 0 to make" in capsys.readouterr().out
    assert main([*words, "--crops.store_size=24"]) == 0
    assert "60 found, 0 to make" in capsys.readouterr().out
    told = [str(entry.message) for entry in recwarn if "old spelling" in str(entry.message)]
    assert told == ["prepare: store_size is spelled crops.store_size now; the old spelling will go"] * 3
