import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact

from kd_convnext.data.crops.make import enlarge, make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.ncnn import ncnn_installed
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import ConfigError, UpscalerError

SPEC = CropSpec(upscaler="bicubic", store_size=48)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save({"params": Compact(num_feat=4, num_conv=1, upscale=4).state_dict()}, path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 3), (300, 20)])
@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_any_shape_fits(size, resize):
    crop = np.full((*size, 3), 200, np.uint8)
    stored = enlarge(crop, replace(SPEC, resize=resize), SPEC.build_upscaler())
    assert stored.shape == (48, 48, 3)
    assert set(np.unique(stored)) <= ({200} if resize == "stretch" or size == (1, 1) else {0, 200})
    assert stored[23, 23].tolist() == [200, 200, 200]


def test_a_photograph_gives_the_same_crop_as_its_path(tmp_path):
    path, box, upscaler = tmp_path / "photograph.png", Box(2, 3, 20, 30), SPEC.build_upscaler()
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    expected = make_crop(str(path), box, SPEC, upscaler)
    assert np.array_equal(make_crop(read_image(path), box, SPEC, upscaler), expected)


def test_a_specification_travels_as_plain_values(weights):
    spec = replace(SPEC, roi_margin=0.1, sr_weights=str(weights), upscaler="spandrel")
    assert CropSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert CropSpec.from_dict({}) == CropSpec()
    with pytest.raises(ConfigError, match="newer"):
        CropSpec.from_dict({"sharpen": 1})
    identity = json.loads(json.dumps(spec.identity()))
    assert identity["upscaler"] == spec.build_upscaler().identity.to_dict()
    assert identity["upscaler"]["name"] == "spandrel"
    assert len(identity["upscaler"]["weights_sha256"]) == 64


def test_values_that_cannot_work_are_named_together():
    with pytest.raises(ConfigError) as caught:
        CropSpec(roi_margin=-1, sr_max_side=0, store_size=0, resize="fold", upscaler="magic")
    names = [finding.where for finding in caught.value.findings]
    assert names == [f"crops.{name}" for name in ("roi_margin", "sr_max_side", "store_size", "resize", "upscaler")]


def test_auto_takes_the_weights_or_says_that_there_are_none(weights, tmp_path):
    assert CropSpec(sr_weights=str(weights)).resolved().upscaler == ("ncnn" if ncnn_installed() else "spandrel")
    with pytest.warns(UserWarning, match="--sr_weights FILE"):
        assert CropSpec().resolved().upscaler == "bicubic"
    with pytest.raises(UpscalerError, match="needs weights"):
        CropSpec(upscaler="realesrgan").resolved()
    with pytest.raises(UpscalerError, match="there is no file"):
        CropSpec(sr_weights=str(tmp_path / "absent.pth")).resolved()
