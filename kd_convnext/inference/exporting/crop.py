"""Writes ``crop.onnx``, which turns a photograph into the input of the ONNX network beside it.

Where a network enlarges the crops, ``enlarge.onnx`` comes first: a photograph in, its enlarged form out, which
``crop.onnx`` then takes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kd_convnext.data.crops.make import enlarge
from kd_convnext.errors import ExportError, Finding
from kd_convnext.inference.exporting.deployed import INPUT, PixelType
from kd_convnext.inference.exporting.enlarge import enlarging_model, why_not_enlarged
from kd_convnext.inference.predictor import Predictor

if TYPE_CHECKING:
    import onnx

FILE, ENLARGE = "crop.onnx", "enlarge.onnx"
PHOTOGRAPH = "photograph"
"""Input of both: uint8 RGB [H, W, 3], the way a viewer shows it."""

_NOISE = ((70, 90), (23, 40), (700, 900), (512, 384))  # heights and widths of what it is compared on
_NOISE_ENLARGED = ((70, 90), (23, 40), (700, 60))  # a pass of a network on the large ones takes a quarter of a minute
_OTHER_LEVELS = 0.05  # share of pixels that may be one level off; OpenCV before 5 rounds the weights of cubic growth
_ANY_SIDE = 2**31


def why_no_crop(predictor: Predictor) -> str | None:
    """Tells why no crop graph can be exported for a network, None where one can.

    Crops must be enlarged from a limited size, as a whole, and stored as squares not smaller than the input.
    """
    spec, card = predictor.spec, predictor.network.card
    upscaler = card.crop_identity["upscaler"]
    if spec.sr_max_side is None:
        return "its crops are enlarged from any size (sr_max_side null)"
    if spec.store_size is None or spec.store_size < card.image_size:
        return f"its crops are not stored as squares of {card.image_size} px or more (store_size)"
    if spec.sr_consistent:
        return "its enlarged crops are corrected to agree with what they were made from (sr_consistent)"
    if upscaler["precision"] == "bf16":
        return "its crops are enlarged in bfloat16 (sr_precision), which other programs round otherwise"
    return why_not_enlarged(spec, upscaler["architecture"], upscaler["scale"]) if _by_network(predictor) else None


def _by_network(predictor: Predictor) -> bool:
    """Tells whether a network enlarges the crops."""
    return predictor.network.card.crop_identity["upscaler"]["weights_sha256"] is not None


def write_crop(predictor: Predictor, pixels: PixelType, folder: Path) -> list[Path]:
    """Writes the graphs, runs them on pictures of noise, and compares.

    Args:
        predictor: Whose crops are to be made; `why_no_crop` must be None.
        pixels: Type of the network's input.
        folder: Where to.

    Returns:
        The files, in the order they are used.

    Raises:
        ExportError: They make other pictures.
    """
    import onnx
    import onnxruntime

    enlarged = _by_network(predictor)
    models = {ENLARGE: enlarging_model(predictor.spec, PHOTOGRAPH)} if enlarged else {}
    models[FILE] = _model(predictor, pixels)
    for name, model in models.items():
        onnx.checker.check_model(model)
        onnx.save_model(model, folder / name)
    paths = [folder / name for name in models]
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    upscaler, rng = predictor.spec.build_upscaler(), np.random.default_rng(0)
    for height, width in _NOISE_ENLARGED if enlarged else _NOISE:
        found = photograph = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = predictor.picture(enlarge(photograph, predictor.spec, upscaler)).astype(float)
        for session in sessions:
            (found,) = session.run(None, {PHOTOGRAPH: found})
        levels = found[0].transpose(1, 2, 0) * (255.0 if pixels == "float32" else 1.0)
        off = np.abs(np.rint(levels) - expected)
        if off.max() > 1 or off.mean() > _OTHER_LEVELS:
            what = f"{FILE} crops {width} x {height} pixels otherwise (off by {off.mean():.2g} levels in the mean)"
            remedy = "Nothing was written. Choose another --format, and report this."
            raise ExportError(Finding("--format", what, remedy))
    return paths


def _model(predictor: Predictor, pixels: PixelType) -> "onnx.ModelProto":
    from onnx import TensorProto, helper, numpy_helper

    from kd_convnext.inference.exporting.crop_graph import crop

    spec, card = predictor.spec, predictor.network.card
    side = card.image_size
    grey = np.array([[9798, 19235, 3735]]) / 2**15  # OpenCV's fixed point
    enlarged = _by_network(predictor)  # before, by a network: it comes as it is
    constants: dict[str, npt.ArrayLike] = {
        "most": np.int64(_ANY_SIDE if enlarged else spec.sr_max_side or 0),
        "scale": np.int64(1 if enlarged else spec.build_upscaler().identity.scale),
        "side": np.int64(spec.store_size or 0),
        "padded": np.int64(spec.resize == "pad"),
        "size": np.int64(side),
        "channels": np.float32(grey if card.in_chans == 1 else np.eye(3)),
    }
    constants |= {"front": np.zeros(1, np.int64), "range": np.float32(1 if pixels == "uint8" else 255)}
    model: onnx.ModelProto = crop.to_model_proto()  # type: ignore[no-untyped-call]
    graph, kind = model.graph, TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.node.append(helper.make_node("Div", [graph.output[0].name, "range"], ["scaled"]))
    graph.node.append(helper.make_node("Unsqueeze", ["scaled", "front"], ["one"]))
    graph.node.append(helper.make_node("Cast", ["one"], [INPUT], to=kind))
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(PHOTOGRAPH, TensorProto.UINT8, ["height", "width", 3]))
    graph.output.append(helper.make_tensor_value_info(INPUT, kind, [1, card.in_chans, side, side]))
    return model
