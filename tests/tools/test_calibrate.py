import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import tiny
from helpers.bad_files import cut_short
from helpers.inference import changed, copy_run, make_run
from helpers.wandb_reader import read_runs
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score

from kd_convnext import Predictor
from kd_convnext.cli import main
from kd_convnext.common.arrays import softmax
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import CheckpointError, ConfigError, LeakError
from kd_convnext.inference.calibrating.figures import risk_coverage_curve
from kd_convnext.inference.calibrating.fit import _limits
from kd_convnext.inference.calibrating.foreign import KINDS
from kd_convnext.inference.exporting.samples import samples_of
from kd_convnext.inference.prediction import Photograph
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.gate import Distances, Gate, fit_gate
from kd_convnext.inference.trust.temperature import cross_fitted, fit_temperature
from kd_convnext.tools.calibrate import calibrate


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_run(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def calibrated(tiny_run, tmp_path_factory):
    """A calibrated run, through the command line, from the run's own config.yaml."""
    checkpoint = copy_run(tiny_run, tmp_path_factory.mktemp("calibrated") / "run")
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5", "--test=true"]) == 0
    return checkpoint


def test_photographs_that_the_run_has_left_out_are_left_out(run, tiny_manifest, tmp_path, capsys):
    photos = shutil.copytree(tiny_manifest.parent, tmp_path / "photos")
    split = pd.read_csv(run.parent.parent / "split.csv")
    broken = photos / split.loc[split["split"] == "train", "image"].iloc[0]
    cut_short(broken)
    config = {"data": {"manifest": str(photos / tiny_manifest.name), "cache_dir": str(tmp_path / "cache")}}
    (run.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["calibrate", "--ckpt_path", str(run), "--coverage=0.5"]
    assert main(words) == 2 and broken.name in capsys.readouterr().err
    config["data"]["on_error"] = "skip"
    (run.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(words) == 0
    found = samples_of(Predictor.from_checkpoint(run), str(run), None, None, None, 200)
    assert len(found.learned) == (split["split"] == "train").sum() - 1
    photograph = str(photos / split["image"].iloc[-1])
    assert main(["explain", photograph, "--ckpt_path", str(run), "--out", str(tmp_path / "explained")]) == 0


def logits_at(temperature, count=4000, seed=0):
    """Logits whose probabilities are right at a temperature, with labels drawn from those."""
    rng = np.random.default_rng(seed)
    right = rng.normal(0, 2, (count, 4))
    draws = rng.gumbel(size=right.shape)
    return right * temperature, (right + draws).argmax(axis=1), np.arange(count).astype(str)


class TestTemperature:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    def test_is_found_again(self, temperature):
        assert fit_temperature(*logits_at(temperature)) == pytest.approx(temperature, rel=0.05)

    def test_is_that_of_a_grid_search(self):
        logits, labels, groups = logits_at(1.7, 300)
        grid = np.exp(np.linspace(-1, 2, 3001))
        losses = [-np.log(softmax(logits, t)[np.arange(300), labels]).mean() for t in grid]
        assert fit_temperature(logits, labels, groups) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)

    def test_every_lesion_counts_alike(self):
        logits, labels, groups = logits_at(2.0, 50)
        often = np.r_[np.arange(50), np.zeros(500, int)]
        expected = fit_temperature(logits, labels, groups)
        assert fit_temperature(logits[often], labels[often], groups[often]) == pytest.approx(expected, rel=1e-4)

    def test_cross_fitting_leaves_a_lesion_out(self):
        logits, labels, groups = logits_at(2.0, 60)
        before = cross_fitted(logits, labels, groups)
        flipped = labels.copy()
        flipped[7] = (labels[7] + 1) % 4  # changes every temperature but that of its own fold
        after = cross_fitted(logits, flipped, groups)
        assert np.array_equal(before[7], after[7]) and not np.array_equal(before, after)

    def test_softmax_of_large_logits(self):
        assert softmax(np.array([1e4, 0.0])).tolist() == [1.0, 0.0]


def test_files_beside_the_checkpoint(calibrated):
    found = json.loads((calibrated.parent / "calibration.json").read_text())
    info = Predictor.from_checkpoint(calibrated).network.info
    assert found["checkpoint_sha256"] == info.checkpoint_sha256
    assert found["record"]["test"]["photographs"] > 0 and 0 <= found["record"]["val"]["after"]["ece"] <= 1
    for part in ("val", "test"):
        for name in ("before", "after", "risk_coverage"):
            assert (calibrated.parent.parent / "figures" / f"calibration_{part}_{name}.png").stat().st_size > 5000


def test_calibration_of_an_earlier_version_is_read(calibrated, run, tiny_manifest):
    for name in ("calibration.json", "calibration.safetensors"):
        (run.parent / name).write_bytes((calibrated.parent / name).read_bytes())
    state = json.loads((run.parent / "calibration.json").read_text()) | {"format_version": 1}
    for level in ("photograph", "lesion"):
        del state[level]["classes"]["crossed"]
    (run.parent / "calibration.json").write_text(json.dumps(state))
    photo = tiny_manifest.parent / "0_0_0.png"
    then, now = (Predictor.from_checkpoint(checkpoint)(photo) for checkpoint in (run, calibrated))
    assert (then.prediction_set, then.reasons) == (now.prediction_set, now.reasons)


@pytest.mark.slow
def test_scores_figures_and_coverage_go_to_wandb(run, tmp_path):
    words = ["--coverage=0.5", "--test=true", "--wandb_project=specimens", "--out", str(tmp_path / "out")]
    assert main(["calibrate", "--ckpt_path", str(run), *words]) == 0
    (logged,) = read_runs(tmp_path / "out", 1)
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())["record"]
    assert not (run.parent / "calibration.json").exists()
    for part in ("val", "test"):
        assert logged.curve(f"calibration/{part}/after_ece")[-1] == pytest.approx(found[part]["after"]["ece"])
        assert len(logged.table(f"calibration/{part}/coverage")["data"]) == len(found[part]["coverage"])
        assert logged.entry(f"calibration/{part}_risk_coverage")


def test_thresholds_hold_on_the_lesions_they_come_from(calibrated, tiny_manifest):
    """At coverage c at least that share of each class's calibration lesions is covered by construction."""
    predictor = Predictor.from_checkpoint(calibrated)
    table = pd.read_csv(calibrated.parent.parent / "split.csv", dtype={"lesion_id": str})
    manifest = read_manifest(tiny_manifest)
    held: dict[str, list[bool]] = {}
    for lesion, rows in table[table["split"] == "val"].groupby("lesion_id"):
        answers = [
            predictor(manifest.root / row.image, Box(row.x, row.y, row.width, row.height)) for row in rows.itertuples()
        ]
        combined = predictor.combine(answers, lesion)
        held.setdefault(rows["label"].iloc[0], []).append(rows["label"].iloc[0] in combined.prediction_set)
        assert combined.gate_score <= 1  # the limits are the largest seen: there are fewer than 39 lesions
    assert len(held) == 5 and all(np.mean(values) >= 0.5 for values in held.values())


def test_calibrated_probabilities_keep_the_order_of_classes(calibrated, tiny_manifest):
    photo = tiny_manifest.parent / "0_0_0.png"
    plain = Predictor.from_checkpoint(calibrated, calibration="none")(photo)
    scaled = Predictor.from_checkpoint(calibrated)(photo)
    temperature = json.loads((calibrated.parent / "calibration.json").read_text())["temperature"]
    assert plain.abstain and plain.prediction_set is None and "not calibrated" in plain.reasons[0]
    assert np.allclose(scaled.probabilities, softmax(plain.logits, temperature))
    assert plain.predicted == scaled.predicted


def test_too_few_lesions_and_the_ways_out(run, capsys, tmp_path):
    assert main(["calibrate", "--ckpt_path", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("NO guarantee: in every set") == 5 and "--merge" in printed
    everything = "Grade 1+Grade 2+Grade 3+AIS+MIA"
    assert main(["calibrate", "--ckpt_path", str(run), "--coverage=0.8", "--merge", everything]) == 0
    printed = capsys.readouterr().out
    assert "NO guarantee" not in printed and "together with" in printed
    found = json.loads((run.parent / "calibration.json").read_text())["lesion"]["classes"]
    assert len(set(found["values"])) == 1 and all(found["guaranteed"])


def further(tiny_manifest, folder, again, prefix="x"):
    """A manifest of new lesions, each photograph made of one of the run's, whose name follows a prefix."""
    rows = [line.split(",") for line in tiny_manifest.read_text().splitlines()[1:]]
    lines = ["image,label,lesion_id,x,y,width,height"]
    for number, row in enumerate(rows[::2]):
        with Image.open(tiny_manifest.parent / row[0]) as picture:
            again(picture).save(folder / f"{prefix}{row[0]}")
        lines.append(f"{prefix}{row[0]},{row[1]},new-{number},3,2,30,30")
    (folder / "more.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "more.csv")


@pytest.mark.parametrize("prefix", ["x", ""])
def test_further_lesions_count(prefix, run, tiny_manifest, tmp_path, capsys):
    more = further(tiny_manifest, tmp_path, ImageOps.mirror, prefix)
    words = ["calibrate", "--ckpt_path", str(run), "--coverage=0.8"]
    assert main([*words, "--extra_manifest", more]) == 0
    found = json.loads((run.parent / "calibration.json").read_text())["lesion"]["classes"]
    assert all(found["guaranteed"]) and min(found["lesions"]) >= 7
    assert main([*words, "--extra_manifest", str(tiny_manifest)]) == 2
    assert "it has seen" in capsys.readouterr().err


def test_further_lesions_of_a_table_with_other_columns(run, tiny_manifest, tmp_path, capsys):
    more = further(tiny_manifest, tmp_path, ImageOps.mirror)
    table = Path(more)
    table.write_text(table.read_text().replace("image,label", "file,dx"))
    words = ["calibrate", "--ckpt_path", str(run), "--coverage=0.8", "--extra_manifest", more]
    assert main(words) == 2
    assert 'give --extra_columns "image=file,label=dx". ' in capsys.readouterr().err
    assert main([*words, "--extra_columns", "image=file,label=dx"]) == 0
    found = json.loads((run.parent / "calibration.json").read_text())["lesion"]["classes"]
    assert min(found["lesions"]) >= 7


@pytest.mark.parametrize("again", [lambda picture: picture.copy(), lambda picture: picture.resize((64, 60))])
def test_further_photographs_that_are_the_runs_own_under_other_names(again, run, tiny_manifest, tmp_path, capsys):
    more = further(tiny_manifest, tmp_path, again)
    assert main(["calibrate", "--ckpt_path", str(run), "--coverage=0.8", "--extra_manifest", more]) == 2
    assert "it has seen" in capsys.readouterr().err


class TestRefused:
    def test_lesions_of_the_training(self, run, tiny_manifest, tmp_path):
        manifest = read_manifest(tiny_manifest)
        seen = group_hashes(manifest.table, np.arange(len(manifest)))
        leaky = changed(run, run, seen_groups=torch.from_numpy(seen), salt="")
        with pytest.raises(LeakError, match="photographs of the val part, in training"):
            calibrate(str(leaky))

    def test_all_that_cannot_be_used_together_and_before_the_network_is_asked(
        self, run, tiny_manifest, tmp_path, monkeypatch, capsys
    ):
        manifest = read_manifest(tiny_manifest)
        seen = group_hashes(manifest.table, np.arange(len(manifest)))
        leaky = changed(run, run, seen_groups=torch.from_numpy(seen), salt="")
        monkeypatch.setattr(Predictor, "outputs", None)
        words = ["calibrate", "--ckpt_path", str(leaky), "--test=true", "--also=gone.ckpt,lost.ckpt"]
        assert main([*words, "--extra_manifest", str(tmp_path / "gone.csv")]) == 2
        said = capsys.readouterr().err
        for word in (
            "photographs of the val part",
            "photographs of the test part",
            "gone.csv",
            "gone.ckpt",
            "lost.ckpt",
        ):
            assert word in said

    def test_checkpoints_that_are_not_there_beside_photographs_that_are_not(self, run, tmp_path, capsys):
        words = ["calibrate", "--ckpt_path", str(run), "--manifest", str(tmp_path / "none.csv"), "--also=gone.ckpt"]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "none.csv" in said and "gone.ckpt" in said

    def test_no_login_at_wandb_before_the_network_is_asked(self, run, monkeypatch, tmp_path, capsys):
        import wandb

        monkeypatch.setenv("WANDB_MODE", "online")
        for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
            monkeypatch.setenv(name, str(tmp_path / name))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setattr(Predictor, "outputs", None)
        wandb.teardown()  # what an earlier run of this process has settled
        assert main(["calibrate", "--ckpt_path", str(run), "--wandb_project=specimens"]) == 2
        said = capsys.readouterr().err
        assert "wandb login" in said and "WANDB_MODE=offline" in said
        assert not (run.parent / "calibration.json").exists()

    def test_another_split(self, run):
        table = pd.read_csv(run.parent.parent / "split.csv")
        table["split"] = table["split"].map({"train": "val", "val": "train", "test": "test"})
        table.to_csv(run.parent.parent / "split.csv", index=False)
        with pytest.raises(CheckpointError, match="not those the checkpoint was trained with"):
            calibrate(str(run))

    def test_no_photographs_known(self, run, tmp_path, capsys):
        config = (run.parent.parent / "config.yaml").rename(tmp_path / "config.yaml")
        words = ["calibrate", "--ckpt_path", str(run)]
        assert main(words) == 2 and "--manifest" in capsys.readouterr().err
        assert main([*words, "--config", str(config)]) == 0

    def test_folder_that_is_not_empty(self, run, tmp_path, capsys):
        assert main(["calibrate", "--ckpt_path", str(run), "--out", str(tmp_path)]) == 2
        assert "--overwrite true" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "word", ["--coverage=1", "--merge=Grade 1+Grade 9", "--merge=AIS", "--gate_false_alarms=0", "--few=some"]
    )
    def test_options(self, run, word, capsys):
        assert main(["calibrate", "--ckpt_path", str(run), word]) == 2
        assert word.split("=")[0].strip("-") in capsys.readouterr().err

    def test_calibration_of_another_checkpoint(self, calibrated, run, capsys):
        other = changed(run, run, split_hash="other")
        for name in ("calibration.json", "calibration.safetensors"):
            (other.parent / name).write_bytes((calibrated.parent / name).read_bytes())
        with pytest.raises(CheckpointError, match="another checkpoint"):
            Predictor.from_checkpoint(other)
        assert Predictor.from_checkpoint(other, calibration="none").calibration is None

    @pytest.mark.parametrize("name", ["calibration.json", "calibration.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04junk"])
    def test_damaged_files(self, calibrated, run, name, content):
        for other in ("calibration.json", "calibration.safetensors"):
            (run.parent / other).write_bytes((calibrated.parent / other).read_bytes())
        (run.parent / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="calibrate --ckpt_path"):
            Predictor.from_checkpoint(run)

    @pytest.mark.parametrize("level", ["photograph", "lesion"])
    @pytest.mark.parametrize("limit", [float("nan"), -1.0])
    def test_edited_limits(self, calibrated, run, level, limit):
        for other in ("calibration.json", "calibration.safetensors"):
            (run.parent / other).write_bytes((calibrated.parent / other).read_bytes())
        for place, name in ((lambda state: state["gate"], "gate"), (lambda state: state["classes"]["values"], "sets")):
            state = json.loads((calibrated.parent / "calibration.json").read_text())
            place(state[level])[0] = float("nan") if name == "sets" else limit
            (run.parent / "calibration.json").write_text(json.dumps(state))
            with pytest.raises(CheckpointError, match="is damaged"):
                Predictor.from_checkpoint(run)

    def test_other_views_than_calibrated(self, calibrated):
        with pytest.raises(ConfigError, match="--tta"):
            Predictor.from_checkpoint(calibrated, tta=True)


class TestGate:
    def test_foreign_colours_and_textures_are_far(self):
        rng = np.random.default_rng(0)

        def photograph(colour):
            return (np.array(colour) + rng.normal(0, 20, (48, 48, 3))).clip(0, 255).astype(np.uint8)

        usual = [appearance_of(photograph(np.array((180, 90, 80)) + rng.normal(0, 10, 3))) for _ in range(200)]
        gate = fit_gate(np.stack(usual[:150]), rng.normal(0, 1, (150, 8)).astype(np.float32))
        none = np.zeros(8, np.float32)
        near = [gate.distances(found, none).appearance for found in usual[150:]]
        other = gate.distances(appearance_of(photograph((80, 90, 180))), none).appearance
        flat = gate.distances(appearance_of(np.full((48, 48, 3), 128, np.uint8)), none).appearance
        assert min(other, flat) > 1.5 * max(near)

    def test_foreign_features_are_far(self):
        rng = np.random.default_rng(0)
        features = np.abs(rng.normal(0, 1, (100, 8))).astype(np.float32)
        gate = fit_gate(rng.normal(0, 1, (100, 36)), features)
        appearance = np.zeros(36)
        assert (
            gate.distances(appearance, -features[0]).features > 1.4 > gate.distances(appearance, features[0]).features
        )
        assert gate.distances(appearance, 3 * features[0]) == pytest.approx(gate.distances(appearance, features[0]))

    def test_blur_noise_and_another_white_balance_are_far_in_detail(self):
        rng = np.random.default_rng(0)

        def photograph():
            coarse = rng.normal(0, 30, (24, 24, 1)) + rng.normal(0, 2, (24, 24, 3))
            return (cv2.resize(coarse, (48, 48)) + 128 + rng.normal(0, 2, (48, 48, 3))).clip(0, 255).astype(np.uint8)

        usual = [photograph() for _ in range(200)]
        described = np.stack([appearance_of(picture) for picture in usual])
        gate = fit_gate(described[:150], rng.normal(0, 1, (150, 8)).astype(np.float32))
        far = [gate.distances(found, np.zeros(8, np.float32)).detail for found in described[150:]]
        others = {
            "blurred": cv2.GaussianBlur(usual[-1], (0, 0), 1.5),
            "noisy": (usual[-1] + rng.normal(0, 6, (48, 48, 3))).clip(0, 255).astype(np.uint8),
            "warmer": (usual[-1] * np.array([1.2, 1, 0.8])).clip(0, 255).astype(np.uint8),
        }
        for name, picture in others.items():
            found = gate.distances(appearance_of(picture), np.zeros(8, np.float32)).detail
            assert found > 1.5 * max(far), name

    def test_what_lies_between_two_kinds_of_photographs_is_far(self):
        rng = np.random.default_rng(0)
        kind = rng.choice([-8.0, 8.0], (2000, 1))
        values = rng.normal(0, 1, (2000, 21))
        values[:, [0, -1]] += kind
        gate = fit_gate(values[:1900], rng.normal(0, 1, (1900, 8)).astype(np.float32))
        none = np.zeros(8, np.float32)
        usual = np.array([gate.distances(row, none) for row in values[1900:]])
        values[:, [0, -1]] -= kind  # nearer to the mean of all, where no photograph is
        between = np.array([gate.distances(row, none) for row in values[1900:]])
        assert (between > usual)[:, [0, 2]].mean() > 0.9

    def test_a_mixture_measures_its_density(self):
        from scipy.stats import multivariate_normal

        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(0, 1, (300, 42)), rng.normal(3, 2, (300, 42))])
        gate = fit_gate(values, rng.normal(0, 1, (600, 8)).astype(np.float32))
        mixture = gate.appearance
        assert len(mixture.mean) == 6
        spreads = [np.linalg.inv(whitening @ whitening.T) for whitening in mixture.whitening]
        heights = np.array([multivariate_normal(cov=cov).pdf(np.zeros(42)) for cov in spreads])
        weights = np.exp(mixture.logs) / heights
        parts = zip(weights / weights.sum(), mixture.mean, spreads, strict=True)
        density = sum(weight * multivariate_normal(mean, cov).pdf(values[::50]) for weight, mean, cov in parts)
        found = np.array([mixture.distance(row) for row in values[::50]])
        assert np.diff(found**2 / 2 + np.log(density)) == pytest.approx(0, abs=1e-6)

    def test_gates_of_earlier_versions_measure_as_they_did(self):
        rng = np.random.default_rng(0)
        arrays = {
            "mean": rng.normal(size=42),
            "whitening": rng.normal(size=(42, 42)),
            "bank": np.ones((1, 8), np.float32),
        }
        arrays |= {"detail_mean": rng.normal(size=6), "detail_whitening": rng.normal(size=(6, 6))}
        row = rng.normal(size=42)
        found = Gate.of(arrays).distances(row, np.ones(8, np.float32))
        assert found.appearance == pytest.approx(np.linalg.norm((row - arrays["mean"]) @ arrays["whitening"]))
        expected = np.linalg.norm((row[-6:] - arrays["detail_mean"]) @ arrays["detail_whitening"])
        assert found.detail == pytest.approx(expected)

    def test_all_distances_together_stop_the_share_that_is_asked_for(self):
        rng = np.random.default_rng(0)
        shared = rng.gamma(2.0, 1.0, (2000, 1))
        found = [Distances(*row) for row in (shared + rng.gamma(2.0, [0.1, 1.0, 5.0], (2000, 3))).tolist()]
        groups = np.repeat(np.arange(1000), 2).astype(str)
        limits = _limits(found[::2], groups[::2], 0.05)
        stopped = (np.array(found) > limits).any(axis=1)
        assert 0.035 < stopped[::2].mean() <= 0.05 and 0.03 < stopped[1::2].mean() < 0.07
        shares = Distances(*(np.array(found) > limits).mean(axis=0))
        assert 0.01 < shares.appearance < 0.04 and 0.01 < shares.detail < 0.04 and shares.features < 0.04
        few = np.array(_limits(found[:10], groups[:10], 0.05))
        assert few == pytest.approx(np.max(found[:10], axis=0), rel=2e-4)

    def test_what_it_stops_is_measured_and_told(self, calibrated, capsys):
        record = json.loads((calibrated.parent / "calibration.json").read_text())["record"]
        stopped = {found["kind"]: found for found in record["gate_stops"]}
        assert set(stopped) == set(KINDS)
        shown = (pd.read_csv(calibrated.parent.parent / "split.csv")["split"] == "val").sum()
        assert all(0 <= found["stopped"] <= found["photographs"] == shown for found in stopped.values())
        assert stopped["strongly blurred"]["stopped"] == shown
        assert main(["card", "--ckpt_path", str(calibrated)]) == 0
        assert f"strongly blurred {shown} of {shown}" in (calibrated.parent.parent / "MODEL_CARD.md").read_text()

    def test_grey_pictures(self):
        assert appearance_of(np.zeros((32, 32, 1), np.uint8)).shape == (21,)
        assert np.isfinite(appearance_of(np.zeros((8, 8, 3), np.uint8))).all()


def test_risk_coverage_curve():
    coverage, risk = risk_coverage_curve(np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, False, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0.5])


@pytest.mark.slow
@pytest.mark.realdata
def test_blood_smears_are_told_from_lesions(shared_dir, tmp_path):
    """The gate of a network for skin lesions, on its own test lesions against blood smears."""
    folder = shared_dir / "data" / "ham_paper5"
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    lesions = np.random.default_rng(0).permutation(table["lesion_id"].unique())[:400]
    table["image"] = [str(folder / image) for image in table["image"]]
    table[table["lesion_id"].isin(lesions)].to_csv(tmp_path / "m.csv", index=False)
    data = tiny.data(tmp_path / "m.csv", str(tmp_path / "cache"), store_size=64)
    checkpoint = make_run(tmp_path / "run", data, tiny.teacher(data))
    assert main(["calibrate", "--ckpt_path", str(checkpoint)]) == 0
    predictor = Predictor.from_checkpoint(checkpoint, per_pass=16)
    smears = read_manifest(shared_dir / "data" / "bccd" / "manifest.csv")
    foreign = np.random.default_rng(0).choice(len(smears), 150, replace=False)

    def scores(manifest, rows):
        asked = [Photograph(manifest.image_path(row), manifest.box(row)) for row in rows]
        return np.array([answer.gate_score for answer in predictor.predict_many(asked)])

    own, other = scores(data.manifest, data.split.rows("test")), scores(smears, foreign)
    area = roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(other))], np.r_[own, other])
    print(f"AUROC {area:.4f}, stopped: own {np.mean(own > 1):.3f}, smears {np.mean(other > 1):.3f}")
    assert area > 0.9 and np.mean(own > 1) < 0.15
