"""Quantises an ONNX file's matrix products to int8 with ONNX Runtime's tools.

The products of a ConvNeXt or a Swin are nearly all matrix products; the convolutions stay in float32. Weights are
rounded channel by channel. What comes in is rounded by its own range (dynamic, for ONNX Runtime), or by the range that
training photographs had (static, for OpenVINO, which reads that form).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_convnext.inference.exporting.deployed import INPUT

_PRODUCTS = ["MatMul", "Gemm"]


def write_dynamic(source: Path, target: Path) -> None:
    """Quantises dynamically, by each input's own range.

    Args:
        source: A float32 ONNX file.
        target: The int8 one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        shaped = _shaped(source, Path(folder))
        quantize_dynamic(shaped, target, op_types_to_quantize=_PRODUCTS, per_channel=True, weight_type=QuantType.QInt8)


def write_static(source: Path, target: Path, images: npt.NDArray[Any]) -> None:
    """Quantises statically, by the ranges measured on photographs.

    Args:
        source: A float32 ONNX file.
        target: The int8 one.
        images: [N, C, S, S], the photographs, in the file's type.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        shaped = _shaped(source, Path(folder))
        quantize_static(
            shaped,
            target,
            _reader([images[place : place + 1] for place in range(len(images))]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _shaped(source: Path, folder: Path) -> Path:
    """Writes the file with all shapes inferred, which the tools want."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    shaped = folder / "shaped.onnx"
    quant_pre_process(source, shaped)
    return shaped


def _reader(batches: Sequence[npt.NDArray[np.generic]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Returns the next photograph."""

        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            """Returns the next one, None after the last."""
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
