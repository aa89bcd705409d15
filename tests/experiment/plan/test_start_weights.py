from pathlib import Path

import pytest
from helpers.experiments import TEACHER, description, method, write
from huggingface_hub import constants

from kd_convnext.cli import main


@pytest.mark.parametrize("more", [["--dry_run"], []])
def test_start_weights_that_are_not_there_are_told_before_anything_runs(tiny_manifest, tmp_path, capsys, more):
    plan = description()
    for name, network in (("swin", "backbone"), ("kd_both", "student")):
        arguments = plan["methods"][name]["overlay"]["model"]["init_args"]
        arguments[network] = {**arguments[network], "weights": f"runs/{name}.ckpt"}
    words = ["paper", f"--config={write(tmp_path, plan)}", f"--manifest={tiny_manifest}", f"--out={tmp_path / 'out'}"]
    assert main([*words, f"--cache_dir={tmp_path / 'cache'}", *more]) == 2
    told = capsys.readouterr().err
    assert all(f"grid.methods.{name}: its start weights runs/{name}.ckpt" in told for name in ("swin", "kd_both"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub_cache(monkeypatch, tmp_path) -> Path:
    """The hub's local cache, empty, on a machine without network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    return tmp_path / "hub"


def published(folder: Path, repository: str) -> None:
    """Puts a file of weights into the hub's cache, as its client does."""
    place = folder / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("more", [["--dry_run"], []])
def test_published_weights_that_nobody_can_fetch_are_told_before_anything_runs(
    tiny_manifest, tmp_path, capsys, hub_cache, more
):
    published(hub_cache, "timm/davit_tiny.msft_in1k")
    plan = description()
    plan["methods"]["swin"]["overlay"]["model"]["init_args"]["backbone"] = {**TEACHER, "pretrained": True}
    plan["methods"]["davit"] = method("DaViT", "davit_tiny.yaml")
    words = ["paper", f"--config={write(tmp_path, plan)}", f"--manifest={tiny_manifest}", f"--out={tmp_path / 'out'}"]
    assert main([*words, f"--cache_dir={tmp_path / 'cache'}", *more]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: grid.methods.swin: the published weights of {TEACHER['name']} are not in {hub_cache}"
    )
    assert "/timm/swin_tiny_patch4_window7_224.ms_in1k/resolve/main/model.safetensors" in line
    assert "weights/swin_tiny_patch4_window7_224.ms_in1k.safetensors" in line and "pretrained: false" in line
    assert not (tmp_path / "out").exists()


def test_a_wrong_tag_of_published_weights_is_said_in_words(tiny_manifest, tmp_path, capsys, hub_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config=configs/kd_convnext_tiny.yaml", "--teacher_config=configs/small_cpu/teacher.yaml"]
    words += ["--model.student.name=convnext_tiny.typo", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main([*words, f"--data.manifest={tiny_manifest}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "typo" in err and "Traceback" not in err
    assert "The teacher first" not in out


def test_published_weights_of_a_student_are_looked_for_before_its_teacher_trains(
    tiny_manifest, tmp_path, capsys, hub_cache, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config=configs/kd_convnext_tiny.yaml", "--teacher_config=configs/small_cpu/teacher.yaml"]
    assert main([*words, f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tmp_path / 'cache'}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: --model.student: the published weights of convnext_tiny are not in")
    assert "The teacher first" not in out
