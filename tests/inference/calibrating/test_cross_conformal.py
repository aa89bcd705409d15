import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import tiny
from helpers.inference import changed, copy_run, make_run
from PIL import Image, ImageOps
from scipy.stats import t

from kd_convnext import Predictor
from kd_convnext.cli import main
from kd_convnext.common.files import sha256_of
from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.units import units_of
from kd_convnext.inference.calibrating.cross_conformal import checked, held_out_by
from kd_convnext.inference.run_data import own_data, source_of
from kd_convnext.inference.trust.prediction_sets import Held, fit_thresholds, lesions_needed, weighted_threshold
from kd_convnext.runs.folder import run_of_checkpoint

NAMES = ("A", "B", "C", "D")
SHARES = (0.5, 0.25, 0.17, 0.08)


@pytest.fixture(scope="module")
def repeats(tiny_manifest, tiny_cache, tmp_path_factory):
    """Runs of three repeats of the split, the same recipe."""
    made = []
    for index in range(3):
        source = tiny.data(tiny_manifest, tiny_cache, split_index=index)
        module = tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC)
        made.append(make_run(tmp_path_factory.mktemp(f"repeat{index}"), source, module))
    return made


@pytest.fixture
def run(repeats, tmp_path):
    return copy_run(repeats[0], tmp_path / "run")


def calibrate(run, *also, coverage=0.75):
    words = ["--ckpt_path", str(run), f"--coverage={coverage}", "--also", ",".join(map(str, also))]
    return main(["calibrate", *words])


def parts(checkpoint):
    """Lesions of each class in each part."""
    table = pd.read_csv(checkpoint.parent.parent / "split.csv", dtype=str)
    return {key: set(rows["lesion_id"]) for key, rows in table.groupby(["label", "split"])}


def test_lesions_that_other_repeats_have_held_out_count(run, repeats, capsys):
    assert calibrate(run, *repeats[1:]) == 0
    printed = capsys.readouterr().out
    own, *others = (parts(checkpoint) for checkpoint in repeats)
    tested = set().union(*(found for (_, part), found in own.items() if part == "test"))
    stored = json.loads((run.parent / "calibration.json").read_text())
    needed, counts = lesions_needed(0.75), []
    for place, name in enumerate(Predictor.from_checkpoint(run).network.card.class_names):
        elsewhere = set().union(*(found[name, "val"] for found in others)) - tested
        counts.append(len(own[name, "val"] | elsewhere))
        for level in ("photograph", "lesion"):
            classes = stored[level]["classes"]
            assert classes["lesions"][place] == len(own[name, "val"]) < needed and not classes["guaranteed"][place]
            assert classes["crossed"][place] == (counts[-1] if counts[-1] >= needed else 0)
            assert (classes["values"][place] is not None) == (counts[-1] >= needed)
    enough = [count for count in counts if count >= needed]
    assert enough and printed.count("NO guarantee: about, by") == len(enough)
    assert stored["record"]["transfer"] is None or "of its own (95 % interval" in printed
    assert main(["card", "--ckpt_path", str(run)]) == 0
    assert "About as much, **without a guarantee**, for:" in (run.parent.parent / "MODEL_CARD.md").read_text()
    # Thresholds are those of single networks' answers, each lesion counted once.
    asked = [held_out(checkpoint, tested if checkpoint != repeats[0] else set()) for checkpoint in repeats]
    labels, scores, lesions = (np.concatenate(column) for column in zip(*asked, strict=True))
    for name, value in zip(stored["class_names"], stored["photograph"]["classes"]["values"], strict=True):
        expected = weighted_threshold(scores[labels == name], lesions[labels == name], 0.75)
        assert (np.inf if value is None else value) == pytest.approx(expected, abs=1e-6)


def held_out(checkpoint, left_out):
    """Labels, scores and lesions of a run's validation photographs."""
    table = pd.read_csv(checkpoint.parent.parent / "split.csv", dtype={"lesion_id": str})
    rows = table[(table["split"] == "val") & ~table["lesion_id"].isin(left_out)]
    predictor = Predictor.from_checkpoint(checkpoint, calibration="none")
    manifest = read_manifest(tiny_folder(checkpoint))
    by_name = {str(manifest.table.at[row, "image"]): row for row in range(len(manifest))}
    scores = []
    for image, label in zip(rows["image"], rows["label"], strict=True):
        row = by_name[image]
        answer = predictor(manifest.image_path(row), manifest.box(row))
        scores.append(1 - answer.probabilities[answer.class_names.index(label)])
    return rows["label"].to_numpy(str), np.array(scores), rows["lesion_id"].to_numpy(str)


def tiny_folder(checkpoint):
    return yaml.safe_load((checkpoint.parent.parent / "config.yaml").read_text())["data"]["manifest"]


def test_what_belongs_to_the_tested_lesions_is_left_out(tiny_manifest, tiny_cache, tmp_path):
    """Also where the split divides it by choice: the lesions of one patient."""
    photographs = shutil.copytree(tiny_manifest.parent, tmp_path / "photos") / tiny_manifest.name
    table = pd.read_csv(photographs, dtype=str)
    lesions = sorted(set(table["lesion_id"]))
    table["patient_id"] = table["lesion_id"].map({name: f"P{place // 2}" for place, name in enumerate(lesions)})
    table.to_csv(photographs, index=False)
    made = []
    for index in range(3):
        source = tiny.data(photographs, tiny_cache, split_index=index, group_by="lesion")
        module = tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC)
        made.append(make_run(tmp_path / f"repeat{index}", source, module))
    predictor = Predictor.from_checkpoint(made[0], calibration="none")
    source = source_of(run_of_checkpoint(made[0]), None, None, None)
    data = own_data(predictor, source, run_of_checkpoint(made[0]))
    found = [each.answers() for each in held_out_by([str(path) for path in made[1:]], data, source)]
    tested = set(units_of(data.manifest, data.rows("test"))["unit"])
    patients = dict(zip(data.manifest.groups("lesion"), data.manifest.groups("known"), strict=True))
    held = [
        {lesion for (_, part), names in parts(checkpoint).items() if part == "val" for lesion in names}
        for checkpoint in made[1:]
    ]
    known = [{lesion for lesion in names if patients[f"lesion:{lesion}"] not in tested} for names in held]
    own = {lesion for (_, part), names in parts(made[0]).items() if part == "test" for lesion in names}
    assert any(names - own > kept for names, kept in zip(held, known, strict=True))  # else nothing is tried
    assert [{name.partition(":")[2] for name in each.lesions} for each in found] == [each for each in known if each]


def test_where_files_lay_is_neither_kept_nor_published(run, repeats, tiny_manifest, tmp_path):
    """Names of folders may be those of patients."""
    place = tmp_path / "Doe_Jane_1961"
    other = copy_run(repeats[1], place / "run")
    lines = ["image,label,lesion_id,x,y,width,height"]
    for number, line in enumerate(tiny_manifest.read_text().splitlines()[1:21:2]):
        with Image.open(tiny_manifest.parent / line.split(",")[0]) as picture:
            ImageOps.mirror(picture).save(place / f"{number}.png")
        lines.append(f"{number}.png,{line.split(',')[1]},new-{number},3,2,30,30")
    (place / "more.csv").write_text("\n".join(lines) + "\n")
    words = ["--ckpt_path", str(run), "--also", str(other), "--extra_manifest", str(place / "more.csv")]
    assert main(["calibrate", *words, "--coverage=0.75"]) == 0
    file = run.parent / "calibration.json"
    stored = json.loads(file.read_text())
    assert place.name not in file.read_text()
    assert stored["record"]["extra_photographs"] == 10 and stored["record"]["also_sha256"] == [sha256_of(other)]

    stored["record"] |= {"extra_manifest": str(place / "more.csv"), "also": str(other), "manifest": place.name}
    file.write_text(json.dumps(stored))  # as earlier versions wrote it
    assert main(["publish", "--ckpt_path", str(run), "--out", str(tmp_path / "published")]) == 0
    published = [path.read_bytes() for path in (tmp_path / "published").rglob("*") if path.is_file()]
    assert len(published) == 5 and not any(place.name.encode() in content for content in published)


class TestRefused:
    def test_split_that_holds_out_no_others(self, run, repeats, capsys):
        assert calibrate(run, repeats[0]) == 2
        assert f"--also {repeats[0]}" in (said := capsys.readouterr().err) and "same split" in said
        assert calibrate(run, repeats[1], repeats[1]) == 2
        assert "same split" in capsys.readouterr().err
        assert not (run.parent / "calibration.json").exists()

    def test_network_that_has_seen_what_it_held_out(self, run, repeats, tiny_manifest, tmp_path, capsys):
        """As when its teacher was trained on another split."""
        other = copy_run(repeats[1], tmp_path / "other")
        manifest = read_manifest(tiny_manifest)
        seen = group_hashes(manifest.table, np.arange(len(manifest)))
        changed(other, other, seen_groups=torch.from_numpy(seen), salt="")
        assert calibrate(run, other) == 2
        assert f"--also {other}" in (said := capsys.readouterr().err) and "it has seen" in said

    def test_another_recipe(self, run, tiny_run, capsys):
        assert calibrate(run, tiny_run) == 2
        said = capsys.readouterr().err
        assert (
            "its network is swin_tiny_patch4_window7_224, altered (" in said and "not convnext_tiny, altered (" in said
        )

    def test_file_that_is_not_there(self, run, capsys):
        assert calibrate(run, "gone.ckpt") == 2
        assert "gone.ckpt" in capsys.readouterr().err


class Network:
    """One outcome of a recipe: answers for lesions, with faults of its own."""

    def __init__(self, rng, skill=2.0):
        self.rng, self.skill = rng, skill
        self.fault, self.sharpness = rng.normal(0, 0.3, 4), np.exp(rng.normal(0, 0.15))

    def answers(self, lesions, start=0):
        labels = self.rng.choice(4, lesions, p=SHARES)
        logits = self.rng.normal(0, 1.5, (lesions, 4)) + self.fault
        logits[np.arange(lesions), labels] += self.skill
        powers = np.exp(self.sharpness * logits)
        names = np.array([f"{id(self)}-{number}" for number in range(start, start + lesions)])
        return Held(powers / powers.sum(axis=1, keepdims=True), labels, names)


def repeated(rng, skill=2.0):
    """Thresholds of a network with about three lesions of class D, and of seven others; and of D on new lesions."""
    network, others = Network(rng, skill), Held.of([Network(rng).answers(40) for _ in range(7)])
    own = network.answers(40)
    thresholds = fit_thresholds(*own, NAMES, others=others)
    new = network.answers(2000, 40)
    rows = new.labels == 3
    return thresholds, own, others, thresholds.sets(new.probabilities[rows])[:, 3].mean()


def test_coverage_of_a_scarce_class_where_networks_are_alike():
    rng, covered = np.random.default_rng(5), []
    for _ in range(150):
        thresholds, _, _, found = repeated(rng)
        if thresholds.crossed[3]:
            assert not thresholds.guaranteed[3] and np.isfinite(thresholds.values[3])
            covered.append(found)
    values = np.array(covered)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    assert len(values) > 120 and values.mean() + half >= 0.9 and values.mean() - half <= 0.9 + 1 / 20


def test_networks_that_are_not_alike_are_found_out():
    """What no theorem rules out: the network that answers is weaker. Nothing is promised, and the check says so."""
    rng, covered, warned = np.random.default_rng(6), [], 0
    for _ in range(40):
        thresholds, own, others, found = repeated(rng, skill=0.0)
        if thresholds.crossed[3]:
            covered.append(found)
            assert not thresholds.guaranteed[3]
        warned += checked(own, others, NAMES, 0.9).high < 0.9
    assert np.mean(covered) < 0.85 and warned >= 36


def test_check_says_nothing_against_networks_that_are_alike():
    rng, intervals = np.random.default_rng(7), []
    for _ in range(40):
        _, own, others, _ = repeated(rng)
        intervals.append(checked(own, others, NAMES, 0.9))
    assert sum(found.high < 0.9 for found in intervals) <= 4
    assert checked(own, own, NAMES, 0.9) is None


def test_lesion_that_several_networks_have_held_out_counts_once():
    rng = np.random.default_rng(0)
    held = Held(rng.dirichlet((1, 1, 1, 1), 8), np.full(8, 3), np.array([f"L{number}" for number in range(8)]))
    twice = Held.of([held, held])
    found = fit_thresholds(*held, NAMES, others=twice)
    assert found.crossed == (0, 0, 0, 0) and found.values[3] == np.inf  # eight lesions stay eight
    ninth = Held(held.probabilities[:1], held.labels[:1], np.array(["L9"]))
    assert fit_thresholds(*held, NAMES, others=Held.of([twice, ninth])).crossed == (0, 0, 0, 9)


def test_own_lesions_are_enough_where_they_are_enough():
    rng = np.random.default_rng(1)
    own = Held(rng.dirichlet((1, 1, 1, 1), 30), np.zeros(30, int), np.arange(30).astype(str))
    others = Held(rng.dirichlet((1, 1, 1, 9), 90), np.zeros(90, int), np.arange(100, 190).astype(str))
    crossed = fit_thresholds(*own, NAMES, others=others)
    assert crossed.values == fit_thresholds(*own, NAMES).values and crossed.guaranteed[0] and crossed.crossed[0] == 0
