"""The FLOP count against counts by hand (a multiplication and an addition are two)."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.flops import FlopCount, count_flops
from kd_convnext.losses.projectors import Regressors

# name, input channels, output channels, kernel, stride, padding, dilation, groups, and the output's side for 9 px
CONVOLUTIONS = [
    ("plain", 4, 6, 3, 1, 1, 1, 1, 9),
    ("grouped", 4, 6, 3, 1, 1, 1, 2, 9),
    ("depthwise", 6, 6, 7, 1, 3, 1, 6, 9),
    ("strided", 4, 6, 3, 2, 0, 1, 1, 4),
    ("dilated", 4, 6, 3, 1, 0, 2, 1, 5),
]


def _of(run) -> int:
    return count_flops(run).total


@pytest.mark.parametrize(("name", "cin", "cout", "k", "stride", "pad", "dilation", "groups", "side"), CONVOLUTIONS)
def test_convolution(name, cin, cout, k, stride, pad, dilation, groups, side):
    layer = nn.Conv2d(cin, cout, k, stride, pad, dilation, groups)
    batch = 2
    by_hand = 2 * batch * cout * side * side * (cin // groups) * k * k
    image = torch.randn(batch, cin, 9, 9, requires_grad=True)
    result = layer(image)
    assert result.shape == (batch, cout, side, side)
    assert _of(lambda: layer(image)) == by_hand

    def backward(wanted):
        gradients = torch.autograd.grad(result.sum(), wanted, retain_graph=True)
        return len(gradients)

    assert _of(lambda: backward([image])) == by_hand
    assert _of(lambda: backward([layer.weight])) == by_hand
    assert _of(lambda: backward([layer.bias])) == 0
    assert _of(lambda: backward([image, layer.weight, layer.bias])) == 2 * by_hand
    counted = count_flops(lambda: backward([image, layer.weight])).by_operator
    assert counted == {f"convolution{'_grouped' if groups > 1 else ''}_backward": 2 * by_hand}


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups)
    image = torch.randn(2, 4, 5, 5, requires_grad=True)
    by_hand = 2 * 2 * 5 * 5 * 4 * (6 // groups) * 3 * 3
    assert _of(lambda: layer(image)) == by_hand
    result = layer(image).sum()
    for wanted in ([image], [layer.weight]):
        assert _of(lambda wanted=wanted: torch.autograd.grad(result, wanted, retain_graph=True)) == by_hand


def test_one_dimension():
    layer = nn.Conv1d(6, 6, 5, padding=2, groups=6)
    signal = torch.randn(3, 6, 11)
    by_hand = 2 * 3 * 6 * 11 * 5
    result = layer(signal).sum()
    assert _of(lambda: layer(signal)) == by_hand
    assert _of(lambda: result.backward()) == by_hand


def test_torchs_own_count_of_a_depthwise_weight_gradient_is_wrong():
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    result = layer(torch.randn(1, 8, 5, 5)).sum()
    by_hand = 2 * 8 * 5 * 5 * 3 * 3
    with FlopCounterMode(display=False) as mode:
        result.backward(retain_graph=True)
    assert mode.get_total_flops() == 8 * by_hand  # where this fails, torch has mended it: our formula can go
    assert _of(lambda: result.backward()) == by_hand


def test_matrix_products():
    layer = nn.Linear(7, 5)
    rows = torch.randn(3, 4, 7, requires_grad=True)
    by_hand = 2 * 12 * 7 * 5
    assert _of(lambda: layer(rows)) == by_hand
    result = layer(rows).sum()
    assert _of(lambda: result.backward()) == 2 * by_hand
    left, right = torch.randn(3, 4, 7), torch.randn(3, 7, 5)
    assert count_flops(lambda: left @ right).by_operator == {"bmm": 2 * 3 * 4 * 7 * 5}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_attention(masked, learns):
    heads = [torch.randn(2, 3, 10, 8, requires_grad=learns) for _ in range(3)]
    mask = torch.randn(1, 3, 10, 10, requires_grad=learns) if masked else None
    product = 2 * 2 * 3 * 10 * 10 * 8
    result = []

    def forward():
        result.append(F.scaled_dot_product_attention(*heads, attn_mask=mask))

    assert _of(forward) == 2 * product
    if learns:
        found = count_flops(lambda: result[0].sum().backward())
        # Fused: the scores are computed again. A mask that learns is not fused here: they are kept.
        fused = any("attention" in name for name in found.by_operator)
        assert found.total == (5 if fused else 4) * product


def test_total_is_the_sum():
    assert FlopCount({"mm": 3, "bmm": 4}).total == 7


def test_networks_of_the_paper():
    """Per 224 px image; on the meta device, where nothing is computed."""
    with torch.device("meta"):
        teacher = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5).eval()
        student = timm.create_model("convnext_tiny", num_classes=5)
        image = torch.empty(1, 3, 224, 224)
        maps = [torch.empty(1, width, side, side) for width, side in ((96, 56), (192, 28), (384, 14), (768, 7))]
        regressors = Regressors([96, 192, 384, 768], [96, 192, 384, 768])
    with torch.no_grad():
        forward = count_flops(lambda: teacher(image))
    step = count_flops(lambda: student(image).sum().backward())
    learning = [each.requires_grad_() for each in maps]
    mapped = count_flops(lambda: sum(each.sum() for each in regressors(learning, learning)).backward())
    assert forward.total / 1e9 == pytest.approx(8.98, abs=0.01)
    assert step.total / 1e9 == pytest.approx(26.7, abs=0.05)
    assert mapped.total / 1e9 == pytest.approx(0.69, abs=0.01)
