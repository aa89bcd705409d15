"""What a reader is told of the photographs before anything is done with them."""

import pytest
from helpers.manifests import manifest_of, save_image, write_csv
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.splits import make_split
from kd_convnext.data.manifest.summary import describe
from kd_convnext.runs.division import divided


def test_photographs_lesions_and_patients_of_each_class_and_part():
    labels = ["A"] * 12 + ["B"] * 4
    lesions = [f"L{k // 2}" for k in range(16)]
    patients = [f"P{k // 4}" for k in range(16)]
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2 + ["train"] * 4
    manifest = manifest_of(labels, lesions, patients=patients, parts=parts)
    lines = describe(manifest, "lesion")
    assert [line.split()[0] for line in lines[1:5]] == ["class", "A", "B", "all"]
    assert "12 (12, 6, 3, 6)" in lines[2] and "8 (8, 4, 2, 4)" in lines[2] and "4 (4, 2, 1, 2)" in lines[3]
    said = "\n".join(lines)
    assert "smallest class: B, 2 groups" in said and "too few groups for training, validation and test: B (2)" in said
    assert (
        "no photograph in val of the class B" in said
        and "no photograph in test of the class B: they have no scores, and count as 0 in means over all classes"
        in said
    )
    with pytest.warns(UserWarning, match="the split column has no photograph in (val|test) of the class B"):
        make_split(manifest, group_by="lesion")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_table_of_three_parts_and_long_names_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ("Actinic keratosis of the face, ears and scalp, grade I", "Actinic keratosis, grade II", "Melanoma")
    labels = [name for name in names for _ in range(200)]
    parts = (["train"] * 160 + ["val"] * 20 + ["test"] * 20) * 3
    manifest = manifest_of(labels, [f"L{k}" for k in range(600)], parts=parts)
    table = [line for line in describe(manifest, "lesion") if line.startswith("  ")]
    assert max(map(len, table)) <= columns
    heads = [line.split()[1:] for line in table if line.split()[0] == "class"]
    assert [part for head in heads for part in head] == ["all", "train", "val", "test"]
    assert len(heads) == {60: 4, 80: 2, 200: 1}[columns]
    cells = [line.split("  ")[2:] for line in table if "grade I" in line]
    assert [cell.strip() for row in cells for cell in row].count("20 (20, 20, ?, 20)") == 4
    # What is cut is marked, and names that begin alike stay apart.
    shown = {line.split("  ")[1] for line in table} - {"class", "all"}
    assert len(shown) == 3 and all(name in names or "…" in name for name in shown)


@pytest.mark.parametrize(
    "ids, expected", [({}, "names its lesion"), ({"lesions": "L"}, "no patient_id"), ({"patients": "P"}, None)]
)
def test_what_cannot_be_known_of_leaks_is_said(ids, expected):
    named = {kind: [f"{letter}{k}" for k in range(40)] for kind, letter in ids.items()}
    said = "\n".join(describe(manifest_of(["A", "B"] * 20, **named)))
    assert ("cannot be excluded" in said) == (expected is not None)
    assert expected is None or expected in said


def test_rows_without_any_id_among_others_are_counted():
    lesions = ["L1", "L2", *[""] * 38]
    for patients, expected in (([""] * 40, 38), ([""] * 30 + ["P"] * 10, 28), (["P"] * 40, None)):
        said = "\n".join(describe(manifest_of(["A", "B"] * 20, lesions, patients=patients)))
        assert ("name neither lesion nor patient" in said) == (expected is not None)
        assert expected is None or f"warning: {expected} of 40 rows name neither" in said
        assert ("note: no patient_id" in said) == (patients[-1] == "")


def test_parts_that_the_manifest_gives_keep_no_near_identical_photographs_together(tmp_path, capsys):
    rows = []
    for k in range(8):
        save_image(tmp_path / f"{k}.png", k, (96, 64))
        rows.append({"image": f"{k}.png", "label": "AB"[k % 2], "split": ("train", "train", "val", "test")[k // 2]})
    with Image.open(tmp_path / "0.png") as picture:
        picture.save(tmp_path / "8.jpg", quality=95)
    rows.append({"image": "8.jpg", "label": "A", "split": "test"})
    path = write_csv(tmp_path / "manifest.csv", rows)
    words = ["prepare", "--manifest", str(path), "--upscaler", "bicubic", "--dry_run=true"]
    with pytest.warns(UserWarning, match="near-identical"):
        assert main(words) == 0
    said = capsys.readouterr().out
    assert "kept together by patient, lesion and photograph (the manifest gave the parts)" in said
    with pytest.warns(UserWarning) as caught:
        manifest = read_manifest(path)
    warned = " ".join(str(one.message) for one in caught)
    assert "1 near-identical photograph in more than one part of its split column" in warned
    assert "near-identical photographs, in the parts of the split column: 2 in 1 set" in warned
    assert "kept in one part" not in warned and "group_by" not in warned
    assert divided(manifest, make_split(manifest)) == {"given": True, "alike": 1}


def test_prepare_prints_it(tmp_path, capsys):
    rows = []
    for k in range(8):
        save_image(tmp_path / f"{k}.png", k)
        rows.append({"image": f"{k}.png", "label": "AB"[k % 2]})
    manifest = str(write_csv(tmp_path / "m.csv", rows))
    cache = str(tmp_path / "cache")
    assert (
        main(["prepare", "--manifest", manifest, "--upscaler", "bicubic", "--cache_dir", cache, "--dry_run=true"]) == 0
    )
    said = capsys.readouterr().out
    assert "4 (4, ?, ?, 4)" in said and "cannot be excluded" in said
