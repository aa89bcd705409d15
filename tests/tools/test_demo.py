import csv

import pytest

from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.tools.demo import COLUMNS, METHODS, demo


def results_of(folder):
    with (folder / "results.csv").open() as file:
        return {row["method"]: {name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)}


@pytest.mark.slow
def test_whole_path_in_small(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", f"--out={out}", "--lesions=[3,5,3,3,3]", "--epochs=1"]) == 0
    printed = capsys.readouterr().out
    for name in ("macro F1", "paper's F1", "distilled minus alone", "chance", str(out)):
        assert name in printed
    results = results_of(out)
    assert list(results) == list(METHODS)
    assert all(0 <= value <= 1 for row in results.values() for value in row.values())
    for figure in ("examples", "curves", "confusion_matrix"):
        assert (out / "figures" / f"{figure}.png").is_file()
    for method in METHODS:
        for name in ("checkpoints/best.ckpt", "split.csv", "metrics.json", "predictions.csv", "metrics.csv"):
            assert (out / method / name).is_file(), (method, name)
    with pytest.raises(ConfigError, match="--overwrite"):
        demo(str(out))


def test_numbers_of_lesions_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="--lesions"):
        demo(str(tmp_path / "demo"), lesions=[1, 2, 3])


@pytest.mark.slow
def test_the_student_learns_the_task(tmp_path):
    results = results_of(demo(str(tmp_path / "demo")))
    assert results["distilled"]["f1_macro"] >= 0.6
    assert results["alone"]["f1_macro"] >= 0.6
