"""Files of options come before options; a renamed network does not keep the other one's arguments."""

import json

import pytest
import yaml

from kd_convnext.common.words import files_first, with_home, without_foreign_arguments, without_nested_nulls

SMALL = {"name": "convnext_atto", "args": {"depths": [1, 1, 1, 1]}, "image_size": 32}


def config(path, part="backbone", **network):
    content = {"model": {"class_path": "kd_convnext.TeacherModule", "init_args": {part: network}}}
    path.write_text(yaml.safe_dump(content))
    return f"--config={path}"


def test_what_is_typed_holds_wherever_it_stands():
    words = ["--data.batch_size", "5", "--config", "a.yaml", "--model", "TeacherModule", "--x=1", "--config=b.yaml"]
    files = ["--config", "a.yaml", "--config=b.yaml"]
    assert files_first(words) == [*files, "--model", "TeacherModule", "--data.batch_size", "5", "--x=1"]


@pytest.mark.parametrize("part", ["backbone", "student"])
@pytest.mark.parametrize("key", ["--model.{}.name", "--model.init_args.{}.name"])
def test_a_renamed_network_has_arguments_of_its_own(part, key, tmp_path):
    words = [config(tmp_path / "small.yaml", part, **SMALL), key.format(part), "convnext_tiny"]
    found, told = without_foreign_arguments(words)
    assert found == [*words, f"--model.{part}.args={{}}"]
    assert "convnext_tiny" in told and "convnext_atto" in told


def test_a_later_file_renames_too(tmp_path):
    words = [config(tmp_path / "a.yaml", **SMALL), config(tmp_path / "b.yaml", name="convnext_tiny")]
    assert without_foreign_arguments(words)[0][-1] == "--model.backbone.args={}"


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--model.backbone.name=convnext_atto"],
        ["--model.backbone.image_size=64"],
        ["--model.backbone.name=convnext_tiny", f"--model.backbone.args={json.dumps({'depths': [1, 1, 1, 1]})}"],
        ["--model.backbone.args.depths=[1,1,1,1]", "--model.backbone.name", "convnext_tiny"],
    ],
)
def test_arguments_that_are_meant_stay(more, tmp_path):
    words = [config(tmp_path / "small.yaml", **SMALL), *more]
    assert without_foreign_arguments(words) == (words, None)


def test_home_is_meant_also_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    words = [
        "fit",
        "--config",
        "~/a.yaml",
        "--trainer.default_root_dir=~/run",
        "--name=a~b",
        "--data.classes=[~]",
        "--x=~",
    ]
    expected = ["fit", "--config", "/home/x/a.yaml", "--trainer.default_root_dir=/home/x/run", *words[4:]]
    assert with_home(words) == expected


def test_null_of_a_nested_specification_is_taken_out_and_the_last_word_holds():
    words = [
        "--config",
        "a.yaml",
        "--model.student.weights",
        "null",
        "--model.optim.lr=null",
        "--model.optim.lr",
        "0.1",
    ]
    kept, nulls = without_nested_nulls([*words, "--model.teacher_ckpt", "null", "--data.crops.store_size=null"])
    assert nulls == ["model.student.weights"]
    assert without_nested_nulls(["--model.student.weights", "null", "--model.student={}"])[1] == []
    assert kept == [*words[:2], *words[5:], "--model.teacher_ckpt", "null", "--data.crops.store_size=null"]
