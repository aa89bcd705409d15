"""The graph that super-resolves makes the pixels of the pipeline; where it cannot, the reason is told."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from spandrel.architectures.ESRGAN import ESRGAN

from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.resize import resize_to
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.inference.exporting.enlarge import enlarging_model, why_not_enlarged


@pytest.fixture(scope="module")
def rrdb(tmp_path_factory):
    torch.manual_seed(0)
    network = ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4)
    path = tmp_path_factory.mktemp("rrdb") / "rrdb.pth"
    torch.save({"params": network.state_dict()}, path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "most", "shape"),
    [("rrdb", 60, (50, 61)), ("rrdb", 512, (7, 9)), ("drawn-specimens-x4", 700, (690, 900))],
)
def test_pixels_are_those_of_the_pipeline(rrdb, weights, most, shape):
    """Reduced first, small, and so large that the pipeline works in tiles."""
    named = {"upscaler": "spandrel", "sr_weights": rrdb if weights == "rrdb" else weights}
    spec = CropSpec(sr_max_side=most, store_size=64, **named)
    model = enlarging_model(spec, "photograph")
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    photograph = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    (found,) = session.run(None, {"photograph": photograph})
    off = np.abs(resize_to(found, 64, 64).astype(int) - enlarge(photograph, spec, spec.build_upscaler()))
    assert max(found.shape) == 4 * min(most, max(shape)) and found.std() > 10
    assert off.max() <= 1 and off.mean() < 0.001


def test_networks_that_have_no_graph():
    assert why_not_enlarged(CropSpec(sr_max_side=512), "ESRGAN", 4) is None
    assert why_not_enlarged(CropSpec(sr_max_side=1024), "Compact", 4) is None
    assert "in tiles" in str(why_not_enlarged(CropSpec(sr_max_side=1024), "ESRGAN", 4))
    assert "folds pixels" in str(why_not_enlarged(CropSpec(sr_max_side=512), "ESRGAN", 2))
