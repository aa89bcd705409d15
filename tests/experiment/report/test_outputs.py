"""From finished cells to results.csv, tables.md, figures: the golden path, incomplete and failed grids."""

import contextlib
import dataclasses
import json
import math
import shutil
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from helpers.fake_cells import PAPER, answers, fake_cell, golden, grid, specimens
from PIL import Image

from kd_convnext.errors import ConfigError
from kd_convnext.experiment.report import outputs
from kd_convnext.experiment.report.analysis import _best
from kd_convnext.experiment.report.outputs import write_outputs
from kd_convnext.experiment.report.results import Arm, group_arms, read_results
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import write_metrics

BOOTSTRAP = 200


def written(out, cells, figures=False, **options):
    """results.csv and tables.md of some cells; figures take seconds and are left out where not asked for."""
    with contextlib.nullcontext() if figures else patch.object(outputs, "all_figures", return_value=[]):
        write_outputs(out, cells, **{"bootstrap": BOOTSTRAP, **options})
    return pd.read_csv(out / "results.csv", keep_default_na=False), (out / "tables.md").read_text()


def rows_of(text, title):
    """The rows of a table of tables.md, as lists of texts."""
    section = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five methods on two splits, the second one much better than the baseline."""
    out = tmp_path_factory.mktemp("whole")
    chances = {"swin": 0.75, "convnext": 0.6, "kd_logits": 0.6, "kd_both": 0.95, "coatnet": 0.6}
    cells = grid(out, chances)
    table, text = written(out, cells, figures=True)
    return out, cells, table, text


def test_the_papers_predictions_give_the_papers_last_row(tmp_path):
    cell = fake_cell(tmp_path / "cells" / "kd_both", golden())
    table, text = written(tmp_path, [cell])
    (row,) = table.to_dict("records")
    expected = {
        "accuracy": 0.8564593,
        "precision_macro": 0.7988594,
        "recall_macro": 0.7463889,
        "f1_macro": 0.7509370,
        "f1_paper": 0.7717333,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (row["images"], row["lesions"], row["part"]) == (209, 209, "test")
    (ours,) = rows_of(text, "Ablation")
    assert ours[1:] == [
        "1",
        "85.6",
        "79.9",
        "74.6",
        "0.772",
        "0.751",
        "-",
        "-",
        "-",
        "1.0",
        "85.64",
        "79.88",
        "74.64",
        "0.7717",
    ]
    for name, *cells in rows_of(text, "Per class"):
        places = 3 if name == "Grade 2" else 2  # 122 lesions, of the others fewer than 100
        assert [cell.split()[0] for cell in cells[2:4]] == [f"{float(cell):.{places}f}" for cell in cells[5:]], name
    assert [row[1] for row in rows_of(text, "Per class")] == ["5 †", "122", "16", "12", "54"]
    # Clopper-Pearson, statsmodels 0.15.0: 3 of 3 and 3 of 5.
    assert rows_of(text, "Per class")[0][3:5] == ["1.00 [0.29, 1.00]", "0.60 [0.15, 0.95]"]
    confusion = rows_of(text, "Confusion matrix")
    assert confusion[4] == ["MIA", "0 (0%)", "9 (17%)", "6 (11%)", "6 (11%)", "33 (61%)", "54"]


def test_the_metrics_are_those_of_the_test_stage(tmp_path):
    from kd_convnext.evaluation.answers import Evaluation

    frame = specimens(0, 0.6)
    table, _ = written(tmp_path, [fake_cell(tmp_path / "run", frame)])
    labels = pd.Index(PAPER).get_indexer(frame["label"])
    probabilities = frame[[f"prob_{name}" for name in PAPER]].to_numpy()
    evaluation = Evaluation("test", np.arange(len(frame)), labels, probabilities, PAPER)
    lesions = evaluation.by_group(frame["lesion_id"].to_numpy(dtype=str))
    for name in ("accuracy", "f1_macro", "f1_paper", "auroc_macro", "ece"):
        assert table[name][0] == pytest.approx(evaluation.metrics()[name], abs=1e-6)
        assert table[f"lesion/{name}"][0] == pytest.approx(lesions.metrics()[name], abs=1e-6)


def test_results_have_a_row_a_cell_and_no_times(whole):
    out, cells, table, _ = whole
    names = ["method", "repeat", "seed", "accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper"]
    assert list(table)[:8] == names
    assert len(table) == len(cells) == 10
    assert set(table["status"]) == {"finished"}
    assert table["folder"][0] == "cells/swin/default/repeat0"
    assert not {"seconds", "time"} & set(table)
    assert (out / "results.csv").read_bytes() == rewritten(out, cells, seconds=7.0)


def rewritten(out, cells, **fields):
    """results.csv of the same cells with other records."""
    written(out / "again", [dataclasses.replace(cell, **fields) for cell in cells])
    text = (out / "again" / "results.csv").read_bytes()
    shutil.rmtree(out / "again")
    return text.replace(str(out).encode() + b"/", b"")


def test_tables_stand_in_the_papers_order_with_its_values(whole):
    *_, text = whole
    assert [row[0] for row in rows_of(text, "Ablation")] == ["convnext", "swin", "kd_logits", "kd_both"]
    rivals = {row[0]: row[-4:] for row in rows_of(text, "Rivals")}
    assert rivals["coatnet"] == ["79.84", "-", "-", "-"]
    assert rivals["convnext"] == ["81.12", "67.34", "68.50", "0.6791"]
    mean = rows_of(text, "Ablation")[0][2]
    assert " ± " in mean
    for row in rows_of(text, "95 % intervals"):
        low, high = row[3].split("[")[1].strip("]").split(", ")
        assert float(low) < float(row[3].split(" ")[0]) < float(high)
        assert int(row[1]) <= int(row[2]) == 240


def test_verdicts_are_said_only_where_shown(whole):
    *_, text = whole
    found = {(row[0], row[1]): row[2] for row in rows_of(text, "Compared with convnext")}
    assert found["kd_both", "macro F1"] == "better"
    assert found["kd_both", "accuracy"] == "better"
    assert found["kd_logits", "macro F1"] == "no difference shown"
    assert len(found) == 8
    assert "- kd_both against convnext: macro F1 better (+" in text


def test_figures_are_written_as_png_and_pdf(whole):
    out, *_ = whole
    names = (
        "methods",
        "differences",
        "confusion",
        "per_class",
        "reliability",
        "roc",
        "precision_recall",
        "decision",
        "calibration",
    )
    for name in (*names, "validation_curves", "validation_minutes", "training_curves"):
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 10
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_an_incomplete_grid_with_failed_cells_is_reported(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9})
    cells = cells[:-1]
    cells.append(dataclasses.replace(cells[0], method="swin", title="Swin", status="failed", error="out of memory"))
    (cells[0].folder / "predictions.csv").unlink()
    table, text = written(tmp_path, cells)
    assert table["status"].tolist() == ["failed", "finished", "finished", "failed"]
    assert "it was not tested" in table["error"][0]
    assert table["error"][3] == "out of memory"
    assert "Swin, repeat 0 failed: out of memory" in text
    # Only the second split is left of the baseline, only the first of the other.
    assert "have no tested photograph in common: not compared" in text


def test_nothing_finished_still_gives_a_report(tmp_path):
    cell = fake_cell(tmp_path / "run", golden(), status="failed", error="no GPU")
    table, text = written(tmp_path, [cell])
    assert table["error"].tolist() == ["no GPU"]
    assert "No cell has a result yet" in text
    assert "no GPU" in (tmp_path / "report.html").read_text()


def test_a_lacking_baseline_is_said(tmp_path):
    _, text = written(tmp_path, grid(tmp_path, {"swin": 0.6, "kd_both": 0.9}, repeats=1))
    assert "the baseline convnext has no finished cell" in text
    assert "Compared with" not in text


def test_upscalers_are_compared_with_the_methods_own_setting(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9})
    for repeat in range(2):
        for name in ("none", "spandrel"):
            folder, frame = tmp_path / f"{name}{repeat}", specimens(repeat, 0.5)
            options = {"family": "super_resolution", "setting": f"upscaler={name}", "repeat": repeat}
            cells.append(fake_cell(folder, frame, method="kd_both", **options))
    _, text = written(tmp_path, cells)
    switched = ["kd_both, not enlarged", "kd_both, super-resolved"]
    assert [row[0] for row in rows_of(text, "Super-resolution switched")] == ["kd_both", *switched]
    found = rows_of(text, "Differently enlarged crops compared with kd_both")
    assert {row[0] for row in found} == set(switched)
    assert {row[2] for row in found} == {"worse"} and "so that all 2 hold together" in text
    assert "one comparison alone: nothing is corrected" in text
    # Reports and tables say what was done, not by which library.
    for written_one in ("report.html", "tables.md"):
        assert "upscaler=" not in (tmp_path / written_one).read_text()
    # The switched crops are no method of their own.
    assert len(rows_of(text, "Ablation")) == 2
    assert len(rows_of(text, "Compared with convnext")) == 2


def test_the_search_is_judged_on_validation_only(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6}, repeats=1)
    for alpha, score in ((0.25, 0.3), (0.75, 0.6), (0.5, 0.4)):
        cell = fake_cell(tmp_path / f"a{alpha}", golden(), family="sweep", setting=f"alpha={alpha}")
        write_metrics(RunFolder(cell.folder), {"val/f1_macro": score, "val/accuracy": score, "test/f1_macro": 0.99})
        cells.append(cell)
    table, text = written(tmp_path, cells)
    assert table["part"].tolist() == ["test", "val", "val", "val"]
    assert table["f1_macro"].tolist()[1:] == [0.3, 0.6, 0.4]
    assert "on validation; the test part was not touched" in text
    assert [row[1] for row in rows_of(text, "Search over the loss")] == ["alpha=0.75", "alpha=0.5", "alpha=0.25"]
    assert len(rows_of(text, "95 % intervals")) == 1


def test_the_best_is_chosen_by_validation_not_by_test(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.95, "kd_both": 0.6}, repeats=1)
    curve = pd.DataFrame({"epoch": [0], "step": [0], "val/f1_macro": [0.99]})
    curve.to_csv(cells[1].folder / "metrics.csv", index=False)
    _, text = written(tmp_path, cells)
    assert "Per class: kd_both" in text
    _, text = written(tmp_path, cells, best="convnext")
    assert "Per class: convnext" in text and "named in the command" in text
    # The baseline is not said to stand alone.
    assert (
        "The others are compared with it lesion by lesion: kd_both: macro F1" in (tmp_path / "report.html").read_text()
    )


def test_the_best_is_chosen_on_the_repeats_that_all_methods_have(tmp_path):
    def judged(cell, score):
        curve = pd.DataFrame({"epoch": [0], "step": [0], "val/f1_macro": [score]})
        curve.to_csv(cell.folder / "metrics.csv", index=False)

    cells = grid(tmp_path, {"convnext": 0.9, "kd_both": 0.9}, repeats=2)
    for cell in cells:
        easy, better = cell.repeat == 1, cell.method == "kd_both"
        judged(cell, 0.5 + 0.3 * easy + 0.1 * better)
    arms = group_arms(read_results(cells))
    assert _best(arms, None, []) == (arms[1], "best mean macro F1 on validation")
    # Without scores on validation a method is not chosen, and takes no repeat from the others.
    unknown = [dataclasses.replace(one, validation=math.nan) for one in arms[1].results]
    assert _best([arms[0], Arm(tuple(unknown))], None, []) == (arms[0], "best mean macro F1 on validation")
    # The worse method has finished the easy repeat alone.
    arms = group_arms(read_results([cell for cell in cells if cell.method == "kd_both" or cell.repeat == 1]))
    chosen, why = _best(arms, None, [])
    assert chosen.record.method == "kd_both"
    assert why == "best mean macro F1 on validation of the repeats that all methods have (1)"
    arms = group_arms(read_results([cell for cell in cells if (cell.method == "kd_both") != (cell.repeat == 1)]))
    remarks: list[str] = []
    assert "on test, for lack of validation scores" in _best(arms, None, remarks)[1]
    assert remarks == ["no repeat has validation scores of all methods: their validation means are not compared"]


def test_different_splits_leaks_and_stray_numbers_are_told(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9}, repeats=1)
    split = pd.read_csv(cells[1].folder / "split.csv", keep_default_na=False)
    split.loc[split.index[0], "split"] = "train"
    split.to_csv(cells[1].folder / "split.csv", index=False)
    write_metrics(RunFolder(cells[1].folder), {"test/accuracy": 0.123, "test/leak_allowed": 1.0})
    _, text = written(tmp_path, cells)
    assert "repeat 0 was not the same split for all: convnext; kd_both" in text
    assert "1 tested photograph outside its test part" in text
    assert "(allow_leak): its results are no test" in text
    assert "metrics.json and predictions.csv disagree on accuracy" in text
    page = (tmp_path / "report.html").read_text()
    assert "1 lesions" in page and "Something is in more than one part." in page


def test_other_classes_are_refused(tmp_path):
    frame = answers(["a", "b"], ["a", "a"], ("a", "b"))
    cells = [fake_cell(tmp_path / "one", golden()), fake_cell(tmp_path / "other", frame, names=("a", "b"))]
    with pytest.raises(ConfigError, match="has other classes"):
        write_outputs(tmp_path, cells, bootstrap=BOOTSTRAP)


def test_classes_with_odd_names_stay_apart(tmp_path):
    names = ("NA", "a|b", "$x^$", "<script>alert(1)</script>")
    labels = [name for name in names for _ in range(6)]
    frame = answers(labels, [*labels[:-1], names[0]], names)
    table, text = written(tmp_path, [fake_cell(tmp_path / "cells" / "x", frame, names=names)], figures=True)
    assert table["accuracy"][0] == pytest.approx(23 / 24)
    assert "a\\|b" in text
    assert "<script" not in text
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert (tmp_path / "figures" / "per_class.png").is_file()


def test_unlabelled_rows_do_not_count(tmp_path):
    frame = golden()
    frame.loc[frame.index[:5], "label"] = ""
    table, _ = written(tmp_path, [fake_cell(tmp_path / "cells" / "x", frame)])
    assert table["images"][0] == 204


def test_a_broken_file_makes_a_failed_cell(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9, "swin": 0.8}, repeats=1)
    (cells[0].folder / "predictions.csv").write_text("image,label\nx,y\n")
    (cells[1].folder / "metrics.json").write_text(json.dumps([1]))
    table, _ = written(tmp_path, cells)
    assert table["status"].tolist() == ["failed", "failed", "finished"]
    assert "lacks the columns lesion_id, prediction" in table["error"][0]


def test_a_broken_split_file_is_told(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9}, repeats=1)
    (cells[0].folder / "split.csv").write_text("image,split\nx,test\n")
    _, text = written(tmp_path, cells)
    assert "convnext, repeat 0: its split file cannot be read" in text
    assert "Compared with convnext" in text


def test_tables_of_ones_own_runs_do_not_claim_the_papers_numbers(tmp_path):
    chances = {"convnext": 0.6, "kd_both": 0.8}
    _, of_the_paper = written(tmp_path / "paper", grid(tmp_path, chances, repeats=1))
    assert "## Per class: " in of_the_paper and "(the paper's Table 3)" in of_the_paper
    own = [
        fake_cell(tmp_path / name, specimens(0, right), method=name, family="run") for name, right in chances.items()
    ]
    _, text = written(tmp_path / "own", own)
    assert "## Per class: " in text and "(the paper's" not in text
    assert "(the paper's" not in (tmp_path / "own" / "report.html").read_text()
