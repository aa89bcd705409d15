"""What a fit has warned of its manifest is not said again by the commands that follow."""

import sys

import pytest
import yaml
from helpers.command_line import TINY
from helpers.inference import copy_run

from kd_convnext.cli import main
from kd_convnext.errors import ManifestWarning


@pytest.fixture
def run(tiny_run, tiny_manifest, tiny_cache, tmp_path):
    """A run whose manifest has a column of no use."""
    head, *rows = tiny_manifest.read_text().splitlines()
    odd = tiny_manifest.with_name("odd.csv")
    odd.write_text("\n".join([f"{head},site", *(f"{row},A" for row in rows)]) + "\n")
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    data = {"manifest": str(odd), "cache_dir": tiny_cache}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    yield checkpoint
    odd.unlink()


def judging(config):
    return ["test", f"--config={config}", "--model=TeacherModule", *TINY]


def told(recwarn):
    found = [str(entry.message) for entry in recwarn if issubclass(entry.category, ManifestWarning)]
    recwarn.clear()
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate", "--coverage=0.5"],
        ["explain", "PHOTO", "--out=OUT"],
        ["export", "--format=torch", "--out=OUT"],
        judging("CONFIG"),
    ],
    ids=lambda words: words[0],
)
def test_the_runs_own_manifest(run, words, tiny_manifest, tmp_path, recwarn):
    places = {
        "PHOTO": tiny_manifest.with_name("0_0_0.png"),
        "OUT": tmp_path / "out",
        "CONFIG": tmp_path / "run" / "config.yaml",
    }
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert main([*words, "--ckpt_path", str(run)]) == 0
    assert told(recwarn) == []


def test_other_photographs_are_warned_of(run, tiny_manifest, tmp_path, recwarn):
    head, *rows = tiny_manifest.with_name("odd.csv").read_text().splitlines()
    folder = tiny_manifest.parent
    others = [f"{folder}/{row}".replace(",L", ",other-L") for row in rows]
    (tmp_path / "other.csv").write_text("\n".join([head, *others]) + "\n")
    words = [*judging(tmp_path / "run" / "config.yaml"), "--ckpt_path", str(run)]
    assert main([*words, f"--data.manifest={tmp_path / 'other.csv'}", "--data.allow_leak=true"]) == 0
    assert any("'site'" in text for text in told(recwarn))


def test_the_bar_has_ended_where_results_begin(run, tmp_path, capsys, recwarn, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    words = [*judging(tmp_path / "run" / "config.yaml"), "--ckpt_path", str(run)]
    assert main([*words, "--trainer.enable_progress_bar=true", "--data.upscaler=auto"]) == 0
    before, _, results = capsys.readouterr().out.partition("Test part:")
    assert "Testing" in before and "Testing" not in results and "macro F1" in results
    assert not [entry for entry in recwarn if "Real-ESRGAN" in str(entry.message)]  # the fit has said so
