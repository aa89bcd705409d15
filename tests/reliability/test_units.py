"""What an interval and a calibration take as independent: patients where they are known, through every command."""

import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import TINY, convnext
from helpers.fake_cells import answers, fake_cell, grid
from helpers.pages import photographs
from helpers.paths import REPOSITORY
from PIL import Image

from kd_convnext import Predictor
from kd_convnext.cli import main
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.splits import make_split
from kd_convnext.data.manifest.units import units_of, with_units
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.evaluation.comparisons import compare_pairs, make_pair
from kd_convnext.evaluation.discrimination import Ranking, roc_area
from kd_convnext.evaluation.statistics import count_groups, intervals
from kd_convnext.inference.run_data import own_data, source_of
from kd_convnext.inference.trust.temperature import cross_fitted
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import prediction_table

AS_BEFORE = REPOSITORY / "tests" / "fixtures" / "by_lesion" / "tables.md"
"""Rows that version 0.1 of `compare` wrote of `grid`, when every lesion was taken as independent."""

PATIENTS, EACH = 6, 5


def correlated(right):
    """Answers about five lesions of each patient, all right or all wrong together; classes take turns."""
    number = np.arange(PATIENTS * EACH)
    patient, label = number // EACH, np.array(["a", "b"])[number % 2]
    wrong = np.array(["b", "a"])[number % 2]
    guess = np.where(np.isin(patient, right), label, wrong)
    frame = answers(label, guess, ("a", "b"), [f"L{k}" for k in number])
    frame.insert(2, "group", [f"patient:{k}" for k in patient])
    return frame


def cell(folder, frame, **options):
    return str(fake_cell(folder, frame, names=("a", "b"), record=False, **options).folder)


def bootstrapped(frame, by, statistic):
    """A percentile interval by drawing whole groups, of plain numpy."""
    rng = np.random.default_rng(1)
    members = [np.flatnonzero((frame[by] == name).to_numpy()) for name in frame[by].unique()]
    drawn = (np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))]) for _ in range(2000))
    return np.quantile([statistic(frame.iloc[rows]) for rows in drawn], [0.025, 0.975])


def accuracy(frame):
    return float((frame["label"] == frame["prediction"]).mean())


def row_of(text, title, name):
    section = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    return next(line for line in section.splitlines() if line.startswith(f"| {name}"))


def spans(text):
    """All intervals of a text in shares."""
    found = re.findall(r"(\d[\d.]*) \[([\d.]+), ([\d.]+)\]", text)
    return [(float(low) / (100 if float(value) > 1 else 1), float(high) / (100 if float(value) > 1 else 1))
            for value, low, high in found]  # fmt: skip


def test_intervals_of_patients_with_many_lesions_are_those_of_the_patients(tmp_path):
    frame = correlated(right=(0, 1, 2))
    by_patient, by_lesion = (bootstrapped(frame, unit, accuracy) for unit in ("group", "lesion_id"))
    assert np.ptp(by_patient) > 1.8 * np.ptp(by_lesion)
    run = cell(tmp_path / "run", frame)
    assert main(["compare", run, "--out", str(tmp_path / "out"), "--bootstrap=500"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    pooled = row_of(text, "95 % intervals", "run")
    assert pooled.startswith("| run | 6 | 30 |") and "| Method | Patients | Photographs |" in text
    low, high = spans(pooled)[0]
    # Half of six patients: exact is 0.12 to 0.88, of thirty lesions it would be 0.31 to 0.69.
    assert low == pytest.approx(by_patient[0], abs=0.08) and high == pytest.approx(by_patient[1], abs=0.08)
    for title in ("Each class against the rest", "Per class", "Judged per photograph, lesion and patient"):
        for found in spans(text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]):
            assert found[1] - found[0] > 1.4 * np.ptp(by_lesion), title
    assert "intervals by patient" in text and "by lesion" not in text


def test_the_difference_of_two_methods_is_that_of_their_patients(tmp_path):
    better, worse = correlated(right=(0, 1, 2, 3, 4)), correlated(right=(3, 4))
    paired = better.assign(
        gain=(better["prediction"] == better["label"]) * 1.0 - (worse["prediction"] == worse["label"])
    )
    expected = bootstrapped(paired, "group", lambda frame: frame["gain"].mean())
    runs = [cell(tmp_path / name, frame) for name, frame in (("worse", worse), ("better", better))]
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--bootstrap=500"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| better | accuracy |")]
    cells = [part.strip() for part in row.strip("|").split("|")]
    low, high = map(float, cells[4].split(" to "))
    assert low <= expected[0] + 0.1 and high >= expected[1] - 0.1 and high - low > 0.6
    # Three patients moved: all signs alike of 2**3. Of fifteen lesions it would be 2 / 2**15.
    assert float(cells[6]) == pytest.approx(0.25)
    assert cells[8:] == ["3 / 0", "6", "30"] and "Gained / lost: patients with more" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The unit is the patient." in page and "exchanged patient by patient" in page


def test_areas_take_patients_as_clusters():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    positive = np.repeat(rng.random(40) < 0.5, 5)
    scores = np.repeat(rng.normal(size=40), 5) + positive
    frame = pd.DataFrame({"unit": patients, "score": scores, "positive": positive})

    def area(drawn):
        cases, controls = drawn["score"][drawn["positive"]], drawn["score"][~drawn["positive"]]
        return (cases.to_numpy()[:, None] > controls.to_numpy()[None]).mean()

    expected = np.ptp(bootstrapped(frame, "unit", area))
    wide, narrow = (roc_area(Ranking(scores, positive, groups)).interval for groups in (patients, np.arange(200)))
    assert wide.high - wide.low == pytest.approx(expected, rel=0.15)
    assert narrow.high - narrow.low < 0.6 * expected


def test_intervals_by_patient_hold_what_those_by_lesion_do_not():
    """Twenty patients, five lesions each, answered alike: three quarters of new ones would be answered rightly."""
    rng, names = np.random.default_rng(0), np.array(["a", "b"])
    patient = np.repeat(np.arange(20), EACH)
    units, trials, held = {"patient": patient, "lesion": np.arange(len(patient))}, 150, {"patient": 0, "lesion": 0}
    for _ in range(trials):
        right = np.repeat(rng.random(20) < 0.75, EACH)
        frame = pd.DataFrame({"label": names[patient % 2], "prediction": names[(patient + ~right) % 2]})
        for by, unit in units.items():
            found = intervals(count_groups(frame.assign(unit=unit, by=by), ("a", "b")), 50, 0)["accuracy"]
            held[by] += found.low <= 0.75 <= found.high
    assert held["patient"] >= 0.9 * trials and held["lesion"] <= 0.75 * trials


@pytest.mark.parametrize("named", [True, False], ids=["groups", "earlier version"])
def test_without_patients_all_numbers_are_as_before(tmp_path, named):
    cells = grid(tmp_path, {"convnext": 0.6, "kd_both": 0.85}, repeats=2, lesions=6)
    for each in cells:
        path = each.folder / "predictions.csv"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if named:  # each split has a salt of its own
            hashes = [hashlib.sha256(f"{each.repeat}{name}".encode()).hexdigest()[:12] for name in frame["lesion_id"]]
            frame.insert(2, "group", [f"lesion:{name}" for name in hashes])
        frame.to_csv(path, index=False)
    words = ["--out", str(tmp_path / "out"), "--bootstrap=100", "--thresholds", "AIS=0.2", "--prevalence", "AIS=0.1"]
    assert main(["compare", *(str(each.folder) for each in cells), *words]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    assert [
        line for line in text.splitlines() if line.startswith(("|", "- kd_both"))
    ] == AS_BEFORE.read_text().splitlines()
    said = "does not say which lesions belong together" in (tmp_path / "out" / "report.html").read_text()
    assert said != named


def test_a_file_that_names_groups_names_them_for_one_that_does_not(tmp_path):
    old, new = correlated(right=(3, 4)).drop(columns="group"), correlated(right=(0, 1, 2, 3, 4))
    names = ("a", "b")
    for one, other in ((old, new), (new, old)):
        frames = [with_units(frame.assign(repeat=0, x=-1, y=-1, width=-1, height=-1)) for frame in (one, other)]
        (found,) = compare_pairs([make_pair("one", frames[0], "other", frames[1], names)], 50, 0)
        assert (found.groups, found.unit, found.photographs) == (6, "patient", 30)


@pytest.mark.parametrize(
    ("groups", "by"),
    [
        (["lesion:1", "lesion:1", "lesion:2", "lesion:3"], "lesion"),
        (["patient:1", "patient:1", "patient:2", "patient:3"], "lesion"),
        (["patient:1", "patient:1", "patient:1", "patient:3"], "patient"),
        (["patient:1", "patient:1", "patient:1", "lesion:3"], "group"),
        (["group:1", "group:1", "group:1", "patient:3"], "group"),
    ],
)
def test_units_are_called_what_they_are(groups, by):
    frame = pd.DataFrame({"image": [*"abcd"], "lesion_id": ["1", "1", "2", ""], "group": groups})
    found = with_units(frame)
    assert set(found["by"]) == {by}
    assert found["unit"].nunique() == len(set(groups)) and found["lesion"].nunique() == 3


def test_groups_of_several_splits_are_joined_by_their_photographs():
    first = pd.DataFrame({"image": [*"abcd"], "lesion_id": [*"1122"], "group": ["patient:x"] * 4})
    second = first.assign(group="patient:y")
    found = with_units(pd.concat([first, second, first.assign(image=[*"efgh"], lesion_id="3", group="patient:z")]))
    assert found["unit"].nunique() == 2


def test_lesions_of_a_patient_in_several_repeats_are_one_unit(tmp_path):
    number = np.arange(40)
    label = np.array(["a", "b"])[number // 2 % 2]
    rows = {"image": photographs(tmp_path, 40), "label": label, "lesion_id": number, "patient_id": number // 2}
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    manifest = read_manifest(tmp_path / "manifest.csv", group_by="lesion")
    folders, tested_in = [], []
    for repeat in range(5):
        split = make_split(manifest, index=repeat, ratios=(0.6, 0.2, 0.2), group_by="lesion")
        index = np.flatnonzero(split.parts == "test")
        right = np.eye(2)[manifest.labels[index]] * 0.8 + 0.1
        found = Evaluation("test", index, manifest.labels[index], right, ("a", "b"))
        frame = prediction_table(found, manifest)
        record = fake_cell(tmp_path / f"repeat{repeat}", frame, names=("a", "b"), repeat=repeat)
        folders.append(str(record.folder))
        tested_in.append(manifest.table.iloc[index].assign(repeat=repeat))
    lesions = pd.concat(tested_in).groupby("lesion_id").agg(patient=("patient_id", "first"), repeats=("repeat", set))
    pairs = [each["repeats"].tolist() for _, each in lesions.groupby("patient") if len(each) == 2]
    assert any(one.isdisjoint(other) for one, other in pairs)  # else any salt would do
    assert main(["compare", *folders, "--out", str(tmp_path / "out"), "--bootstrap=20"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    patients = lesions["patient"].nunique()
    assert patients < len(lesions) and "intervals by patient" in text
    assert row_of(text, "95 % intervals", "kd_both").split("|")[2].strip() == str(patients)


@pytest.mark.parametrize("group_by", ["known", "patient", "lesion", "image"])
def test_photographs_saved_again_are_one_unit_however_they_were_divided(group_by, tmp_path):
    rows = []
    for k in range(8):
        coarse = Image.fromarray(np.random.default_rng(k // 2).integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = coarse.resize((120, 90), Image.Resampling.BICUBIC)
        (smooth.resize((240, 180)) if k % 2 else smooth).save(tmp_path / f"{k}.png")
        rows.append({"image": f"{k}.png", "label": "ab"[k // 2 % 2], "lesion_id": f"L{k}"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.warns(UserWarning, match="near-identical photographs, .*: 8 in 4 sets"):
        manifest = read_manifest(tmp_path / "manifest.csv", group_by=group_by)
    found = units_of(manifest, np.arange(8))
    assert found["unit"].nunique() == 4 and found["lesion"].nunique() == 8
    assert (found["unit"].to_numpy()[::2] == found["unit"].to_numpy()[1::2]).all()


@pytest.fixture(scope="module")
def tested(tiny_manifest, tiny_cache, tmp_path_factory):
    """A run on 30 lesions of six patients, divided by lesion by choice, with what test and calibrate have printed."""
    folder = tmp_path_factory.mktemp("patients")
    photographs = shutil.copytree(tiny_manifest.parent, folder / "photos") / tiny_manifest.name
    table = pd.read_csv(photographs)
    table["patient_id"] = "Marker-" + table["lesion_id"].str[-1]  # one lesion of each class
    table.to_csv(photographs, index=False)
    run = RunFolder(folder / "run")
    fit = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]
    places = [f"--data.cache_dir={tiny_cache}", f"--trainer.default_root_dir={run.path}"]
    assert main([*fit, f"--data.manifest={photographs}", "--data.split.group_by=lesion", *places]) == 0
    return run, photographs


def test_every_command_says_by_patient(tested, capsys):
    run, manifest = tested
    best = ["--ckpt_path", str(run.best)]
    assert main(["test", "--config", str(run.config), *best]) == 0
    printed = capsys.readouterr().out
    frame = pd.read_csv(run.predictions)
    patients = frame["group"].nunique()
    assert patients < frame["lesion_id"].nunique()
    assert f"of {patients} patients, 95 % intervals by patient" in printed and "by lesion" not in printed
    assert frame["group"].str.fullmatch(r"patient:[0-9a-f]{12}").all()
    assert "Marker" not in run.predictions.read_text()
    known = read_manifest(manifest, group_by="lesion").table.drop_duplicates("image").set_index("image")["patient_id"]
    assert (frame.groupby(frame["image"].map(known))["group"].nunique() == 1).all()
    assert main(["card", *best, "--resamples=20"]) == 0
    card = (run.path / "MODEL_CARD.md").read_text()
    assert (
        f"of {patients} patients). Intervals: 95 %, the patient is the unit" in card and "| class | patients |" in card
    )
    assert main(["report", str(run.path), "--bootstrap=20"]) == 0
    page = run.report.read_text()
    assert "95 % intervals, the patient is the unit." in page and "by lesion" not in page.split("<section id=")[4]


def test_a_calibration_never_divides_a_patient(tested, capsys):
    run, _ = tested
    assert main(["calibrate", "--ckpt_path", str(run.best), "--coverage=0.5", "--test=true"]) == 0
    printed = capsys.readouterr().out
    predictor = Predictor.from_checkpoint(run.best, calibration="none")
    data = own_data(predictor, source_of(run, None, None, None), run)
    found = data.answers(data.rows("val"))
    patients = units_of(data.manifest, data.rows("val"))["unit"]
    assert found.unit == "patient" and found.groups.tolist() == patients.tolist()
    # Lesions are judged one by one, thresholds count their patients.
    lesions, groups = len(set(found.lesions)), len(set(found.groups))
    assert groups < lesions and f"{lesions} lesions of {groups} patients, answers" in printed
    assert "coverage of each class (1 patient needed)" in printed
    written = json.loads((run.best.parent / "calibration.json").read_text())
    assert written["record"]["unit"] == "patient"
    counts = [len(set(found.groups[found.labels == k])) for k in range(5)]
    assert written["lesion"]["classes"]["lesions"] == counts
    # Another label of one photograph changes every temperature but the one that its patient's photographs get.
    labels = found.labels.copy()
    labels[0] = (labels[0] + 1) % 5
    logits = 5 * np.eye(5)[found.labels] + np.random.default_rng(0).normal(size=(len(labels), 5))
    before, after = (cross_fitted(logits, each, found.groups) for each in (found.labels, labels))
    mine = found.groups == found.groups[0]
    assert len(set(found.lesions[mine])) > 1 or mine.sum() > 0
    assert np.array_equal(before[mine], after[mine]) and not np.array_equal(before, after)
