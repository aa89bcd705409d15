"""Reasons for abstaining are the true ones, promises are of what they are made for, and strange regions are named."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.inference import copy_run

from kd_convnext.cli import main
from kd_convnext.data.loading.card import regions_of
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.inference.answer_files import _calibration
from kd_convnext.inference.inputs import region_warnings
from kd_convnext.inference.prediction import Photograph
from kd_convnext.inference.trust.calibration import Calibration, Level
from kd_convnext.inference.trust.gate import Distances
from kd_convnext.inference.trust.prediction_sets import ClassThresholds

NAMES = ("a", "b", "c")
PASSES = Distances(0.0, 0.0, 0.0)


def calibration(*values, merged=(), guaranteed=None):
    promised = guaranteed or tuple(np.isfinite(values).tolist())
    classes = ClassThresholds(NAMES, values, (20, 20, 2), promised, merged)
    level = Level(classes, Distances(1.0, 1.0, 1.0))
    return Calibration("0" * 64, NAMES, 1.0, False, 0.9, "include", 0.05, level, level, gate=None)


@pytest.mark.parametrize(
    ("values", "probabilities", "said"),
    [
        ((0.5, 0.5, 0.5), (0.9, 0.05, 0.05), None),
        ((0.6, 0.6, 0.5), (0.48, 0.47, 0.05), "2 classes cannot be ruled out at 90% coverage"),
        ((0.1, 0.1, 0.1), (0.4, 0.3, 0.3), "no class is plausible"),
        ((0.5, 0.5, np.inf), (0.9, 0.05, 0.05), "too few lesions to calibrate on: c can never be ruled out"),
        ((0.1, 0.1, np.inf), (0.4, 0.3, 0.3), "too few lesions to calibrate on: c can never be ruled out"),
        ((np.inf, np.inf, np.inf), (0.9, 0.05, 0.05), "too few lesions to calibrate on: a, b, c"),
        ((0.6, 0.6, np.inf), (0.48, 0.47, 0.05), "2 classes cannot be ruled out"),
    ],
)
def test_why_it_abstains(values, probabilities, said):
    made = calibration(*values)
    found = made.decide(made.lesion, np.array(probabilities), PASSES)
    assert found.abstain == (said is not None)
    assert not found.reasons if said is None else (len(found.reasons) == 1 and said in found.reasons[0])


def test_a_merger_is_promised_as_one():
    told = _calibration(calibration(0.5, 0.5, 0.5, merged=(("b", "c"),)))
    assert told["guaranteed"] == {"a": True, "b": False, "c": False}
    assert told["guaranteed_together"] == [["b", "c"]]
    assert _calibration(calibration(0.5, 0.5, 0.5))["guaranteed_together"] == []


def test_regions_of_a_training():
    table = pd.DataFrame({"width": [100.0, 40.0, np.nan], "height": [50.0, 80.0, np.nan]})
    found = regions_of(table)
    assert found["share"] == pytest.approx(2 / 3) and 80 <= found["smallest"] <= found["largest"] <= 100
    assert regions_of(table.iloc[2:]) == {"share": 0.0} and regions_of(table.iloc[:0]) == {}


def photographs(*boxes):
    pixels = np.zeros((10, 10, 3), np.uint8)
    return [Photograph(pixels, box) for box in boxes]


def test_strange_regions_are_named():
    card = SimpleNamespace(regions={"share": 1.0, "smallest": 80.0, "largest": 300.0})
    assert region_warnings(card, photographs(Box(0, 0, 100, 90), Box(0, 0, 250, 10))) == []
    assert "judged whole" in region_warnings(card, photographs(None))[0]
    (said,) = region_warnings(card, photographs(Box(0, 0, 10, 10), Box(0, 0, 2000, 10), Box(0, 0, 100, 90)))
    assert said.startswith("2 regions far larger or smaller")
    nothing_known = SimpleNamespace(regions={})
    assert region_warnings(nothing_known, photographs(None)) == []


def test_classify_warns(tiny_run, tiny_manifest, tmp_path, capsys):
    checkpoint = copy_run(tiny_run, tmp_path / "run")
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    words = ["classify", photo, "--ckpt_path", str(checkpoint), "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert "judged whole" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "tiny"), "--box", "2,2,5,5"]) == 0
    assert "far larger or smaller" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "box"), "--box", "2,1,36,34"]) == 0
    assert "warning: 1" not in capsys.readouterr().err
