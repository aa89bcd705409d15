import csv
from pathlib import Path

import pytest
import yaml

from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.statistics import METRICS
from kd_convnext.losses import Objective
from kd_convnext.tools import demo_table
from kd_convnext.tools.demo import demo
from kd_convnext.tools.demo_fits import METHODS, best_objective

SMALL = ["--lesions=[3,4,3,3,3]", "--epochs=1", "--seeds=1"]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def gain(folder, method, against="alone"):
    wanted = (method, against, "f1_macro")
    (row,) = [
        row for row in rows_of(folder / "comparisons.csv") if (row["method"], row["against"], row["metric"]) == wanted
    ]
    return {name: float(row[name]) for name in ("difference", "low", "high")}


@pytest.mark.slow
def test_whole_path_in_small_and_again_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", f"--out={out}", *SMALL]) == 0
    printed = capsys.readouterr().out
    for words in ("macro F1", "interval", "Chance", "Next:", f"kd-convnext report {out / 'best-0'}"):
        assert words in printed
    results = rows_of(out / "results.csv")
    assert [row["method"] for row in results] == list(METHODS)
    assert all(0 <= float(row[name]) <= 1 for row in results for name in METRICS)
    for pair in (("teacher", "alone"), ("paper", "alone"), ("best", "alone"), ("best", "paper")):
        found = gain(out, *pair)
        assert found["low"] <= found["difference"] <= found["high"]
    f1 = {row["method"]: float(row["f1_macro"]) for row in results}
    assert gain(out, "best", "paper")["difference"] == pytest.approx(f1["best"] - f1["paper"], abs=1e-4)
    assert f"Best recipe minus the paper's method: {f1['best'] - f1['paper']:+.2f} [" in printed
    for figure in ("examples", "curves"):
        assert (out / "figures" / f"{figure}.png").is_file()
    for name in ("teacher", "alone-0", "paper-0", "best-0"):
        for file in ("checkpoints/best.ckpt", "split.csv", "metrics.csv"):
            assert (out / name / file).is_file(), (name, file)
    for name in ("teacher/external/labelled", "alone-0", "paper-0", "best-0"):
        for file in ("metrics.json", "predictions.csv"):
            assert (out / name / file).is_file(), (name, file)
    with pytest.raises(ConfigError, match="--overwrite"):
        demo(str(out))
    (out / "paper-0" / "predictions.csv").unlink()
    kept = (out / "best-0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert main(["demo", f"--out={out}", *SMALL, "--resume=true"]) == 0
    assert "best recipe, seed 0: tested before" in capsys.readouterr().out
    assert (out / "paper-0" / "predictions.csv").is_file()
    assert (out / "best-0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match="other settings"):
        demo(str(out), lesions=[3, 4, 3, 3, 3], epochs=2, seeds=1, resume=True)


def test_numbers_of_lesions_and_seeds_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="--lesions"):
        demo(str(tmp_path / "demo"), lesions=[1, 2, 3])
    for options in ({"seeds": 0}, {"seed": -1}, {"epochs": 0}):
        with pytest.raises(ConfigError, match=f"--{next(iter(options))}: "):
            demo(str(tmp_path / "demo"), **options)


@pytest.mark.parametrize(
    "content", [b"seed: caf\xe9\n", b"a: [1, {\n", b"a: \0\n", b"a: !!python/object/apply:os.abort []\n", b"- 1\n", b""]
)
def test_a_demo_whose_settings_were_edited_does_not_go_on(content, tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes(content)
    assert main(["demo", f"--out={tmp_path}", *SMALL, "--resume=true"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_the_best_recipe_makes_a_better_student(tmp_path, monkeypatch):
    """Without the fits of Eq. 5: each fit is seeded, so that the others are those of a whole demo."""
    monkeypatch.delitem(METHODS, "paper")
    monkeypatch.setattr(demo_table, "COMPARED", [pair for pair in demo_table.COMPARED if "paper" not in pair])
    folder = demo(str(tmp_path / "demo"))
    assert gain(folder, "best")["low"] > 0
    assert gain(folder, "teacher")["low"] > 0


def test_the_best_recipe_s_objective_is_the_shipped_one():
    shipped = yaml.safe_load(Path("configs/small_cpu/best.yaml").read_text())["model"]["init_args"]["objective"][
        "init_args"
    ]
    own, theirs = (objective.named_terms() for objective in (best_objective(), Objective(**shipped)))
    assert list(own) == list(theirs)
    # Of a term from a file only what the file names is described.
    for name, term in theirs.items():
        named = term.description["init_args"]
        assert type(own[name]) is type(term)
        assert {option: own[name].description["init_args"][option] for option in named} == named
        assert own[name].weight == term.weight
