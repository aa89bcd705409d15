import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.bad_files import Payload, write_odd_images
from helpers.inference import changed, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_convnext import Predictor
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import CheckpointError, ConfigError, ManifestError, UpscalerError
from kd_convnext.inference.prediction import Failure, Photograph


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return tiny.data(tiny_manifest, tiny_cache)


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor.from_checkpoint(tiny_run)


@pytest.fixture(scope="module")
def photographs(source):
    manifest = source.manifest
    return [Photograph(manifest.image_path(row), manifest.box(row)) for row in range(len(manifest))]


@pytest.fixture(scope="module")
def alone(predictor, photographs):
    return [predictor(photograph.image, photograph.box) for photograph in photographs]


def same(one, other):
    return np.array_equal(one.logits, other.logits) and np.array_equal(one.features, other.features)


def agrees_with_lightning(checkpoint, module, data):
    """The answers of the predictor are those of Lightning's predict on the same rows."""
    trainer = tiny.trainer(checkpoint.parent)
    trainer.predict(module, datamodule=data, ckpt_path=str(checkpoint))
    predictor = Predictor.from_checkpoint(checkpoint)
    manifest, expected = data.manifest, module.evaluation
    asked = (Photograph(manifest.image_path(row), manifest.box(row)) for row in expected.index)
    found = np.stack([answer.probabilities for answer in predictor.predict_many(asked)])
    assert np.abs(found - expected.probabilities).max() < 1e-5
    assert predictor.network.card.class_names == expected.class_names
    return predictor


def test_teacher_answers_as_predict_does(tiny_run, tiny_manifest, tiny_cache):
    data = tiny.data(tiny_manifest, tiny_cache)
    found = agrees_with_lightning(tiny_run, tiny.teacher(data), data)
    assert found.network.info.kind == "TeacherModule"


def test_student_answers_as_predict_does_and_needs_no_teacher(tiny_run, tiny_manifest, tiny_cache, tmp_path):
    teacher = tmp_path / "teacher.ckpt"
    teacher.write_bytes(tiny_run.read_bytes())
    data = tiny.data(tiny_manifest, tiny_cache)
    module = tiny.student(data, teacher)
    checkpoint = make_run(tmp_path / "student", data, module)
    teacher.unlink()
    fresh = tiny.data(tiny_manifest, tiny_cache)
    found = agrees_with_lightning(checkpoint, tiny.student(fresh), fresh)
    assert found.network.info.kind == "DistillModule" and found.network.info.name.startswith("convnext_tiny, altered (")


def test_grey_padded_and_super_resolved_as_in_training(tiny_manifest, tiny_cache, tmp_path):
    options = {"in_chans": 1, "resize": "pad", "roi_margin": 0.2, "upscaler": "spandrel"}
    options["sr_weights"] = "drawn-specimens-x4"
    data = tiny.data(tiny_manifest, tiny_cache, **options)
    spec = tiny.BackboneSpec(name="convnext_tiny", image_size=32, in_chans=1, args=tiny.CONVNEXT)
    module = tiny.teacher(data, backbone=spec)
    checkpoint = make_run(tmp_path, data, module)
    agrees_with_lightning(checkpoint, module, tiny.data(tiny_manifest, tiny_cache, **options))


class TestIndependence:
    def test_one_or_many(self, predictor, photographs, alone):
        together = list(predictor.predict_many(iter(photographs)))
        assert all(same(one, other) for one, other in zip(alone, together, strict=True))

    @settings(max_examples=10, deadline=None)
    @given(order=st.lists(st.integers(0, 59), min_size=1, max_size=20), per_pass=st.sampled_from([1, 4]))
    def test_any_selection_in_any_order(self, predictor, photographs, alone, order, per_pass):
        predictor = Predictor(predictor.network, predictor.spec, predictor._upscaler, per_pass=per_pass)
        together = list(predictor.predict_many([photographs[i] for i in order]))
        for i, answer in zip(order, together, strict=True):
            assert np.abs(answer.logits - alone[i].logits).max() <= (1e-5 if per_pass > 1 else 0.0)
            assert answer.predicted == alone[i].predicted

    def test_failures_in_between_change_nothing(self, tiny_run, photographs, tmp_path):
        predictor = Predictor.from_checkpoint(tiny_run, per_pass=4)
        bad = Photograph(tmp_path / "gone.png")
        mixed = [photographs[0], bad, *photographs[1:6], bad, bad]
        found = list(predictor.predict_many(mixed))
        assert [isinstance(answer, Failure) for answer in found] == [photo is bad for photo in mixed]
        clean = list(predictor.predict_many(photographs[:6]))
        kept = [answer for answer in found if not isinstance(answer, Failure)]
        assert all(same(one, other) for one, other in zip(kept, clean, strict=True))

    def test_lesion_does_not_depend_on_the_order(self, predictor, alone):
        first = predictor.combine(alone[:5], "L")
        again = predictor.combine(alone[4::-1], "L")
        assert np.array_equal(first.probabilities, again.probabilities) and first.photographs == 5
        assert np.allclose(first.probabilities, np.mean([answer.probabilities for answer in alone[:5]], axis=0))


def test_file_array_and_box(predictor, photographs):
    path, box = photographs[0].image, Box(3, 2, 20, 20)
    pixels = read_image(path)
    by_file, by_array = predictor(str(path), box), predictor(pixels, box)
    assert same(by_file, by_array)
    assert same(by_file, predictor(np.ascontiguousarray(pixels[2:22, 3:23])))
    assert not same(by_file, predictor(pixels))
    with pytest.raises(ManifestError, match="does not lie inside"):
        predictor(pixels, Box(30, 0, 20, 20))
    with pytest.raises(ManifestError, match="uint8 RGB"):
        predictor(pixels.astype(np.float32))


def test_mirrored_photographs_are_one_with_tta(tiny_run, photographs):
    predictor = Predictor.from_checkpoint(tiny_run, tta=True)
    pixels = read_image(photographs[0].image)[:32, :32]
    first, mirrored = predictor(pixels), predictor(np.ascontiguousarray(pixels[::-1]))
    assert np.allclose(first.logits, mirrored.logits, atol=1e-5)
    plain = Predictor.from_checkpoint(tiny_run)
    assert not np.allclose(plain(pixels).logits, plain(np.ascontiguousarray(pixels[::-1])).logits, atol=1e-5)


class TestSuperResolutionWeights:
    @pytest.fixture
    def checkpoint(self, tiny_run, tmp_path):
        """A checkpoint that says it was trained on crops of the packaged network, from a file that is gone."""
        data = tiny.data(tiny_run, None, upscaler="spandrel", sr_weights="drawn-specimens-x4")
        crop = data.crop_spec.to_dict() | {"sr_weights": "/nowhere/weights.pth"}
        return changed(tiny_run, tmp_path / "sr.ckpt", crop=crop, crop_identity=data.crop_spec.identity())

    def test_missing_weights_are_asked_for_by_hash(self, checkpoint):
        with pytest.raises(UpscalerError, match=r"--sr_weights FILE with sha256 [0-9a-f]{64}"):
            Predictor.from_checkpoint(checkpoint)

    def test_the_same_weights_elsewhere_will_do(self, checkpoint, tmp_path, photographs):
        packaged = Path(sys.modules["kd_convnext"].__file__).parent / "assets" / "sr_drawn_specimens_x4.safetensors"
        elsewhere = tmp_path / "mine.safetensors"
        elsewhere.write_bytes(packaged.read_bytes())
        first = Predictor.from_checkpoint(checkpoint, sr_weights=str(elsewhere))(photographs[0].image)
        assert same(first, Predictor.from_checkpoint(checkpoint, sr_weights="drawn-specimens-x4")(photographs[0].image))

    def test_other_weights_are_refused(self, checkpoint, tmp_path):
        from safetensors.torch import load_file, save_file

        packaged = Path(sys.modules["kd_convnext"].__file__).parent / "assets" / "sr_drawn_specimens_x4.safetensors"
        state = {name: value * 1.01 for name, value in load_file(packaged).items()}
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(UpscalerError, match="not be those of the training"):
            Predictor.from_checkpoint(checkpoint, sr_weights=str(tmp_path / "other.safetensors"))


class TestCheckpointsThatAreRefused:
    def test_code_in_a_checkpoint_is_never_run(self, tmp_path):
        touched = tmp_path / "touched"
        torch.save({"state_dict": {}, "kd_convnext": Payload(touched)}, tmp_path / "evil.ckpt")
        with pytest.raises(CheckpointError, match="loaded safely"):
            Predictor.from_checkpoint(tmp_path / "evil.ckpt")
        assert not touched.exists()

    def test_missing_foreign_and_damaged(self, tmp_path, tiny_run):
        torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
        (tmp_path / "cut.ckpt").write_bytes(tiny_run.read_bytes()[:5000])
        (tmp_path / "empty.ckpt").write_bytes(b"")
        for name in ("gone", "foreign", "cut", "empty"):
            with pytest.raises(CheckpointError):
                Predictor.from_checkpoint(tmp_path / f"{name}.ckpt")

    def test_without_a_word_about_its_data(self, tmp_path, tiny_run):
        content = torch.load(tiny_run, weights_only=True)
        content["kd_convnext"]["card"] = None
        torch.save(content, tmp_path / "bare.ckpt")
        with pytest.raises(CheckpointError, match="does not say how its photographs were cropped"):
            Predictor.from_checkpoint(tmp_path / "bare.ckpt")

    def test_weights_of_another_network(self, tmp_path, tiny_run):
        content = torch.load(tiny_run, weights_only=True)
        name = next(name for name in content["state_dict"] if "weight" in name)
        del content["state_dict"][name]
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match="do not fit"):
            Predictor.from_checkpoint(tmp_path / "other.ckpt")

    def test_device_that_is_not_there(self, tiny_run):
        with pytest.raises(ConfigError, match="Use cpu"):
            Predictor.from_checkpoint(tiny_run, device="cuda:77")


@pytest.mark.parametrize("fault", [MemoryError, TypeError, ZeroDivisionError])
def test_a_fault_of_the_program_is_no_bad_photograph(predictor, photographs, fault, monkeypatch):
    def broken(*_):
        raise fault

    monkeypatch.setattr("kd_convnext.inference.predictor.enlarge", broken)
    with pytest.raises(fault):
        list(predictor.predict_many(photographs[:2]))


def test_odd_images_are_answered_or_named(predictor, tmp_path):
    good, bad = write_odd_images(tmp_path)
    names = [name for pair in zip(good, [*bad, *bad], strict=False) for name in pair]
    found = list(predictor.predict_many(Photograph(tmp_path / name) for name in names))
    for name, answer in zip(names, found, strict=True):
        assert isinstance(answer, Failure) == (name in bad), name
        if name in bad:
            assert name in answer.finding.where and answer.finding.remedy
        else:
            assert answer.probabilities.sum() == pytest.approx(1)
    turned = np.rot90(np.asarray(Image.open(tmp_path / "turned.jpg").convert("RGB")), -1)
    assert same(found[names.index("turned.jpg")], predictor(np.ascontiguousarray(turned)))


@pytest.mark.slow
def test_an_answer_needs_no_training_packages(tiny_run, photographs):
    code = (
        "import sys\nfrom kd_convnext import Predictor\n"
        f"Predictor.from_checkpoint({str(tiny_run)!r})({str(photographs[0].image)!r})\n"
        "heavy = 'lightning albumentations sklearn scipy torchmetrics pandas matplotlib spandrel'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=True)
    assert found.stdout.strip() == "[]"


def test_no_thread_goes_on_working_after_the_gate_has_looked():
    """OpenBLAS lets its threads turn for a tenth of a second after a product, on cores that the next pass needs."""
    code = (
        "import time\nimport numpy as np\nimport threadpoolctl\nfrom kd_convnext.inference.trust.gate import fit_gate\n"
        "rng = np.random.default_rng(0)\n"
        "features = rng.normal(size=(20_000, 64)).astype(np.float32)\n"
        "gate = fit_gate(rng.normal(size=(50, 36)), features)\n"
        "threadpoolctl.threadpool_limits(2, user_api='blas')\n"
        "time.sleep(0.5)\ngate.distances(rng.normal(size=36), features[0])\n"
        "begun = time.process_time()\ntime.sleep(0.2)\nprint(time.process_time() - begun)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert float(found.stdout) < 0.01
