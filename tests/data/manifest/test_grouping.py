import shutil
from pathlib import Path

import pytest
from helpers.manifests import BOX, GOOD, findings_of, manifest_of, only_finding, write_manifest
from hypothesis import given
from hypothesis import strategies as st

from kd_convnext.data.manifest.manifest import read_manifest


def test_a_lesion_with_two_labels_is_one_warning(tmp_path):
    rows = [
        {"image": f"{i}.png", "label": label, "lesion_id": f"L{i // 2}"}
        for i, label in enumerate(["AIS", "MIA", "AIS", "MIA", "AIS", "AIS"])
    ]
    with pytest.warns(UserWarning) as caught:
        read_manifest(write_manifest(tmp_path, rows))
    assert len(caught) == 1
    assert "2 of 3 lesions have several labels (first 'L0': AIS, MIA)" in str(caught[0].message)


def test_a_lesion_of_two_patients_is_a_warning(tmp_path):
    rows = [{**GOOD[0], "patient_id": "P1"}, {**GOOD[1], "patient_id": "P2", "lesion_id": "L1", "label": "AIS"}]
    rows.append({"image": "c.png", "label": "MIA"})
    with pytest.warns(UserWarning, match="1 of 1 lesions have several patients"):
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
    with pytest.warns(UserWarning, match="1 lesions are in more than one part, as grouping by image allows"):
        read_manifest(tmp_path / "manifest.csv", group_by="image")


@pytest.mark.parametrize("group_by", ["lesion", "image"])
def test_a_photograph_in_two_parts_is_refused(tmp_path, group_by):
    rows = [{**SPLIT[0], **BOX, "lesion_id": ""}, {**SPLIT[0], **BOX, "width": 5, "split": "val", "lesion_id": ""}]
    found = only_finding(tmp_path, [*rows, SPLIT[1]], group_by=group_by)
    assert "the photograph 'images/a.png' is in more than one part" in found


def test_a_patient_in_two_parts_is_refused_where_patients_count(tmp_path):
    path = write_manifest(tmp_path, [{**row, "patient_id": "P"} for row in SPLIT])
    read_manifest(path)
    assert "the patient 'P' is in more than one part" in findings_of(path, group_by="patient")[0]


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
