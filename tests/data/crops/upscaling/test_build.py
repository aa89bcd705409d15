"""An upscaler that needs no weights is built by its name alone: a new one needs no change elsewhere."""

from typing import get_args

import pytest

from kd_convnext.data.crops import spec as module
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS, NoUpscaler, UpscalerName


def test_a_new_upscaler_needs_its_name_and_a_branch(monkeypatch):
    asked = []

    def build(name, weights, **options):
        asked.append((name, weights))
        return NoUpscaler()

    monkeypatch.setattr(module, "_UPSCALERS", (*module._UPSCALERS, "nearest"))
    monkeypatch.setattr(module, "build_upscaler", build)
    assert CropSpec(upscaler="nearest", store_size=40).identity()["upscaler"]["name"] == "none"
    assert asked == [("nearest", None)]


@pytest.mark.parametrize("name", [name for name in get_args(UpscalerName) if name not in NETWORKS])
def test_those_without_weights_are_built_without(name):
    assert CropSpec(upscaler=name).build_upscaler().identity.name == name
