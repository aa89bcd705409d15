"""The experiment through the command line, in this process: cells, resuming, failures, sweep, SLURM."""

import json
import os
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.experiments import CONFIGS, STUDENT, cells, description, method, record, write

from kd_convnext.cli import main
from kd_convnext.experiment.plan.cells import Choice, plan_cells
from kd_convnext.experiment.plan.grid import Grid, MethodSpec, SuperResolution, Sweep


@pytest.fixture(scope="module")
def options(tiny_manifest, tiny_cache):
    return [f"--manifest={tiny_manifest}", f"--cache_dir={tiny_cache}", "--isolate=false", "--bootstrap=20"]


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """Two methods on two splits."""
    folder = tmp_path_factory.mktemp("paper")
    config = write(folder, description())
    words = ["paper", f"--config={config}", *options, "--repeats=2", "--methods=kd_both", f"--out={folder / 'out'}"]
    assert main(words) == 0
    return folder / "out", words


@pytest.mark.slow
def test_cells_are_whole_runs_on_the_same_splits(finished):
    out, _ = finished
    names = [f"{method}/default/repeat{repeat}" for method in ("swin", "kd_both") for repeat in (0, 1)]
    assert sorted(cells(out)) == sorted(names)
    tree = ("config.yaml", "split.csv", "metrics.json", "metrics.csv", "predictions.csv", "environment.json", "log.txt")
    for cell in cells(out).values():
        assert all((cell / name).is_file() for name in (*tree, "checkpoints/best.ckpt"))
        found = record(cell)
        assert found["status"] == "finished" and found["error"] is None and found["seconds"] > 0
    splits = {name: (cell / "split.csv").read_text() for name, cell in cells(out).items()}
    assert splits["swin/default/repeat0"] == splits["kd_both/default/repeat0"]
    assert splits["swin/default/repeat0"] != splits["swin/default/repeat1"]
    results = pd.read_csv(out / "results.csv")
    assert len(results) == 4 and (out / "tables.md").is_file() and (out / "report.html").is_file()
    accuracy = json.loads((cells(out)["kd_both/default/repeat1"] / "metrics.json").read_text())["test/accuracy"]
    row = results[(results["method"] == "kd_both") & (results["repeat"] == 1)].iloc[0]
    assert row["accuracy"] == pytest.approx(accuracy, abs=1e-6) and row["seed"] == 1


@pytest.mark.slow
def test_a_cell_is_repeated_by_hand_from_its_configuration(finished, tmp_path, monkeypatch):
    out, _ = finished
    cell = cells(out)["kd_both/default/repeat1"]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(cell / "config.yaml"), "--name=again"]) == 0
    (again,) = (tmp_path / "runs" / "again").iterdir()
    pd.testing.assert_frame_equal(pd.read_csv(again / "metrics.csv"), pd.read_csv(cell / "metrics.csv"))
    assert (again / "split.csv").read_text() == (cell / "split.csv").read_text()


@pytest.mark.slow
def test_resuming_runs_nothing_twice_and_a_changed_cell_alone(finished, options, tmp_path, capsys):
    out, words = finished
    before = {name: (cell / "checkpoints" / "best.ckpt").stat().st_mtime_ns for name, cell in cells(out).items()}
    assert main(words) == 2
    assert "--resume true" in capsys.readouterr().err
    changed = description()
    changed["methods"]["kd_both"]["overlay"]["model"]["init_args"]["temperature"] = 2.0
    same = ["--resume=true", "--repeats=1", f"--out={out}", "--methods=[kd_both]"]
    again = ["paper", f"--config={write(tmp_path, changed)}", *options, *same]
    assert main(again) == 0
    printed = capsys.readouterr().out
    assert "2 cells, 1 of them finished already" in printed
    after = {name: (cell / "checkpoints" / "best.ckpt").stat().st_mtime_ns for name, cell in cells(out).items()}
    assert {name for name in before if before[name] != after[name]} == {"kd_both/default/repeat0"}
    (replaced,) = (out / "replaced" / "kd_both" / "default").iterdir()
    assert (replaced / "predictions.csv").is_file()
    assert len(pd.read_csv(out / "results.csv")) == 2
    assert main([*again, "--dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1 finished cell") == 2 and "To run: about 0 s" in printed


@pytest.mark.slow
def test_a_cell_that_was_not_judged_yet_is_only_judged(finished):
    out, words = finished
    cell = cells(out)["swin/default/repeat1"]
    before = (record(cell), (cell / "metrics.csv").read_text(), (cell / "predictions.csv").read_text())
    trained = (cell / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    (cell / "cell.json").unlink()
    (cell / "predictions.csv").unlink()
    assert main([*words, "--resume=true", "--cell=2"]) == 0
    assert (cell / "checkpoints" / "best.ckpt").stat().st_mtime_ns == trained
    after = (record(cell), (cell / "metrics.csv").read_text(), (cell / "predictions.csv").read_text())
    assert after[1:] == before[1:] and after[0]["status"] == "finished"


@pytest.mark.slow
def test_failed_cells_are_reported_and_stop_nothing(options, tmp_path, capsys):
    broken = description(baseline="convnext")
    broken["methods"]["swin"]["overlay"]["model"]["init_args"]["optim"] = {"lr": -1.0}
    out = tmp_path / "out"
    words = ["paper", f"--config={write(tmp_path, broken)}", *options, "--repeats=1", f"--out={out}"]
    assert main([*words, "--methods=kd_both,convnext"]) == 1
    captured = capsys.readouterr()
    assert "2 problems found" in captured.err and "Traceback" not in captured.err
    swin, taught = (record(out / "cells" / name / "default" / "repeat0") for name in ("swin", "kd_both"))
    assert swin["status"] == "failed" and "lr: -1.0 cannot work" in swin["error"]
    assert taught["status"] == "failed" and "teacher swin" in taught["error"] and swin["error"] in taught["error"]
    assert record(out / "cells" / "convnext" / "default" / "repeat0")["status"] == "finished"
    results = pd.read_csv(out / "results.csv")
    assert dict(zip(results["method"], results["status"], strict=True)) == {
        "swin": "failed",
        "kd_both": "failed",
        "convnext": "finished",
    }


@pytest.mark.slow
def test_a_sweep_touches_no_test_part(finished, options, tmp_path):
    out, _ = finished
    sweep = {"method": "kd_both", "alpha": [0.25], "beta": [1.0], "temperature": [2.0]}
    config = write(tmp_path, description(sweep=sweep))
    words = ["paper", f"--config={config}", *options, "--repeats=1", "--methods=swin", f"--out={out}"]
    assert main([*words, "--sweep=true", "--cell=1", "--resume=true"]) == 0
    cell = out / "cells" / "kd_both" / "alpha=0.25,beta=1,temperature=2" / "repeat0"
    assert record(cell)["family"] == "sweep"
    assert all(name.startswith("val/") for name in json.loads((cell / "metrics.json").read_text()))
    assert not (cell / "predictions.csv").exists()
    arguments = yaml.safe_load((cell / "config.yaml").read_text())["model"]["init_args"]
    options = arguments["objective"]["init_args"]
    assert (options["alpha"], options["temperature"]) == (0.25, 2.0)


class TestPlan:
    """What runs, in which order, and when a cell counts as another one."""

    def plan(self, tmp_path, grid=None, **choice):
        grid = grid or self.grid()
        given = {"data": {"manifest": "m.csv"}, "seed": 7, "repeats": (0, 1), "methods": tuple(grid.methods)}
        return plan_cells(grid, Choice(tmp_path, **{**given, **choice}))

    def grid(self, **changes):
        values = description(**changes)
        methods = {name: MethodSpec(**spec) for name, spec in values.pop("methods").items()}
        return Grid(methods=methods, **values)

    def test_each_teacher_once_before_its_students_repeat_after_repeat(self, tmp_path):
        planned = self.plan(tmp_path, methods=("kd_both", "kd_logits"))
        assert [cell.key[::2] for cell in planned] == [
            (name, repeat) for repeat in (0, 1) for name in ("swin", "kd_both", "kd_logits")
        ]
        checkpoints = {cell.config["model"]["init_args"].get("teacher_ckpt") for cell in planned if cell.repeat == 1}
        assert checkpoints == {None, str(tmp_path / "cells/swin/default/repeat1/checkpoints/best.ckpt")}
        assert [cell.config["data"]["split"]["index"] for cell in planned] == [0, 0, 0, 1, 1, 1]
        assert {cell.config["data"]["split"]["seed"] for cell in planned} == {7}
        assert [cell.config["seed_everything"] for cell in planned] == [7, 7, 7, 8, 8, 8]

    def test_a_dropped_term_is_dropped_and_the_others_keep_their_weight(self, tmp_path):
        logits = {cell.method: cell.config["model"]["init_args"] for cell in self.plan(tmp_path)}["kd_logits"]
        objective = logits["objective"]
        assert objective["class_path"] == "kd_convnext.Eq5"
        assert objective["init_args"] | {"drop": ["feature"], "alpha": 0.5, "beta": 1.0} == objective["init_args"]

    def test_other_crops_have_their_own_teacher(self, tmp_path):
        crops = SuperResolution("kd_both", ("none",))
        planned = self.plan(tmp_path, self.grid(super_resolution=crops), repeats=(0,), super_resolution=True)
        added = [cell for cell in planned if cell.setting == "upscaler=none"]
        assert [(cell.method, cell.family) for cell in added] == [
            ("swin", "super_resolution"),
            ("kd_both", "super_resolution"),
        ]
        assert {cell.config["data"]["upscaler"] for cell in added} == {"none"}
        assert added[1].teacher is not None and added[1].teacher.setting == "upscaler=none"

    def test_a_sweep_takes_every_combination_on_validation(self, tmp_path):
        sweep = Sweep("kd_both", (0.25, 0.5), (1.0,), (1.0, 4.0))
        planned = self.plan(tmp_path, self.grid(sweep=sweep), methods=("swin",), sweep=True)
        searched = [cell for cell in planned if cell.family == "sweep"]
        assert len(searched) == 4 and {cell.repeat for cell in searched} == {0}
        assert {cell.judged for cell in searched} == {"val"}
        assert searched[0].teacher is not None and searched[0].teacher.setting == "default"

    def test_a_cell_is_what_it_computes_not_where(self, tmp_path):
        weights, moved = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
        weights.write_bytes(b"weights")
        moved.write_bytes(b"weights")

        def hashes(common=None, teacher=None, **data):
            grid = self.grid()
            backbone = grid.methods["swin"].overlay["model"]["init_args"]["backbone"]
            backbone["weights"] = str(teacher or weights)
            options = {"manifest": "m.csv", **data}
            laid = {**grid.common, **(common or {})}
            planned = self.plan(tmp_path, Grid(grid.methods, laid, "swin"), data=options, repeats=(0,))
            return {cell.method: cell.config_hash for cell in planned}

        first = hashes()
        assert hashes(cache_dir="/elsewhere", num_workers=3) == first
        assert hashes(teacher=moved) == first
        moved.write_bytes(b"others")
        changed = {name for name, value in hashes(teacher=moved).items() if value != first[name]}
        assert changed == {"swin", "kd_both", "kd_logits"}
        assert not set(hashes(batch_size=4).values()) & set(first.values())

    def test_shipped_experiments_can_be_planned(self, tmp_path):
        from jsonargparse import ArgumentParser

        for name in ("paper.yaml", "small_cpu/paper.yaml"):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(Grid, "grid")
            values = {"grid": yaml.safe_load((CONFIGS / name).read_text())["grid"]}
            grid = parser.instantiate(parser.parse_object(values)).grid
            planned = self.plan(tmp_path, grid, super_resolution=True, sweep=grid.sweep is not None)
            table = [cell for cell in planned if cell.setting == "default" and cell.repeat == 0]
            assert [cell.family for cell in table] == ["ablation"] * 5 + ["rival"] * 3


def test_what_is_wrong_with_a_description_is_said_together(options, tmp_path, capsys):
    bad = description(baseline="nobody")
    bad["methods"]["kd_both"]["teacher"] = "nowhere"
    bad["methods"]["swin"]["config"] = "missing.yaml"
    bad["methods"]["convnext"] = method("Untaught", "kd_convnext_tiny.yaml", student=STUDENT)
    words = [f"--config={write(tmp_path, bad)}", *options, "--methods=swin,typo", "--sweep=true"]
    assert main(["paper", *words, f"--out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    for text in ("'nobody'", "'nowhere'", "missing.yaml", "needs a teacher", "'typo'", "--sweep"):
        assert text in err
    assert not (tmp_path / "out").exists()


def test_bad_data_is_found_before_the_first_cell(options, tmp_path, capsys):
    words = [f"--config={write(tmp_path, description())}", "--manifest=nowhere.csv", f"--out={tmp_path / 'out'}"]
    assert main(["paper", *words]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    words = [f"--config={write(tmp_path, description())}", *options, f"--out={tmp_path / 'out'}"]
    assert main(["paper", *words, "--by=site", "--thresholds=AlS=0.2", "--prevalence=MIA=0.1"]) == 2
    error = capsys.readouterr().err
    assert "--thresholds: no class is called 'AlS'. Did you mean AIS?" in error
    assert "manifest.csv has no column site" in error and "--prevalence" not in error
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_other_columns_is_read_as_the_refusal_says(options, tiny_manifest, tmp_path, capsys):
    table = tiny_manifest.with_name("other.csv")
    table.write_text(tiny_manifest.read_text().replace("image,label,lesion_id", "File,Diagnosis,case", 1))
    words = ["paper", f"--config={write(tmp_path, description())}", *options, f"--manifest={table}"]
    words += ["--launcher=slurm", f"--out={tmp_path / 'out'}"]
    assert main(words) == 2
    (option,) = set(re.findall(r'--columns "(.*?)"', capsys.readouterr().err))
    assert main([*words, "--columns", option]) == 0
    experiment = yaml.safe_load((tmp_path / "out" / "experiment.yaml").read_text())
    assert experiment["columns"] == option == "image=file,label=diagnosis,lesion_id=case"
    table.unlink()


def test_the_slurm_script_submits_every_cell_students_after_teachers(options, tmp_path, capsys):
    words = ["paper", f"--config={write(tmp_path, description())}", *options, "--repeats=2", f"--out={tmp_path}/o $u t"]
    assert main([*words, "--launcher=slurm", "--sbatch=--time=01:00:00"]) == 0
    script = tmp_path / "submit.sh"
    script.write_text(capsys.readouterr().out)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    # Jobs are numbered by their lines in the list of calls.
    fake.write_text(
        f'#!/bin/sh\nprintf "%s\\037" "$@" >> {tmp_path}/calls\necho >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n'
    )
    fake.chmod(0o755)
    subprocess.run(["bash", str(script)], check=True, env={"PATH": f"{fake.parent}:{os.environ['PATH']}"})
    calls = [line.split("\037") for line in (tmp_path / "calls").read_text().splitlines()]
    teachers, alone, students, report = calls
    assert "--array=0,4" in teachers and "--array=3,7" in alone and "--array=1,2,5,6" in students
    assert "--dependency=afterany:1" in students and "--dependency=afterany:1:2:3" in report
    assert all("--time=01:00:00" in call for call in (teachers, alone, students))
    task = students[students.index("--wrap") + 1]
    assert task.endswith("--resume true --cell $SLURM_ARRAY_TASK_ID")
    assert f"--config '{tmp_path}/o $u t/experiment.yaml'" in task


def test_the_shipped_experiment_is_found_from_anywhere(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["paper", "--config=configs/paper.yaml", *options, "--out=new", "--launcher=slurm"]) == 0
    assert "Submits 40 cells" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "new" / "experiment.yaml").read_text())["repeats"] == 5


@pytest.mark.slow
def test_tables_by_choice_are_written_of_a_finished_experiment(finished):
    out, words = finished
    assert main([*words, "--collect=true", "--by=height", "--thresholds=AIS=0.2", "--prevalence=AIS=0.1"]) == 0
    text = (out / "tables.md").read_text()
    assert "At chosen thresholds" in text and "By height" in text and "| 0.100 |" in text
    assert "--by height --prevalence AIS=0.1 --thresholds AIS=0.2" in (out / "report.html").read_text()


@pytest.mark.slow
def test_one_cell_of_a_number_runs_alone(finished, tmp_path, capsys):
    out, words = finished
    assert main([*words, "--resume=true", "--cell=4"]) == 2
    assert "Cells are numbered 0 to 3" in capsys.readouterr().err
    again = ["paper", "--config", str(out / "experiment.yaml"), f"--out={tmp_path / 'new'}", "--isolate=false"]
    assert main([*again, "--cell=1"]) == 1
    assert "is not finished" in record(tmp_path / "new" / "cells" / "kd_both" / "default" / "repeat0")["error"]
    assert not Path(tmp_path / "new" / "results.csv").exists()


def test_the_sweep_of_wandb_names_existing_options(capsys, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.setenv("MANIFEST", "photos.csv")
    monkeypatch.setenv("TEACHER", "best.ckpt")
    sweep = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "val/f1_macro", "goal": "maximize"}
    chosen = {"args": {name: {"value": spec["values"][-1]} for name, spec in sweep["parameters"].items()}}
    program, *words = create_sweep_command(sweep["command"])
    assert (program, words.pop()) == ("kd-convnext", "${args}")
    assert main([*words, *create_sweep_command_args(chosen)["args"], "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["objective"]["init_args"]["alpha"] == 0.75
    assert config["model"]["init_args"]["teacher_ckpt"] == "best.ckpt"
    assert config["data"]["manifest"] == "photos.csv"
    assert main([*words, "--model.objective.alfa=0.5", "--print_config"]) == 2


@pytest.mark.slow
def test_the_fidelity_of_super_resolution_stands_beside_the_scores(options, tmp_path, capsys):
    grid = description(super_resolution={"method": "convnext", "upscalers": ["bicubic"]}, baseline="convnext")
    grid["common"]["data"].update(upscaler="spandrel", sr_weights="drawn-specimens-x4")
    config, out = write(tmp_path, grid), tmp_path / "out"
    words = ["paper", f"--config={config}", *options, "--repeats=1", "--methods=convnext", f"--out={out}"]
    assert main([*words, "--super_resolution"]) == 0
    measured = json.loads((cells(out)["convnext/default/repeat0"] / "metrics.json").read_text())
    assert 5 < measured["test/fidelity/psnr_worst"] <= measured["test/fidelity/psnr_median"] < 60
    assert 0 <= measured["test/fidelity/changed"] <= 1
    found = (
        f"{measured['test/fidelity/psnr_median']:.1f} dB, worst {measured['test/fidelity/psnr_worst']:.1f} dB; "
        f"{measured['test/fidelity/changed']:.1%} of the pixels changed"
    )
    tables = (out / "tables.md").read_text()
    section = tables[tables.index("## Super-resolution switched") :].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ConvNeXt")]
    assert [found in row for row in rows] == [True, False] and "not measured" in rows[1]
    assert found in (out / "report.html").read_text()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"fidelity {found}" in printed and str(out / "report.html") in printed
