"""What may not be read is named, never left out in silence."""

import os
import subprocess
import sys

import pytest
from PIL import Image

POWERS = "-dac_override,-dac_read_search"


def run(*words):
    """Runs a command without the power to read everything, which root has."""
    without = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"] if os.geteuid() == 0 else []
    command = [*without, sys.executable, "-m", "kd_convnext.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photographs each; one photograph lies in a folder of its own."""
    for label in ("a", "b"):
        place = tmp_path / "classes" / label
        (place / "more").mkdir(parents=True)
        for number in range(3):
            picture = Image.effect_noise((40, 36), 20 + number).convert("RGB")
            picture.save((place / "more" if number == 2 else place) / f"{label}{number}.png")
    locked = []

    def lock(path):
        locked.append(path)
        path.chmod(0)
        return tmp_path / "classes"

    yield lock
    for path in locked:
        path.chmod(0o755)


@pytest.mark.parametrize("locked", ["a", "a/more"])
def test_a_folder_of_photographs_without_permission_is_named(locked, folder, tiny_run, tmp_path):
    classes = folder(tmp_path / "classes" / locked)
    done = run("prepare", classes, "--dry_run", "--cache_dir", tmp_path / "cache")
    assert done.returncode == 2 and f"{locked}: the photograph cannot be read (Permission denied)" in done.stderr
    done = run("classify", classes, "--ckpt_path", tiny_run, "--out", tmp_path / "out")
    assert done.returncode == 2 and f"{classes / locked}: the photograph cannot be read" in done.stderr
    assert f"{locked}" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_folder_that_may_not_be_listed_is_named(folder, tiny_run, tmp_path):
    classes = folder(tmp_path / "classes")
    for words in (["prepare", classes, "--dry_run"], ["classify", classes, "--ckpt_path", tiny_run]):
        done = run(*words, *(["--out", tmp_path / "out"] if words[0] == "classify" else []))
        assert done.returncode == 2 and str(classes) in done.stderr and "ermission" in done.stderr, done.stderr


def test_what_cannot_be_read_is_not_said_to_be_unwritable(folder, tmp_path):
    place = folder(tmp_path / "classes")
    done = run("prepare", place / "manifest.csv", "--dry_run")
    assert done.returncode == 2 and "cannot be read (Permission denied)" in done.stderr


def test_a_hidden_folder_without_permission_is_passed_over(folder, tiny_run, tmp_path):
    (tmp_path / "classes" / ".Trash-0").mkdir(parents=True, exist_ok=True)
    classes = folder(tmp_path / "classes" / ".Trash-0")
    done = run("classify", classes, "--ckpt_path", tiny_run, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
