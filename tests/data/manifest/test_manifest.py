import re
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.manifests import BOX, GOOD, findings_of, manifest_of, only_finding, save_image, write_csv, write_manifest
from PIL import Image

from kd_convnext.common import tables
from kd_convnext.common.tables import read_table
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.manifest import PAPER_CLASSES, read_manifest
from kd_convnext.data.manifest.splits import make_split
from kd_convnext.errors import CheckpointError, ConfigError, ManifestError
from kd_convnext.modules.guard import check_classes


def test_a_csv_is_read_whole(tmp_path):
    rows = [
        {**GOOD[0], "patient_id": "P1", "x": 1, "y": 2, "width": 3, "height": 4, "split": "train"},
        {**GOOD[0], "patient_id": "P1", "x": "5.0", "y": 2, "width": 3, "height": 4, "split": "Train"},
        {**GOOD[1], "split": "test"},
    ]
    manifest = read_manifest(write_manifest(tmp_path, rows))

    assert len(manifest) == 3
    assert manifest.class_names == ("AIS", "MIA")
    assert manifest.labels.tolist() == [0, 0, 1] and manifest.labels.dtype == np.int64
    assert manifest.class_counts() == {"AIS": 2, "MIA": 1}
    assert [manifest.box(i) for i in range(3)] == [Box(1, 2, 3, 4), Box(5, 2, 3, 4), None]
    assert manifest.image_path(2) == tmp_path / "images/b.png"
    assert manifest.where(2) == "manifest.csv, row 4"
    assert manifest.table["split"].tolist() == ["train", "train", "test"]
    assert manifest.table["patient_id"].tolist() == ["P1", "P1", ""]
    assert manifest.table[["image_width", "image_height"]].to_numpy().tolist() == [[12, 8]] * 3
    assert manifest.table.index.tolist() == [0, 1, 2]
    assert manifest.skipped == ()


def test_byte_order_mark_capitals_spaces_and_blank_lines_are_tolerated(tmp_path):
    save_image(tmp_path / "a.png", 1)
    save_image(tmp_path / "b.png", 2)
    path = tmp_path / "m.csv"
    path.write_text("Image , LABEL\n a.png, AIS\n\n,\nb.png ,MIA\n", encoding="utf-8-sig")
    manifest = read_manifest(path)
    assert manifest.table["image"].tolist() == ["a.png", "b.png"]
    assert manifest.where(1) == "m.csv, row 5"


def test_rows_are_numbered_by_line_where_text_spans_lines(tmp_path):
    write_manifest(tmp_path, GOOD)
    (tmp_path / "m.csv").write_text('image,label,note\nimages/a.png,AIS,"two\nlines"\nimages/b.png,MIA,\n')
    assert read_manifest(tmp_path / "m.csv").table["row"].tolist() == [2, 4]


def test_labels_that_pandas_takes_for_missing_are_kept(tmp_path):
    rows = [{**GOOD[0], "label": "NA"}, {**GOOD[1], "label": "None"}]
    assert read_manifest(write_manifest(tmp_path, rows)).class_names == ("NA", "None")


def test_class_order_is_the_papers_or_sorted_or_as_given(tmp_path):
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate(sorted(PAPER_CLASSES))]
    path = write_manifest(tmp_path, rows)
    assert read_manifest(path).class_names == PAPER_CLASSES
    wider = [*sorted(PAPER_CLASSES), "Normal"]
    assert read_manifest(path, classes=wider).class_names == tuple(wider)
    four = write_csv(tmp_path / "four.csv", rows[:4])
    assert read_manifest(four).class_names == ("AIS", "Grade 1", "Grade 2", "Grade 3")


def test_paths_are_spelt_one_way(tmp_path):
    save_image(tmp_path / "elsewhere/c.png", 7)
    rows = [
        {"image": "./images/../images/a.png", "label": "AIS", **BOX},
        {"image": str(tmp_path / "set/images/a.png"), "label": "AIS", **BOX, "width": 5},
        {"image": "images\\b.png", "label": "MIA", **BOX},
        {"image": "../elsewhere/c.png", "label": "MIA", **BOX},
        {"image": str(tmp_path / "elsewhere/c.png"), "label": "MIA", **BOX, "width": 5},
    ]
    save_image(tmp_path / "set/images/a.png", 1)
    save_image(tmp_path / "set/images/b.png", 2)
    with pytest.raises(ManifestError, match="same bytes"):  # the last two, under two names outside the folder
        read_manifest(write_csv(tmp_path / "set/m.csv", rows))
    manifest = read_manifest(write_csv(tmp_path / "set/m.csv", rows[:4]))
    assert manifest.table["image"].tolist() == ["images/a.png", "images/a.png", "images/b.png", "../elsewhere/c.png"]


def test_one_option_names_all_columns_that_are_called_otherwise(tmp_path):
    rows = [
        {"filename": "a.png", "cell_type": name, "xmin": x, "ymin": 0, "xmax": x + 6, "ymax": 8, "case_id": "7"}
        for name, x in (("RBC", 0), ("WBC", 5))
    ]
    save_image(tmp_path / "a.png")
    table = write_csv(tmp_path / "cells.csv", rows)
    found = findings_of(table)
    (option,) = {one for finding in found for one in re.findall(r'ive --columns "(.*?)"', finding)}
    assert len(found) == 4 and read_manifest(table, columns=option).table["width"].tolist() == [6, 6]
    # What was given is not asked about again.
    found = findings_of(table, columns="lesion_id=case_id")
    assert len(found) == 3 and not any("looks like the id" in finding for finding in found)
    # It stays in the option, and nothing is said of rows that are alike for want of their boxes.
    (found,) = findings_of(table, columns="image=filename,label=cell_type,lesion_id=case_id")
    assert '"image=filename,label=cell_type,lesion_id=case_id,x=xmin,y=ymin,right=xmax,bottom=ymax"' in found


def test_class_folders_are_read(tmp_path):
    for seed, name in enumerate(["AIS/a.JPG", "AIS/deep/er/b.webp", "MIA/c.tiff", "MIA/.hidden.png", ".git/d.png"]):
        save_image(tmp_path / name, seed)
    for name in ("AIS/notes.txt", "MIA/raw.CR2", "loose.psd"):
        (tmp_path / name).write_text("no photograph")
    (tmp_path / "split.csv").write_text("a file beside the class folders")
    (tmp_path / "AIS/circle").symlink_to(tmp_path / "AIS")
    (tmp_path / "Empty").mkdir()

    with pytest.warns(UserWarning) as said:
        manifest = read_manifest(tmp_path)

    told = " ".join(str(entry.message) for entry in said)
    assert "without photographs, left out: Empty" in told
    assert "AIS/notes.txt, MIA/raw.CR2, loose.psd left out, which are no photographs by their names" in told
    assert manifest.table["image"].tolist() == ["AIS/a.JPG", "AIS/deep/er/b.webp", "MIA/c.tiff"]
    assert manifest.table["label"].tolist() == ["AIS", "AIS", "MIA"]
    assert manifest.root == tmp_path and manifest.where(0) == "AIS/a.JPG" and manifest.box(0) is None


def test_photographs_beside_class_folders_have_no_label(tmp_path):
    for seed, name in enumerate(["AIS/a.png", "MIA/b.png", "stray.png"]):
        save_image(tmp_path / name, seed)
    assert findings_of(tmp_path)[0].startswith("stray.png: the label is empty")
    assert read_manifest(tmp_path, require_labels=False).labels.tolist() == [0, 1, -1]


def test_part_folders_are_not_taken_for_classes(tmp_path):
    for seed, name in enumerate(["train/AIS/a.png", "test/MIA/b.png"]):
        save_image(tmp_path / name, seed)
    assert "parts of a split, not classes" in findings_of(tmp_path)[0]


def test_a_folder_without_photographs_is_refused(tmp_path):
    (tmp_path / "AIS").mkdir()
    assert "no photographs" in findings_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the manifest is empty"),
        (b"\n \n", "the manifest is empty"),
        (b"image,label\n", "the manifest has no rows"),
        (b"photo,label\na.png,AIS\n", "row 1: there is no column 'image'"),
        (b"image;label\na.png;AIS;x\n", "row 2: 3 fields where the header has 2"),
        (b"PK\x03\x04rest", "a spreadsheet of another name"),
        (b"image,label\na\0.png,AIS\n", "NUL"),
        (b"image,label\n" + b"a" * 2**21 + b",AIS\n", "row 2: not CSV (field larger"),
        ("image,label\nä.png,AIS\n".encode("latin-1"), "not UTF-8"),
        (b'image,label\na.png,"AIS\n', "row 2: not CSV"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content, expected):
    (tmp_path / "manifest.csv").write_bytes(content)
    (found,) = findings_of(tmp_path / "manifest.csv")
    assert found.startswith("manifest.csv") and expected in found


def test_a_missing_manifest_is_refused(tmp_path):
    assert "does not exist" in findings_of(tmp_path / "manifest.csv")[0]


def test_missing_columns_are_named(tmp_path):
    rows = [{"image": f"{i}.png", "x": 0, "y": 0, "width": 3} for i in range(2)]
    found = findings_of(write_manifest(tmp_path, rows))
    assert found[0].startswith("manifest.csv, row 1: there is no column 'label'")
    assert "boxes need four columns, height not there" in found[1]
    assert len(found) == 2


def test_repeated_columns_and_ragged_rows_are_named(tmp_path):
    write_manifest(tmp_path, GOOD)
    (tmp_path / "m.csv").write_text("image,label,label\nimages/a.png,AIS,AIS\nimages/b.png,MIA\n")
    found = findings_of(tmp_path / "m.csv")
    assert "m.csv, row 1: the column 'label' stands twice" in found[0]
    assert "m.csv, row 3: 2 fields where the header has 3" in found[1]


def test_a_misspelt_column_is_pointed_out(tmp_path):
    rows = [{**row, "spilt": "train", "age": 40} for row in GOOD]
    with pytest.warns(UserWarning, match=r"not used: 'spilt' \(did you mean 'split'\?\), 'age'$") as said:
        read_manifest(write_manifest(tmp_path, rows))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": ""}, "the label is empty (images/c.png)"),
        ({"label": "x" * 121}, "has 121 characters. Name classes in 120 at most"),
        ({"label": "a\nb"}, r"the label 'a\nb' holds a line break"),
        ({"label": "a\x1b[2J"}, "another control character"),
        ({"image": ""}, "the image is empty"),
        ({"x": 1}, "half a box: x=1, y=, width=, height="),
        ({**BOX, "x": "0.5"}, "x=0, y=0, width=13, height=8 reaches outside"),
        ({**BOX, "x": "abc"}, "not numbers: x=abc"),
        ({**BOX, "x": "inf"}, "not numbers: x=inf"),
        ({**BOX, "x": "1e30"}, "not numbers: x=1e30"),
        ({**BOX, "width": 0}, "an empty box: x=0, y=0, width=0"),
        ({**BOX, "height": -3}, "an empty box"),
        ({**BOX, "x": -1}, "reaches outside the photograph of 12 x 8 pixels"),
        ({**BOX, "x": 1}, "reaches outside the photograph of 12 x 8 pixels"),
        ({**BOX, "y": 1}, "reaches outside the photograph of 12 x 8 pixels"),
        ({"image": "images/b.png"}, "the same photograph and region as manifest.csv, row 3"),
    ],
)
def test_each_bad_row_is_named_with_a_remedy(tmp_path, change, expected):
    third = {"image": "images/c.png", "label": "MIA", **dict.fromkeys(BOX, ""), **change}
    found = only_finding(tmp_path, [*GOOD, third])
    assert found.startswith("manifest.csv, row 4: ") and expected in found


def test_one_region_with_two_labels_is_refused(tmp_path):
    found = only_finding(tmp_path, [*GOOD, {**GOOD[1], "label": "AIS"}])
    assert "row 4: the same photograph and region as manifest.csv, row 3, there labelled 'MIA', here 'AIS'" in found


def test_boxes_are_checked_against_the_upright_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_manifest(tmp_path, [{**GOOD[0], **BOX, "width": 8, "height": 12}, GOOD[1]])
    assert "reaches outside the photograph of 12 x 8" in findings_of(path)[0]
    Image.open(tmp_path / "images/a.png").save(tmp_path / "images/a.png", exif=exif)
    assert read_manifest(path).table.loc[0, ["image_width", "image_height"]].tolist() == [8, 12]


def test_labels_outside_the_classes_are_named(tmp_path):
    found = only_finding(tmp_path, [*GOOD, {"image": "c.png", "label": "Typo"}], classes=["AIS", "MIA"])
    assert found.startswith("manifest.csv, row 4: unknown label 'Typo'") and "AIS, MIA" in found


def test_one_class_only_is_refused_but_right_for_prediction(tmp_path):
    rows = [{**row, "label": "AIS"} for row in GOOD]
    assert "there is only one class, 'AIS'" in only_finding(tmp_path, rows)
    assert read_manifest(tmp_path / "manifest.csv", classes=["MIA", "AIS"], require_labels=False).labels.tolist() == [
        1,
        1,
    ]
    bare = write_csv(tmp_path / "bare.csv", [{"image": row["image"]} for row in rows])
    assert read_manifest(bare, require_labels=False).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("classes", [["AIS"], ["AIS", "AIS", "MIA"], ["AIS", "", "MIA"]])
def test_wrong_classes_are_refused(tmp_path, classes):
    assert any(
        "is not a list of classes" in found for found in findings_of(write_manifest(tmp_path, GOOD), classes=classes)
    )


def test_labels_that_differ_in_capitals_are_pointed_out(tmp_path):
    with pytest.warns(UserWarning, match=r"differ in capitals.*'AIS', 'Ais'"):
        read_manifest(write_manifest(tmp_path, [*GOOD, {"image": "c.png", "label": "Ais"}]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("7", "007"),
        ("big cell", "big  cell"),
        ("AIS", "AlS"),
        ("Grade 1", "Grade I"),
        ("MEL O", "mel 0"),
        ("MIA", "M\u0406\u0410"),  # the last two are Cyrillic
    ],
)
def test_labels_that_a_person_reads_as_one_are_pointed_out(tmp_path, one, other):
    rows = [{**row, "label": label} for row, label in zip(GOOD, (one, other), strict=False)]
    with pytest.warns(UserWarning, match="are different classes") as told:
        read_manifest(write_manifest(tmp_path, rows))
    assert repr(other) in str(told[0].message) and str(told[0].message).endswith("is it a slip?")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("one", "other"), [("Grade 1", "Grade 2"), ("NV", "NU"), ("10", "100"), ("AIS", "ALL")])
def test_labels_of_other_looks_are_not_pointed_out(tmp_path, one, other):
    rows = [{**row, "label": label} for row, label in zip(GOOD, (one, other), strict=False)]
    read_manifest(write_manifest(tmp_path, rows))


def make_unreadable(folder: Path, rows: list[dict]) -> Path:
    path = write_manifest(folder, rows)
    (folder / "images/missing.png").unlink()
    (folder / "images/zero.png").write_bytes(b"")
    (folder / "images/text.png").write_text("no image")
    return path


UNREADABLE = [
    {"image": "images/missing.png", "label": "AIS", **BOX},
    {"image": "images/missing.png", "label": "AIS", **BOX, "width": 5},
    {"image": "images/zero.png", "label": "MIA"},
    {"image": "images/text.png", "label": "MIA"},
]


def test_unreadable_photographs_are_all_named(tmp_path):
    found = findings_of(make_unreadable(tmp_path, [*GOOD, *UNREADABLE]))
    assert len(found) == 3
    assert found[0].startswith("manifest.csv, row 4: the photograph does not exist")
    assert "missing.png (and 1 more row of this photograph)" in found[0]
    assert found[1].startswith("manifest.csv, row 6: the photograph cannot be read (the file is empty)")
    assert found[2].startswith("manifest.csv, row 7: the photograph cannot be read (not an image")


def test_unreadable_photographs_are_left_out_by_choice(tmp_path):
    path = make_unreadable(tmp_path, [UNREADABLE[0], *GOOD, *UNREADABLE[1:]])
    with pytest.warns(UserWarning, match=r"3 unreadable photographs \(4 rows\) left out"):
        manifest = read_manifest(path, on_error="skip")
    assert manifest.table["image"].tolist() == ["images/a.png", "images/b.png"]
    assert manifest.table.index.tolist() == [0, 1] and manifest.where(0) == "manifest.csv, row 3"
    assert [finding.where for finding in manifest.skipped] == [f"manifest.csv, row {row}" for row in (2, 6, 7)]


def test_skipping_leaves_other_problems_errors(tmp_path):
    (found,) = findings_of(make_unreadable(tmp_path, [*GOOD, *UNREADABLE, {"image": "c.png"}]), on_error="skip")
    assert "row 8: the label is empty" in found


def test_skipping_must_not_end_in_nothing_nor_lose_a_class(tmp_path):
    assert "no photograph could be read" in findings_of(make_unreadable(tmp_path, UNREADABLE), on_error="skip")[0]
    save_image(tmp_path / "images/a.png")
    rows = [*UNREADABLE, GOOD[0]]
    assert "no photograph of MIA could be read" in findings_of(write_csv(tmp_path / "m.csv", rows), on_error="skip")[0]


def test_everything_wrong_is_reported_together(tmp_path):
    rows = [
        {**GOOD[0], **BOX, "split": "train"},
        {**GOOD[1], "split": "val"},
        {"image": "images/c.png", "label": "", "x": 3, "split": "train"},
        {"image": "images/d.png", "label": "Typo", **BOX, "width": 0, "split": "test"},
        {"image": "images/e.png", "label": "AIS", **BOX, "y": 3, "split": "test"},
        {"image": "images/f.png", "label": "AIS", "lesion_id": "L1", "split": "holdout"},
        {"image": "images/g.png", "label": "AIS", "lesion_id": "L1", "split": "val"},
        {"image": "images/missing.png", "label": "AIS", "split": "val"},
        {**GOOD[1], "split": "val"},
    ]
    path = write_manifest(tmp_path, rows)
    (tmp_path / "images/missing.png").unlink()
    found = findings_of(path, classes=["AIS", "MIA"])
    expected = {
        "row 4: half a box",
        "row 5: an empty box",
        "row 4: the label is empty",
        "row 5: unknown label",
        "row 6: the box",
        "row 10: the same photograph",
        "row 7: 'holdout' is not a part",
        "row 8: the lesion 'L1'",
        "row 9: the photograph does not exist",
    }
    assert len(found) == len(expected)
    for start in expected:
        assert any(text.startswith(f"manifest.csv, {start}") for text in found), (start, found)


@pytest.mark.realdata
def test_real_manifests_are_sound_and_quick(shared_dir):
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lesions = read_manifest(shared_dir / "data/ham_paper5/manifest.csv")
    assert lesions.class_counts() == {"akiec": 121, "bcc": 196, "bkl": 546, "df": 41, "nv": 1317}
    assert len(set(lesions.groups("lesion"))) == 1279
    assert len(set(lesions.groups("image"))) == 2220  # two files have the same bytes

    with pytest.warns(UserWarning, match="several labels in 354 of 364 lesions"):
        smears = read_manifest(shared_dir / "data/bccd/manifest.csv")
    assert smears.class_counts() == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert len(set(smears.groups("lesion"))) == len(set(smears.groups("image"))) == 364
    assert smears.box(0) == Box(260, 177, 231, 199)
    assert time.perf_counter() - start < 30  # 1 s where the disk is warm


AS_PEOPLE_HAVE_THEM = [
    (",", "utf-8", "."),
    (";", "utf-8-sig", ","),
    ("\t", "utf-16", "."),
    (";", "utf-16-le", ","),
    (",", "utf-8-sig", "."),
]


@pytest.mark.parametrize("mark, encoding, point", AS_PEOPLE_HAVE_THEM)
def test_tables_as_spreadsheets_write_them(tmp_path, mark, encoding, point):
    write_manifest(tmp_path, GOOD)
    lines = [
        "image,label,lesion_id,x,y,width,height",
        "images/a.png,Größe NA,007,0.4,1,3.3,4",
        "images/b.png,NA,1e5,0,0,2,2",
    ]
    text = "\r\n".join(lines).replace(",", mark)
    if point == ",":
        text = text.replace("0.4", "0,4").replace("3.3", "3,3")
    start = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (tmp_path / "m.csv").write_bytes(start + text.encode(encoding))
    with pytest.warns(UserWarning, match=r"1 box with fractions of pixels, rounded outward \(first: m.csv, row 2"):
        manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.table["label"].tolist() == ["Größe NA", "NA"]
    assert manifest.table["lesion_id"].tolist() == ["007", "1e5"]
    assert manifest.box(0) == Box(0, 1, 4, 4) and manifest.box(1) == Box(0, 0, 2, 2)


def test_a_workbook_is_read_by_an_extra(tmp_path, monkeypatch):
    write_manifest(tmp_path, GOOD)
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["image", "label", "lesion_id", "x", "y", "width", "height"],
        ["images/a.png", "NA", "007", 0, 1.5, 3, 2],
    ):
        book.active.append(row)
    book.active.append(["images/b.png", "AIS", 12, None, None, None, None])
    book.save(tmp_path / "m.xlsx")
    with pytest.warns(UserWarning, match="rounded outward"):
        manifest = read_manifest(tmp_path / "m.xlsx")
    assert manifest.table["lesion_id"].tolist() == ["007", "12"] and manifest.box(0) == Box(0, 1, 3, 3)
    assert manifest.labels.tolist() == [1, 0] and manifest.box(1) is None
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "kd-convnext[xlsx]" in findings_of(tmp_path / "m.xlsx")[0]


def test_merged_cells_hold_for_all_rows_that_they_cover(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ["image", "label", "lesion_id", "patient_id", "notes"],
        *([f"{k}.png", "AB"[k // 3]] for k in range(6)),
    ):
        sheet.append(row)
    sheet["C2"], sheet["C5"], sheet["C6"], sheet["E2"], sheet["F4"] = "L1", "L2", "L3", "blurred", "sharp"
    for cells in ("C2:C4", "C6:D40", "C5:D5", "A90:XFD90", "E2:XFD3", "F4:F7"):
        sheet.merge_cells(cells)
    book.save(tmp_path / "m.xlsx")
    for k in range(6):
        save_image(tmp_path / f"{k}.png", k)
    with pytest.warns(UserWarning) as said:
        manifest = read_manifest(tmp_path / "m.xlsx")
    assert manifest.table["lesion_id"].tolist() == ["L1"] * 3 + ["L2"] + ["L3"] * 2
    assert manifest.table["patient_id"].tolist() == [""] * 6  # a lesion's id is not the patient's
    (merged,) = (str(one.message) for one in said if "merged" in str(one.message))
    assert merged.endswith("for every row that they cover (3 rows, the first is row 3)")
    for cells in ("C2:C4", "C6:D40"):
        sheet.unmerge_cells(cells)
    book.save(tmp_path / "m.xlsx")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        read_manifest(tmp_path / "m.xlsx")
    assert not [one for one in heard if "merged" in str(one.message)]  # of notes it does not matter
    assert tables.read_records(tmp_path / "m.xlsx").merged == {"notes": [3]}


@pytest.mark.parametrize("start", ["sep=;\r\n", '"sep=;"\r\n', "\r\n", " \r\n\r\n"])
def test_a_line_of_the_separator_or_a_blank_one_before_the_header(tmp_path, start):
    write_manifest(tmp_path, GOOD)
    rows = (
        "image;label;x;y;width;height\r\nimages/a.png;AIS;0,5;0;3,5;4\r\nimages/b.png;MIA;;;;\r\nimages/c.png;MIA\r\n"
    )
    (tmp_path / "m.csv").write_bytes((start + rows).encode("utf-8-sig"))
    first = 1 + start.count("\n")
    assert findings_of(tmp_path / "m.csv")[0].startswith(f"m.csv, row {first + 3}: 2 fields")
    (tmp_path / "m.csv").write_bytes((start + rows.rpartition("images/c")[0]).encode("utf-8-sig"))
    with pytest.warns(UserWarning, match=f"rounded outward .first: m.csv, row {first + 1}"):
        manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.table["row"].tolist() == [first + 1, first + 2] and manifest.box(0) == Box(0, 0, 4, 4)


def test_workbooks_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["image", "label", "'=1+1"])
    book.save(tmp_path / "m.xlsx")
    assert tables.read_records(tmp_path / "m.xlsx").fields == [["image", "label", "=1+1"]]
    book.active.cell(1_048_576, 16_384, "far")
    book.save(tmp_path / "far.xlsx")
    assert "its first sheet has 16384 columns" in findings_of(tmp_path / "far.xlsx")[0]
    monkeypatch.setattr(tables, "_UNPACKED", 1000)
    assert "when it is unpacked, at most" in findings_of(tmp_path / "m.xlsx")[0]


def test_columns_of_other_names_are_asked_about_and_taken(tmp_path):
    rows = [{"file": row["image"], "diagnosis": row["label"], "case": row["lesion_id"]} for row in GOOD]
    write_manifest(tmp_path, GOOD)
    path = write_csv(tmp_path / "m.csv", rows)
    found = findings_of(path)  # all columns at once, with one option for them
    whole = '--columns "image=file,label=diagnosis,lesion_id=case"'
    assert len(found) == 3 and all(whole in finding for finding in found)
    foreign = write_csv(tmp_path / "n.csv", [{"unknown": row["image"], "diagnose": row["label"]} for row in GOOD])
    found = findings_of(foreign)  # no column for two things
    assert "Did you mean" not in found[0] and '--columns "label=diagnose"' in found[1]
    found = findings_of(path, columns="image=file,label=diagnosis")
    assert "'case' looks like the id" in found[0] and whole in found[0]
    manifest = read_manifest(path, columns="image=file, label=diagnosis, lesion_id=case")
    assert manifest.table["lesion_id"].tolist() == ["L1", "L2"]
    assert (read_manifest(path, columns="image=file,label=diagnosis,ignore=case").table["lesion_id"] == "").all()
    assert "Did you mean diagnosis?" in findings_of(path, columns="image=file,label=diagnosi,ignore=case")[0]
    for wrong in ("imag=file", "image", "image=a,image=b"):
        with pytest.raises(ConfigError, match="--columns"):
            read_manifest(path, columns=wrong)


@pytest.mark.parametrize(
    "names, ours, values",
    [
        (("xmin", "ymin", "xmax", "ymax"), ("x", "y", "right", "bottom"), (1, 2, 5, 6)),
        (("left", "top", "w", "h"), ("x", "y", "width", "height"), (1, 2, 4, 4)),
        (("x1", "y1", "x2", "y2"), ("x", "y", "right", "bottom"), ("1.0", 2, 5, "6")),
        (("X", "Y", "W", "H"), ("x", "y", "width", "height"), (1, 2, 4, 4)),
    ],
)
def test_boxes_under_other_names_are_refused_with_the_remedy_that_works(tmp_path, names, ours, values):
    rows = [{**row, **dict(zip(names, values, strict=True))} for row in GOOD]
    path = write_manifest(tmp_path, rows)
    (found,) = findings_of(path)
    columns = ",".join(f"{one}={name.lower()}" for one, name in zip(ours, names, strict=True))
    assert f'--columns "{columns}"' in found and "boxes seem to stand in" in found
    manifest = read_manifest(path, columns=columns)
    assert manifest.box(0) == manifest.box(1) == Box(1, 2, 4, 4)


def test_sizes_and_far_edges_that_differ_are_refused(tmp_path):
    edges = {"x": 1, "y": 2, "right": 5, "bottom": 6}
    rows = [
        {**GOOD[0], **edges, "width": "4.0", "height": ""},
        {**GOOD[1], **edges, "width": 9, "height": 1},
        {**GOOD[1], "image": "images/c.png", "x": 1, "y": 2, "width": 3, "height": 4},
    ]
    path = write_manifest(tmp_path, rows)
    (found,) = findings_of(path)
    assert found.startswith("manifest.csv: 2 sizes and far edges of boxes differ, the first in manifest.csv, row 3: ")
    assert "row 3: width is 9, right - x 4. " in found and "--columns ignore=width,ignore=height" in found
    manifest = read_manifest(write_csv(path, rows[:2]), columns="ignore=width,ignore=height")
    assert manifest.box(1) == Box(1, 2, 4, 4)
    manifest = read_manifest(write_csv(path, [rows[0], rows[2]]), require_labels=False)
    assert [manifest.box(k) for k in range(2)] == [Box(1, 2, 4, 4), Box(1, 2, 3, 4)]
    (found,) = findings_of(write_csv(path, [{**rows[0], "right": "five"}, rows[2]]))
    assert found.startswith("manifest.csv, row 2: right is 'five', no number")


@pytest.mark.parametrize("far", [{"right": 4, "bottom": 5}, {"right": 5.001, "bottom": 5.999}])
def test_rounded_and_inclusive_far_edges_say_what_the_size_says(tmp_path, far):
    rows = [{**row, "x": 1, "y": 2, "width": 4, "height": 4, **far} for row in GOOD]
    manifest = read_manifest(write_manifest(tmp_path, rows))
    assert manifest.box(0) == manifest.box(1) == Box(1, 2, 4, 4)


def test_sizes_of_the_photographs_beside_far_edges_are_no_sizes_of_boxes(tmp_path):
    """The usual table for the detection of objects."""
    table = pd.read_csv(write_manifest(tmp_path, GOOD)).rename(columns={"image": "filename", "label": "class"})
    edges = {"xmin": 1, "ymin": 2, "xmax": 5, "ymax": 6}
    table.assign(width=16, height=12, **edges).to_csv(tmp_path / "boxes.csv", index=False)
    columns = "image=filename,label=class,x=xmin,y=ymin,right=xmax,bottom=ymax"
    with pytest.warns(UserWarning, match="width and height are taken for sizes of the photographs"):
        manifest = read_manifest(tmp_path / "boxes.csv", columns=columns)
    assert manifest.box(0) == manifest.box(1) == Box(1, 2, 4, 4)


def test_boxes_in_fractions_of_the_sides_are_refused(tmp_path):
    share = {"x": 0.1, "y": "0.25", "width": 0.5, "height": 1}
    found = only_finding(tmp_path, [{**GOOD[0], **share}, {**GOOD[1], **share}])
    assert found.startswith("manifest.csv, row 2: fractions of the photograph's sides: x=0.1, y=0.25, width=0.5")
    assert "(and 1 more row)" in found and found.endswith("Give the box in pixels.")
    with pytest.warns(UserWarning, match="rounded outward"):
        read_manifest(write_manifest(tmp_path, [{**GOOD[0], **share, "width": 1.5}, {**GOOD[1], **share, "x": 1.5}]))


@pytest.mark.parametrize(
    "label, told",
    [
        *((error, "is an error of the spreadsheet") for error in ("#REF!", "#BEZUG!", "#N/D", "#nv", "Err:502")),
        *((date, "is a date or a time") for date in ("2024-02-01 00:00:00", "01:02:00")),
        *((f"A{mark}B", "another control character") for mark in "\u202e\u2028\u2067\u200f\x07"),
    ],
)
def test_labels_that_no_one_typed_are_refused(tmp_path, label, told):
    found = only_finding(tmp_path, [{**GOOD[0], "label": label}, GOOD[1]])
    assert found.startswith(f"manifest.csv, row 2: the label {label!r}") and told in found


def test_a_rare_label_beside_a_frequent_one_is_asked_about(tmp_path):
    labels = ["melanoma"] * 45 + ["melanome", "Grade 1", "Grade 2", "Grade 2"] + ["naevus"] * 45
    rows = [{"image": f"{k}.png", "label": label} for k, label in enumerate(labels)]
    with pytest.warns(UserWarning) as said:
        read_manifest(write_manifest(tmp_path, rows))
    assert ["'melanome' stands in 1 row, 'melanoma' in 45" in str(warning.message) for warning in said] == [True]


def test_names_in_another_unicode_form_find_their_files(tmp_path):
    rows = [{"image": unicodedata.normalize("NFD", f"läsion{k}.png"), "label": "AB"[k]} for k in range(2)]
    write_manifest(tmp_path, rows)
    composed = [{**row, "image": unicodedata.normalize("NFC", str(row["image"]))} for row in rows]
    manifest = read_manifest(write_csv(tmp_path / "m.csv", composed))
    assert manifest.table["image"].tolist() == [row["image"] for row in rows]


def test_names_of_classes_are_in_one_unicode_form(tmp_path):
    composed, apart = ["Läsion", "Normal"], [unicodedata.normalize("NFD", name) for name in ("Läsion", "Normal")]
    for seed, name in enumerate(apart):
        save_image(tmp_path / "set" / name / "a.png", seed)
    rows = [{"image": f"set/{name}/a.png", "label": name} for name in apart]
    for path in (tmp_path / "set", write_csv(tmp_path / "m.csv", rows)):
        for classes in (None, composed, apart):
            manifest = read_manifest(path, classes=classes)
            assert manifest.class_names == (*composed,) and manifest.labels.tolist() == [0, 1]
    data = SpecimenDataModule(str(tmp_path / "set"))
    check_classes(apart, 2, data)  # of a network from before
    with pytest.raises(CheckpointError, match="it knows the classes"):
        check_classes(["Lasion", "Normal"], 2, data)


def test_formulas_sleep_in_what_is_written_and_come_back_as_they_were(tmp_path):
    ids = ["=1+1", "+a", "-b", "@c", "'=d", "''-e", "'plain", "f"]
    rows = [{"image": f"{k}.png", "label": "=A" if k % 2 else "B", "lesion_id": name} for k, name in enumerate(ids)]
    manifest = manifest_of([row["label"] for row in rows], ids, images=[row["image"] for row in rows])
    split = make_split(manifest)
    split.write(tmp_path / "split.csv", manifest)
    cells = [cell for line in (tmp_path / "split.csv").read_text().splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t")]
    assert read_table(tmp_path / "split.csv")["lesion_id"].tolist() == ids
    for row in rows:
        save_image(tmp_path / row["image"])
    back = read_manifest(tmp_path / "split.csv", require_labels=False)
    assert back.table["lesion_id"].tolist() == ids and set(back.table["label"]) == {"=A", "B"}
