"""Rewrites ConvNeXt blocks in operators that ONNX Runtime runs faster: the same function, for float32 ONNX files.

timm computes a block's two layers as matrix products over [B, H, W, C]. As convolutions of one pixel they stay in the
layout of the convolution before them, ONNX Runtime adds bias and shortcut inside them, and takes its quicker GELU.
Other formats gain nothing by it, and int8 rounds matrix products only.
"""

import copy

import torch
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from kd_convnext.models.backbones import Backbone


def with_pixel_convolutions(backbone: Backbone) -> Backbone:
    """Rewrites the blocks of a ConvNeXt; networks without them stay as they are.

    Args:
        backbone: In evaluation mode; it is not changed.

    Returns:
        A copy that answers the same, to rounding; ``backbone`` itself where nothing is to be rewritten.
    """
    if not any(_known(module) for module in backbone.modules()):
        return backbone
    rewritten = copy.deepcopy(backbone)
    for module in rewritten.modules():
        if isinstance(module, ConvNeXtBlock) and _known(module):
            _rewrite(module)
    return rewritten


def _known(module: nn.Module) -> bool:
    """Tells whether it is a block whose every part is known: a subclass may compute something else."""
    return (
        type(module) is ConvNeXtBlock
        and not module.use_conv_mlp
        and type(module.norm) is LayerNorm
        and type(module.mlp) is Mlp
        and isinstance(module.mlp.norm, nn.Identity)
    )


@torch.no_grad()
def _rewrite(block: ConvNeXtBlock) -> None:
    given, mlp = block.norm, block.mlp
    norm = LayerNorm2d(given.normalized_shape[0], eps=given.eps, affine=given.weight is not None)
    norm.load_state_dict(given.state_dict())
    mlp.fc1, mlp.fc2 = _convolution(mlp.fc1), _convolution(mlp.fc2)
    if block.gamma is not None:
        # The layer's scale goes into its weights: one pass over the map less.
        mlp.fc2.weight.mul_(block.gamma[:, None, None, None])
        if mlp.fc2.bias is not None:
            mlp.fc2.bias.mul_(block.gamma)
        block.gamma = None
    block.norm, block.use_conv_mlp = norm, True


def _convolution(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Linear)  # of a block that is not made of convolutions yet
    found = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    state = layer.state_dict()
    found.load_state_dict({**state, "weight": state["weight"][:, :, None, None]})
    return found.requires_grad_(False)
