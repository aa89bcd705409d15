import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from helpers.inference import changed, copy_run

from kd_convnext.cli import main


@pytest.fixture
def doctor(capsys, tmp_path, monkeypatch):
    """Runs the tool; returns exit code, lines and errors."""
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "cache"))

    def run(*words):
        code = main(["doctor", *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out.splitlines(), printed.err

    return run


def line(lines, name):
    (found,) = [text for text in lines if text.split()[1] == f"{name}:"]
    return found


def test_every_line_has_a_verdict(doctor, tiny_run, tiny_manifest):
    code, lines, _ = doctor("--ckpt_path", tiny_run, "--manifest", tiny_manifest, "--sr_weights=drawn-specimens-x4")
    assert code == 0 and {text.split()[0] for text in lines} <= {"PASS", "WARN"}
    names = [text.split()[1].strip(":") for text in lines]
    expected = "python packages torch gpu precision sr_weights cache disk wandb manifest checkpoint calibration"
    assert names == expected.split()
    assert torch.__version__ in line(lines, "torch") and "60 regions" in line(lines, "manifest")
    assert line(lines, "calibration").startswith("WARN") and "kd-convnext calibrate" in line(lines, "calibration")


def test_what_is_wrong_is_named_with_a_remedy(doctor, tmp_path):
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    (tmp_path / "file").write_text("in the way")
    words = ["--ckpt_path", tmp_path / "foreign.ckpt", "--manifest", tmp_path / "gone.csv"]
    code, lines, err = doctor(*words, "--sr_weights", tmp_path / "gone.pth", "--cache_dir", tmp_path / "file" / "cache")
    assert code == 2
    failed = [text.split()[1].strip(":") for text in lines if text.startswith("FAIL")]
    assert failed == ["sr_weights", "cache", "manifest", "checkpoint"]
    assert all(name in err for name in failed) and "4 of" in err
    assert "not written by kd-convnext" in line(lines, "checkpoint") and "does not exist" in line(lines, "manifest")


def test_a_device_that_is_no_gpu_is_named_where_gpus_are(doctor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # its real functions then refuse what is not there
    code, lines, _ = doctor("--device", "cuda:7", "--sr_weights=drawn-specimens-x4")
    assert code == 2 and line(lines, "gpu").startswith("FAIL") and "cuda:7 is no GPU here" in line(lines, "gpu")


def test_missing_and_old_packages(doctor, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "spandrel":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "timm" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    code, lines, _ = doctor()
    assert code == 2
    assert "spandrel is missing" in line(lines, "packages") and "timm 0.1 is not >=" in line(lines, "packages")


def test_little_disk(doctor, monkeypatch):
    for free, verdict in ((1e8, "FAIL"), (1e9, "WARN"), (1e12, "PASS")):
        usage = shutil._ntuple_diskusage(2e12, 2e12 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        code, lines, _ = doctor()
        assert line(lines, "disk").startswith(verdict) and code == (2 if verdict == "FAIL" else 0)


def test_wandb_is_looked_up_without_network(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert line(doctor()[1], "wandb").startswith("WARN")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    found = line(doctor()[1], "wandb")
    assert found.startswith("PASS") and "secret" not in found
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert "wandb.example.org" in line(doctor()[1], "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "wandb sync" in line(doctor()[1], "wandb")


def test_manifest_without_lesions(doctor, tiny_manifest, tmp_path):
    rows = [text.split(",") for text in tiny_manifest.read_text().splitlines()[1:]]
    lines = [f"{tiny_manifest.parent}/{row[0]},{row[1]}" for row in rows]
    (tmp_path / "m.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    code, lines, _ = doctor("--manifest", tmp_path / "m.csv")
    assert code == 0 and "lesion_id" in line(lines, "lesions")


def test_checkpoint_with_calibration_and_a_leak(doctor, tiny_run, tmp_path):
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5"]) == 0
    _, lines, _ = doctor("--ckpt_path", checkpoint)
    assert line(lines, "calibration") == "PASS  calibration: sets at 50% coverage"
    leaky = changed(tiny_run, tmp_path / "leaky.ckpt", leak_allowed=True)
    _, lines, _ = doctor("--ckpt_path", leaky)
    assert line(lines, "leak").startswith("WARN")
    changed(tiny_run, checkpoint, leak_allowed=True)
    code, lines, _ = doctor("--ckpt_path", checkpoint)
    assert code == 2 and "another checkpoint" in line(lines, "checkpoint")


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom kd_convnext.cli import main\n"
        "for tool in ('classify', 'calibrate', 'doctor'):\n"
        "    try:\n        main([tool, '--help'])\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'timm', 'lightning', 'sklearn', 'scipy') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=True)
    assert found.stdout.strip().endswith("[]")
    assert all(word in found.stdout for word in ("PHOTO [PHOTO ...]", "--coverage", "--sr_weights"))
