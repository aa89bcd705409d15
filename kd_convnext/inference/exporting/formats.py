"""Writes and runs the three exported file formats: ONNX, OpenVINO, torch."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from kd_convnext.common.files import atomic_write
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.inference.exporting.deployed import INPUT, KEY, OUTPUTS, Deployed, PixelType, Words

if TYPE_CHECKING:
    import onnx

Format = Literal["onnx", "openvino", "torch"]
Runner = Callable[[npt.NDArray[Any]], tuple[npt.NDArray[np.float32], ...]]
"""Takes [B, C, S, S] in the file's type, gives what `Deployed` does."""

FILES: dict[Format, tuple[str, ...]] = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torch": (".pt2",)}
"""Endings of what each format writes; the first one is what is loaded."""

_ONNX = ("onnx", "onnxscript", "onnxruntime")
NEEDED: dict[Format, tuple[str, ...]] = {"onnx": _ONNX, "openvino": (*_ONNX, "openvino"), "torch": ()}
OPSET = 20
"""Of ONNX: the first one with GELU as one operator; onnxruntime 1.17, OpenVINO 2024.0 and newer read it."""


def check_packages(format: Format) -> None:
    """Refuses to start where a package is missing.

    Raises:
        ConfigError: It names the packages and how to get them.
    """
    missing = [name for name in NEEDED[format] if find_spec(name) is None]
    if missing:
        what = f"{format} needs {', '.join(missing)}, not installed here"
        remedy = "Run pip install 'kd-convnext[export]', or choose --format torch."
        raise ConfigError(Finding("--format", what, remedy))


def traced(network: Deployed, pixels: PixelType) -> torch.export.ExportedProgram:
    """Exports a network as an ONNX graph for any number of images, without paths of this machine.

    Args:
        network: In evaluation mode, on the CPU.
        pixels: Type of its input.
    """
    backbone = network.backbone
    shape = (2, backbone.in_chans, backbone.image_size, backbone.image_size)
    example = torch.zeros(shape, dtype=getattr(torch, pixels))
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the source files
    return program


def write_torch(program: torch.export.ExportedProgram, words: Words, path: Path) -> None:
    """Writes a ``.pt2`` archive.

    ``torch.export.save`` pickles one thing only, the example input; without it there is no pickle in the archive: the
    graph is JSON, the weights are plain bytes.

    Args:
        program: The graph.
        words: Go into ``extra/kd_convnext.json``.
        path: Ends with ``.pt2``.
    """
    program._example_inputs = None
    # By way of memory: torch's writer aborts the process where the disk is full.
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={f"{KEY}.json": words.text()})
    atomic_write(path, lambda file: file.write(content.getbuffer()))


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Writes an ``.onnx`` file, weights inside; `describe_onnx` adds the words.

    Args:
        program: The graph.
        path: The file.
    """
    import onnx

    with quiet():
        made = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert made is not None  # only the old exporter, which writes a file at once, returns nothing
    model = nameless(made.model_proto)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def nameless(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Removes names of modules, lines of source and the shapes within from a graph of torch's exporter."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.value_info[:]  # would still call axes otherwise
    return model


def describe_onnx(path: Path, words: Words) -> None:
    """Writes metadata into an ONNX file.

    Args:
        path: The file.
        words: Go into ``metadata_props``, each as JSON under ``kd_convnext.<name>``; others there are gone.
    """
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {f"{KEY}.{name}": text for name, text in words.strings().items()})
    onnx.save_model(model, path)


def write_openvino(onnx_file: Path, words: Words, path: Path) -> None:
    """Turns an ONNX file into an OpenVINO ``.xml`` with its ``.bin``.

    Args:
        onnx_file: The ONNX file.
        words: Go into ``rt_info``, each as JSON under ``kd_convnext/<name>``.
        path: Ends with ``.xml``.
    """
    import openvino

    model = openvino.Core().read_model(onnx_file)  # convert_model does the same, and reports it to its maker's server
    for name, text in words.strings().items():
        model.set_rt_info(text, [KEY, name])
    openvino.save_model(model, path, compress_to_fp16=False)


def load(path: Path, threads: int | None = None) -> Runner:
    """Loads an exported file with the runtime of its format.

    Args:
        path: ``.onnx``, ``.xml`` or ``.pt2``.
        threads: Of the runtime; by default as it chooses (torch's are those of the process).
    """
    return {".onnx": _onnx, ".xml": _openvino, ".pt2": _torch}[path.suffix](path, threads)


def _onnx(path: Path, threads: int | None) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {INPUT: images}))


def _openvino(path: Path, threads: int | None) -> Runner:
    import openvino

    # On CPUs with bfloat16 OpenVINO would silently use it, at the cost of three decimals.
    # Pinned to the cores of a virtual machine its threads wait where others work: a fifth of the time on two cores.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    names = OUTPUTS[: len(compiled.outputs)]

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        found = compiled(images)
        return tuple(found[name] for name in names)

    return run


def _torch(path: Path, threads: int | None) -> Runner:
    with quiet():
        module = torch.export.load(path).module()

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        with torch.inference_mode():
            return tuple(values.numpy() for values in module(torch.from_numpy(images)))

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporters' warnings about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
