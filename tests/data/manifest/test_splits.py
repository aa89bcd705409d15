import math
import time
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from helpers.manifests import BOX, TABLE_1, TABLE_1_PARTS, manifest_of, save_image, write_csv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.data.manifest.manifest import PAPER_CLASSES, Manifest, read_manifest
from kd_convnext.data.manifest.splits import PARTS, Split, SplitSpec, make_split
from kd_convnext.data.manifest.stratify import part_targets, stratify
from kd_convnext.errors import ManifestWarning, SplitError

RATIOS = (0.8, 0.1, 0.1)
TABLE_1_LABELS = [name for name, count in TABLE_1.items() for _ in range(count)]


def class_counts(manifest: Manifest, split: Split, part: str) -> tuple[int, ...]:
    counts = np.bincount(manifest.labels[split.rows(part)], minlength=len(manifest.class_names))
    return tuple(counts.tolist())


def permuted(manifest: Manifest, order: np.ndarray) -> Manifest:
    table = manifest.table.iloc[order].reset_index(drop=True)
    return Manifest(manifest.path, manifest.root, table, manifest.class_names)


def test_table_1_in_a_split_column_is_obeyed_to_the_image():
    rows = [
        (name, part)
        for part, counts in TABLE_1_PARTS.items()
        for name, count in zip(PAPER_CLASSES, counts, strict=True)
        for _ in range(count)
    ]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    labels, parts = zip(*rows, strict=True)
    manifest = manifest_of(labels, parts=parts, class_names=PAPER_CLASSES)

    split = make_split(manifest, ratios=(0.5, 0.25, 0.25))

    assert split.parts.tolist() == list(parts)
    for part, counts in TABLE_1_PARTS.items():
        assert class_counts(manifest, split, part) == counts
    with pytest.raises(SplitError, match="gives one split, not repeat 1"):
        make_split(manifest, index=1)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("ratios", [RATIOS, (8, 1, 1)])
def test_table_1_divided_by_image_gives_the_papers_training_counts(index, ratios):
    manifest = manifest_of(TABLE_1_LABELS, class_names=PAPER_CLASSES)
    split = make_split(manifest, index=index, ratios=ratios, group_by="image")
    assert class_counts(manifest, split, "train") == TABLE_1_PARTS["train"] == (33, 1054, 157, 97, 437)
    assert class_counts(manifest, split, "val") == (4, 131, 19, 12, 54)
    assert class_counts(manifest, split, "test") == (4, 132, 20, 12, 55)
    assert split.ratios == pytest.approx(RATIOS)


def test_table_1_divided_by_lesion_shares_none_and_meets_the_same_counts():
    rng = np.random.default_rng(0)
    lesions = [f"{label} {rng.integers(0, TABLE_1[label] // 2 + 1)}" for label in TABLE_1_LABELS]
    manifest = manifest_of(TABLE_1_LABELS, lesions, class_names=PAPER_CLASSES)
    seen = set()
    for index in range(5):
        split = make_split(manifest, index=index)
        held = [{lesions[i] for i in split.rows(part)} for part in PARTS]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
        assert class_counts(manifest, split, "train") == TABLE_1_PARTS["train"]
        seen.add(split.hash)
    assert len(seen) == 5


def test_targets_fill_every_part_and_keep_the_sum():
    totals = np.arange(0, 400)
    for ratios in (RATIOS, (0.6, 0.2, 0.2), (0.98, 0.01, 0.01), (0.01, 0.98, 0.01), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)):
        targets = part_targets(totals, ratios)
        assert (targets >= 0).all() and np.array_equal(targets.sum(axis=0), totals)
        assert (targets[:, 3:][np.array(ratios) > 0] > 0).all()
        assert (targets[np.array(ratios) == 0] == 0).all()


@st.composite
def single_class_manifests(draw):
    """Lesions of one class each, one to five photographs."""
    classes = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=25), min_size=2, max_size=5))
    labels, lesions = [], []
    for k, sizes in enumerate(classes):
        for number, size in enumerate(sizes):
            labels += [f"class {k}"] * size
            lesions += [f"L{k}-{number}"] * size
    return manifest_of(labels, lesions), classes


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@relaxed
@given(single_class_manifests(), st.integers(0, 5), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_splits_hold_their_promises(drawn, index, seed, random):
    manifest, classes = drawn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = make_split(manifest, index=index, seed=seed)
        again = make_split(manifest, index=index, seed=seed)
        order = np.array(random.sample(range(len(manifest)), len(manifest)))
        shuffled = make_split(permuted(manifest, order), index=index, seed=seed)

    parts_of_lesions = {(lesion, part) for lesion, part in zip(manifest.table["lesion_id"], split.parts, strict=True)}
    assert len(parts_of_lesions) == manifest.table["lesion_id"].nunique()
    targets = part_targets(np.array([sum(sizes) for sizes in classes]), RATIOS)
    for k, sizes in enumerate(classes):
        held = [class_counts(manifest, split, part)[k] for part in PARTS]
        if len(sizes) < 3:
            assert held == [sum(sizes), 0, 0]
        else:
            assert min(held) > 0
            assert max(abs(held[part] - targets[part, k]) for part in range(3)) < 2 * max(sizes)
            if sizes.count(1) >= 2 * max(sizes):
                assert held == targets[:, k].tolist()
    named = {warning.message.args[0].split("'")[1] for warning in caught if warning.category is ManifestWarning}
    assert named == {f"class {k}" for k, sizes in enumerate(classes) if len(sizes) < 3}
    assert np.array_equal(split.parts, again.parts) and split.hash == again.hash
    assert np.array_equal(split.parts[order], shuffled.parts) and split.hash == shuffled.hash


@relaxed
@given(st.integers(0, 2**32), st.integers(30, 120), st.integers(2, 5))
def test_groups_of_several_classes_are_balanced(seed, groups, classes):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.uniform(0.2, 6, classes), (groups, classes)).astype(np.int64)
    counts[:, 0] += counts.sum(axis=1) == 0
    parts = stratify(counts, RATIOS, rng.random(groups), rng.random(groups))
    held = np.stack([counts[parts == part].sum(axis=0) for part in range(3)])
    enough = (counts > 0).sum(axis=0) >= 3
    assert set(parts.tolist()) <= {0, 1, 2}
    assert (held[:, enough] > 0).all() or not enough.all()  # a scarce class may hold others back
    assert not held[1:, ~enough].any()
    if enough.all():
        assert (np.abs(held - part_targets(counts.sum(axis=0), RATIOS)) <= counts.max(axis=0) + 1).all()


def test_the_best_division_is_found_where_few_exist():
    rng = np.random.default_rng(1)
    for _ in range(30):
        sizes = rng.integers(1, 6, 7)
        target = part_targets(np.array([sizes.sum()]), (0.5, 0.25, 0.25))[:, 0]
        parts = stratify(sizes[:, None], (0.5, 0.25, 0.25), rng.random(7), rng.random(7))
        found = np.abs([sizes[parts == part].sum() - target[part] for part in range(3)]).sum()
        every = np.array(np.meshgrid(*[range(3)] * 7)).reshape(7, -1)
        sums = np.stack([((every == part) * sizes[:, None]).sum(axis=0) for part in range(3)])
        best = np.abs(sums - target[:, None]).sum(axis=0)[(sums > 0).all(axis=0)].min()
        assert found <= best + 2  # an exchange of two groups at a time does not see every division


def test_over_the_repeats_every_lesion_is_tested_about_as_often():
    sizes = [1] * 40 + [2] * 20 + [4] * 10
    lesions = [f"L{i}" for i, size in enumerate(sizes) for _ in range(size)]
    manifest = manifest_of(["B"] * len(lesions), lesions)
    tested = Counter()
    for index in range(100):
        split = make_split(manifest, index=index)
        tested.update({lesions[i] for i in split.rows("test")})
    by_size = [
        np.mean([tested[f"L{i}"] for i, size in enumerate(sizes) if size == wanted]) / 100 for wanted in (1, 2, 4)
    ]
    assert by_size == pytest.approx([0.1] * 3, abs=0.05)  # large lesions are not kept for training


def test_a_scarce_class_stays_in_training_with_a_warning_or_is_an_error():
    labels = ["A"] * 10 + ["B"] * 4
    lesions = [f"A{i}" for i in range(10)] + ["B0", "B0", "B1", "B1"]
    manifest = manifest_of(labels, lesions, class_names=["A", "B", "C"])
    with pytest.warns(UserWarning) as caught:
        split = make_split(manifest)
    said = str(caught[0].message)
    assert "class 'B' has 2 groups (by patient" in said and "enough for training but not for val, test" in said
    assert "class 'C' has no photographs" in str(caught[1].message)
    assert class_counts(manifest, split, "train") == (8, 4, 0)
    with pytest.raises(SplitError) as raised:
        make_split(manifest, few_groups="error")
    assert len(raised.value.findings) == 2


def test_a_class_kept_out_of_a_part_by_its_neighbours_is_named():
    images = ["p", "p", "q", "q", "r", *[f"a{i}" for i in range(8)]]
    labels = ["B", "S", "B", "S", "B", *["A"] * 8]  # S stands on two photographs, and two of the three B go with it
    with pytest.warns(UserWarning) as caught:
        split = make_split(manifest_of(labels, images=images), group_by="image")
    assert {str(split.parts[i]) for i in range(4)} == {"train"}
    assert ["class 'B' is not in" in str(caught[0].message), "class 'S' has 2" in str(caught[1].message)] == [True] * 2


def test_a_part_may_be_left_out():
    manifest = manifest_of(["A"] * 10 + ["B"] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = make_split(manifest, ratios=(0.8, 0.0, 0.2))
    assert class_counts(manifest, split, "train") == (8, 1)
    assert class_counts(manifest, split, "val") == (0, 0)
    assert class_counts(manifest, split, "test") == (2, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratios": (0.0, 0.5, 0.5)}, "ratios"),
        ({"ratios": (0.8, -0.1, 0.3)}, "ratios"),
        ({"ratios": (0.8, float("nan"), 0.1)}, "ratios"),
        ({"ratios": (0.8, 0.2)}, "ratios"),
        ({"index": -1}, "split.index"),
        ({"group_by": "hospital"}, "group_by"),
        ({"group_by": "patient"}, "there is no patient_id to group by"),
    ],
)
def test_wrong_arguments_are_named(options, expected):
    with pytest.raises(SplitError, match=expected):
        make_split(manifest_of(["A", "B"] * 10), **options)


def test_rows_without_label_cannot_be_divided():
    with pytest.raises(SplitError, match="1 row without a label"):
        make_split(manifest_of(["A", "B", ""], class_names=["A", "B"]))


def test_patients_are_never_divided():
    patients = [f"P{i // 4}" for i in range(80)]
    lesions = [f"L{i // 2}" for i in range(80)]
    labels = ["AB"[i // 4 % 2] for i in range(80)]
    split = make_split(manifest_of(labels, lesions, patients=patients), group_by="patient")
    assert len(set(zip(patients, split.parts, strict=True))) == 20
    with pytest.warns(UserWarning, match="4 rows without patient_id, grouped by lesion"):
        make_split(manifest_of(labels, lesions, patients=["", "", "", "", *patients[4:]]), group_by="patient")


def test_a_given_split_must_not_divide_what_is_grouped():
    manifest = manifest_of(["A", "B"], patients=["P", "P"], parts=["train", "test"])
    assert make_split(manifest, group_by="lesion").parts.tolist() == ["train", "test"]
    for group_by in ("known", "patient"):
        with pytest.raises(SplitError, match=r"row 3: the group 'patient:P' is in more than one part: train, test"):
            make_split(manifest, group_by=group_by)


def write_photographs(folder):
    """Thirty photographs of ten lesions, two boxes on each."""
    rows = []
    for i in range(30):
        save_image(folder / f"images/{i}.png", i)
        label = "AB"[i // 3 % 2]
        base = {"image": f"images/{i}.png", "label": label, "lesion_id": f"L{i // 3}", "patient_id": f"P{i // 6}"}
        rows += [{**base, **BOX}, {**base, **dict.fromkeys(BOX, "")}]
    return write_csv(folder / "manifest.csv", rows)


@pytest.mark.parametrize("group_by", ["lesion", "image"])
def test_a_written_split_reads_back_as_the_same_split(tmp_path, group_by):
    manifest = read_manifest(write_photographs(tmp_path / "here"))
    split = make_split(manifest, index=3, seed=7, group_by=group_by)
    split.write(tmp_path / "here/split.csv", manifest)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = read_manifest(tmp_path / "here/split.csv", group_by=group_by)
    back = make_split(copy, group_by=group_by)

    header = "image,label,lesion_id,patient_id,x,y,width,height,split"
    assert (tmp_path / "here/split.csv").read_text().splitlines()[0] == header
    assert back.parts.tolist() == split.parts.tolist() and back.hash == split.hash
    assert copy.table.drop(columns="split").equals(manifest.table.drop(columns="split"))


def test_a_split_of_class_folders_reads_back(tmp_path):
    for i in range(24):
        save_image(tmp_path / f"class {i % 2}/{i}.png", i)
    manifest = read_manifest(tmp_path)
    split = make_split(manifest)
    split.write(tmp_path / "split.csv", manifest)
    assert make_split(read_manifest(tmp_path / "split.csv")).hash == split.hash
    assert len(read_manifest(tmp_path)) == 24


def test_the_hash_is_of_photographs_boxes_and_parts_only(tmp_path):
    here = read_manifest(write_photographs(tmp_path / "here"))
    there = read_manifest(write_photographs(tmp_path / "there" / "deeper"))
    split = make_split(here)
    assert make_split(there).hash == split.hash
    assert make_split(here, index=1).hash != split.hash
    assert make_split(here, seed=1).hash != split.hash
    assert np.array_equal(group_hashes(here.table, split.rows("train")), group_hashes(there.table, split.rows("train")))


def test_group_hashes_find_shared_lesions_patients_and_photographs():
    one = manifest_of(["A", "B", "A"], ["L1", "L1", ""], patients=["P", "", ""], images=["a", "b", "c"])
    hashes = group_hashes(one.table, np.arange(3))
    assert hashes.dtype == np.int64 and len(hashes) == 5 and (np.diff(hashes) > 0).all() and (hashes >= 0).all()
    for labels, lesions, patients, images, shared in (
        (["A"], ["L1"], [""], ["z"], 1),
        (["A"], ["L9"], ["P"], ["z"], 1),
        (["A"], ["L9"], [""], ["c"], 1),
        (["A"], ["P"], ["L1"], ["L1"], 0),
    ):
        other = manifest_of(labels, lesions, patients=patients, images=images)
        assert len(np.intersect1d(hashes, group_hashes(other.table, np.arange(1)))) == shared
    assert group_hashes(one.table, np.arange(0)).tolist() == []


def test_assignments_never_change_between_versions():
    manifest = manifest_of(["A", "B"] * 10, [f"L{i // 2 % 9}-{i % 2}" for i in range(20)])
    first = make_split(manifest, seed=1)
    assert first.hash[:12] == "d9059d250635"


def test_a_hundred_thousand_rows_are_divided_in_seconds():
    rng = np.random.default_rng(0)
    lesion = rng.integers(0, 25_000, 100_000)
    manifest = manifest_of([f"class {i % 5}" for i in lesion], [f"L{i}" for i in lesion])
    start = time.perf_counter()
    split = make_split(manifest)
    assert time.perf_counter() - start < 60  # 4 s on one free core
    counts = np.array([class_counts(manifest, split, part) for part in PARTS])
    assert np.array_equal(counts, part_targets(counts.sum(axis=0), RATIOS))


@pytest.mark.realdata
def test_real_lesions_and_smears_are_divided_to_the_image(shared_dir):
    lesions = read_manifest(shared_dir / "data/ham_paper5/manifest.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smears = read_manifest(shared_dir / "data/bccd/manifest.csv")
    start = time.perf_counter()
    for index in range(5):
        for manifest, group_by in ((lesions, "lesion"), (lesions, "image"), (smears, "lesion")):
            split = make_split(manifest, index=index, group_by=group_by)
            groups = manifest.groups(group_by)
            assert len(set(zip(groups, split.parts, strict=True))) == len(set(groups))
            counts = np.array([class_counts(manifest, split, part) for part in PARTS])
            assert np.abs(counts - part_targets(counts.sum(axis=0), RATIOS)).max() <= 1
    assert time.perf_counter() - start < 30  # 2 s on one free core


def test_less_training_is_nested_by_lesion_and_leaves_what_is_judged(tiny_manifest, tmp_path):
    manifest = read_manifest(str(tiny_manifest))
    whole, half, third = (
        SplitSpec("lesion", (0.5, 0.25, 0.25), train_fraction=share).apply(manifest) for share in (1.0, 0.5, 0.3)
    )
    train = [set(split.rows("train").tolist()) for split in (third, half, whole)]
    assert train[0] < train[1] < train[2]
    lesions = manifest.table["lesion_id"].to_numpy()
    for split, share in ((half, 0.5), (third, 0.3)):
        assert all(np.array_equal(split.rows(part), whole.rows(part)) for part in ("val", "test"))
        assert split.hash != whole.hash
        for name in manifest.class_names:
            of_class = manifest.table["label"].to_numpy() == name
            kept = {lesions[row] for row in split.rows("train") if of_class[row]}
            possible = {lesions[row] for row in whole.rows("train") if of_class[row]}
            assert len(kept) == math.ceil(share * len(possible))
        # Both photographs of a lesion stay or go.
        assert len(split.rows("train")) == 2 * len({lesions[row] for row in split.rows("train")})
    half.write(tmp_path / "split.csv", manifest)
    written = pd.read_csv(tmp_path / "split.csv")
    assert set(written["split"]) == {"train", "val", "test"} and len(written) < len(manifest)
    with pytest.raises(SplitError, match="train_fraction"):
        SplitSpec(train_fraction=0.0).apply(manifest)
