"""Writes a Real-ESRGAN network in ncnn's own form, straight from its tensors."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

_MAGIC = "7767517"  # of ncnn's text form
_AS_THEY_ARE = b"\0\0\0\0"  # flag before the weights of a convolution: float32
_DIRECT = 32 + 64  # bits of ncnn's feature mask: neither one matrix product nor Winograd's algorithm
_LEAK, _RESIDUAL = 0.2, 0.2  # of RRDB


class Graph:
    """Collects layers and weights; a blob that several layers read is split, as ncnn demands.

    Attributes:
        input: Name of the input, float32 [3, h, w] or with the pixels folded into channels.
        output: Name of the last layer's result.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """Starts with the input.

        Args:
            tensors: float32 weights by name.
        """
        self._tensors = tensors
        self._layers: list[tuple[str, str, tuple[str, ...], str]] = []
        self._weights: list[bytes] = []
        self.input = self.output = self._add("Input", (), "")

    def convolution(self, source: str, key: str, leak: float | None = None, *, direct: bool = False) -> str:
        """Adds a convolution that keeps the size.

        Args:
            source: What it reads.
            key: Name of its weights without ``.weight``.
            leak: Slope of a leaky ReLU behind it; None for none.
            direct: Whether it takes next to no memory beside its result; otherwise several times as much.

        Returns:
            Name of its result.
        """
        weight = self._tensors[f"{key}.weight"]
        side = weight.shape[-1]
        bias = f"{key}.bias" in self._tensors
        self._weights += [_AS_THEY_ARE, self._values(f"{key}.weight")]
        if bias:
            self._weights.append(self._values(f"{key}.bias"))
        options = f"0={weight.shape[0]} 1={side} 4={side // 2} 5={int(bias)} 6={weight.numel()}"
        if leak is not None:
            options += f" 9=2 -23310=1,{leak:e}"
        return self._add("Convolution", (source,), f"{options} 31={_DIRECT}" if direct else options)

    def prelu(self, source: str, key: str) -> str:
        """Adds a PReLU with a slope for each channel; returns its result."""
        self._weights.append(self._values(f"{key}.weight"))
        return self._add("PReLU", (source,), f"0={self._tensors[f'{key}.weight'].numel()}")

    def nearest(self, source: str, factor: int) -> str:
        """Adds an enlargement by repeating pixels; returns its result."""
        return self._add("Interp", (source,), f"0=1 1={factor:.1f} 2={factor:.1f}")

    def join(self, *sources: str) -> str:
        """Adds a concatenation of channels; returns its result."""
        return self._add("Concat", sources, "0=0") if len(sources) > 1 else sources[0]

    def add(self, first: str, second: str, share: float = 1.0) -> str:
        """Adds the sum of ``share`` times the first and the second; returns its result."""
        return self._add("Eltwise", (first, second), f"0=1 -23301=2,{share:e},{1:e}")

    def text(self) -> str:
        """Returns the layers in ncnn's text form."""
        readers = Counter(source for _, _, sources, _ in self._layers for source in sources)
        taken: Counter[str] = Counter()
        lines, blobs = [], 0
        for kind, name, sources, options in self._layers:
            inputs = []
            for source in sources:
                inputs.append(f"{source}_{taken[source]}" if readers[source] > 1 else source)
                taken[source] += 1
            lines.append(f"{kind} {name} {len(inputs)} 1 {' '.join([*inputs, name])} {options}")
            blobs += 1
            if readers[name] > 1:
                copies = [f"{name}_{copy}" for copy in range(readers[name])]
                lines.append(f"Split {name}_split 1 {len(copies)} {' '.join([name, *copies])}")
                blobs += len(copies)
        return "\n".join([_MAGIC, f"{len(lines)} {blobs}", *lines, ""])

    def weights(self) -> bytes:
        """Returns the weights in ncnn's binary form, in the order of the layers."""
        return b"".join(self._weights)

    def _add(self, kind: str, sources: tuple[str, ...], options: str) -> str:
        self.output = f"blob{len(self._layers)}"
        self._layers.append((kind, self.output, sources, options))
        return self.output

    def _values(self, key: str) -> bytes:
        return np.ascontiguousarray(self._tensors[key].numpy(), np.float32).tobytes()


def srvgg_graph(tensors: Mapping[str, Any]) -> Graph:
    """Writes an SRVGG network up to its last convolution; shuffling and adding the input are left to the caller.

    Args:
        tensors: Weights in the authors' names (``body.0.weight``, ...).

    Returns:
        The graph; its output is [3 * scale squared, h, w].
    """
    graph = Graph(tensors)
    found = graph.input
    for number in range(1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("body."))):
        key = f"body.{number}"
        found = graph.convolution(found, key) if tensors[f"{key}.weight"].ndim == 4 else graph.prelu(found, key)
    return graph


def rrdb_graph(tensors: Mapping[str, Any]) -> Graph:
    """Writes an RRDB network.

    Its last layers work on the enlarged picture, where one matrix product would take nine times its memory and
    Winograd's algorithm five times; they are a twelfth of the products, and computed directly.

    Args:
        tensors: Weights in the names that spandrel gives every version (``model.0.weight``, ...).

    Returns:
        The graph; its output is the picture, [3, 4 h, 4 w] for two enlargements.

    Raises:
        ValueError: A form that is not the authors'.
    """
    if any("conv1x1" in key for key in tensors):
        raise ValueError("ESRGAN+ has layers that are not written here")
    graph = Graph(tensors)
    first = found = graph.convolution(graph.input, "model.0")
    blocks = [int(match[1]) for key in tensors if (match := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB1\.conv1.*", key))]
    for block in range(max(blocks) + 1):
        entry = found
        for dense in (1, 2, 3):
            found = _dense(graph, found, f"model.1.sub.{block}.RDB{dense}")
        found = graph.add(found, entry, _RESIDUAL)
    found = graph.add(graph.convolution(found, f"model.1.sub.{max(blocks) + 1}"), first)
    keys = sorted({int(key.split(".")[1]) for key in tensors if re.fullmatch(r"model\.\d+\.weight", key)} - {0})
    *enlarging, last_but_one, last = [f"model.{key}" for key in keys]
    for key in enlarging:
        found = graph.convolution(graph.nearest(found, 2), key, _LEAK, direct=True)
    found = graph.convolution(found, last_but_one, _LEAK, direct=True)
    graph.convolution(found, last, direct=True)
    return graph


def _dense(graph: Graph, source: str, key: str) -> str:
    """Adds a residual dense block: each convolution reads everything before it."""
    known = [source]
    for number in (1, 2, 3, 4):
        known.append(graph.convolution(graph.join(*known), f"{key}.conv{number}.0", _LEAK))
    return graph.add(graph.convolution(graph.join(*known), f"{key}.conv5.0"), source, _RESIDUAL)
