"""SIGTERM, as time limits, `docker stop` and guards of memory send it, and Ctrl+C: a fit they end is not finished."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.errors import Terminated
from kd_convnext.experiment.plan.cells import Cell
from kd_convnext.experiment.plan.record import CellRecord
from kd_convnext.experiment.running import cell as running
from kd_convnext.training import command, run_place

LONG = ["--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), "--trainer.max_epochs=5000"]
PATIENCE = 120


def begun(words, last):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "kd_convnext.cli", *words]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    end = time.monotonic() + PATIENCE
    while not last.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_fit_ends_with_its_code_and_says_how_to_go_on(number, code, tiny_manifest, tiny_cache, tmp_path):
    run = tmp_path / "run"
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    last = run / "checkpoints" / "last.ckpt"
    process = begun(["fit", *LONG, *data, f"--trainer.default_root_dir={run}"], last)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert {143: "SIGTERM", 130: "interrupted: "}[code] in told and str(last) in told and "Traceback" not in told
    words = told[told.index("kd-convnext fit ") :].split()[1:]
    done = torch.load(last, weights_only=True)["epoch"]
    assert main([*words, f"--trainer.max_epochs={done + 2}"]) == 0
    assert torch.load(last, weights_only=True)["epoch"] == done + 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_ends_with_its_code_and_goes_on_where_it_was(number, code, tmp_path):
    words = ["demo", f"--out={tmp_path / 'demo'}", "--lesions=[3,3,3,3,3]", "--epochs=400", "--seeds=1"]
    process = begun(words, tmp_path / "demo" / "teacher" / "checkpoints" / "last.ckpt")
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert {143: "SIGTERM", 130: "interrupted"}[code] in told and "--resume true" in told and "Traceback" not in told
    assert not list(tmp_path.rglob("predictions.csv"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_tool_ends_with_its_code_and_leaves_nothing_half_written(
    number, code, tiny_manifest, tmp_path, monkeypatch, capsys
):
    flush, cache = os.fsync, tmp_path / "cache"

    def told(descriptor):
        os.kill(os.getpid(), number)
        flush(descriptor)

    words = ["prepare", "--manifest", str(tiny_manifest), "--cache_dir", str(cache), "--upscaler", "bicubic"]
    with monkeypatch.context() as harm:
        harm.setattr(os, "fsync", told)
        assert main(words) == code
    error = capsys.readouterr().err
    assert (
        ("SIGTERM" in error or "interrupted: " in error)
        and "give the command again" in error
        and "Traceback" not in error
    )
    assert not list(cache.rglob("*.tmp")) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert main(words) == 0


def test_help_is_no_signal():
    assert main(["fit", "--help"]) == 0


@pytest.mark.parametrize(("code", "status"), [(143, "failed"), (2, "failed"), (0, "finished")])
def test_a_cell_is_finished_only_if_its_fit_ended_by_itself(code, status, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_in_process", lambda words, log, place: code if words[0] == "fit" else 0)
    record = running.run_cell(_cell(), running.Workplace(tmp_path))
    assert isinstance(record, CellRecord) and record.status == status


def test_a_cell_that_was_killed_between_its_first_two_checkpoints_begins_anew(tmp_path, monkeypatch):
    best = tmp_path / _cell().path / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    monkeypatch.setattr(running, "_in_process", lambda words, log, place: int(words[0] == "fit" and best.exists()))
    assert running.run_cell(_cell(), running.Workplace(tmp_path)).status == "finished"


def test_a_signal_to_the_experiment_begins_no_other_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "TrainingCLI", _Stopped)
    with pytest.raises(Terminated):
        running.run_cell(_cell(), running.Workplace(tmp_path, isolate=False))


class _Stopped:
    @classmethod
    def parsed(cls, words):
        raise run_place.terminated(words[0])


def _cell():
    return Cell("swin", "Swin", "ablation", "default", 0, 0, {}, "hash", None, "test")
