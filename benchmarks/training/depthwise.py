"""A training step of the small student: gradients of depthwise weights as a convolution, against torch's own way."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from kd_convnext.models import depthwise
from kd_convnext.models.backbones import BackboneSpec, build_backbone

CLASSES = 5
PRECISIONS = {"float32": None, "bfloat16 autocast": torch.bfloat16}


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu_time", action="store_true", help="processor time, for a busy machine, --threads 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    ratios: list[Ratio] = []
    for name, dtype in PRECISIONS.items():
        sides = {f"{kind}, {name}": side(kind == "ours", dtype, options) for kind in ("ours", "torch's")}
        ratios.append(compared(name, interleaved(sides, 15 if options.full else 5, clock), *sides))
    notes = [
        f"ConvNeXt-atto size, batch {options.batch}, {options.size} px, {options.threads} threads",
        f"vectors: {torch.backends.cpu.get_cpu_capability()}; a fit takes ours: {depthwise.depthwise_pays()}",
    ]
    report("Training step, torch's gradients of depthwise weights / ours", ratios, notes, options.json)


def side(ours: bool, dtype: torch.dtype | None, options: argparse.Namespace) -> Callable[[], None]:
    """Builds a student and returns its training step in a precision."""
    torch.manual_seed(0)
    shape = {"depths": [2, 2, 4, 2], "dims": [32, 64, 128, 256]}
    student = build_backbone(BackboneSpec("convnext_atto", image_size=options.size, args=shape), CLASSES)
    images = torch.rand(options.batch, 3, options.size, options.size)
    labels = torch.randint(0, CLASSES, (options.batch,))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with way(ours):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                logits = student(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


@contextmanager
def way(ours: bool) -> Iterator[None]:
    """Takes one way of computing these gradients, whatever the CPU."""
    chosen = depthwise.depthwise_pays
    depthwise.depthwise_pays = lambda: ours
    try:
        yield
    finally:
        depthwise.depthwise_pays = chosen


if __name__ == "__main__":
    main()
