import csv
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.bad_files import Payload, write_odd_images
from helpers.inference import changed, copy_run
from helpers.manifests import save_image

from kd_convnext import Predictor, __version__
from kd_convnext.cli import main
from kd_convnext.errors import ManifestError
from kd_convnext.inference.inputs import photographs_of

CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")


@pytest.fixture(scope="module")
def calibrated(tiny_run, tmp_path_factory):
    checkpoint = copy_run(tiny_run, tmp_path_factory.mktemp("calibrated") / "run")
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5"]) == 0
    return checkpoint


@pytest.fixture
def unlabelled(tiny_manifest, tmp_path):
    """The first 12 photographs (six lesions) with boxes and lesions, without labels."""
    rows = [line.split(",") for line in tiny_manifest.read_text().splitlines()[1:13]]
    lines = ["image,lesion_id,x,y,width,height"]
    lines += [",".join([f"{tiny_manifest.parent}/{row[0]}", *row[2:]]) for row in rows]
    manifest = tmp_path / "new.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def classify(*words):
    return main(["classify", *map(str, words)])


def test_a_table_with_other_columns_is_read_as_the_refusal_says(calibrated, unlabelled, tmp_path, capsys):
    table = unlabelled.with_name("Liste.TSV")
    table.write_text(unlabelled.read_text().replace("image,", "Filename,", 1).replace(",", "\t"))
    words = ["--ckpt_path", calibrated, "--out", tmp_path / "out"]
    assert classify(table, *words) == 2
    (option,) = re.findall(r'--columns "(.*?)"', capsys.readouterr().err)
    assert option == "image=filename"
    assert classify(table, *words, "--columns", option) == 0
    assert len(pd.read_csv(tmp_path / "out" / "answers.csv")) == 12
    assert main(["doctor", "--manifest", str(table), "--columns", option]) in (0, 2)
    assert "there is no column 'image'" not in capsys.readouterr().out


def test_manifest_without_labels(calibrated, unlabelled, tmp_path):
    out = tmp_path / "out"
    assert classify(unlabelled, "--ckpt_path", calibrated, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"answers.csv", "answers.json", "lesions.csv"}
    answers, lesions = pd.read_csv(out / "answers.csv"), pd.read_csv(out / "lesions.csv")
    given = pd.read_csv(unlabelled)
    for column in given.columns:
        assert answers[column].tolist() == given[column].tolist()
    assert lesions["lesion_id"].tolist() == given["lesion_id"].drop_duplicates().tolist()
    assert lesions["photographs"].tolist() == [2] * 6
    columns = [f"prob_{name}" for name in CLASSES]
    assert answers[columns].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    means = answers.groupby("lesion_id")[columns].mean().loc[lesions["lesion_id"]]
    assert lesions[columns].to_numpy() == pytest.approx(means.to_numpy(), abs=1e-6)
    for table in (answers, lesions):
        best = table[columns].idxmax(axis=1).str.removeprefix("prob_")
        assert table["prediction"].tolist() == best.tolist()
        sets = (
            table["prediction_set"].fillna("").str.split("|").map(lambda names: len([name for name in names if name]))
        )
        assert table["abstain"].tolist() == ((sets != 1) | (table["gate_score"] > 1)).tolist()
        assert (table["abstain"] == table["reasons"].notna()).all()


def test_json_says_the_same_and_which_model_it_was(calibrated, unlabelled, tmp_path):
    out = tmp_path / "out"
    assert classify(unlabelled, "--ckpt_path", calibrated, "--out", out) == 0
    found = json.loads((out / "answers.json").read_text())
    model = found["model"]
    assert model["kd_convnext"] == __version__ and model["name"].startswith(
        "swin_tiny_patch4_window7_224, altered (embed_dim 16,"
    )
    assert (
        model["checkpoint_sha256"]
        == json.loads((calibrated.parent / "calibration.json").read_text())["checkpoint_sha256"]
    )
    assert found["calibration"]["coverage"] == 0.5 and found["failures"] == []
    with (out / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, found["answers"], strict=True):
        assert row["image"] == entry["image"] and row["prediction"] == entry["prediction"]
        assert [entry["probabilities"][name] for name in CLASSES] == pytest.approx(
            [float(row[f"prob_{name}"]) for name in CLASSES], abs=1e-7
        )
        assert row["prediction_set"] == "|".join(entry["prediction_set"])
        assert row["checkpoint_sha256"] == model["checkpoint_sha256"] and row["model"] == model["name"]
    assert len(found["lesions"]) == 6


def test_files_and_folders_are_as_the_predictor_answers(calibrated, tiny_manifest, tmp_path, capsys):
    folder = tiny_manifest.parent
    words = [folder / "1_0_0.png", folder, folder / "1_0_1.png", "--ckpt_path", calibrated, "--out", tmp_path / "out"]
    with pytest.warns(UserWarning) as heard:
        assert classify(*words) == 0
    told = "\n".join(str(warning.message) for warning in heard)
    assert re.search(r"manifest\.csv.* left out, which are no photographs by their names", told)
    assert f"2 regions named more than once, judged once (first: {folder / '1_0_0.png'})" in told
    said = capsys.readouterr()
    assert "classifying" in said.err and "60/60" in said.err and "classifying" not in said.out
    table = pd.read_csv(tmp_path / "out" / "answers.csv")
    assert table["image"].tolist() == [
        str(folder / "1_0_0.png"),
        *sorted(str(path) for path in folder.glob("*.png") if path.name != "1_0_0.png"),
    ]
    assert not (tmp_path / "out" / "lesions.csv").exists()
    predictor = Predictor.from_checkpoint(calibrated)
    for row in (0, 5, 59):
        answer = predictor(table["image"][row])
        found = [table[f"prob_{name}"][row] for name in CLASSES]
        assert found == pytest.approx(answer.probabilities.tolist(), abs=1e-7)
        assert table["gate_score"][row] == pytest.approx(answer.gate_score, abs=1e-6)


@pytest.mark.parametrize("lesion_by", ["folder", "all"])
def test_photographs_of_one_lesion_without_a_manifest(calibrated, tiny_manifest, tmp_path, lesion_by):
    folder = tiny_manifest.parent
    photos = [folder / f"0_{number}_0.png" for number in range(3)]
    assert classify(*photos, "--ckpt_path", calibrated, "--out", tmp_path / "o", "--lesion_by", lesion_by) == 0
    lesions = pd.read_csv(tmp_path / "o" / "lesions.csv")
    assert lesions["photographs"].tolist() == [3]
    assert lesions["lesion_id"].tolist() == [str(folder) if lesion_by == "folder" else "all"]


def test_one_photograph_with_a_box(calibrated, tiny_manifest, tmp_path, capsys):
    photo = tiny_manifest.parent / "2_0_0.png"
    words = [photo, "--ckpt_path", calibrated, "--out", tmp_path / "o"]
    assert classify(*words, "--box=2,1,36,34") == 0
    table = pd.read_csv(tmp_path / "o" / "answers.csv")
    assert table[["x", "y", "width", "height"]].to_numpy().tolist() == [[2, 1, 36, 34]]
    again = [*words, "--overwrite=true"]
    for bad in ([*again, "--box=2,1"], [photo.with_name("2_0_1.png"), *again, "--box=2,1,3,3"]):
        assert classify(*bad) == 2
        assert "--box" in capsys.readouterr().err
    assert classify(*again, "--box=30,1,36,34") == 2
    assert "does not lie inside" in capsys.readouterr().err


def test_an_empty_name_is_not_the_working_folder(tiny_run, tmp_path, capsys):
    assert main(["classify", "", "--ckpt_path", str(tiny_run), "--out", str(tmp_path / "out")]) == 2
    assert "a name is empty" in capsys.readouterr().err


def test_mirror_images_by_choice(tiny_run, tiny_manifest, tmp_path):
    photo = tiny_manifest.parent / "2_0_0.png"
    for tta in ("true", "false"):
        assert classify(photo, "--ckpt_path", tiny_run, "--out", tmp_path / tta, "--tta", tta) == 0
    one, other = (pd.read_csv(tmp_path / tta / "answers.csv")["prob_AIS"][0] for tta in ("true", "false"))
    assert one == pytest.approx(Predictor.from_checkpoint(tiny_run, tta=True)(photo).probabilities[3], abs=1e-7)
    assert one != other


def test_without_calibration_a_person_decides(tiny_run, unlabelled, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert classify(unlabelled, "--ckpt_path", tiny_run, "--out", tmp_path / "o") == 0
    printed = capsys.readouterr()
    assert "not calibrated" in printed.err and f"  kd-convnext calibrate --ckpt_path {tiny_run}\n" in printed.err
    assert "abstains" in printed.out
    for line in [*printed.out.splitlines(), *printed.err.splitlines()]:
        bar = "\x1b" in line
        assert len(line) <= 80 or bar or str(tiny_run) in line or str(tmp_path) in line, line
    for name in ("answers.csv", "lesions.csv"):
        table = pd.read_csv(tmp_path / "o" / name)
        assert table["abstain"].all() and table["prediction_set"].isna().all() and table["gate_score"].isna().all()


class TestPhotographsWithoutAnAnswer:
    @pytest.fixture
    def odd(self, tmp_path):
        folder = tmp_path / "odd"
        folder.mkdir()
        return folder, *write_odd_images(folder)

    def test_others_are_answered_and_these_are_listed(self, calibrated, odd, tmp_path, capsys):
        folder, good, bad = odd
        bad = [name for name in bad if name != "folder.png"]
        photos = [folder / name for name in (*bad, *good)]
        out = tmp_path / "out"
        assert classify(*photos, "--ckpt_path", calibrated, "--out", out) == 2
        err = capsys.readouterr().err
        assert all(name in err for name in bad) and "Traceback" not in err
        assert pd.read_csv(out / "answers.csv")["image"].tolist() == [str(folder / name) for name in good]
        failures = pd.read_csv(out / "failures.csv")
        assert failures["image"].tolist() == [str(folder / name) for name in bad]
        assert failures["problem"].notna().all() and failures["remedy"].notna().all()
        assert len(json.loads((out / "answers.json").read_text())["failures"]) == len(bad)
        assert classify(*photos, "--ckpt_path", calibrated, "--out", out, "--overwrite=true", "--on_error=skip") == 0

    def test_rows_of_a_manifest(self, calibrated, unlabelled, odd, tmp_path):
        folder, _, _ = odd
        text = unlabelled.read_text()
        unlabelled.write_text(f"{text}{folder / 'empty.jpg'},L,,,,\n{folder / 'good.png'},L,,,,\n")
        assert classify(unlabelled, "--ckpt_path", calibrated, "--out", tmp_path / "o", "--on_error=skip") == 0
        assert len(pd.read_csv(tmp_path / "o" / "answers.csv")) == 13
        failures = pd.read_csv(tmp_path / "o" / "failures.csv")
        assert failures["image"].tolist() == ["new.csv, row 14"]

    def test_old_failures_go_when_all_is_well(self, calibrated, odd, tmp_path):
        folder, _, _ = odd
        words = ["--ckpt_path", calibrated, "--out", tmp_path / "o", "--overwrite=true"]
        assert classify(folder / "empty.jpg", *words) == 2
        assert not (tmp_path / "o" / "answers.csv").exists()
        assert classify(folder / "good.png", *words) == 0
        assert not (tmp_path / "o" / "failures.csv").exists()


class TestRefused:
    def test_folder_that_is_not_empty(self, tiny_run, unlabelled, tmp_path, capsys):
        assert classify(unlabelled, "--ckpt_path", tiny_run, "--out", tmp_path) == 2
        assert "--overwrite true" in capsys.readouterr().err

    def test_code_in_a_checkpoint_is_never_run(self, tmp_path, unlabelled, capsys):
        torch.save({"kd_convnext": Payload(tmp_path / "touched")}, tmp_path / "evil.ckpt")
        assert classify(unlabelled, "--ckpt_path", tmp_path / "evil.ckpt", "--out", tmp_path / "o") == 2
        assert "loaded safely" in capsys.readouterr().err
        assert not (tmp_path / "touched").exists() and not (tmp_path / "o").exists()

    def test_folder_without_photographs(self, tiny_run, tmp_path, capsys):
        (tmp_path / "nothing").mkdir()
        assert classify(tmp_path / "nothing", "--ckpt_path", tiny_run, "--out", tmp_path / "o") == 2
        assert "no photographs" in capsys.readouterr().err

    def test_manifest_with_bad_boxes_names_every_row(self, tiny_run, unlabelled, tmp_path, capsys):
        lines = unlabelled.read_text().splitlines()
        lines[2] = lines[2].replace(",36,34", ",99,34")
        lines[5] = lines[5].replace(",36,34", ",,34")
        unlabelled.write_text("\n".join(lines) + "\n")
        assert classify(unlabelled, "--ckpt_path", tiny_run, "--out", tmp_path / "o") == 2
        err = capsys.readouterr().err
        assert "row 3" in err and "row 6" in err

    def test_no_photographs_at_all(self, tiny_run, tmp_path, capsys):
        assert classify("--ckpt_path", tiny_run, "--out", tmp_path / "o") == 2
        assert "photos" in capsys.readouterr().err


def test_overridden_leaks_are_said(tiny_run, unlabelled, tmp_path, capsys):
    leaky = changed(tiny_run, tmp_path / "leaky.ckpt", leak_allowed=True)
    assert classify(unlabelled, "--ckpt_path", leaky, "--out", tmp_path / "o") == 0
    assert "has seen lesions" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "answers.json").read_text())["model"]["leak_allowed"]


def test_the_order_of_photographs_does_not_matter(calibrated, unlabelled, tmp_path):
    assert classify(unlabelled, "--ckpt_path", calibrated, "--out", tmp_path / "a") == 0
    header, *rows = unlabelled.read_text().splitlines()
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    unlabelled.write_text("\n".join([header, *shuffled]) + "\n")
    assert classify(unlabelled, "--ckpt_path", calibrated, "--out", tmp_path / "b") == 0
    for name, key in (("answers.csv", "image"), ("lesions.csv", "lesion_id")):
        first, second = (pd.read_csv(tmp_path / out / name).sort_values(key, ignore_index=True) for out in "ab")
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_lesions_of_two_manifests_are_never_mixed(calibrated, unlabelled, tiny_manifest, tmp_path, capsys):
    header, *rows = unlabelled.read_text().splitlines()
    (tmp_path / "b").mkdir()
    other = tmp_path / "b/new.csv"
    other.write_text("\n".join([header, rows[0], *rows[4:6]]) + "\n")
    unlabelled.write_text("\n".join([header, *rows[:5]]) + "\n")
    words = ["--ckpt_path", calibrated, "--out", tmp_path / "out"]
    assert classify(unlabelled, other, *words) == 2
    lesion = rows[4].split(",")[1]
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 lesion id in several manifests (first: '{lesion}' in {unlabelled} and {other})" in said
    assert not (tmp_path / "out").exists()
    # Of the same regions nothing is mixed; and by folder or all together it is asked for.
    with pytest.warns(UserWarning, match="5 regions named more than once"):
        assert classify(unlabelled, unlabelled, *words) == 0
    assert pd.read_csv(tmp_path / "out/lesions.csv")["photographs"].sum() == 5
    assert classify(unlabelled, other, *words, "--lesion_by", "all", "--overwrite", "true") == 0
    assert pd.read_csv(tmp_path / "out/lesions.csv")["photographs"].tolist() == [6]


def test_a_region_named_twice_keeps_its_lesion_and_is_refused_with_two(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.png", ord(name))
    first, second, other = tmp_path / "first.csv", tmp_path / "second.csv", tmp_path / "third.csv"
    first.write_text("image,lesion_id\na.png,L1\nb.png,\n")
    second.write_text("image,lesion_id\na.png,\nb.png,L2\n")
    other.write_text("image,lesion_id\na.png,L3\nb.png,L4\n")
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    folder = str(tmp_path)
    for words, lesions in (
        ([folder, first], ["L1", ""]),
        ([first, folder], ["L1", ""]),
        ([folder, first, second], ["L1", "L2"]),
        ([second, images[0], first], ["L1", "L2"]),
    ):
        with pytest.warns(UserWarning, match="regions? named more than once, judged once"):
            found, _ = photographs_of([str(word) for word in words])
        assert [(photograph.image, photograph.lesion_id) for photograph in found] == [
            *zip(images, lesions, strict=True)
        ]
    with pytest.raises(ManifestError) as refused:
        photographs_of([folder, str(first), str(second), str(other)])
    said = str(refused.value)
    assert f"one region is of the lesions 'L1' ({first}) and 'L3' ({other})" in said
    assert f"one region is of the lesions 'L2' ({second}) and 'L4' ({other})" in said
    with pytest.warns(UserWarning, match="4 regions named more than once"):
        found, _ = photographs_of([folder, str(first), str(other)], lesion_by="all")
    assert [photograph.lesion_id for photograph in found] == ["all", "all"]


def test_no_table_of_the_user_is_replaced_or_deleted(calibrated, unlabelled, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    own = {"lesions.csv": unlabelled.read_text(), "answers.csv": "image,diagnosis\na.png,AIS\n", "answers.json": "[1]"}
    for name, text in own.items():
        (out / name).write_text(text)
    words = ["--ckpt_path", calibrated, "--out", out, "--overwrite", "true"]
    assert classify(out / "lesions.csv", *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{out / 'lesions.csv'}: is asked about, and would be replaced" in said
    assert said.count("is of no classification, and would be replaced by the answers") == 2
    assert {path.name: path.read_text() for path in out.iterdir()} == own
    for path in out.iterdir():
        path.write_text("")
    assert classify(unlabelled, *words) == 0 and classify(unlabelled, *words) == 0
    single = unlabelled.with_name("single.csv")
    single.write_text("image\n" + unlabelled.read_text().splitlines()[1].split(",")[0] + "\n")
    (out / "failures.csv").write_text("image,problem,remedy\n")
    assert classify(single, *words) == 0
    assert {path.name for path in out.iterdir()} == {"answers.csv", "answers.json"}
