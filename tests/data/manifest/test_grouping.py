import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.manifests import BOX, GOOD, findings_of, manifest_of, only_finding, write_csv, write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_convnext.data.manifest.grouping import NO_GROUP, group_hashes, row_hashes
from kd_convnext.data.manifest.ids import is_unknown, normal_id
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.splits import make_split


def test_a_lesion_with_two_labels_is_one_warning(tmp_path):
    rows = [
        {"image": f"{i}.png", "label": label, "lesion_id": f"L{i // 2}"}
        for i, label in enumerate(["AIS", "MIA", "AIS", "MIA", "AIS", "AIS"])
    ]
    with pytest.warns(UserWarning) as caught:
        read_manifest(write_manifest(tmp_path, rows))
    assert len(caught) == 1
    assert "several labels in 2 of 3 lesions (first 'L0': AIS, MIA)" in str(caught[0].message)


def test_a_lesion_of_two_patients_is_a_warning(tmp_path):
    rows = [{**GOOD[0], "patient_id": "P1"}, {**GOOD[1], "patient_id": "P2", "lesion_id": "L1", "label": "AIS"}]
    rows.append({"image": "c.png", "label": "MIA"})
    with pytest.warns(UserWarning, match="several patients in 1 of 1 lesion"):
        read_manifest(write_manifest(tmp_path, rows))


SPLIT = [{**GOOD[0], "split": "train"}, {**GOOD[1], "split": "test"}]


def test_split_values_are_checked(tmp_path):
    found = findings_of(write_manifest(tmp_path, [{**SPLIT[0], "split": "dev"}, {**SPLIT[1], "split": ""}]))
    assert "row 2: 'dev' is not a part of a split" in found[0]
    assert "row 3: the split is empty, elsewhere it is given" in found[1]


def test_a_lesion_in_two_parts_is_refused(tmp_path):
    rows = [*SPLIT, {"image": "c.png", "label": "AIS", "lesion_id": "L1", "split": "val"}]
    found = only_finding(tmp_path, rows)
    assert found.startswith("manifest.csv, row 4: the lesion 'L1' is in more than one part")
    assert "train (manifest.csv, row 2), val (manifest.csv, row 4)" in found
    with pytest.warns(UserWarning, match="1 lesion in more than one part, as grouping by image allows"):
        read_manifest(tmp_path / "manifest.csv", group_by="image")


@pytest.mark.parametrize("group_by", ["lesion", "image"])
def test_a_photograph_in_two_parts_is_refused(tmp_path, group_by):
    rows = [{**SPLIT[0], **BOX, "lesion_id": ""}, {**SPLIT[0], **BOX, "width": 5, "split": "val", "lesion_id": ""}]
    found = only_finding(tmp_path, [*rows, SPLIT[1]], group_by=group_by)
    assert "the photograph 'images/a.png' is in more than one part" in found


def test_a_patient_in_two_parts_is_refused_where_patients_count(tmp_path):
    path = write_manifest(tmp_path, [{**row, "patient_id": "P"} for row in SPLIT])
    with pytest.warns(UserWarning, match="1 patient in more than one part, as grouping by lesion allows"):
        read_manifest(path, group_by="lesion")
    for group_by in ("known", "patient"):
        assert "the patient 'P' is in more than one part" in findings_of(path, group_by=group_by)[0]


def copied(folder: Path, rows: list[dict]) -> Path:
    path = write_manifest(folder, rows)
    shutil.copy(folder / "images/a.png", folder / "images/copy.png")
    return path


COPY = {"image": "images/copy.png", "label": "AIS"}


@pytest.mark.parametrize(
    ("lesion", "expected"), [("L9", "their lesions differ: 'L1', 'L9'"), ("", "their lesions differ: '', 'L1'")]
)
def test_copies_under_two_lesions_are_refused(tmp_path, lesion, expected):
    (found,) = findings_of(copied(tmp_path, [*GOOD, {**COPY, "lesion_id": lesion}]))
    assert "row 4: images/copy.png has the same bytes as images/a.png (manifest.csv, row 2)" in found
    assert expected in found


def test_copies_without_lesions_are_refused(tmp_path):
    rows = [{**row, "lesion_id": ""} for row in [*GOOD, COPY]]
    assert "no lesion_id ties them together" in findings_of(copied(tmp_path, rows))[0]


def test_copies_in_two_parts_are_refused_even_by_image(tmp_path):
    path = copied(tmp_path, [*SPLIT, {**COPY, "lesion_id": "L1", "split": "val"}])
    found = findings_of(path, group_by="image")
    assert len(found) == 1 and "they are in different parts: train, val" in found[0]


def test_copies_of_one_lesion_are_one_photograph(tmp_path):
    manifest = read_manifest(copied(tmp_path, [*GOOD, {**COPY, "lesion_id": "L1"}]))
    assert manifest.groups("image").tolist() == ["image:images/a.png", "image:images/b.png", "image:images/a.png"]


def test_chains_of_lesions_and_photographs_are_one_group():
    manifest = manifest_of(
        ["A"] * 6,
        ["L1", "L2", "L2", "L3", "", ""],
        images=["p", "p", "q", "r", "s", "s"],
        patients=["", "P", "", "P", "", ""],
    )
    assert manifest.groups("image").tolist() == ["image:p", "image:p", "image:q", "image:r", "image:s", "image:s"]
    assert manifest.groups("lesion").tolist() == ["lesion:L1"] * 3 + ["lesion:L3"] + ["image:s"] * 2
    assert manifest.groups("patient").tolist() == ["patient:P"] * 4 + ["image:s"] * 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=12), st.data())
def test_groups_are_the_finest_that_divide_nothing(rows, data):
    images, lesions, patients = zip(*rows, strict=True)
    names = [["" if value == 0 else str(value) for value in values] for values in (lesions, patients)]
    manifest = manifest_of(["A"] * len(rows), names[0], images=[f"i{i}" for i in images], patients=names[1])
    for group_by, columns in (("image", [0]), ("lesion", [0, 1]), ("patient", [0, 1, 2])):
        expected = list(range(len(rows)))  # labels spread until nothing changes
        for _ in rows:
            for i, one in enumerate(rows):
                for j, two in enumerate(rows):
                    if any(one[c] == two[c] and (c == 0 or one[c]) for c in columns):
                        expected[i] = expected[j] = min(expected[i], expected[j])
        groups = manifest.groups(group_by)
        assert len(set(zip(expected, groups, strict=True))) == len(set(expected)) == len(set(groups))


def drawn(folder, number, seed):
    """Writes photographs with structure, each of another scene."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for k in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize((240, 180), Image.Resampling.BICUBIC).save(folder / f"{k:03}.png")
        names.append(f"{k:03}.png")
    return names


def test_photographs_saved_again_stay_in_one_part_whatever_their_ids(tmp_path):
    names = drawn(tmp_path, 40, 0)
    rows = [{"image": name, "label": "AB"[k % 2], "lesion_id": f"L{k}"} for k, name in enumerate(names)]
    for k, name in enumerate(names[:20]):
        with Image.open(tmp_path / name) as picture:
            small = picture.resize((160, 120)) if k % 2 else picture
            small.save(tmp_path / f"again{k}.jpg", quality=60)
        rows.append({"image": f"again{k}.jpg", "label": "AB"[k % 2], "lesion_id": f"other{k}"})
    path = write_csv(tmp_path / "manifest.csv", rows)
    with pytest.warns(UserWarning, match="near-identical photographs, kept in one part: 40 in 20 sets") as said:
        manifest = read_manifest(path)
    assert "000.png and again0.jpg" in str(said[0].message) and "group_by lesion does not" in str(said[0].message)
    for index in range(5):
        parts = dict(zip(manifest.table["image"], make_split(manifest, index=index).parts, strict=True))
        assert [parts[f"again{k}.jpg"] for k in range(20)] == [parts[name] for name in names[:20]]
    # Units of intervals go by them in any case; that a narrower split may divide them is said.
    with pytest.warns(UserWarning, match="which grouping by lesion may divide: 40 in 20 sets"):
        narrower = read_manifest(path, group_by="lesion")
    assert narrower.table["alike"].equals(manifest.table["alike"])
    several = pd.Series(make_split(narrower, group_by="lesion").parts).groupby(narrower.table["alike"]).nunique()
    assert (several.drop("") > 1).any()
    # Kept in the cache folder: a second reading decodes nothing, a changed photograph is looked at anew.
    with pytest.warns(UserWarning, match="20 sets"):
        assert read_manifest(path).table["alike"].equals(manifest.table["alike"])
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / names[0])
    with pytest.warns(UserWarning, match="38 in 19 sets"):
        read_manifest(path)


def test_pictures_without_contrast_are_not_near_identical(tmp_path):
    for k in range(6):
        Image.new("RGB", (40, 30), (200, 200, 200 + k)).save(tmp_path / f"{k}.png")
    rows = [{"image": f"{k}.png", "label": "AB"[k % 2], "lesion_id": f"L{k}"} for k in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_manifest(write_csv(tmp_path / "manifest.csv", rows)).table["alike"] == "").all()


def test_patients_are_kept_together_unless_chosen_otherwise(tmp_path):
    rows = [
        {"image": f"{k}.png", "label": "AB"[k % 2], "lesion_id": f"L{k}", "patient_id": f"P{k // 4}"} for k in range(80)
    ]
    manifest = read_manifest(write_manifest(tmp_path, rows))
    divided = {}
    for group_by in ("known", "patient", "lesion"):
        parts = pd.Series(make_split(manifest, group_by=group_by).parts)
        divided[group_by] = int((parts.groupby(manifest.table["patient_id"]).nunique() > 1).sum())
    assert divided["known"] == divided["patient"] == 0 < divided["lesion"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("Läsion 7", "La\u0308sion 7"),
        ("L7", "l7"),
        ("007", "7"),
        ("12", "12.0"),
        ("P-03", "p-3"),
        ("\uff11\uff12", "12"),
        ("L\u200b7", "L7"),
        ("L\u00ad7", "L7"),
        ("L\u20137", "L-7"),
        ("\u0661\u0662", "12"),
        ("L  7", "L 7"),
    ],
)
def test_spellings_of_one_id_are_one_lesion_and_said(tmp_path, one, other):
    rows = [{**GOOD[0], "lesion_id": one}, {**GOOD[1], "label": "AIS", "lesion_id": other}]
    rows.append({"image": "c.png", "label": "MIA", "lesion_id": "else"})
    with pytest.warns(UserWarning, match="1 lesion id spelt in several ways, taken for one"):
        manifest = read_manifest(write_manifest(tmp_path, rows))
    groups = manifest.groups("lesion")
    assert groups[0] == groups[1] != groups[2]
    there = manifest_of(["AIS"], [other], images=["elsewhere.png"])
    assert len(np.intersect1d(group_hashes(manifest.table, np.arange(1)), group_hashes(there.table, np.arange(1)))) == 1


def two_lesions(tmp_path, one, other):
    rows = [{**GOOD[0], "lesion_id": one}, {**GOOD[1], "label": "AIS", "lesion_id": other}]
    rows.append({"image": "c.png", "label": "MIA", "lesion_id": "else"})
    groups = read_manifest(write_manifest(tmp_path, rows)).groups("lesion")
    assert groups[0] != groups[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [("L-7", "L_7"), ("L 7", "L7"), ("L-07", "L7"), ("(L7)", "L7"), ("L#7", "L7"), ("7/a", "7a"), ("a.b", "a b")],
)
def test_ids_that_differ_in_marks_stay_apart_and_are_said(tmp_path, one, other):
    told = "differ in blanks and punctuation alone are taken for different ones: "
    with pytest.warns(UserWarning, match=told + re.escape(" and ".join(map(repr, sorted([one, other]))))):
        two_lesions(tmp_path, one, other)


@pytest.mark.parametrize(("one", "other"), [("1-12", "11-2"), ("L7", "L8"), ("ab c", "a bc"), ("L7", "L7b")])
def test_ids_that_marks_part_are_not_alike(tmp_path, one, other):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*blanks and punctuation")
        two_lesions(tmp_path, one, other)


UNKNOWN = ["NA", "n/a", "None", "nan", "NULL", "?", "unknown", "k. A.", "n. a.", "---", ".", "__", "\N{EM DASH}"]
ERRORS = ["#REF!", "#NAME?", "#DIV/0!", "#NV", "#BEZUG!", "#N/D", "Err:502", "#NOM?", "#NA"]


@pytest.mark.parametrize("unknown", UNKNOWN + ERRORS)
def test_an_unknown_id_joins_no_strangers(tmp_path, unknown):
    rows = [{"image": f"{k}.png", "label": "AB"[k % 2], "lesion_id": unknown} for k in range(4)]
    with pytest.warns(UserWarning, match=f"{re.escape(unknown)}.* as lesion_id in 4 rows: taken as unknown"):
        manifest = read_manifest(write_manifest(tmp_path, rows))
    assert len(set(manifest.groups("known"))) == 4


def test_different_ids_stay_different():
    assert not [
        name for name in ("#12", "#1/2", "err", "7!", "#7b", "#13?", "#1!", "A. B", "K") if is_unknown(normal_id(name))
    ]
    ids = ["1.5", "1.05", "L10", "L1", "L0", "12.01", "a b", "ab", "0", "00.5"]
    assert len({normal_id(name) for name in ids}) == len(ids)


def test_hashes_of_rows_are_those_of_groups_row_by_row():
    table = pd.DataFrame(
        {
            "lesion_id": ["L1", "l1", "", "L2"],
            "patient_id": ["P", "", "P", "Q"],
            "image": ["a.png", "b.png", "c.png", "c.png"],
        }
    )
    rows = np.array([3, 0, 1, 2])
    for as_written in (False, True):
        found = row_hashes(table, rows, as_written=as_written)
        assert found.shape == (4, 5 if as_written else 3)
        for row, hashes in zip(rows, found, strict=True):
            assert set(hashes) - {NO_GROUP} == set(group_hashes(table, np.array([row]), as_written=as_written))
        assert (found == NO_GROUP).any(axis=1).tolist() == [False, False, True, True]
