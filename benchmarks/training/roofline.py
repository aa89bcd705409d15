"""What a step of the distillation could cost at least on this machine, and how near to it is.

Measured: the rates of matrix products and of the vector units, and the bandwidth of the memory. Counted: operations and
bytes of each kind of operator, each tensor read or written whole by each operator that runs. A kind's bound is the
longer of its operations at their rate and its bytes at the bandwidth. Fusing (torch.compile) can save bytes of norms
and elementwise operators: the second bound leaves these two out. The bandwidth is that of copying a tensor as large as
ConvNeXt's largest map; what an operator finds in a cache from the one before can beat it.
"""

import argparse
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness.figures import Figure, Grid, tell
from benchmarks.harness.flops import count_flops
from benchmarks.harness.timing import arguments
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.modules.optim import OptimSpec, build_optimizer

Kind = Literal["matrix products", "depthwise convolutions", "norms", "elementwise", "optimiser"]
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
CLASSES = 5


@dataclass(frozen=True)
class Rates:
    """What the machine does at best: operations a second of matrix products and of vector units; bytes a second."""

    products: float
    vectors: float
    memory: float

    def bound(self, kind: Kind, flops: float, traffic: float) -> float:
        """Returns the seconds that a kind of operator takes at least."""
        rate = self.vectors if kind == "depthwise convolutions" else self.products
        return max(flops / rate, traffic / self.memory)


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operators read and write, by kind."""

    def __init__(self) -> None:
        """Starts at zero."""
        super().__init__()
        self.bytes: Counter[Kind] = Counter()
        self.optimising = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and counts it."""
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in read}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        fresh = [tensor for tensor in made if tensor.untyped_storage().data_ptr() not in known]
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(argument, (kwargs or {}).get(argument.name)) for argument in func._schema.arguments[len(args) :]]
        changed = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
        written = fresh + [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]
        if written and not func._schema.name.startswith("aten::empty"):  # otherwise a view, or only space
            kind = "optimiser" if self.optimising else kind_of(func, args)
            self.bytes[kind] += sum(_size(tensor) for tensor in read + written)
        return result


def _size(tensor: Tensor) -> int:
    # Of an expanded tensor no more is read than there is.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def kind_of(func: Any, args: tuple[Any, ...]) -> Kind:
    """Sorts an operator."""
    name = func._schema.name.removeprefix("aten::")
    if "convolution" in name:
        groups = args[9] if name == "convolution_backward" else args[8]
        return "depthwise convolutions" if groups > 1 else "matrix products"
    if name in PRODUCTS or "dot_product" in name:
        return "matrix products"
    if "norm" in name and name.startswith("native"):
        return "norms"
    return "elementwise"


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images; by default 8 on a CPU, 256 on a GPU")
    parser.add_argument("--compile", action="store_true", help="measure the step compiled too; default on a GPU")
    parser.add_argument("--teacher", default="swin_tiny_patch4_window7_224", help="a timm name")
    parser.add_argument("--student", default="convnext_tiny", help="a timm name")
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    batch = options.batch or (256 if gpu else 8)
    rates = measured_rates(options.device, batch, 10 if options.full else 4)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=options.device)
    labels = torch.randint(CLASSES, (batch,), device=options.device)
    rounds = 20 if options.full or gpu else 4
    grids, figures = [], []
    for side, build in (("teacher's forward pass", teacher), ("student's step", student)):
        run = build(options, images, labels, compiled=False)
        rows, bounds = counted(run, rates, options.device)
        grids.append(Grid(f"{side}, batch {batch}, {options.device}", ROW, rows))
        seconds = {"eager": timed(run, options.device, rounds)}
        if options.compile or gpu:
            seconds["compiled"] = timed(build(options, images, labels, compiled=True), options.device, rounds)
        flops = sum(float(row[1]) for row in rows) * 1e9
        for way, values in seconds.items():
            figures += shares(f"{side}, {way}", values, batch, flops, rates, bounds)
    figures += [
        Figure("matrix products, measured", rates.products / 1e12, "TFLOP/s"),
        Figure("vector units, measured", rates.vectors / 1e12, "TFLOP/s"),
        Figure(
            f"memory, measured (copying {_map_bytes(batch, options.device) / 1e6:.0f} MB)",
            rates.memory / 1e9,
            "GB/s",
        ),
    ]
    types = "bf16 (autocast), vector units as float32 products without tensor cores" if gpu else "float32"
    notes = [f"{types}, {torch.get_num_threads()} threads; eager bound: every operator reads and writes memory"]
    tell("Roofline", figures, grids, notes, options.json)


ROW = ("kind", "GFLOP", "MB", "bound by operations ms", "bound by memory ms", "bound ms", "share of bound")


def counted(run: Callable[[], object], rates: Rates, device: str) -> tuple[list[list[object]], tuple[float, float]]:
    """Counts one run; returns the table's rows and the bounds in seconds, eager and with everything fused."""
    traffic = Traffic()
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: setattr(traffic, "optimising", True)),
        register_optimizer_step_post_hook(lambda *_: setattr(traffic, "optimising", False)),
    ]
    with traffic:
        flops = count_flops(run).by_operator
    for hook in hooks:
        hook.remove()
    _wait(device)
    grouped = sum(value for name, value in flops.items() if "grouped" in name)
    done: dict[Kind, float] = {"depthwise convolutions": grouped, "matrix products": sum(flops.values()) - grouped}
    bounds: dict[Kind, float] = {}
    rows: list[list[object]] = []
    for kind in get_args(Kind):
        bounds[kind] = rates.bound(kind, done.get(kind, 0), traffic.bytes[kind])
    for kind, bound in bounds.items():
        operations = rates.bound(kind, done.get(kind, 0), 0) * 1e3
        memory = traffic.bytes[kind] / rates.memory * 1e3
        share = f"{bound / sum(bounds.values()):.0%}"
        rows.append([kind, done.get(kind, 0) / 1e9, traffic.bytes[kind] / 1e6, operations, memory, bound * 1e3, share])
    eager = sum(bounds.values())
    return rows, (eager, eager - bounds["norms"] - bounds["elementwise"])


def shares(
    name: str, seconds: np.ndarray, batch: int, flops: float, rates: Rates, bounds: tuple[float, float]
) -> list[Figure]:
    """Sums up one measured side."""
    median = float(np.median(seconds))
    low, high = np.quantile(seconds, (0.25, 0.75))
    return [
        Figure(f"{name}: time", median * 1e3, "ms", float(high - low) / 2 * 1e3),
        Figure(f"{name}: images a second", batch / median, ""),
        Figure(f"{name}: share of the matrix rate", flops / median / rates.products * 100, "%"),
        Figure(f"{name}: share of the eager bound", bounds[0] / median * 100, "%"),
        Figure(f"{name}: share of the fused bound", bounds[1] / median * 100, "%"),
    ]


def teacher(options: argparse.Namespace, images: Tensor, labels: Tensor, *, compiled: bool) -> Callable[[], object]:
    """Builds what runs the teacher once."""
    network: Any = build_backbone(BackboneSpec(options.teacher), CLASSES).to(options.device).eval()
    network = torch.compile(network) if compiled else network

    @torch.no_grad()
    def run() -> object:
        with _precision(options.device):
            return network(images)

    return run


def student(options: argparse.Namespace, images: Tensor, labels: Tensor, *, compiled: bool) -> Callable[[], object]:
    """Builds what trains the student by one step."""
    network = build_backbone(BackboneSpec(options.student), CLASSES).to(options.device)
    optimizer = build_optimizer(OptimSpec(), network.body_parameters(), network.head_parameters())
    forward: Any = torch.compile(network) if compiled else network

    def run() -> object:
        with _precision(options.device):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return run


def measured_rates(device: str, batch: int, rounds: int) -> Rates:
    """Measures the machine; its memory with tensors of the size of a batch's largest map."""
    gpu = device.startswith("cuda")
    sides = (4096, 8192) if gpu else (1024, 2048)
    products = max(_product_rate(side, torch.bfloat16 if gpu else torch.float32, device, rounds) for side in sides)
    vectors = _product_rate(4096, torch.float32, device, rounds) if gpu else products
    source = torch.zeros(_map_bytes(batch, device), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device, 10 * rounds)
    return Rates(products, vectors, 2 * source.numel() / float(seconds.min()))


def _map_bytes(batch: int, device: str) -> int:
    return batch * 56 * 56 * 384 * (2 if device.startswith("cuda") else 4)


def _product_rate(side: int, kind: torch.dtype, device: str, rounds: int) -> float:
    # Without tensor cores for float32, PyTorch's own default.
    left, right = (torch.randn(side, side, dtype=kind, device=device) for _ in range(2))
    return float(2 * side**3 / timed(lambda: left @ right, device, rounds).min())


def timed(run: Callable[[], object], device: str, rounds: int) -> np.ndarray:
    """Times some runs after two that do not count; seconds, float64 [rounds]."""
    seconds = []
    for _ in range(rounds + 2):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[2:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextlib.contextmanager
def _precision(device: str) -> Iterator[None]:
    with torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else contextlib.nullcontext():
        yield


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
