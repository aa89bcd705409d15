"""What a clinician asks of a report: through the command line, and the figures' texts."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.fake_cells import PAPER, answers, fake_cell, grid, specimens
from helpers.figure_layout import assert_readable
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.experiment.report.analysis import AnalysisOptions, analyse
from kd_convnext.experiment.report.figures import all_figures
from kd_convnext.experiment.report.learning import learning_curve, learning_points
from kd_convnext.experiment.report.outputs import write_outputs
from kd_convnext.experiment.report.results import group_arms, read_results
from kd_convnext.experiment.report.strata import sharpnesses, thirds
from kd_convnext.experiment.report.wishes import class_findings, wishes

LONG = (*(f"Verruköse_Läsion_Nummer_{k:02d}" for k in range(8)), "Dermatofibrosarcoma prot.", "NV")


def written(out, cells, **options):
    """The tables of some cells."""
    write_outputs(out, cells, bootstrap=100, **options)
    return None, (out / "tables.md").read_text()


def rows_of(text, title):
    """The rows of a table of tables.md, as lists of texts."""
    section = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_figure_of_a_report_is_readable_and_says_what_it_shows(tmp_path):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.9}, repeats=1, names=LONG, lesions=4)
    found = all_figures(analyse(cells, AnalysisOptions("Trial", "convnext", 0, 100, None)))
    assert {"roc", "precision_recall", "decision", "calibration", "confusion"} <= {one.name for one in found}
    for one in found:
        assert_readable(one.figure)
        assert "part" in one.caption, one.name
        assert one.figure.get_suptitle().replace("\n", " ") == one.caption
        if one.name in ("roc", "confusion", "per_class", "calibration", "reliability"):
            assert "judged per photograph: 80 answers about 40 lesions" in one.caption
            assert "convnext_tiny" in one.caption


def test_predictive_values_stand_at_the_asked_prevalence_and_subgroups_in_their_tables(tmp_path, capsys):
    frame = specimens(0, 0.8)
    cell = fake_cell(tmp_path / "run", frame, record=False)
    manifest = frame[["image", "label"]].assign(site=np.where(np.arange(len(frame)) < 30, "Köln", "Graz"))
    # As spreadsheets write tables in half of the world, with names of its own.
    table = manifest.rename(columns={"image": "Datei", "site": "Site"})
    table.to_csv(tmp_path / "manifest.csv", index=False, sep=";", encoding="utf-16")
    config = yaml.safe_load((cell.folder / "config.yaml").read_text())
    config["data"] |= {"manifest": str(tmp_path / "manifest.csv"), "columns": "image=Datei"}
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["compare", str(cell.folder), "--out", str(tmp_path / "out"), "--bootstrap", "100"]
    assert main([*words, "--by", "device,sites"]) == 2
    error = capsys.readouterr().err
    assert "has no column device" in error and "has no column sites. Did you mean Site?" in error
    with pytest.MonkeyPatch.context() as patch:  # before anything is drawn or resampled, with all that is wrong
        patch.setattr("kd_convnext.experiment.report.figures.all_figures", None)
        patch.setattr("kd_convnext.experiment.report.analysis.intervals", None)
        assert main(["report", str(cell.folder), "--by", "sites", "--prevalence", "XYZ=0.1"]) == 2
    error = capsys.readouterr().err
    assert "has no column sites" in error and "no class is called 'XYZ'" in error
    pd.concat([table, table[:1].assign(Site="Wien")]).to_csv(tmp_path / "manifest.csv", index=False)
    assert main([*words, "--by", "site", "--out", str(tmp_path / "several")]) == 2
    assert f"1 region with several values in site (first {frame['image'][0]})" in capsys.readouterr().err
    table.to_csv(tmp_path / "manifest.csv", index=False, sep=";", encoding="utf-16")
    words.append("--overwrite=true")
    assert main([*words, "--by", "site", "--prevalence", "AIS=0.01"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    rows = {row[0]: row for row in rows_of(text, "Each class against the rest")}
    seen, spared, share, positive = (rows["AIS"][k].split()[0] for k in (4, 5, 6, 7))
    assert share == "0.010"
    by_bayes = float(seen) * 0.01 / (float(seen) * 0.01 + (1 - float(spared)) * 0.99)
    assert float(positive) == pytest.approx(by_bayes, abs=0.05)
    assert rows["MIA"][6].endswith("(test)")
    sites = {row[0]: row for row in rows_of(text, "By site")}
    assert set(sites) == {"Köln", "Graz"}
    assert int(sites["Köln"][2]) + int(sites["Graz"][2]) == len(frame)
    # All of Köln's photographs are of lesions of their classes: means are over those that occur.
    there = frame.loc[manifest["site"] == "Köln"].groupby("label", sort=False)
    recall = np.mean([(own["label"] == own["prediction"]).mean() for _, own in there])
    assert sites["Köln"][3] == f"{len(there)} of 5" and float(sites["Köln"][5].split()[0]) == pytest.approx(
        recall, abs=0.005
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "--by site --prevalence AIS=0.01" in page


def test_chosen_thresholds_have_a_table(tmp_path, capsys):
    frame = specimens(0, 0.8)
    cell = fake_cell(tmp_path / "run", frame, record=False)
    words = ["report", str(cell.folder), "--bootstrap", "50", "--out", str(tmp_path / "out")]
    assert main([*words, "--thresholds", "AIS=0.02,AIS=0.6,MIA=0.6", "--prevalence", "AIS=0.1"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "--thresholds AIS=0.02,AIS=0.6,MIA=0.6" in page
    section = page.split("At chosen thresholds</h3>")[1].split("</table>")[0]
    rows = [re.findall(r'<t[hd] (?:scope|data-head)="[^"]*">([^<]*)<', row) for row in section.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["AIS", "AIS", "MIA"]
    called, own = frame["prob_AIS"] >= 0.6, frame["label"] == "AIS"
    assert rows[1][2:4] == ["0.6", f"{called.sum()} of {len(frame)}"]
    seen, spared = (called & own).sum() / own.sum(), (~called & ~own).sum() / (~own).sum()
    by_bayes = seen * 0.1 / (seen * 0.1 + (1 - spared) * 0.9)
    benefit = seen * 0.1 - (1 - spared) * 0.9 * 0.6 / 0.4
    expected = (seen, spared, by_bayes, None, benefit)
    for text, value in zip(rows[1][4:], expected, strict=True):
        assert value is None or float(text.split()[0]) == pytest.approx(value, abs=0.0051)
    # At a mild threshold more of them are found.
    assert float(rows[0][4].split()[0]) >= float(rows[1][4].split()[0])
    assert main([*words, "--thresholds", "AlS=0.5", "--prevalence", "MIB=0.1"]) == 2
    error = capsys.readouterr().err
    assert "--prevalence: no class is called 'MIB'. Did you mean MIA?" in error
    assert "--thresholds: no class is called 'AlS'. Did you mean AIS?" in error
    assert main([*words, "--thresholds", "AIS=1,MIA"]) == 2
    assert capsys.readouterr().err.count("is no class with its share") == 2


def test_a_prevalence_holds_in_tables_and_curves_and_leaves_the_rest_to_the_other_class(tmp_path, capsys):
    """Of two classes one's PPV is the other's NPV; the curve passes through the table's net benefit."""
    names = PAPER[:2]
    frame = specimens(0, 0.7, names=names)
    cell = fake_cell(tmp_path / "run", frame, names=names, record=False)
    words = ["compare", str(cell.folder), "--out", str(tmp_path / "out"), "--bootstrap", "50", "--overwrite=true"]
    chosen = [*words, "--thresholds", f"{names[0]}=0.5"]
    assert main([*chosen, "--prevalence", f"{names[0]}=0.02"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    one, other = rows_of(text, "Each class against the rest")
    assert (one[6], other[6]) == ("0.020", "0.980")
    assert one[7].split()[0] == other[8].split()[0] and one[8].split()[0] == other[7].split()[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"at the prevalence {names[0]} 0.02, {names[1]} 0.98." in page
    settings = AnalysisOptions("Trial", "kd_both", 0, 50, None, wishes(f"{names[0]}=0.02"))
    figures = {figure.name: figure.figure for figure in all_figures(analyse([cell], settings))}
    panel = next(panel for panel in figures["decision"].axes if panel.get_title().startswith(names[0]))
    x, y = panel.get_lines()[-1].get_data()
    benefit = float(rows_of(text, "At chosen thresholds")[0][-1])
    assert y[np.abs(x - 0.5).argmin()] == pytest.approx(benefit, abs=0.0051)
    for bad, what in (
        (f"{names[0]}=0.6,{names[1]}=0.9", "add up to 1.5"),
        (f"{names[0]}=0.1,{names[0]}=0.2", "several"),
    ):
        assert main([*words, "--prevalence", bad]) == 2
        assert what in capsys.readouterr().err
    assert main([*words, "--prevalence", f"{names[0]}=0.02,{names[1]}=0.9"]) == 2
    assert "the shares of all classes add up to 0.92" in capsys.readouterr().err


def test_a_prevalence_leaves_something_for_each_class():
    told = [str(finding) for finding in class_findings(wishes("A=0.4,B=0.6"), ("A", "B", "C"))]
    assert len(told) == 1 and "nothing is left for C" in told[0]
    assert not class_findings(wishes("A=0.4,B=0.5"), ("A", "B", "C"))


def test_net_benefit_of_a_class_that_nobody_has_is_unknown(tmp_path):
    names = PAPER[:3]
    frame = specimens(0, 0.8, names=names)
    cell = fake_cell(tmp_path / "run", frame[frame["label"] != names[2]], names=names, record=False)
    words = ["--out", str(tmp_path / "out"), "--bootstrap", "50", "--thresholds", f"{names[2]}=0.2"]
    assert main(["compare", str(cell.folder), *words]) == 0
    assert rows_of((tmp_path / "out" / "tables.md").read_text(), "At chosen thresholds")[0][-1] == "-"


def test_size_and_sharpness_of_the_regions_have_tables_of_thirds(tmp_path, capsys):
    frame = specimens(0, 0.8, names=PAPER[:3], lesions=6, views=1)
    rng = np.random.default_rng(0)
    for number, image in enumerate(frame["image"]):
        path = tmp_path / "photos" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        # The first third is sharp, the second less, the last smooth.
        noise = rng.integers(0, 256, (30, 40, 3)) // (1, 4, 60)[number % 3]
        Image.fromarray(noise.astype(np.uint8)).save(path, quality=95)
    frame = frame.assign(x=1, y=2, width=[10 + 5 * (number % 3) for number in range(len(frame))], height=10)
    cell = fake_cell(tmp_path / "run", frame, names=PAPER[:3], record=False)
    config = yaml.safe_load((cell.folder / "config.yaml").read_text())
    config["data"]["manifest"] = str(tmp_path / "photos" / "manifest.csv")
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["report", str(cell.folder), "--bootstrap", "50", "--out", str(tmp_path / "out")]
    assert main([*words, "--by", "sharpness"]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "By size of the region" in text and "upper third (above" in text and "variance of the Laplacian" in text
    sharp = thirds(sharpnesses(group_arms(read_results([cell]))[0]), "x")
    assert [name.split()[0] for name in sharp[:3]] == ["upper", "middle", "lower"]
    next((tmp_path / "photos").rglob("*.jpg")).unlink()
    assert main([*words, "--by", "sharpness"]) == 2
    assert "--by sharpness" in capsys.readouterr().err


def test_regions_of_one_photograph_may_lie_in_different_subgroups(tmp_path):
    frame = specimens(0, 0.8)
    second = np.arange(len(frame)) % 2 == 1
    frame = frame.assign(
        image=frame["image"].str.replace("_1.jpg", "_0.jpg"), x=np.where(second, 50, 10), y=7, width=20, height=30
    )
    cell = fake_cell(tmp_path / "run", frame, record=False)
    # The first box has fractions, which a fit rounds outward.
    boxes = frame[["image", "label", "x", "y", "width", "height"]].assign(width=np.where(second, 19.5, 20))
    boxes.assign(place=np.where(second, "right", "left")).to_csv(tmp_path / "manifest.csv", index=False)
    config = yaml.safe_load((cell.folder / "config.yaml").read_text())
    config["data"]["manifest"] = str(tmp_path / "manifest.csv")
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["compare", str(cell.folder), "--out", str(tmp_path / "out"), "--bootstrap", "100", "--by", "place"]
    assert main(words) == 0
    found = rows_of((tmp_path / "out" / "tables.md").read_text(), "By place")
    assert {row[0]: int(row[2]) for row in found} == {"left": len(frame) // 2, "right": len(frame) // 2}


def test_runs_on_different_numbers_of_lesions_make_a_learning_curve(tmp_path):
    cells = []
    for name, right, fewer in (("few", 0.5, 0.5), ("all", 0.9, 1.0)):
        cell = fake_cell(tmp_path / name, specimens(0, right), method=name, family="run")
        split = pd.read_csv(cell.folder / "split.csv", keep_default_na=False)
        train = split[split["split"] == "train"]
        more = [train.assign(lesion_id=train["lesion_id"] + f"-{k}", image=f"{k}" + train["image"]) for k in range(4)]
        rows = pd.concat([split[split["split"] != "train"], *more[: round(4 * fewer)]])
        rows.to_csv(cell.folder / "split.csv", index=False)
        cells.append(cell)
    _, text = written(tmp_path / "out", cells)
    rows = rows_of(text, "Learning curve")
    assert [row[0] for row in rows] == ["few", "all"] and [row[2] for row in rows] == ["10", "20"]
    assert (tmp_path / "out" / "figures" / "learning_curve.pdf").is_file()
    analysis = analyse(cells, AnalysisOptions("Trial", "few", 0, 100, None))
    assert_readable(learning_curve(learning_points(analysis)))
    # On one training part there is no curve.
    assert learning_points(analyse(cells[:1], AnalysisOptions("Trial", "few", 0, 100, None))) == []


def test_tests_on_other_data_have_a_section_of_their_own(tmp_path):
    cell = fake_cell(tmp_path / "run", specimens(0, 0.9), record=False)
    words = ["report", str(cell.folder), "--bootstrap", "50", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "Tests on other data" not in (tmp_path / "out" / "report.html").read_text()
    other = cell.folder / "external" / "clinic-0123abcd"
    other.mkdir(parents=True)
    specimens(1, 0.3, lesions=4).to_csv(other / "predictions.csv", index=False)
    assert main(words) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    section = text.split('id="external"', 1)[1].split("</section>", 1)[0]
    assert "clinic-0123abcd" in section and ">40<" in section and ">20 lesions<" in section
    assert "clinic-0123abcd: predictions.csv is of an earlier version" in section
    # The run's own results are its own.
    assert text.split('id="results"', 1)[1].split("</section>", 1)[0].count("clinic-0123abcd") == 0


def test_a_class_that_nobody_tested_is_said_and_spoils_no_mean_of_other_data(tmp_path):
    """All answers are right: macro F1 is 2/3 over three classes of which one does not occur, 1 over those that do."""
    names = PAPER[:3]
    right = specimens(0, 1, names=names)
    cell = fake_cell(tmp_path / "run", right[right["label"] != names[2]], names=names, record=False)
    other = cell.folder / "external" / "clinic-0123abcd"
    other.mkdir(parents=True)
    right[right["label"] == names[0]].to_csv(other / "predictions.csv", index=False)
    assert main(["report", str(cell.folder), "--bootstrap", "50", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    finding = text.split('id="question"', 1)[1].split("</section>", 1)[0]
    assert "macro F1 0.67" in finding
    assert f"The class {names[2]} is not among these photographs and counts as 0 in means over the classes." in finding
    section = text.split('id="external"', 1)[1].split("</section>", 1)[0]
    cells = dict(re.findall(r'<td data-head="([^"]*)">([^<]*)<', section))
    assert cells["Classes"] == "1 of 3"
    assert cells["Macro F1"].startswith("1.00 [") and cells["Macro recall"].startswith("1.00 [")


def test_a_column_that_is_not_there_is_named(tmp_path, capsys):
    cell = fake_cell(tmp_path / "run", specimens(0, 0.8), record=False)
    assert main(["report", str(cell.folder), "--bootstrap", "50", "--by", "site"]) == 2
    assert "--by" in capsys.readouterr().err
    assert main(["report", str(cell.folder), "--prevalence", "AIS=2"]) == 2
    assert "--prevalence" in capsys.readouterr().err


def test_parts_that_were_given_are_not_called_drawn(tmp_path):
    cell = fake_cell(tmp_path / "run", specimens(0, 0.8), record=False)
    path = cell.folder / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "divided": {"given": True, "alike": 2}}))
    assert main(["report", str(cell.folder), "--bootstrap", "50", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 sets of near-identical photographs in more than one part" in page
    assert "photograph, not by patient (the manifest gave the parts)" in page
    assert "as the manifest&#39;s split column gives them" in page
    assert "drawn by seed" not in page and "splits are stratified" not in page and "shares 0.8" not in page


def test_lesions_and_patients_stand_beside_photographs(tmp_path):
    frame = specimens(0, 0.8, lesions=6)
    cell = fake_cell(tmp_path / "run", frame)
    split = pd.read_csv(cell.folder / "split.csv", keep_default_na=False)
    split["patient_id"] = "P" + (split["lesion_id"].map(hash) % 3).astype(str) + split["label"]
    split.to_csv(cell.folder / "split.csv", index=False)
    _, text = written(tmp_path, [cell])
    rows = {row[0]: row for row in rows_of(text, "Judged per photograph")}
    patients = split[split["split"] == "test"]["patient_id"].nunique()
    assert [int(rows[f"per {unit}"][1]) for unit in ("photograph", "lesion", "patient")] == [60, 30, patients]


def test_the_finding_comes_first_and_names_teacher_and_real_sizes(tmp_path):
    cells = grid(tmp_path, {"swin": 0.5, "convnext": 0.6, "kd_both": 0.97}, repeats=1)
    student = next(cell for cell in cells if cell.method == "kd_both")
    teacher = next(cell for cell in cells if cell.method == "swin")
    config = yaml.safe_load((student.folder / "config.yaml").read_text())
    config["model"]["init_args"]["teacher_ckpt"] = str(teacher.folder / "checkpoints" / "best.ckpt")
    config["model"]["init_args"]["backbone"]["args"] = {"depths": [1, 1, 1, 1]}
    (student.folder / "config.yaml").write_text(yaml.safe_dump(config))
    (student.folder / "cost.json").write_text('{"parameters": 2.1e6, "multiply_adds": 3e8, "ms_per_photograph": 4.2}')
    _, text = written(tmp_path, cells, best="kd_both")
    page = (tmp_path / "report.html").read_text()
    first = page.split('class="finding">')[1].split("</p>")[0]
    assert first.startswith("kd_both (convnext_tiny, altered (depths 1-1-1-1), 2.10 M parameters) reaches macro F1")
    assert "120 photographs of 60 lesions; 95 % intervals, the lesion is the unit." in first
    second = page.split('class="finding">')[2].split("</p>")[0]
    assert "against swin: macro F1 better (+" in second
    assert [row[0] for row in rows_of(text, "Students compared with their own teachers")] == ["kd_both"] * 2
    (row,) = [row for row in rows_of(text, "Ablation") if row[0] == "kd_both"]
    assert row[7:11] == ["2.10 M", "300 M", "4.2", "1.0"]


def test_a_student_finds_its_teacher_in_a_moved_experiment(tmp_path):
    cells = grid(tmp_path / "moved", {"swin": 0.5, "kd_both": 0.9}, repeats=1)
    (student,) = [cell for cell in cells if cell.method == "kd_both"]
    config = yaml.safe_load((student.folder / "config.yaml").read_text())
    for folder, found in (("first/cells/swin/default/repeat0", 1), ("first/cells/other/default/repeat0", 0)):
        config["model"]["init_args"]["teacher_ckpt"] = str(tmp_path / folder / "checkpoints" / "best.ckpt")
        (student.folder / "config.yaml").write_text(yaml.safe_dump(config))
        assert len(analyse(cells, AnalysisOptions("Trial", "swin", 0, 100, None)).teachers) == found


def test_nothing_is_claimed_of_leaks_without_ids(tmp_path):
    names = ("a & b", "<5 mm")
    frame = answers(["a & b"] * 6 + ["<5 mm"] * 6, ["a & b"] * 12, names)
    cell = fake_cell(tmp_path / "run", frame, names=names)
    split = pd.read_csv(cell.folder / "split.csv", keep_default_na=False).assign(lesion_id="")
    split.to_csv(cell.folder / "split.csv", index=False)
    _, text = written(tmp_path, [cell])
    page = (tmp_path / "report.html").read_text()
    assert "no photograph names its lesion, so a leak could not be seen" in page
    assert "no lesion, patient or photograph is in two parts" not in page
    assert "0 photographs in more than one part; no photograph names" in page and "0 lesions," not in page
    assert "The photographs name no patients." in text
    # What the tool cannot know it leaves to the authors.
    assert "computed beforehand" not in page and "tested once" not in page
    assert "1 division into training" in page
    (cell.folder / "split.csv").unlink()
    _, text = written(tmp_path / "again", [cell])
    assert "No split.csv is at hand to name patients." in text and "name no patients." not in text
    assert "a & b" in text and "<5 mm" in text and "&amp;" not in text and "&lt;" not in text
