from collections import Counter

import onnx
import pytest
import torch
from helpers import tiny
from helpers.inference import make_run

from kd_convnext import Predictor
from kd_convnext.cli import main
from kd_convnext.inference.exporting.convnext_blocks import with_pixel_convolutions
from kd_convnext.inference.exporting.formats import load
from kd_convnext.models.backbones import BackboneSpec, build_backbone

REWRITTEN = {
    "ConvNeXt": tiny.CONVNEXT_SPEC,
    "without a scale": BackboneSpec("convnext_tiny", image_size=32, args={**tiny.CONVNEXT, "ls_init_value": None}),
}
UNTOUCHED = {
    "ConvNeXt of convolutions": BackboneSpec("convnext_atto", image_size=32, args=tiny.CONVNEXT),
    "ConvNeXt V2": BackboneSpec("convnextv2_tiny", image_size=32, args=tiny.CONVNEXT),
    "Swin": tiny.SWIN_SPEC,
    "EfficientNetV2": BackboneSpec("tf_efficientnetv2_s", image_size=32),
}


def as_if_trained(network):
    """Gives every parameter and statistic a value of its own; a fresh layer's scale of 1e-6 would hide its block."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("gamma"):
                value.copy_(torch.rand(value.shape, generator=rng) - 0.5)
            elif value.dtype == torch.float32 and value.ndim == 1:
                value.add_(0.3 * torch.rand(value.shape, generator=rng))
    return network


def trained(spec):
    torch.manual_seed(0)
    backbone = build_backbone(spec, 5)
    as_if_trained(backbone.network)
    return backbone.eval().requires_grad_(False)


def picture(count=3):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", REWRITTEN.values(), ids=REWRITTEN)
def test_answers_the_same_and_leaves_the_network_alone(spec):
    backbone = trained(spec)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    expected = backbone(picture())
    rewritten = with_pixel_convolutions(backbone)
    assert (rewritten(picture()) - expected).abs().max() < 1e-5 < expected.std()
    assert not any("gamma" in name for name in rewritten.state_dict())
    assert torch.equal(backbone(picture()), expected)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("spec", UNTOUCHED.values(), ids=UNTOUCHED)
def test_other_networks_stay(spec):
    backbone = trained(spec)
    assert with_pixel_convolutions(backbone) is backbone


def test_onnx_of_a_convnext_has_no_matrix_product_and_no_scale_in_its_blocks(tiny_manifest, tiny_cache, tmp_path):
    source = tiny.data(tiny_manifest, tiny_cache)
    module = tiny.teacher(source, backbone=tiny.CONVNEXT_SPEC)
    as_if_trained(module.backbone.network)
    checkpoint = make_run(tmp_path / "run", source, module)
    words = ["export", "--ckpt_path", str(checkpoint), "--calibration=none", "--samples=4"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Conv"] == 4 + 3 * 4 and kinds["Gelu"] == 4
    assert kinds["MatMul"] == kinds["Mul"] == 0
    logits, _ = Predictor.from_checkpoint(checkpoint).outputs(list(picture().numpy().transpose(0, 2, 3, 1)))
    found = load(tmp_path / "out" / "model.onnx", threads=1)(picture().numpy())
    assert abs(found[0] - logits).max() < 1e-5 < logits.std()
