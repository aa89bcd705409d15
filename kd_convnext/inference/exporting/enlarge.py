"""Writes super-resolution as an ONNX graph: a whole photograph in, its enlarged form out."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.real_esrgan import load_network
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET
from kd_convnext.data.crops.upscaling.weights import locate
from kd_convnext.inference.exporting.formats import OPSET, nameless, quiet

if TYPE_CHECKING:
    import onnx

_LEVELS, _ENLARGED = "levels", "enlarged"


def why_not_enlarged(spec: CropSpec, architecture: str, scale: int) -> str | None:
    """Tells why super-resolution cannot be exported, None where it can.

    Args:
        spec: How crops are enlarged.
        architecture: Of the network, as its identity says.
        scale: Of the network.
    """
    if architecture == "Compact" or spec.sr_max_side is None:
        return None
    if scale != 4:
        return f"its crops are enlarged by a network that folds pixels first ({architecture}, {scale} times)"
    if spec.sr_max_side**2 > PIXEL_BUDGET:
        return f"its crops are enlarged in tiles that one pass does not repeat ({architecture}, sr_max_side above 512)"
    return None


def enlarging_model(spec: CropSpec, photograph: str) -> "onnx.ModelProto":
    """Builds the graph: reduces a photograph to ``sr_max_side`` and runs the network on all of it at once.

    Args:
        spec: Resolved; `why_not_enlarged` must be None.
        photograph: Name of the input, uint8 RGB [height, width, 3]; the output is of the same form.

    Returns:
        The graph.
    """
    from onnx import TensorProto, compose, helper, numpy_helper

    from kd_convnext.inference.exporting.crop_graph import reduce

    weights, *weak = (locate(name) for name in spec.weights())
    strength = 1.0 if spec.sr_denoise is None else spec.sr_denoise
    network = _network_model(load_network(weights, weak[0] if weak else None, strength).descriptor.model)
    first: onnx.ModelProto = reduce.to_model_proto()  # type: ignore[no-untyped-call]
    first.graph.initializer.append(numpy_helper.from_array(np.asarray(spec.sr_max_side, np.int64), "most"))
    del first.graph.input[:]
    first.graph.input.append(helper.make_tensor_value_info(photograph, TensorProto.UINT8, ["height", "width", 3]))
    first.ir_version = network.ir_version
    joined = [(first.graph.output[0].name, _LEVELS)]
    model: onnx.ModelProto = compose.merge_models(first, network, io_map=joined)
    return nameless(model)


class _Levels(nn.Module):
    """Runs a network on levels 0..255, float32 [1, 3, h, w]; returns uint8 [h * scale, w * scale, 3]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, levels: Tensor) -> Tensor:
        found: Tensor = self.network(levels / 255).clamp(0, 1) * 255
        return found.round().to(torch.uint8)[0].permute(1, 2, 0)


def _network_model(network: nn.Module) -> "onnx.ModelProto":
    sides = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with torch.no_grad(), quiet():
        program = torch.export.export(
            _Levels(network).eval(), (torch.zeros(1, 3, 24, 32),), dynamic_shapes=(sides,), strict=False
        )
        made = torch.onnx.export(
            program, input_names=[_LEVELS], output_names=[_ENLARGED], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert made is not None  # only the old exporter, which writes a file at once, returns nothing
    model: onnx.ModelProto = made.model_proto
    return model
