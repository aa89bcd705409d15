import json
import shutil
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.figure_layout import assert_readable
from helpers.inference import copy_run, make_run
from helpers.paths import REPOSITORY
from PIL import Image
from scipy.stats import spearmanr

from kd_convnext.checkpoints.network import load_network
from kd_convnext.cli import main
from kd_convnext.common.figures import as_picture
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import ConfigError
from kd_convnext.inference.explaining.explainer import Explainer, Explanation, NetworkView
from kd_convnext.inference.explaining.figure import explanation_figure
from kd_convnext.inference.explaining.neighbours import Neighbour
from kd_convnext.inference.prediction import Photograph
from kd_convnext.inference.predictor import Predictor
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.heatmaps import (
    Peak,
    evidence,
    explaining_stage,
    heat_maps,
    overlay,
    peak_of,
    place_on,
    spread_over,
)
from kd_convnext.runs.figures import crop_grid
from kd_convnext.tools.demo_fits import CONVNEXT, SWIN
from kd_convnext.training import record as callbacks

ASSETS = files("kd_convnext") / "assets"
SPECS = {
    "convnext": BackboneSpec(
        "convnext_atto",
        image_size=64,
        args=CONVNEXT,
        weights=str(REPOSITORY / "tests/fixtures/demo_convnext.safetensors"),
    ),
    "swin": BackboneSpec(
        "swin_tiny_patch4_window7_224", image_size=64, args=SWIN, weights=str(ASSETS / "demo_swin.safetensors")
    ),
}


@pytest.fixture(scope="module")
def student_run(tiny_run, tiny_manifest, tiny_cache, tmp_path_factory):
    source = tiny.data(tiny_manifest, tiny_cache)
    return make_run(tmp_path_factory.mktemp("student"), source, tiny.student(source, tiny_run))


@pytest.fixture(scope="module")
def drawn():
    """Sixteen drawn lesions as the demo's networks see them, uint8 [16, 3, 64, 64]."""
    import cv2

    from kd_convnext.data.drawn.lesions import draw_lesion, photograph
    from kd_convnext.data.drawn.specimens import class_structure

    pictures = []
    for number in range(16):
        rng = np.random.default_rng([5, number])
        label = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")[number % 5]
        shot = photograph(rng, draw_lesion(rng, class_structure(rng, label)), 320, 240)
        pictures.append(cv2.resize(shot.image[40:200, 80:240], (64, 64), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def network(kind):
    torch.manual_seed(0)
    return build_backbone(SPECS[kind], 5).eval()


# ---- the maps


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("reduction", [8, 32])
def test_evidence_adds_up_to_the_rise_of_the_logit(kind, reduction, drawn):
    backbone, classes = network(kind), torch.arange(16) % 5
    stage = explaining_stage(backbone, reduction)
    sums = evidence(backbone, drawn, classes, stage)
    assert sums.shape == (16, 64 // reduction, 64 // reduction)
    pictures = drawn.float() / 255
    plain = pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures)
    with torch.no_grad():
        rise = (backbone(pictures) - backbone(plain)).gather(1, classes[:, None])[:, 0]
    error = (sums.sum(dim=(1, 2)) - rise).abs().mean() / rise.abs().mean()
    assert error < 0.1
    maps = heat_maps(backbone, drawn, classes, stage)
    assert set(maps.max(axis=(1, 2))) <= {0.0, 1.0} and maps.min() == 0
    assert np.array_equal(maps > 0, sums.numpy() > 0)


@pytest.mark.parametrize("kind", SPECS)
def test_evidence_lies_where_the_picture_differs_from_plain_colour(kind):
    """The layout of the stage's output is right: what is drawn in a corner is found in that corner."""
    backbone = network(kind)
    pictures = torch.full((1, 3, 64, 64), 120, dtype=torch.uint8)
    pictures[:, :, 44:60, 4:20] = torch.randint(0, 255, (3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    for reduction in (4, 8):
        sums = evidence(backbone, pictures, torch.tensor([0]), explaining_stage(backbone, reduction))[0].abs()
        cells = 64 // reduction
        row, column = divmod(int(sums.argmax()), cells)
        assert row >= cells // 2 > column
        assert sums[cells // 2 :, : cells // 2].sum() > 0.5 * sums.sum()


@pytest.mark.parametrize("kind", SPECS)
def test_a_map_is_of_its_picture_and_its_class(kind, drawn):
    backbone, stage = network(kind), explaining_stage(network(kind))
    together = heat_maps(backbone, drawn[:6], torch.zeros(6, dtype=torch.int64), stage)
    alone = heat_maps(backbone, drawn[3:4], torch.zeros(1, dtype=torch.int64), stage)
    assert np.allclose(together[3], alone[0], atol=1e-3)
    other = heat_maps(backbone, drawn[:6], torch.ones(6, dtype=torch.int64), stage)
    assert np.abs(together - other).mean() > 0.02


@pytest.mark.parametrize("kind", SPECS)
def test_maps_change_when_weights_are_randomised(kind, drawn):
    """Sanity checks for saliency maps (Adebayo et al. 2018): what survives random weights explains nothing."""
    trained = network(kind)
    torch.manual_seed(1)
    random = build_backbone(BackboneSpec(SPECS[kind].name, image_size=64, args=SPECS[kind].args), 5).eval()
    random.network.get_classifier().load_state_dict(trained.network.get_classifier().state_dict())
    stage, classes = explaining_stage(trained), torch.arange(16) % 5
    pairs = zip(heat_maps(trained, drawn, classes, stage), heat_maps(random, drawn, classes, stage), strict=True)
    alike = [spearmanr(one.ravel(), other.ravel()).statistic for one, other in pairs]
    assert abs(np.nanmean(alike)) < 0.35
    again = heat_maps(trained, drawn, classes, stage)
    assert np.array_equal(again, heat_maps(trained, drawn, classes, stage))


def test_inside_inference_mode(drawn):
    backbone, classes = network("convnext"), torch.arange(16) % 5
    outside = heat_maps(backbone, drawn, classes, explaining_stage(backbone))
    with torch.inference_mode():
        inside = heat_maps(backbone, drawn + 0, classes, explaining_stage(backbone))
    assert np.array_equal(inside, outside)


def test_the_deepest_map_with_seven_cells_is_shown():
    small = network("swin")
    assert explaining_stage(small).reduction == 8
    large = build_backbone(BackboneSpec("convnext_atto", image_size=224, args=CONVNEXT), 5)
    assert explaining_stage(large).reduction == 32
    with pytest.raises(ConfigError, match="known: 4, 8, 16, 32"):
        explaining_stage(small, 64)


def test_nothing_speaks_for_a_class():
    assert peak_of(np.zeros((7, 7), np.float32)) is None
    grey = overlay(np.full((5, 6, 3), 90, np.uint8), np.zeros((5, 6), np.float32))
    assert np.array_equal(grey, np.full((5, 6, 3), 90, np.uint8))


# ---- places


def test_a_peak_lies_in_the_middle_of_its_cell():
    heat = np.zeros((4, 4), np.float32)
    heat[1, 3] = 1
    assert peak_of(heat) == Peak(0.875, 0.375)
    spread = spread_over(heat, 40, 80, padded=False)
    row, column = np.unravel_index(spread.argmax(), spread.shape)
    assert (column // 20, row // 10) == (3, 1)


def test_of_a_padded_square_the_crop_is_cut_out():
    heat = np.zeros((4, 4), np.float32)
    heat[1, 3] = 1
    spread = spread_over(heat, 20, 40, padded=True)
    assert spread.shape == (20, 40)
    row, column = np.unravel_index(spread.argmax(), spread.shape)
    assert column >= 30 and row < 10
    # The square has 40 rows, of which the crop has the 20 in the middle: row 15 of 40 is row 5 of 20.
    assert place_on(Peak(0.875, 0.375), 20, 40, padded=True) == Peak(0.875, 0.25)
    assert place_on(Peak(0.5, 0.05), 20, 40, padded=True).y == 0


def test_titles_of_long_names_stay_apart():
    crop, label = np.full((30, 60, 3), 90, np.uint8), "Adenocarcinoma, lepidic & acinar"
    network = "swin_tiny_patch4_window7_224, altered (embed_dim 16, depths 1-1-1-1, num_heads 1-2-2-4)"
    view = NetworkView(network, "0", "stages.3", np.ones((1, 1)), np.array([0.4, 0.6]), label, (12, 8), crop)
    case = Neighbour("b.jpg", None, "L", label, 0.93, crop)
    name = Photograph(Path("2024-11-02_ward-7_specimen_photograph_0001_left_lower_lobe.jpg"))
    for views, cases in (((view,), ()), ((view, view), (case,) * 5)):
        figure = explanation_figure(Explanation(name, label, Box(0, 0, 60, 30), crop, views, cases))
        assert_readable(figure)
        assert f"Evidence for {label}" in " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("shade", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_cross_is_seen_on_every_colour_of_the_map(shade):
    colour = np.round(255 * np.array(matplotlib.colormaps["inferno"](shade)[:3])).astype(np.uint8)
    crop, name = np.broadcast_to(colour, (40, 40, 3)), Photograph(Path("a.png"))
    pictures = []
    for peak in ((20, 20), None):
        view = NetworkView("a", "0", "stages.3", np.ones((1, 1)), np.array([0.9, 0.1]), "A", peak, crop)
        pictures.append(as_picture(explanation_figure(Explanation(name, "A", Box(0, 0, 40, 40), crop, (view,), ()))))
    cross = pictures[0][(pictures[0] != pictures[1]).any(axis=2)]
    there, ground = luminance(cross) + 0.05, luminance(colour) + 0.05
    contrast = np.maximum(there, ground) / np.minimum(there, ground)
    assert (contrast > 4.5).sum() > 30  # what text needs by WCAG 2


def luminance(colours):
    """Relative luminance of sRGB colours (WCAG 2)."""
    shares = colours / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


# ---- the tool


def run(words):
    return main(["explain", *map(str, words)])


# ---- the tool


def test_student_teacher_and_training_cases(student_run, tiny_run, tiny_manifest, tmp_path, capsys):
    out, rows = tmp_path / "explained", tiny_manifest.read_text().splitlines()
    few = tiny_manifest.parent / "few.csv"
    few.write_text("\n".join([rows[0], *rows[1::12]]) + "\n")
    words = [few, "--ckpt_path", student_run, "--teacher_ckpt", tiny_run, "--out", out]
    assert run(words) == 0
    assert "training photographs once" in capsys.readouterr().out
    found = json.loads((out / "explanations.json").read_text())
    assert len(found["explanations"]) == 5
    for entry in found["explanations"]:
        assert (out / entry["figure"]).is_file()
        student, teacher = entry["networks"]
        # Both were made smaller than the networks of these names.
        assert student["model"] == "convnext_tiny, altered (depths 1-1-1-1, dims 8-16-16-24)"
        assert teacher["model"].startswith("swin_tiny_patch4_window7_224, altered (embed_dim 16, depths 1-1-1-1, ")
        assert entry["explained_class"] == student["predicted"]
        assert np.shape(student["map"]) == np.shape(teacher["map"]) == (8, 8)
        assert entry["region"] == {"x": 2, "y": 1, "width": 36, "height": 34}
        for view in (student, teacher):
            if view["peak"] is not None:
                assert 2 <= view["peak"]["x"] < 38 and 1 <= view["peak"]["y"] < 35
        lesions = [case["lesion_id"] for case in entry["neighbours"]]
        assert len(set(lesions)) == 3
        similar = [case["similarity"] for case in entry["neighbours"]]
        assert similar == sorted(similar, reverse=True) and similar[0] <= 1.0001
    split = {row.split(",")[0]: row.strip().split(",")[-1] for row in (student_run.parent.parent / "split.csv").open()}
    for entry in found["explanations"]:
        assert {split[case["image"]] for case in entry["neighbours"]} == {"train"}
        if split[entry["image"]] == "train":  # nothing is more alike than itself
            assert entry["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    with Image.open(out / found["explanations"][0]["figure"]) as figure:
        assert figure.width > 600
    one = tiny_manifest.parent / "0_0_0.png"
    assert run([one, "--ckpt_path", student_run, "--out", tmp_path / "again", "--target", "MIA"]) == 0
    printed = capsys.readouterr().out
    assert "training photographs once" not in printed  # kept beside the checkpoint
    assert "evidence for MIA" in printed
    (kept,) = student_run.parent.glob("*.safetensors")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert run([one, "--ckpt_path", student_run, "--out", tmp_path / "third"]) == 0
    assert "training photographs once" in capsys.readouterr().out  # one bit is another: made again


def test_training_cases_of_a_table_with_other_columns(student_run, tiny_manifest, tmp_path, capsys):
    table = tiny_manifest.parent / "renamed.csv"
    table.write_text(tiny_manifest.read_text().replace("image,label", "file,dx", 1))
    photo = tiny_manifest.parent / "1_0_0.png"
    words = [photo, "--ckpt_path", student_run, "--out", tmp_path / "out", "--manifest", table]
    assert run(words) == 2
    assert 'give --manifest_columns "image=file,label=dx". ' in capsys.readouterr().err
    assert run([*words, "--manifest_columns", "image=file,label=dx"]) == 0
    (entry,) = json.loads((tmp_path / "out" / "explanations.json").read_text())["explanations"]
    assert len(entry["neighbours"]) == 3
    table.unlink()


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("image=gone", "--manifest_columns"),
        ("picture=file", "--manifest_columns: 'picture=file' names no column. Write OURS=THEIRS"),
    ],
)
def test_columns_that_are_given_and_wrong_are_refused(columns, told, student_run, tiny_manifest, tmp_path, capsys):
    photo = tiny_manifest.parent / "1_0_0.png"
    words = [photo, "--ckpt_path", student_run, "--out", tmp_path / "out", "--manifest_columns", columns]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert told in said and "warning: no training cases" not in said
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_without_the_training_photographs_a_line_says_so(student_run, tiny_manifest, tmp_path, capsys):
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(student_run.read_bytes())
    photo = tiny_manifest.parent / "1_0_0.png"
    assert run([photo, "--ckpt_path", moved, "--out", tmp_path / "out"]) == 0
    assert "no training cases" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "out" / "explanations.json").read_text())["explanations"]
    assert entry["neighbours"] == [] and len(entry["networks"]) == 1
    assert entry["region"] == {"x": 0, "y": 0, "width": 40, "height": 36}
    assert run([photo, "--ckpt_path", moved, "--out", tmp_path / "two", "--neighbours", 2]) == 2
    assert "--manifest" in capsys.readouterr().err


def test_a_broken_photograph_stops_no_other(tiny_run, tiny_manifest, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    long = tmp_path / f"{'ü' * 123}.png"  # 250 bytes, of which a figure's longer name has not all
    shutil.copy(tiny_manifest.parent / "2_0_0.png", long)
    words = [broken, long, "--ckpt_path", tiny_run, "--neighbours", 0]
    assert run([*words, "--out", tmp_path / "out"]) == 2
    printed = capsys.readouterr()
    assert "broken.png" in printed.err and "1 photograph explained, 1 not" in printed.out
    (figure,) = (tmp_path / "out").glob("*.png")
    assert figure.name == f"0001_{'ü' * 60}.png"
    assert json.loads((tmp_path / "out/explanations.json").read_text())["explanations"][0]["figure"] == figure.name
    assert run([*words, "--out", tmp_path / "out"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*words, "--out", tmp_path / "out", "--overwrite", "true", "--on_error", "skip"]) == 0


def test_what_cannot_be_explained_is_named(tiny_run, tmp_path):
    predictor, teacher = Predictor.from_checkpoint(tiny_run), load_network(tiny_run)
    teacher.card = type(teacher.card)(**{**vars(teacher.card), "class_names": ("a", "b", "c", "d", "e")})
    with pytest.raises(ConfigError) as error:
        Explainer(predictor, teacher, target="AIS?")
    assert {finding.where for finding in error.value.findings} == {"--target", "--teacher_ckpt"}


def test_what_cannot_be_explained_is_refused_before_the_training_photographs_are_seen(
    tiny_run, tiny_manifest, tmp_path, capsys
):
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    photo = tiny_manifest.parent / "0_0_0.png"
    words = [photo, "--ckpt_path", checkpoint, "--out", tmp_path / "out", "--target", "AIS?"]
    assert run(words) == 2
    printed = capsys.readouterr()
    assert "--target: 'AIS?' is no class" in printed.err and "training photographs once" not in printed.out
    assert not [*checkpoint.parent.glob("*.safetensors")]


def test_a_padded_crop_keeps_its_shape(tiny_manifest, tmp_path):
    source = tiny.data(tiny_manifest, str(tmp_path / "cache"), resize="pad")
    predictor = Predictor.from_checkpoint(make_run(tmp_path, source, tiny.teacher(source)))
    pixels = np.random.default_rng(0).integers(0, 255, (30, 60, 3), dtype=np.uint8)
    (found,) = Explainer(predictor)([Photograph(pixels)])
    assert found.views[0].picture.shape == (30, 60, 3)
    peak = found.views[0].peak
    assert peak is None or (0 <= peak[0] < 60 and 0 <= peak[1] < 30)


# ---- do the maps point?


@pytest.mark.slow
def test_on_drawn_specimens_the_maps_fall_on_the_tumour(tmp_path):
    """Pointing game (Zhang et al. 2018) on lesions drawn anew, whose tumours are known pixel by pixel."""
    from kd_convnext.data.drawn.lesions import draw_lesion, photograph
    from kd_convnext.data.drawn.specimens import class_structure, draw_specimens
    from kd_convnext.data.manifest.boxes import Box
    from kd_convnext.data.manifest.manifest import PAPER_CLASSES

    counts = dict(zip(PAPER_CLASSES, (24, 40, 24, 24, 32), strict=True))
    manifest = draw_specimens(tmp_path / "specimens", seed=0, lesions_per_class=counts, progress=False)
    sizes = {"image_size": 64, "store_size": 96, "batch_size": 16}
    source = tiny.data(manifest, str(tmp_path / "cache"), **sizes)
    runs = {
        kind: make_run(tmp_path / kind, source, tiny.teacher(source, backbone=spec), epochs=8)
        for kind, spec in SPECS.items()
    }
    photographs, tumours = [], []
    for number in range(100):
        rng = np.random.default_rng([777, number])
        label = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")[number % 5]
        shot = photograph(rng, draw_lesion(rng, class_structure(rng, label)), 320, 240)
        rows, columns = np.nonzero(shot.tumour)
        box = Box(int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        photographs.append(Photograph(shot.image, box))
        tumours.append(shot.tumour)
    explainer = Explainer(Predictor.from_checkpoint(runs["convnext"]), load_network(runs["swin"]))
    hits, areas = [], []
    for found, tumour in zip(explainer(photographs), tumours, strict=True):
        region = found.region
        areas.append(tumour[region.y : region.y + region.height, region.x : region.x + region.width].mean())
        peaks = [view.peak for view in found.views]
        hits.append([peak is not None and tumour[peak[1], peak[0]] for peak in peaks])
    student_rate, teacher_rate = np.mean(hits, axis=0)
    print(f"pointing: student {student_rate:.2f}, teacher {teacher_rate:.2f}, chance {np.mean(areas):.2f}")
    assert 0.65 < np.mean(areas) < 0.78
    assert student_rate >= 0.9
    assert teacher_rate >= 0.82


@pytest.mark.slow
def test_record_of_a_test_shows_the_teacher_beside_the_student(
    tiny_run, tiny_manifest, tiny_cache, tmp_path, monkeypatch
):
    """While its file is there; the test itself never needs it."""
    shown = []
    monkeypatch.setattr(callbacks, "crop_grid", lambda *given: shown.append(given) or crop_grid(*given))
    source = tiny.data(tiny_manifest, tiny_cache)
    teacher = tmp_path / "teacher.ckpt"
    teacher.write_bytes(tiny_run.read_bytes())
    record = callbacks.RunRecord(max_pictures=0, heat_maps=2)
    for content in (tiny_run.read_bytes(), b"damaged", None):
        teacher.unlink()
        if content is not None:
            teacher.write_bytes(content)
        trainer = tiny.trainer(tmp_path, callbacks=[record])
        trainer.test(tiny.student(source, teacher), datamodule=source, verbose=False)
    (pictures, titles, together, caption), *others = shown
    assert caption.startswith("Evidence for the predicted class") and "Test part, judged per photograph" in caption
    assert together == 2 and len(pictures) == 4
    for own, other in (titles[:2], titles[2:]):
        assert other == f"teacher, {own.split(' (')[0]}"
    assert all(picture.shape == (40, 40, 3) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    for pictures_alone, _, together, _ in others:
        assert together == 1 and np.array_equal(pictures_alone, pictures[::2])
    assert len(others) == 2 and (tmp_path / "figures" / "heat_maps.png").is_file()
