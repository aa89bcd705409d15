"""Files that people have in place of weights are recognised, and nothing advises to load objects."""

import argparse

import pytest
import torch
from torch import nn

from kd_convnext.checkpoints.format import read_checkpoint
from kd_convnext.data.crops.upscaling.weights import locate
from kd_convnext.errors import KDConvNeXtError
from kd_convnext.models.weights import load_weights

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 67040989\n"
PAGE = "<!DOCTYPE html><title>404</title>"


def readers(path):
    return [
        lambda: load_weights(nn.Linear(1, 1), str(path), in_chans=3),
        lambda: read_checkpoint(path),
        lambda: locate(str(path)),
    ]


@pytest.mark.parametrize(("content", "told"), [(POINTER, "Git LFS pointer"), (PAGE, "web page"), ("", "is empty")])
@pytest.mark.parametrize("reader", range(3))
def test_they_are_recognised(reader, content, told, tmp_path):
    path = tmp_path / "x4plus.pth"
    path.write_text(content)
    with pytest.raises(KDConvNeXtError, match=told):
        readers(path)[reader]()


@pytest.mark.parametrize("reader", range(2))
def test_objects_beside_weights_are_said_without_bad_advice(reader, tmp_path):
    path = tmp_path / "timm.pth"
    torch.save({"state_dict": nn.Linear(1, 1).state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(KDConvNeXtError, match="holds") as caught:
        readers(path)[reader]()
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)
