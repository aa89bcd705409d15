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


@pytest.mark.parametrize("size", [(3, 3), (12, 12), (24, 24)])
def test_under_autocast_gradients_are_those_of_the_same_rounded_values(size):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    depthwise.quicken_depthwise(layer)
    images, weighing = torch.randn(16, 8, *size, requires_grad=True), torch.randn(16, 8, *size).bfloat16()
    exact = [value.detach().bfloat16().double().requires_grad_() for value in (images, layer.weight, layer.bias)]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(images)
    assert type(found.grad_fn).__name__ == "_DepthwiseBackward" and found.dtype == torch.bfloat16
    found.backward(weighing)
    F.conv2d(*exact, padding=3, groups=8).backward(weighing.double())
    for ours, theirs in zip((images, layer.weight, layer.bias), exact, strict=True):
        assert ours.grad.dtype == torch.float32
        error = (ours.grad.double() - theirs.grad).square().mean() / theirs.grad.square().mean()
        assert error.sqrt() < 4e-3  # a step of bfloat16 is 2^-8 of a value


def test_only_training_in_float32_or_bfloat16_takes_it():
    layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    depthwise.quicken_depthwise(layer)
    images = torch.randn(2, 8, 9, 9)

    def way(layer, images):
        return type(layer(images).grad_fn).__name__

    assert way(layer, images) == "_DepthwiseBackward"
    assert way(copy.deepcopy(layer).double(), images.double()) == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert way(layer, images) == "_DepthwiseBackward"
        assert way(copy.deepcopy(layer).double(), images.double()) != "_DepthwiseBackward"
    with torch.autocast("cpu", torch.float16):
        assert way(layer, images) != "_DepthwiseBackward"
    with torch.no_grad():
        assert way(layer, images) == "NoneType"
    assert way(copy.deepcopy(layer).eval(), images) == "ConvolutionBackward0"


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
