"""Asking a checkpoint over HTTP: the answers of ``classify``, and nothing that brings the server down."""

import io
import json
import struct
import tempfile
import zipfile
import zlib

import pandas as pd
import pytest
from helpers.inference import copy_run
from helpers.pages import TOKEN, client, encoded, photograph_of, picture
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.page import uploads
from kd_convnext.page.app import Parts
from kd_convnext.page.asking import Asking, AskingOptions
from kd_convnext.page.marking import Marking

BOX = {"x": 2, "y": 1, "width": 36, "height": 34}


@pytest.fixture(scope="module")
def calibrated(tiny_run, tmp_path_factory):
    checkpoint = copy_run(tiny_run, tmp_path_factory.mktemp("page") / "run")
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5"]) == 0
    return checkpoint


@pytest.fixture(scope="module")
def asking(calibrated):
    found = Asking(AskingOptions(str(calibrated)))
    found._read_cases()
    found.start = lambda: None
    return found


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder that temporary files go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def browser(asking, kept):
    with client(Parts(asking=asking)) as found:
        yield found


def upload(browser, name, data):
    return browser.post("/api/ask/photographs", params={"name": name}, content=data)


def sent(browser, name, data):
    answer = upload(browser, name, data)
    assert answer.status_code == 200, answer.text
    return answer.json()["key"]


def ask(browser, *asked):
    answer = browser.post("/api/ask/answers", json={"asked": asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def classified(calibrated, tiny_manifest, tmp_path):
    """What ``classify`` says of four photographs of two lesions; the manifest's rows, and the folder of the answers."""
    rows = [line.split(",") for line in tiny_manifest.read_text().splitlines()[1:5]]
    lines = ["image,lesion_id,x,y,width,height"]
    lines += [",".join([f"{tiny_manifest.parent}/{row[0]}", *row[2:]]) for row in rows]
    (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert main(["classify", str(tmp_path / "new.csv"), "--ckpt_path", str(calibrated), "--out", str(out)]) == 0
    return rows, out


def without_names(entries):
    return [{name: value for name, value in entry.items() if name != "image"} for entry in entries]


def test_the_numbers_are_those_of_classify_to_the_last_digit(browser, classified, tiny_manifest):
    rows, out = classified
    asked = [
        {"key": sent(browser, row[0], (tiny_manifest.parent / row[0]).read_bytes()), "box": BOX, "lesion_id": row[2]}
        for row in rows
    ]
    found, written = ask(browser, *asked), json.loads((out / "answers.json").read_text())
    assert without_names(found["answers"]) == without_names(written["answers"])
    assert without_names(found["lesions"]) == without_names(written["lesions"])
    assert found["model"] == written["model"] and found["calibration"] == written["calibration"]
    assert [entry["image"] for entry in found["answers"]] == [row[0] for row in rows]
    single = [ask(browser, one)["answers"][0] for one in asked]  # one at a time says the same
    assert single == found["answers"]


def test_the_saved_files_are_those_of_classify(browser, classified, tiny_manifest):
    rows, out = classified
    asked = [
        {"key": sent(browser, row[0], (tiny_manifest.parent / row[0]).read_bytes()), "box": BOX, "lesion_id": row[2]}
        for row in rows
    ]
    answer = browser.post("/api/ask/files", json={"asked": asked})
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert sorted(archive.namelist()) == ["answers.csv", "answers.json", "lesions.csv"]
    for name in ("answers.csv", "lesions.csv"):
        found = pd.read_csv(archive.open(name), dtype=str).drop(columns="image", errors="ignore")
        pd.testing.assert_frame_equal(found, pd.read_csv(out / name, dtype=str).drop(columns="image", errors="ignore"))


def test_v1_classify_returns_the_same_json(browser, classified, tiny_manifest):
    rows, out = classified
    written = json.loads((out / "answers.json").read_text())
    photograph = (rows[0][0], (tiny_manifest.parent / rows[0][0]).read_bytes())
    answer = browser.post(
        "/v1/classify",
        files={"photograph": photograph},
        data={"boxes": json.dumps([BOX, BOX | {"width": 20}]), "lesion_id": "L0-0"},
        headers={"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:8734"},
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert without_names(found["answers"][:1]) == without_names(written["answers"][:1])
    assert found["lesions"][0]["photographs"] == 2 and found["failures"] == []
    whole = browser.post("/v1/classify", files={"photograph": photograph}).json()
    assert whole["answers"][0]["box"] is None and whole["lesions"] == []


def test_the_description_names_every_field_and_loads_nothing_from_elsewhere(browser):
    found = browser.get("/openapi.json").json()
    assert set(found["paths"]) == {"/v1/classify", "/healthz"}
    fields = found["components"]["schemas"]["Answer"]["properties"]
    content = ask(browser, {"key": sent(browser, "a.png", encoded(picture()))})
    assert set(content["answers"][0]) == set(fields)
    assert set(content) == set(found["components"]["schemas"]["Answers"]["properties"])
    for path in ("/docs", "/redoc"):  # FastAPI's own pages take their scripts from a foreign host
        assert browser.get(path).status_code == 404


@pytest.mark.parametrize("boxes", ["nonsense", '[{"x": 1}]', '{"x": 1}', '[{"x":1.5,"y":1,"width":2,"height":2}]'])
def test_v1_refuses_what_is_no_list_of_boxes(browser, boxes):
    answer = browser.post("/v1/classify", files={"photograph": ("a.png", encoded(picture()))}, data={"boxes": boxes})
    assert answer.status_code == 422 and answer.json()["findings"][0]["where"] == "boxes"


def png_of(width, height):
    """A PNG of a few bytes whose header promises more pixels than fit into memory."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("bomb.png", png_of(100_000, 100_000), "pixels"),
        ("large.png", png_of(15_000, 14_000), "megapixels"),
        ("truncated.jpg", encoded(picture(200, 200), "JPEG")[:4000], "truncated"),
        ("text.jpg", b"I am no photograph", "not an image"),
        ("empty.png", b"", "empty"),
        ("../../<script>.png", b"text", "not an image"),
    ],
    ids=["bomb", "large", "truncated", "text", "empty", "script"],
)
def test_bad_photographs_are_refused_in_words_and_the_server_lives(browser, kept, name, data, word):
    answers = [upload(browser, name, data), browser.post("/v1/classify", files={"photograph": (name, data or b" ")})]
    for answer in answers[: 2 if data else 1]:
        assert answer.status_code == 422
        (finding,) = answer.json()["findings"]
        assert word in finding["what"] and finding["where"] == name.split("/")[-1] and finding["remedy"]
        assert "/tmp" not in answer.text
    assert [path for path in kept.rglob("*") if path.is_file()] == []  # nothing of it is left
    assert browser.get("/healthz").json() == {"status": "ok"}


def test_two_hundred_megabytes_are_refused_by_size(browser):
    answer = upload(browser, "large.tif", bytes(200 << 20))
    assert answer.status_code == 413 and "64 MB" in answer.text
    assert browser.get("/healthz").status_code == 200


def test_a_box_outside_is_named_and_the_others_are_answered(browser):
    key = sent(browser, "a.png", encoded(picture()))
    content = ask(browser, {"key": key, "box": BOX | {"x": 50}}, {"key": key, "box": BOX})
    assert len(content["answers"]) == 1
    assert content["failures"][0]["image"] == "a.png" and "does not lie inside" in content["failures"][0]["problem"]


def test_a_foreign_name_is_never_a_path(browser):
    for name in ("../../etc/passwd.png", "..\\..\\boot.png", "/root/x.png", "\0.png", "a" * 390 + ".png", ".png"):
        key = sent(browser, name, encoded(picture()))
        shown = ask(browser, {"key": key})["answers"][0]["image"]
        assert "/" not in shown and "\\" not in shown and len(shown) <= 200


def test_the_explanation_has_pictures_and_training_cases(browser, tiny_manifest):
    name = "0_0_0.png"
    key = sent(browser, name, (tiny_manifest.parent / name).read_bytes())
    found = browser.post("/api/ask/explanation", json={"key": key, "box": BOX}).json()
    assert found["crop"].startswith("data:image/jpeg;base64,") and found["heat"] != found["crop"]
    assert len(found["neighbours"]) == 3 and found["cases_problem"] == ""
    assert all(entry["label"] and entry["picture"].startswith("data:") for entry in found["neighbours"])


def test_a_suggested_region_lies_in_the_photograph(browser, tiny_manifest):
    key = sent(browser, "a.png", (tiny_manifest.parent / "0_0_0.png").read_bytes())
    box = browser.post("/api/ask/suggestion", json={"key": key}).json()["box"]
    assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 40 and box["y"] + box["height"] <= 36)


def test_without_the_run_the_page_says_why_no_training_cases_are_shown(tiny_run, tmp_path):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(tiny_run.read_bytes())
    asking = Asking(AskingOptions(str(alone)))
    asking._read_cases()
    assert asking.cases is None and "does not say which photographs" in asking.cases_problem


@pytest.mark.parametrize("kind", ["tiff", "heic", "dicom"])
def test_photographs_in_formats_no_browser_shows_are_shown(browser, tmp_path, kind):
    file = photograph_of(kind, tmp_path)
    key = sent(browser, file.name, file.read_bytes())
    shown = browser.get(f"/api/ask/photographs/{key}")
    assert shown.headers["content-type"] == "image/png" and Image.open(io.BytesIO(shown.content)).size == (60, 40)


def test_only_so_many_photographs_and_answers_are_kept(browser, asking, monkeypatch):
    monkeypatch.setattr(uploads, "KEPT", 3)
    keys = [sent(browser, f"{number}.png", encoded(picture(seed=number))) for number in range(5)]
    assert browser.get(f"/api/ask/photographs/{keys[0]}").status_code == 422
    assert browser.get(f"/api/ask/photographs/{keys[4]}").status_code == 200
    browser.delete(f"/api/ask/photographs/{keys[4]}")
    assert "no longer kept" in browser.get(f"/api/ask/photographs/{keys[4]}").text


def test_both_halves_share_the_checkpoints_classes(asking, tmp_path):
    picture().save(tmp_path / "a.png")
    marking = Marking(tmp_path, tmp_path / "cache", asking.predictor.network.card.class_names)
    with client(Parts(marking, asking)) as browser:
        assert (
            browser.get("/api/mark/photographs").json()["classes"]
            == browser.get("/api/state").json()["model"]["classes"]
        )
        assert "box" in browser.get("/api/mark/suggestion", params={"image": "a.png"}).json()
