"""Reads the metadata of exported files, as a user of the runtimes would."""

import json
from pathlib import Path
from typing import Any

import torch

from kd_convnext.inference.exporting.formats import KEY


def read_words(path: Path) -> dict[str, Any]:
    """Reads the metadata of an exported file.

    Args:
        path: ``.onnx``, ``.xml`` or ``.pt2``.

    Returns:
        JSON types by name; empty where the file says nothing.
    """
    if path.suffix == ".onnx":
        import onnx

        props = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        start = f"{KEY}."
        return {name.removeprefix(start): json.loads(props[name]) for name in props if name.startswith(start)}
    if path.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(path)
        if not model.has_rt_info([KEY]):
            return {}
        return {name: json.loads(value) for name, value in model.get_rt_info([KEY]).value.items()}
    extra = {f"{KEY}.json": ""}
    torch.export.load(path, extra_files=extra)
    return dict(json.loads(extra[f"{KEY}.json"]))
