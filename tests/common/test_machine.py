"""What is asked of the machine."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from helpers.paths import CONFIGS

from kd_convnext.cli import main
from kd_convnext.common import machine
from kd_convnext.common.machine import best_precision, device_kind
from kd_convnext.errors import ConfigError
from kd_convnext.training import command, run_place

MEGABYTE = 2**20
CHILD = """
import numpy
from kd_convnext.common.machine import peak_memory
before = peak_memory()
block = numpy.ones(50 * 2**20, numpy.uint8)
print(before, peak_memory())
"""


def test_peak_memory_is_the_process_s_own():
    large = np.ones(600 * MEGABYTE, np.uint8)  # what a child of ours would inherit in ru_maxrss
    found = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = (int(word) for word in found.stdout.split())
    assert before < 300 * MEGABYTE < large.nbytes
    assert 40 * MEGABYTE < after - before < 60 * MEGABYTE


@pytest.fixture
def hardware(monkeypatch):
    """Sets what the machine has; nothing is remembered before or after."""
    best_precision.cache_clear()
    monkeypatch.delenv(run_place.PRECISION, raising=False)

    def has(amx=False, gain=None, gpu_bf16=None):
        monkeypatch.setattr(machine, "_has_amx", lambda: amx)
        monkeypatch.setattr(machine, "bf16_gain", lambda: gain)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)

    yield has
    best_precision.cache_clear()


@pytest.mark.parametrize(
    "device, found, value, reason",
    [
        ("cuda", {"gpu_bf16": True}, "bf16-mixed", "computes in it"),
        ("cuda", {"gpu_bf16": False}, "32-true", "no bf16"),
        ("cpu", {"amx": True, "gain": 3.04}, "bf16-mixed", "3.0 times as fast, measured"),
        ("cpu", {"amx": True, "gain": 1.2}, "32-true", "1.2 times as fast, measured"),
        ("cpu", {"amx": False, "gain": 9.0}, "32-true", "without AMX"),
        ("mps", {}, "32-true", ""),
    ],
)
def test_bf16_only_where_it_pays(hardware, device, found, value, reason):
    hardware(**found)
    choice = best_precision(device)
    assert choice.value == value and reason in choice.reason


def test_the_measurement_is_a_ratio_of_medians(monkeypatch):
    ticks = iter(range(1000))
    # Each product takes one tick more than the one before; float32 goes first in each round.
    monkeypatch.setattr(time, "perf_counter", lambda: sum(range(next(ticks) + 1)))
    rounds = range(1, machine._ROUNDS + 1)
    wide, narrow = ([4 * number + side for number in rounds] for side in (1, 3))
    assert machine.bf16_gain() == pytest.approx(np.median(wide) / np.median(narrow))


@pytest.mark.parametrize(
    "accelerator, gpu, kind",
    [("auto", True, "cuda"), ("gpu", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), (None, True, "cuda")],
)
def test_the_device_that_the_trainer_will_take(monkeypatch, accelerator, gpu, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_kind(accelerator) == kind


@pytest.fixture
def chosen(hardware, tiny_manifest, tiny_cache, tmp_path, monkeypatch, capsys):
    """The folder of a fit on a CPU with AMX that was given no precision, and its line on the machine."""
    monkeypatch.chdir(tmp_path)
    hardware(amx=True, gain=2.0)
    words = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY, *SMALL_SWIN, *OFFLINE]
    config = str(CONFIGS / "teacher_swin_tiny.yaml")
    assert main(["fit", "--config", config, *words, f"--trainer.default_root_dir={tmp_path / 'first'}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Machine:")]
    return tmp_path / "first", line


def precision(run):
    return json.loads((run / "environment.json").read_text())["precision"]


def test_a_fit_without_precision_takes_the_machine_s(chosen):
    run, line = chosen
    assert "no GPU: precision bf16-mixed (bf16 is 2.0 times as fast, measured), compile off (" in line
    assert line.endswith("no loader worker (as given), crops from their files, augmentation by albumentations")
    assert precision(run) == "bf16-mixed"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["steps"].startswith("compile off (") and environment["divided"] == {"given": False, "alike": 0}
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"] is None


@pytest.mark.slow
def test_a_given_precision_is_kept_and_judging_is_in_float32(chosen, tmp_path, capsys, monkeypatch):
    run, second = chosen[0], tmp_path / "second"
    again = ["--config", str(run / "config.yaml"), f"--trainer.default_root_dir={second}"]
    assert main(["fit", *again, "--trainer.precision=32-true"]) == 0
    assert precision(second) == "32-true"
    assert "precision 32-true (as given)" in capsys.readouterr().out
    asked = []
    monkeypatch.setattr(command, "chosen_precision", lambda device: asked.append(device))
    best = f"--ckpt_path={run}/checkpoints/best.ckpt"
    assert main(["test", "--config", str(run / "config.yaml"), best]) == 0
    assert not asked


def test_all_processes_compute_alike(hardware, monkeypatch):
    hardware(amx=True, gain=2.0)
    assert run_place.chosen_precision("cpu") == "bf16-mixed"
    best_precision.cache_clear()
    hardware(amx=True, gain=1.4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_place.chosen_precision("cpu") == "bf16-mixed"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_place.chosen_precision("cpu") == "32-true"


def test_free_memory_is_that_of_machine_container_and_job(tmp_path, monkeypatch):
    job = tmp_path / "groups" / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/slurm/job\n")
    for name, path in (("_MEMORY", "meminfo"), ("_GROUP", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(machine, name, tmp_path / path)
    assert machine.free_memory() == 5000 * 1024

    def limit(folder, most):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 2000\ninactive_file 300\nactive_file 150\nslab_reclaimable 50\n")

    limit(job, "max")
    assert machine.free_memory() == 5000 * 1024
    limit(job.parent, 10_000)
    assert machine.free_memory() == 10_000 - 3000 + 500
    machine.require_memory(7500, "a fit", "--option", "Do less.")
    with pytest.raises(ConfigError, match=r"--option: a fit takes .* of memory, 7.5e-06 GB are free. Do less."):
        machine.require_memory(7501, "a fit", "--option", "Do less.")
    for path in tmp_path.glob("*"):
        path.rename(path.with_name(f"no_{path.name}"))
    assert machine.free_memory() is None
    machine.require_memory(2**60, "a fit", "--option", "Do less.")
