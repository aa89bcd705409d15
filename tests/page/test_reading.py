"""Reading a run over HTTP, and correcting labels."""

import shlex
import shutil
from datetime import date

import pandas as pd
import pytest
from helpers.inference import copy_run
from helpers.pages import client

from kd_convnext.page.app import Parts
from kd_convnext.page.asking import Asking, AskingOptions
from kd_convnext.page.reading import Reading
from kd_convnext.runs.tables import table_text


@pytest.fixture
def run(tiny_run, tiny_manifest, tmp_path):
    """A run with test results whose manifest may be changed."""
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    shutil.copytree(tiny_manifest.parent, tmp_path / "photos")
    manifest, folder = tmp_path / "photos" / "manifest.csv", tmp_path / "run"
    config = (folder / "config.yaml").read_text().replace(str(tiny_manifest), str(manifest))
    (folder / "config.yaml").write_text(config)
    lines = ["image,lesion_id,label,prediction,prob_Grade 1,prob_AIS,prob_MIA,x,y,width,height"]
    lines += [
        "0_0_0.png,L0-0,Grade 1,Grade 1,0.8,0.1,0.1,2,1,36,34",
        "0_0_1.png,L0-0,Grade 1,AIS,0.2,0.7,0.1,2,1,36,34",
    ]
    lines += ["4_0_0.png,L4-0,MIA,AIS,0.01,0.97,0.02,2,1,36,34"]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    (folder / "metrics.json").write_text('{"test/accuracy": 0.5, "val/accuracy": 1.0, "test/auroc_macro": null}')
    (folder / "MODEL_CARD.md").write_text("---\ntags: [a]\n---\n# The card\n\n<script>alert(1)</script>\n")
    (folder / "report.html").write_text("<h1>The report</h1>")
    (folder / "figures").mkdir()
    shutil.copy(tmp_path / "photos" / "0_0_0.png", folder / "figures" / "confusion_matrix.png")
    return checkpoint, manifest


@pytest.fixture
def browser(run):
    asking = Asking(AskingOptions(str(run[0])))
    asking.start = lambda: None
    with client(Parts(asking=asking, reading=Reading(str(run[0])))) as found:
        yield found


def test_report_card_figures_and_metrics_are_there(browser):
    found = browser.get("/api/read/overview").json()
    assert found["report"] and found["card"] and found["figures"] == ["confusion_matrix.png"]
    assert found["metrics"] == {"test/accuracy": 0.5}
    card = browser.get("/api/read/card").text
    assert "<h1>The card</h1>" in card and "<script>" not in card and "tags" not in card
    report = browser.get("/api/read/report")
    assert "The report" in report.text and "sandbox" in report.headers["content-security-policy"]
    assert browser.get("/api/read/figures/confusion_matrix.png").headers["content-type"] == "image/png"
    for name in ("..%2fconfig.yaml", "config.yaml", "%2e%2e"):
        assert browser.get(f"/api/read/figures/{name}").status_code in (404, 422)


def test_the_surest_mistakes_come_first(browser):
    rows = browser.get("/api/read/table").json()["rows"]
    assert [(row["image"], row["right"]) for row in rows] == [
        ("4_0_0.png", False),
        ("0_0_1.png", False),
        ("0_0_0.png", True),
    ]
    assert rows[0]["probability"] == 0.97 and rows[0]["probability_of_label"] == 0.02


def test_a_test_photograph_is_shown_with_its_heat_map(browser):
    found = browser.get("/api/read/explanation", params={"row": 2}).json()
    assert found["region"] == {"x": 2, "y": 1, "width": 36, "height": 34} and found["heat"].startswith("data:")
    assert browser.get("/api/read/explanation", params={"row": 9}).status_code == 422


def test_a_correction_stands_in_the_manifest_with_its_date(browser, run):
    _, manifest = run
    before = manifest.read_text().splitlines()
    today = date.today().isoformat()
    for label, note in (("AIS", "seen again"), ("Grade 1", "")):
        answer = browser.post("/api/read/corrections", json={"row": 2, "label": label, "note": note})
        assert answer.status_code == 200, answer.text
    history = f"{today} MIA -> AIS (seen again); {today} AIS -> Grade 1"
    assert answer.json()["corrections"] == history
    after = manifest.read_text().splitlines()
    assert after[0] == before[0] + ",corrections"
    changed = [line for line, old in zip(after, before, strict=True) if line != old + ","][1:]
    assert changed == [f"4_0_0.png,Grade 1,L4-0,2,1,36,34,{history}"]
    rows = {row["image"]: row["corrections"] for row in browser.get("/api/read/table").json()["rows"]}
    assert rows["4_0_0.png"] == history and rows["0_0_0.png"] == ""


def test_what_cannot_be_corrected_is_said(browser, run):
    _, manifest = run
    same = browser.post("/api/read/corrections", json={"row": 0, "label": "Grade 1"})
    assert same.status_code == 422 and "already" in same.text
    manifest.write_text("image,label\n0_0_1.png,AIS\n")
    gone = browser.post("/api/read/corrections", json={"row": 2, "label": "AIS"})
    assert gone.status_code == 422 and "0 rows" in gone.text
    assert manifest.read_text() == "image,label\n0_0_1.png,AIS\n"
    assert browser.post("/api/read/corrections", json={"row": 2, "label": "a\nb"}).status_code == 422


def test_a_run_without_results_names_the_commands(tiny_run, tmp_path):
    run = tmp_path / "my run"
    shutil.copytree(tiny_run.parent.parent, run)
    checkpoint = str(run / "checkpoints" / tiny_run.name)
    found = Reading(checkpoint)
    overview = found.overview()
    assert not overview["report"] and found.table() == []
    assert shlex.split(overview["report_command"]) == ["kd-convnext", "report", str(run)]
    assert shlex.split(overview["card_command"]) == ["kd-convnext", "card", "--ckpt_path", checkpoint]
    test = ["--config", str(run / "config.yaml"), "--ckpt_path", checkpoint]
    assert shlex.split(overview["test_command"]) == ["kd-convnext", "test", *test]


def test_a_run_whose_boxes_are_named_by_their_edges_is_read_and_not_corrected(run):
    checkpoint, manifest = run
    header, *rows = manifest.read_text().splitlines()
    (config,) = checkpoint.parent.parent.glob("config.yaml")
    edges = "x=xmin,y=ymin,right=xmax,bottom=ymax"
    config.write_text(config.read_text().replace("data:\n", f"data:\n  columns: {edges}\n", 1))
    renamed = header.replace("x,y,width,height", "xmin,ymin,xmax,ymax")
    assert renamed != header and "columns" in config.read_text()
    manifest.write_text("\n".join([renamed, *rows]) + "\n")
    before = manifest.read_text()
    asking = Asking(AskingOptions(str(checkpoint)))
    asking.start = lambda: None
    with client(Parts(asking=asking, reading=Reading(str(checkpoint)))) as browser:
        assert len(browser.get("/api/read/table").json()["rows"]) == 3
        answer = browser.post("/api/read/corrections", json={"row": 2, "label": "AIS", "note": ""})
    assert answer.status_code == 422 and "not with their far edges" in answer.text
    assert manifest.read_text() == before


def test_names_that_a_spreadsheet_would_run_are_read_as_they_were(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    frame = {"image": ["-1.png", "2.png"], "lesion_id": ["+L", ""], "label": ["+", "-"], "prediction": ["+", "+"]}
    frame |= {"prob_+": [0.9, 0.7], "prob_-": [0.1, 0.3]}
    boxes = dict.fromkeys(("x", "y", "width", "height"), pd.array([3, None], dtype="Int64"))
    (tmp_path / "run/predictions.csv").write_text(table_text(pd.DataFrame({**frame, **boxes})))
    wrong, right = Reading(str(tmp_path / "run/checkpoints/best.ckpt"), tmp_path / "m.csv").table()
    assert (right["image"], right["lesion_id"], right["label"], right["box"]) == ("-1.png", "+L", "+", (3, 3, 3, 3))
    assert (wrong["probability"], wrong["probability_of_label"], wrong["box"]) == (0.7, 0.3, None)


def test_a_correction_is_found_by_the_box_that_a_decimal_comma_means(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    text = "image,lesion_id,label,prediction,prob_A,prob_B,x,y,width,height\n0.png,L,A,B,0.2,0.8,10,5,22,20\n"
    (tmp_path / "run/predictions.csv").write_text(text)
    row = "0.png;A;10,5;5;20,9;20"
    (tmp_path / "m.csv").write_text(f"image;label;x;y;width;height;corrections\n{row};\n0.png;A;;;;;\n")
    reading = Reading(str(tmp_path / "run/checkpoints/best.ckpt"), tmp_path / "m.csv")
    said = reading.correct(0, "B", "")
    assert (tmp_path / "m.csv").read_text().splitlines()[1] == f"{row.replace('A', 'B')};{said}"
    assert reading.table()[0]["corrections"] == said
