"""A training step with torch's gradients of depthwise convolutions' weights against the package's way, both precisions.

Of the small recipe's student by default, and with ``--full`` also of ConvNeXt-T at 224 px; labels alone.
"""

import time
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from kd_convnext.models import depthwise
from kd_convnext.models.backbones import BackboneSpec, build_backbone

SMALL = BackboneSpec("convnext_atto", image_size=96, args={"depths": [2, 2, 4, 2], "dims": [32, 64, 128, 256]})
TINY = BackboneSpec("convnext_tiny", image_size=224)
SETTINGS = {"small, batch 32": (SMALL, 32), "small, batch 96": (SMALL, 96), "ConvNeXt-T, batch 4": (TINY, 4)}
CLASSES = 5


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--cpu_time", action="store_true", help="processor time, for a busy machine, with one thread")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    ratios: list[Ratio] = []
    for name, (spec, batch) in list(SETTINGS.items())[: None if options.full else 2]:
        sides = {
            f"{way}, {precision}": step_of(spec, batch, way == "ours", precision == "bf16")
            for precision in ("float32", "bf16")
            for way in ("ours", "torch's")
        }
        seconds = interleaved(sides, 5 if options.full else 3, clock)
        for better, other in [("ours, float32", "torch's, float32"), ("ours, bf16", "torch's, bf16")]:
            ratios.append(compared(name, seconds, better, other))
        ratios.append(compared(name, seconds, "ours, bf16", "ours, float32"))
    notes = [f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    report("Gradients of depthwise convolutions' weights: a step", ratios, notes, options.json)


def step_of(spec: BackboneSpec, batch: int, ours: bool, mixed: bool) -> Callable[[], None]:
    """Builds a network, and returns its training step by one way."""
    torch.manual_seed(0)
    network = build_backbone(spec, CLASSES).train()
    images, labels = torch.randn(batch, 3, spec.image_size, spec.image_size), torch.randint(0, CLASSES, (batch,))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with patch.object(depthwise, "depthwise_pays", lambda: ours):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
