import errno
import io
import json
import pickletools
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from helpers import tiny
from helpers.exported import read_words
from helpers.inference import copy_run, make_run
from helpers.paths import REPOSITORY
from PIL import Image
from spandrel.architectures.Compact import Compact

from kd_convnext import Predictor
from kd_convnext.cli import main
from kd_convnext.common.arrays import softmax
from kd_convnext.inference.exporting import formats
from kd_convnext.inference.exporting.crop import why_no_crop
from kd_convnext.inference.exporting.deployed import Deployed
from kd_convnext.inference.exporting.deployed_gate import DeployedGate
from kd_convnext.inference.prediction import Photograph
from kd_convnext.inference.publishing.hub import PublishedModel
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.gate import fit_gate
from kd_convnext.tools import export as tool

FORMATS = ("onnx", "openvino", "torch")
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "cv2", "onnx", "pandas", "kd_convnext")))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that cannot import any of these."""


def export(checkpoint, out, *words):
    return main(["export", "--ckpt_path", str(checkpoint), "--out", str(out), *words])


def example(exported, photographs):
    """Runs the example in a process without this package and its heavy company."""
    script = REPOSITORY / "docs/examples/onnx_only.py"
    words = [sys.executable, "-c", WITHOUT, str(script), str(exported), str(photographs)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def file_in(folder):
    (found,) = (path for path in folder.iterdir() if path.name in ("model.onnx", "model.xml", "model.pt2"))
    return found


@pytest.fixture(scope="module")
def student(tiny_manifest, tiny_cache, tmp_path_factory):
    """A tiny ConvNeXt in its run folder, calibrated."""
    source = tiny.data(tiny_manifest, tiny_cache)
    module = tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC)
    checkpoint = make_run(tmp_path_factory.mktemp("student"), source, module)
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5"]) == 0
    return checkpoint


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    """Folder of each format, made through the command line."""
    root = tmp_path_factory.mktemp("exported")
    for name in FORMATS:
        assert export(student, root / name, f"--format={name}") == 0
    return {name: root / name for name in FORMATS}


@pytest.fixture(scope="module")
def predictor(student):
    return Predictor.from_checkpoint(student)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(5).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("name", FORMATS)
class TestFormats:
    def test_answers_as_torch_for_any_number_of_pictures(self, exported, predictor, pictures, name):
        run = formats.load(file_in(exported[name]), threads=1)
        logits, _ = predictor.outputs(list(pictures.transpose(0, 2, 3, 1)))
        expected = softmax(logits, predictor.calibration.temperature)
        distances, gate_scores = gated(predictor, pictures)
        for count in (1, 2, 7):
            found = run(pictures[:count])
            assert found[0].shape == found[1].shape == (count, 5)
            assert np.abs(found[0] - logits[:count]).max() < 1e-4
            assert np.abs(found[1] - expected[:count]).max() < 1e-5
            assert found[2] == pytest.approx(gate_scores[:count], rel=1e-4)
            assert found[3] == pytest.approx(distances[:count], rel=1e-4)

    def test_says_what_it_is(self, exported, predictor, name):
        said = read_words(file_in(exported[name]))
        calibration, card = predictor.calibration, predictor.network.card
        assert said["class_names"] == list(card.class_names)
        assert said["input"]["shape"] == ["batch", 3, 32, 32] and said["input"]["type"] == "uint8"
        assert said["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
        assert said["crop"]["store_size"] == 40 and said["crop"]["upscaler"] == "bicubic"
        assert said["temperature"] == calibration.temperature
        limits = said["prediction_set"]["photograph"]
        assert [np.inf if limits[key] is None else limits[key] for key in card.class_names] == list(
            calibration.photograph.classes.limits
        )
        for level in ("photograph", "lesion"):
            assert said["gate"][level] == getattr(calibration, level).gate._asdict()
        assert said["abstain"]["reasons"] == calibration.reasons()
        assert said["model"]["checkpoint_sha256"] == predictor.network.info.checkpoint_sha256
        beside = json.loads((exported[name] / "model.json").read_text())
        assert {key: beside[key] for key in said} == said
        assert beside["compared"]["largest_difference"] < 1e-4 and beside["compared"]["agreement"] == 1
        assert beside["compared"]["gate_difference"] < 1e-4 and beside["compared"]["decisions"] == 1
        assert beside["compared"]["labelled"] == 30  # the training has seen the other 30
        assert beside["compared"]["accuracy"] == beside["compared"]["accuracy_checkpoint"]

    def test_holds_no_pickle_and_no_path(self, exported, name):
        for path in exported[name].iterdir():
            for content in parts(path.read_bytes()):
                assert not is_pickle(content), path
                for trace in (b"site-packages", str(tool.__file__.rpartition("/")[0]).encode(), b"data.pkl"):
                    assert trace not in content, path


def gated(predictor, pictures):
    """What the gate of `classify` says of pictures [N, C, S, S]."""
    pictures = pictures.transpose(0, 2, 3, 1)
    _, features = predictor.outputs(list(pictures))
    pairs = zip(pictures, features, strict=True)
    distances = [predictor.calibration.gate.distances(appearance_of(picture), row) for picture, row in pairs]
    return np.array(distances), np.max(np.array(distances) / predictor.calibration.photograph.gate, axis=1)


def parts(content):
    """A file, or everything in it where it is an archive, or an archive in an archive."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return [content]
    archive = zipfile.ZipFile(io.BytesIO(content))
    return [part for name in archive.namelist() for part in parts(archive.read(name))]


def is_pickle(content):
    try:
        return len(list(pickletools.genops(content))) > 1
    except Exception:
        return False


def test_the_search_for_pickles_finds_those_of_torch(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "usual.pt2")
    assert any(is_pickle(part) for part in parts((tmp_path / "usual.pt2").read_bytes()))


def test_onnx_takes_any_batch_by_name_and_holds_its_weights(exported):
    model = onnx.load(exported["onnx"] / "model.onnx", load_external_data=False)
    (images,) = model.graph.input
    shape = [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim]
    assert images.name == "images" and shape == ["batch", 3, 32, 32]
    named = [output.name for output in model.graph.output]
    assert named == ["logits", "probabilities", "gate_score", "gate_distances"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_float_pixels_and_mirror_images(tiny_run, student, tmp_path, pictures, name):
    """A ConvNeXt, and slowly a Swin, whose shifted windows take the exporters a quarter of a minute."""
    checkpoint = student if name == "torch" else tiny_run
    words = (f"--format={name}", "--pixels=float32", "--tta=true", "--calibration=none", "--samples=4")
    assert export(checkpoint, tmp_path / "out", *words) == 0
    predictor = Predictor.from_checkpoint(checkpoint, calibration="none", tta=True)
    logits, _ = predictor.outputs(list(pictures.transpose(0, 2, 3, 1)))
    found = formats.load(file_in(tmp_path / "out"))(np.float32(pictures / 255))
    assert len(found) == 2 and np.abs(found[0] - logits).max() < 1e-4
    said = read_words(file_in(tmp_path / "out"))
    assert said["mirror_images_inside"] and said["temperature"] is None and said["prediction_set"] is None
    assert said["gate"] is None and said["abstain"]["rule"] == "always"


class TestGate:
    """Abstaining without this package."""

    @pytest.mark.slow
    def test_of_mirror_images_is_that_of_classify(self, student, tmp_path, pictures):
        checkpoint = copy_run(student, tmp_path / "run")
        assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage=0.5", "--tta=true"]) == 0
        words = ("--format=torch", "--pixels=float32", "--samples=4")
        assert export(checkpoint, tmp_path / "out", *words) == 0
        found = formats.load(file_in(tmp_path / "out"))(np.float32(pictures / 255))
        assert found[2] == pytest.approx(gated(Predictor.from_checkpoint(checkpoint), pictures)[1], rel=1e-4)

    @pytest.mark.parametrize(
        ("side", "channels", "count"),
        [(16, 3, 30), (32, 3, 30), (50, 3, 30), (224, 3, 30), (48, 1, 30), (32, 3, 800), (32, 1, 400)],
    )
    def test_distances_in_operations_of_a_graph(self, side, channels, count):
        rng = np.random.default_rng(side)
        coarse = rng.integers(0, 256, (count + 10, 9, 9, channels), np.uint8)
        seen = np.stack([cv2.resize(picture, (side, side)).reshape(side, side, channels) for picture in coarse])
        features = rng.gamma(2.0, 1.0, (count + 10, 24)).astype(np.float32)
        appearances = np.stack([appearance_of(picture) for picture in seen])
        gate = fit_gate(appearances[:count], features[:count])
        expected = [gate.distances(*pair) for pair in zip(appearances, features, strict=True)]
        images = torch.from_numpy(np.ascontiguousarray(seen.transpose(0, 3, 1, 2)))
        for given in (images, images / 255):
            found = DeployedGate(gate, side)(given, torch.from_numpy(features)).numpy()
            assert found == pytest.approx(np.array(expected), rel=1e-5)

    def test_colours_are_those_of_opencv_to_the_last_level(self):
        """Two million colours; all 16.7 million agreed when this was written."""
        colours = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)
        gate = fit_gate(np.random.default_rng(1).normal(0, 1, (9, 36)), np.ones((9, 4), np.float32))
        images = torch.from_numpy(colours.transpose(2, 0, 1).copy())[None].float()
        found = DeployedGate(gate, 32).lab(images)[0].numpy().transpose(1, 2, 0)
        assert np.array_equal(found, cv2.cvtColor(colours, cv2.COLOR_RGB2LAB))


@pytest.mark.parametrize(
    ("options", "channels"),
    [pytest.param({"resize": "pad", "store_size": 64}, 3, marks=pytest.mark.slow), ({"upscaler": "none"}, 1)],
)
def test_whole_photographs_are_cropped_by_a_graph(tiny_manifest, tiny_cache, tmp_path, options, channels):
    source = tiny.data(tiny_manifest, tiny_cache, **options, in_chans=channels, sr_max_side=60)
    spec = tiny.BackboneSpec(name="convnext_tiny", image_size=32, in_chans=channels, args=tiny.CONVNEXT)
    checkpoint = make_run(tmp_path / "run", source, tiny.teacher(source, backbone=spec))
    assert export(checkpoint, tmp_path / "out", "--pixels=float32", "--samples=2") == 0
    predictor = Predictor.from_checkpoint(checkpoint)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "crop.onnx")
    for height, width in ((9, 30), (60, 61), (333, 80)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        (_, expected), *_ = predictor.pictures([Photograph(pixels)])
        (found,) = session.run(None, {"photograph": pixels})
        off = np.abs(np.rint(found[0].transpose(1, 2, 0) * 255) - expected)
        assert off.max() <= 1 and off.mean() < 0.05


SUPER_RESOLVED = {"upscaler": "spandrel", "sr_weights": "drawn-specimens-x4", "sr_max_side": 60}


@pytest.fixture(scope="module")
def super_resolved(tiny_manifest, tiny_cache, tmp_path_factory):
    """A tiny network whose crops a network enlarges."""
    source = tiny.data(tiny_manifest, tiny_cache, **SUPER_RESOLVED, store_size=64, resize="pad")
    folder = tmp_path_factory.mktemp("super-resolved")
    return make_run(folder, source, tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC))


def test_where_weights_of_super_resolution_lay_leaves_in_no_file(tiny_manifest, tiny_cache, tmp_path):
    """No folder is named; a published model finds both files where the first is given."""
    place, elsewhere = tmp_path / "Doe_Jane_1961", tmp_path / "elsewhere"
    place.mkdir()
    for seed, name in enumerate(("strong.pth", "weak.pth")):
        torch.manual_seed(seed)
        torch.save({"params": Compact(num_feat=8, num_conv=2, upscale=4).state_dict()}, place / name)
    files = {"sr_weights": str(place / "strong.pth"), "sr_wdn_weights": str(place / "weak.pth"), "sr_denoise": 0.5}
    source = tiny.data(tiny_manifest, tiny_cache, upscaler="spandrel", **files, sr_max_side=60, store_size=40)
    checkpoint = make_run(tmp_path / "run", source, tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC))
    assert export(checkpoint, tmp_path / "export", "--samples=2") == 0
    assert main(["publish", "--ckpt_path", str(checkpoint), "--out", str(tmp_path / "published")]) == 0
    written = [path for name in ("export", "published") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"model.onnx", "model.json", "config.json"}
    assert [path.name for path in written if place.name.encode() in path.read_bytes()] == []
    assert json.loads((tmp_path / "export" / "model.json").read_text())["crop"]["sr_wdn_weights"] == "weak.pth"

    photo = tiny_manifest.parent / "0_0_0.png"
    expected = Predictor.from_checkpoint(checkpoint)(photo)
    place.rename(elsewhere)
    named = {"sr_weights": str(elsewhere / "strong.pth")}
    found = PublishedModel.from_pretrained(str(tmp_path / "published"), **named).predictor(photo)
    assert (found.probabilities == expected.probabilities).all()


@pytest.mark.slow
def test_crops_that_a_network_enlarges_are_enlarged_by_a_graph(super_resolved, tiny_manifest, tmp_path, capsys):
    """The example without torch answers as classify does: by an earlier graph, then the crop's, then the network's."""
    assert export(super_resolved, tmp_path / "onnx", "--samples=2") == 0
    assert "model.onnx, enlarge.onnx, crop.onnx, model.json" in " ".join(capsys.readouterr().out.split())
    assert set(json.loads((tmp_path / "onnx/model.json").read_text())["files"]) == {
        "model.onnx",
        "enlarge.onnx",
        "crop.onnx",
    }
    predictor = Predictor.from_checkpoint(super_resolved)
    steps = [onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx") for name in ("enlarge", "crop")]
    for height, width in ((1, 1), (1, 7), (9, 30), (60, 61), (333, 80)):
        found = pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        (_, expected), *_ = predictor.pictures([Photograph(pixels)])
        for step in steps:
            (found,) = step.run(None, {"photograph": found})
        off = np.abs(found[0].transpose(1, 2, 0).astype(int) - expected)
        assert off.max() <= 1 and off.mean() < 0.01
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes((tiny_manifest.parent / f"{number}_{number}_0.png").read_bytes())
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)).save(folder / "large.png")
    done = example(tmp_path / "onnx", folder)
    assert done.returncode == 0, done.stderr
    assert main(["classify", str(folder), "--ckpt_path", str(super_resolved), "--out", str(tmp_path / "out")]) == 0
    expected = pd.read_csv(tmp_path / "out" / "answers.csv", keep_default_na=False)
    found = pd.read_csv(io.StringIO(done.stdout), keep_default_na=False)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found[["image", "prediction"]].values.tolist() == expected[["image", "prediction"]].values.tolist()
    for column in (name for name in found.columns if name.startswith("prob")):
        assert found[column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"sr_max_side": 60, "sr_consistent": True},
            "its enlarged crops are corrected to agree with what they were made from (sr_consistent)",
        ),
        (
            SUPER_RESOLVED | {"sr_precision": "bfloat16"},
            "its crops are enlarged in bfloat16 (sr_precision), which other programs round otherwise",
        ),
    ],
)
def test_why_crops_have_no_graph(tiny_manifest, tiny_cache, tmp_path, options, reason):
    source = tiny.data(tiny_manifest, tiny_cache, **options)
    checkpoint = make_run(tmp_path / "run", source, tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC))
    assert why_no_crop(Predictor.from_checkpoint(checkpoint)) == reason


@pytest.mark.slow
def test_crops_that_have_no_graph(tiny_manifest, tiny_cache, tmp_path, capsys):
    source = tiny.data(tiny_manifest, tiny_cache, sr_max_side=None)
    checkpoint = make_run(tmp_path / "run", source, tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC))
    out = tmp_path / "out"
    out.mkdir()
    for stale in ("crop.onnx", "enlarge.onnx"):  # of an earlier export, which the example would use
        (out / stale).write_bytes(b"other")
    assert export(checkpoint, out, "--samples=2", "--overwrite=true") == 0
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.json"}
    reason = "its crops are enlarged from any size (sr_max_side null)"
    assert f"There is no crop.onnx: {reason}." in " ".join(capsys.readouterr().out.split())
    done = example(out, tiny_manifest.parent)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "has no crop.onnx" in done.stderr


def test_checkpoint_without_its_run_is_compared_on_drawn_specimens(student, tmp_path, capsys):
    checkpoint = tmp_path / "alone.ckpt"
    checkpoint.write_bytes(student.read_bytes())
    assert export(checkpoint, tmp_path / "out", "--format=torch", "--samples=5") == 0
    assert "5 drawn specimens" in capsys.readouterr().out
    compared = json.loads((tmp_path / "out" / "model.json").read_text())["compared"]
    assert compared["labelled"] == 0 and compared["accuracy"] is None


@pytest.mark.parametrize("harm", ["full", "a file above"])
def test_a_place_that_cannot_be_written_is_named(student, tmp_path, capsys, monkeypatch, harm):
    out = tmp_path / "out"
    if harm == "a file above":
        (tmp_path / "file").write_text("kept")
        out = tmp_path / "file" / "below" / "out"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formats, "traced", full)
    assert main(["export", "--ckpt_path", str(student), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{out}: cannot be written" in error and not out.exists()
    assert not list(tmp_path.glob(".out-*"))


@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_says_what_it_costs(student, tmp_path, capsys, name):
    assert export(student, tmp_path / "out", f"--format={name}", "--int8=true") == 0
    said = capsys.readouterr().out
    assert re.search(r"On 30 labelled photographs: accuracy (\d\.\d\d) \(checkpoint \d\.\d\d\)", said)
    assert re.search(r"same class in \d+%$", said, re.MULTILINE)
    compared = json.loads((tmp_path / "out" / "model.json").read_text())["compared"]
    assert 0 < compared["largest_difference"] < 0.05 and compared["agreement"] > 0.8
    assert 0 <= compared["accuracy"] <= 1 and compared["f1_macro_checkpoint"] is not None
    assert read_words(file_in(tmp_path / "out"))["precision"] == "int8"
    weights = (tmp_path / "out" / ("model.onnx" if name == "onnx" else "model.xml")).read_bytes()
    assert b"MatMulInteger" in weights if name == "onnx" else b'element_type="i8"' in weights


def test_example_without_torch_answers_as_classify(exported, student, tiny_manifest, tmp_path):
    """The same CSV for a folder: the same words, abstaining and why included, and numbers to the sixth digit."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.png").write_bytes((tiny_manifest.parent / f"{number}_{number}_0.png").read_bytes())
    pixels = np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for size, name in (((90, 70), "turned.jpg"), ((900, 700), "more/large.jpg"), ((9, 30), "small.png")):
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(pixels).resize(size).save(folder / name, exif=exif)
    done = example(exported["onnx"], folder)
    assert done.returncode == 0, done.stderr
    assert main(["classify", str(folder), "--ckpt_path", str(student), "--out", str(tmp_path / "out")]) == 0
    expected = pd.read_csv(tmp_path / "out" / "answers.csv", keep_default_na=False)
    found = pd.read_csv(io.StringIO(done.stdout), keep_default_na=False)
    assert found.columns.tolist() == expected.columns.tolist() and len(found) == 8
    assert any("unlike the training photographs" in reasons for reasons in expected["reasons"])
    assert set(expected["prediction_set"]) != {""}
    for column in found.columns:
        if column.startswith(("prob", "gate")):
            assert found[column].to_numpy() == pytest.approx(expected[column].to_numpy(), rel=1e-5)
        else:
            assert found[column].tolist() == expected[column].tolist()


@pytest.mark.slow
def test_example_answers_of_an_uncalibrated_network_too(tiny_run, tiny_manifest, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes((tiny_manifest.parent / f"{number}_{number}_0.png").read_bytes())
    assert export(tiny_run, tmp_path / "onnx", "--samples=2") == 0
    done = example(tmp_path / "onnx", folder)
    assert done.returncode == 0, done.stderr
    assert main(["classify", str(folder), "--ckpt_path", str(tiny_run), "--out", str(tmp_path / "out")]) == 0
    expected = pd.read_csv(tmp_path / "out" / "answers.csv", keep_default_na=False)
    found = pd.read_csv(io.StringIO(done.stdout), keep_default_na=False)
    assert found.columns.tolist() == expected.columns.tolist()
    same = ["image", "prediction", "prediction_set", "abstain", "reasons", "gate_score"]
    assert found[same].values.tolist() == expected[same].values.tolist()


def test_example_answers_for_one_file_and_names_an_empty_folder(exported, tiny_manifest, tmp_path):
    photograph = tiny_manifest.parent / "0_0_0.png"
    done = example(exported["onnx"], photograph)
    assert pd.read_csv(io.StringIO(done.stdout))["image"].tolist() == [str(photograph)], done.stderr
    done = example(exported["onnx"], tmp_path)
    assert done.returncode == 1 and done.stderr == f"{tmp_path} holds no photographs\n"
    done = example(tmp_path, photograph)
    assert done.returncode == 1 and done.stderr.startswith(f"{tmp_path} has no model.onnx; kd-convnext export")


def test_example_is_short():
    text = (REPOSITORY / "docs/examples/onnx_only.py").read_text().partition('"""')[2].partition('"""')[2]
    assert len([line for line in text.splitlines() if line]) <= 50


class TestRefused:
    @pytest.mark.parametrize("forgotten", ["limits", "gate"])
    def test_a_file_that_answers_otherwise_is_not_kept(
        self, student, predictor, tmp_path, capsys, monkeypatch, forgotten
    ):
        traced, own = formats.traced, predictor.calibration
        other = {
            "limits": replace(own, photograph=replace(own.photograph, gate=own.lesion.gate._replace(features=1.0))),
            "gate": None,
        }[forgotten]
        wrong = Deployed(predictor.network.backbone, other)
        monkeypatch.setattr(formats, "traced", lambda network, pixels: traced(wrong, pixels))
        before = set(tmp_path.iterdir())
        assert export(student, tmp_path / "out" / "deep", "--format=torch") == 2
        err = capsys.readouterr().err
        assert "from the checkpoint's" in err and "Nothing was written" in err
        assert not (tmp_path / "out" / "deep").exists()
        assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} <= {"out"}

    def test_missing_package_is_named_before_any_work(self, student, tmp_path, capsys, monkeypatch):
        found = formats.find_spec
        monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "openvino" else found(name))
        assert export(student, tmp_path / "out", "--format=openvino") == 2
        err = capsys.readouterr().err
        assert "openvino" in err and "pip install 'kd-convnext[export]'" in err and len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    def test_options_that_cannot_work(self, student, tmp_path, capsys):
        assert export(student, tmp_path / "out", "--format=torch", "--int8=true", "--samples=0") == 2
        err = capsys.readouterr().err
        assert "--int8" in err and "--samples" in err

    def test_folder_that_is_not_empty(self, student, tmp_path, capsys):
        (tmp_path / "mine.txt").touch()
        assert export(student, tmp_path, "--format=torch") == 2
        assert "--overwrite true" in capsys.readouterr().err
        assert export(student, tmp_path, "--format=torch", "--overwrite=true", "--samples=2") == 0
        assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "model.pt2", "model.json"}
