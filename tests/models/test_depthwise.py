"""The faster gradient of depthwise convolutions is the gradient, wherever it is used, and nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_convnext.models import depthwise
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.depthwise import DepthwiseConv2d

SMALL = BackboneSpec("convnext_atto", image_size=32, args={"depths": [1, 1, 1, 1], "dims": [4, 8, 16, 24]})


@pytest.fixture(autouse=True)
def _it_pays(monkeypatch):
    monkeypatch.setattr(depthwise, "depthwise_pays", lambda: True)


def gradients(network, images):
    network.zero_grad()
    network(images).square().sum().backward()
    return {name: value.grad.clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize("side", [5, 7])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (6, 11), (24, 24)])
def test_gradients_are_those_of_float64(side, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, side, padding=side // 2, groups=8)
    depthwise.quicken_depthwise(layer)
    assert type(layer) is DepthwiseConv2d
    images = torch.randn(3, 8, *size, requires_grad=True)
    exact = [value.detach().double().requires_grad_() for value in (images, layer.weight, layer.bias)]
    weighing = torch.randn(3, 8, *size)
    found = layer(images)
    assert type(found.grad_fn).__name__ == "_DepthwiseBackward"
    (found * weighing).sum().backward()
    (F.conv2d(*exact, padding=side // 2, groups=8) * weighing).sum().backward()
    for ours, theirs in zip((images, layer.weight, layer.bias), exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)


def test_a_network_learns_the_same(monkeypatch):
    torch.manual_seed(0)
    network, images = build_backbone(SMALL, 5), torch.randn(4, 3, 32, 32)
    assert sum(type(module) is DepthwiseConv2d for module in network.modules()) == 4
    ours = gradients(copy.deepcopy(network), images.contiguous(memory_format=torch.channels_last))
    monkeypatch.setattr(depthwise, "depthwise_pays", lambda: False)
    torch.testing.assert_close(ours, gradients(network, images), rtol=1e-4, atol=1e-4)


def test_only_training_of_weights_in_float32_takes_it():
    layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    depthwise.quicken_depthwise(layer)
    images = torch.randn(2, 8, 9, 9)

    def way(layer, images):
        return type(layer(images).grad_fn).__name__

    assert way(layer, images) == "_DepthwiseBackward"
    assert way(copy.deepcopy(layer).double(), images.double()) == "ConvolutionBackward0"
    with torch.no_grad():
        assert way(layer, images) == "NoneType"
    assert way(copy.deepcopy(layer).eval(), images) == "ConvolutionBackward0"


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_in_mixed_precision_its_gradients_are_those_of_float32(kind):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    plain = copy.deepcopy(layer)
    depthwise.quicken_depthwise(layer)
    images = torch.randn(3, 8, 12, 12).to(kind).requires_grad_()
    wide = images.detach().float().requires_grad_()
    weighing = torch.randn(3, 8, 12, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(images)
    assert found.dtype == torch.bfloat16 and torch.equal(found, plain(wide).bfloat16())
    found.backward(weighing)
    plain(wide).backward(weighing.float())
    assert images.grad.dtype == kind
    torch.testing.assert_close(images.grad, wide.grad.to(kind))
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", [{"stride": 2}, {"kernel_size": 3, "padding": 1}, {"groups": 2}, {"padding": 2}])
def test_other_convolutions_stay(options):
    layer = nn.Conv2d(8, 8, **{"kernel_size": 7, "padding": 3, "groups": 8} | options)
    depthwise.quicken_depthwise(layer)
    assert type(layer) is nn.Conv2d


def test_where_it_does_not_pay_it_is_left(monkeypatch):
    layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    depthwise.quicken_depthwise(layer)
    monkeypatch.setattr(depthwise, "depthwise_pays", lambda: False)
    assert type(layer(torch.randn(2, 8, 9, 9)).grad_fn).__name__ == "ConvolutionBackward0"
