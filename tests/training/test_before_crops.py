"""What does not fit the photographs is refused before a crop is made for it: super-resolution takes long."""

import pytest
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY, convnext

from kd_convnext.cli import main

TURNED = '--data.classes=["MIA","AIS","Grade 1","Grade 2","Grade 3"]'


@pytest.fixture
def words(tiny_manifest, tmp_path):
    """Data whose crops nobody has made."""
    places = [f"--data.cache_dir={tmp_path / 'cache'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    return [f"--data.manifest={tiny_manifest}", *places, *TINY]


def student(checkpoint):
    return ["--model=kd_convnext.DistillModule", *convnext("student"), f"--model.teacher_ckpt={checkpoint}"]


def refused(words, tmp_path, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert "to make" not in said.out and not list(tmp_path.glob("cache/**/*.png"))
    return said.err


def test_a_teacher_of_other_classes(words, tiny_run, tmp_path, capsys):
    said = refused(["fit", *words, TURNED, *student(tiny_run)], tmp_path, capsys)
    assert "--model.teacher_ckpt: the teacher knows Grade 1, Grade 2" in said


def test_a_teacher_of_another_division(words, tiny_run, tmp_path, capsys):
    said = refused(["fit", *words, "--data.split.index=1", *student(tiny_run)], tmp_path, capsys)
    assert "--model.teacher_ckpt" in said and "was trained on" in said


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_checkpoint_of_other_classes(command, words, tiny_run, tmp_path, capsys):
    words = [word for word in words if not word.startswith(("--trainer.max", "--trainer.limit"))]
    model = ["--model=kd_convnext.TeacherModule", *SMALL_SWIN, *OFFLINE]
    said = refused([command, *model, *words, TURNED, f"--ckpt_path={tiny_run}"], tmp_path, capsys)
    assert "it knows the classes Grade 1, Grade 2" in said and "the data has MIA, AIS" in said


def test_pictures_of_another_size_than_the_networks(words, tiny_run, tmp_path, capsys):
    said = refused(["fit", *words, "--data.image_size=64", *student(tiny_run)], tmp_path, capsys)
    assert "--data.image_size: the data gives 64 px, the network takes 32" in said


def test_start_weights_that_have_seen_what_is_judged(words, tiny_run, tmp_path, capsys):
    start = ["--model=kd_convnext.TeacherModule", *SMALL_SWIN, *OFFLINE, f"--model.backbone.weights={tiny_run}"]
    said = refused(["fit", *words, "--data.split.index=1", *start], tmp_path, capsys)
    assert "this checkpoint: it was trained on" in said
