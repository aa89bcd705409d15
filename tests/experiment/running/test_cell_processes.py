"""The experiment over several processes: killed and continued, a killed cell, Ray, W&B, measured estimates."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.experiments import CONFIGS, cells, description, record, write
from helpers.wandb_reader import read_runs

from kd_convnext.cli import main
from kd_convnext.experiment.running import estimate
from kd_convnext.training.one_fit import LOCK

pytestmark = pytest.mark.slow
PATIENCE = 240


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread here and in every process begun: sums over other numbers of threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def options(tiny_manifest, tiny_cache, tmp_path_factory):
    """Two methods on two splits, three short epochs each."""
    folder = tmp_path_factory.mktemp("description")
    grid = description()
    grid["common"]["trainer"]["max_epochs"] = 3
    config = write(folder, {**grid, "methods": {name: grid["methods"][name] for name in ("swin", "kd_both")}})
    return [f"--config={config}", f"--manifest={tiny_manifest}", f"--cache_dir={tiny_cache}", "--bootstrap=20"]


@pytest.fixture(scope="module")
def straight(options, tmp_path_factory):
    """The results of a run without interruption."""
    out = tmp_path_factory.mktemp("straight") / "out"
    assert main(["paper", *options, "--repeats=2", f"--out={out}", "--isolate=false"]) == 0
    return (out / "results.csv").read_text()


def start(options, out):
    command = [sys.executable, "-m", "kd_convnext.cli", "paper", *options, f"--out={out}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)
    return found


def children(out):
    """Processes of cells below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "kd_convnext.experiment.child" in words and any(word.startswith(str(out)) for word in words):
            found.append(int(path.parent.name))
    return found


def test_killed_and_continued_gives_the_same_results(options, straight, tmp_path):
    out = tmp_path / "out"
    last = out / "cells" / "kd_both" / "default" / "repeat0" / "checkpoints" / "last.ckpt"
    process = start([*options, "--repeats=2"], out)
    wait_for(lambda: last.exists())
    process.kill()
    process.communicate()
    wait_for(lambda: not children(out))
    assert list(cells(out)) == ["swin/default/repeat0"]
    teacher = (out / "cells/swin/default/repeat0/checkpoints/best.ckpt").stat().st_mtime_ns
    assert main(["paper", *options, "--repeats=2", f"--out={out}", "--resume=true", "--isolate=false"]) == 0
    assert (out / "cells/swin/default/repeat0/checkpoints/best.ckpt").stat().st_mtime_ns == teacher
    assert (out / "results.csv").read_text() == straight
    curves = pd.read_csv(last.parent.parent / "metrics.csv")
    epochs = curves.loc[curves["val/f1_macro"].notna(), "epoch"]
    assert epochs.tolist() == [0, 1, 2]
    # The second fit of the cell went on: it did not begin with the first epoch.
    log = (last.parent.parent / "log.txt").read_text()
    assert log.count("Fitting DistillModule") == 2


def test_a_killed_cell_is_a_failed_cell(options, tmp_path):
    out = tmp_path / "out"
    process = start([*options, "--repeats=2", "--methods=swin"], out)
    log = out / "cells" / "swin" / "default" / "repeat0" / "log.txt"
    wait_for(lambda: log.exists() and "Fitting" in log.read_text())
    for child in children(out):
        os.kill(child, signal.SIGKILL)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "killed by SIGKILL" in error and "swin/default/repeat0" in error
    found = {name: record(cell)["status"] for name, cell in cells(out).items()}
    assert found == {"swin/default/repeat0": "failed", "swin/default/repeat1": "finished"}


def test_a_failed_cell_names_its_folder_once(options, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "out" / "cells" / "swin" / "default" / "repeat0"
    folder.mkdir(parents=True)
    with (folder / LOCK).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        words = ["--repeats=1", "--methods=swin", f"--out={tmp_path / 'out'}", "--resume"]
        assert main(["paper", *options, *words]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {folder}: another fit is writing into it. ") and line.count(str(folder)) == 1


def test_ray_gives_the_results_of_the_serial_run(options, straight, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    assert main(["paper", *options, "--repeats=2", f"--out={out}", "--launcher=ray", "--workers=2"]) == 0
    assert (out / "results.csv").read_text() == straight
    begun = {name: (cell / "split.csv").stat().st_mtime for name, cell in cells(out).items()}
    ended = {name: (cell / "cell.json").stat().st_mtime for name, cell in cells(out).items()}
    for repeat in (0, 1):
        assert begun[f"kd_both/default/repeat{repeat}"] > ended[f"swin/default/repeat{repeat}"]
    # Two at a time: the teachers ran side by side.
    assert begun["swin/default/repeat1"] < ended["swin/default/repeat0"]


def test_an_estimate_from_timed_steps(options, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["paper", *options, "--repeats=2", f"--out={out}", "--dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("timed steps") == 4 and printed.count(" GB ") == 4 and "To run: about" in printed
    assert not out.exists()


def test_an_estimate_trains_no_teacher_first(options, tmp_path, capsys):
    (tmp_path / "first.yaml").write_text("teacher_config: nowhere.yaml\n")
    words = ["paper", *options, "--repeats=1", "--methods=kd_both", f"--out={tmp_path / 'out'}", "--dry_run=true"]
    assert main([*words, f"--overlays=[{tmp_path / 'first.yaml'}]"]) == 0
    assert "timed steps" in capsys.readouterr().out


def test_an_estimate_measures_on_noise_alone(tiny_manifest, tiny_cache, tmp_path, capsys):
    """Crops of several upscalers by a method that is taught, columns by other names, photographs without labels."""
    grid = description(super_resolution={"method": "kd_both", "upscalers": ["bicubic"]})
    grid["common"]["trainer"]["max_epochs"] = 3
    grid["methods"] = {name: grid["methods"][name] for name in ("convnext", "swin", "kd_both")}
    grid["methods"]["kd_both"]["overlay"]["model"]["init_args"]["teacher_cache"] = True
    grid["baseline"] = "convnext"
    table = pd.read_csv(tiny_manifest).rename(columns={"image": "file"})
    manifest = tmp_path / "m.csv"
    table.assign(file=[str(tiny_manifest.parent / name) for name in table["file"]]).to_csv(manifest, index=False)
    more = {"columns": "image=file", "unlabelled": str(tmp_path / "more"), "loader": {"views": 2}}
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((40, 40, 3), number, np.uint8))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": more}))
    before = set(Path(tiny_cache).rglob("*"))
    words = ["paper", f"--config={write(tmp_path, grid)}", f"--manifest={manifest}", f"--cache_dir={tiny_cache}"]
    words += [f"--overlays=[{tmp_path / 'data.yaml'}]", "--repeats=1", "--super_resolution=true", "--dry_run=true"]
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.count("timed steps") == 5
    assert set(Path(tiny_cache).rglob("*")) == before


def test_photographs_without_labels_are_answered_once(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
    for cache, asked in ((True, 3), ("still", 3), (False, 0)):
        model = {"init_args": {"teacher_cache": cache}}
        cell = SimpleNamespace(config={"model": model, "data": {"unlabelled": str(tmp_path)}})
        assert estimate._unlabelled_asked(cell) == asked


def test_an_estimate_of_a_linear_head_trains_no_body(options, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(estimate._Measure, "_config", noted(asked))
    (tmp_path / "linear.yaml").write_text("model: {init_args: {finetune: linear}}\n")
    words = ["paper", *options, "--repeats=1", "--methods=swin", f"--out={tmp_path / 'out'}", "--dry_run=true"]
    assert main([*words, f"--overlays=[{tmp_path / 'linear.yaml'}]"]) == 0
    assert asked == ["linear"] and "To run: about" in capsys.readouterr().out


def noted(asked):
    """Keeps how the teacher of a measurement is trained."""
    real = estimate._Measure._config

    def config(self, cell, batch):
        made = real(self, cell, batch)
        asked.append(made["model"]["init_args"].get("finetune"))
        return made

    return config


def test_cells_of_an_experiment_are_one_group_in_wandb(options, tmp_path):
    out = tmp_path / "trial"
    words = ["paper", *options, "--repeats=1", f"--out={out}", f"--overlays=[{CONFIGS / 'wandb.yaml'}]"]
    assert main([*words, "--cell=0"]) == 0
    assert main([*words, "--cell=1", "--resume=true"]) == 0
    swin, convnext = "swin_tiny_patch4_window7_224", "convnext_tiny"
    for method, networks in (("swin", swin), ("kd_both", f"{convnext}_from_{swin}")):
        runs = read_runs(out / "cells" / method / "default" / "repeat0", 2)
        assert {run.group for run in runs} == {"trial"}
        assert {run.name for run in runs} == {f"{networks}/{method}/default/repeat0"}


@pytest.mark.parametrize(
    ("loader", "views"),
    [({"views": 16}, 3), ({"views": 16, "sampling": "balanced"}, 16), ({"views": 16, "least_batches": 50}, 16)],
)
def test_an_estimate_counts_the_views_that_are_asked(loader, views):
    config = {"model": {"init_args": {"teacher_cache": True}}, "data": {"loader": loader}, "trainer": {"max_epochs": 3}}
    assert estimate._views_asked(SimpleNamespace(config=config)) == views
