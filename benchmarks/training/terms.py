"""A training step of a small student with each term of the objective, against balanced softmax on the labels alone.

Terms on a teacher's outputs stand beside balanced softmax, other terms on labels in its place. The teacher's outputs
are stored, as with ``teacher_cache``: what is timed is the student, the term and its projector; with ``--bare`` the
terms alone, on outputs of the student that are given, where differences are lost in the noise of a step.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.utils._pytree import tree_map_only

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from kd_convnext import losses
from kd_convnext.losses import BalancedSoftmax, Objective, Outputs, SoftTargets, Term, Widths
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.probe import Probe

ALONE = "labels alone"
"""Balanced softmax."""

CLASSES, COUNTS = 5, [113, 172, 372, 38, 1083]
CHANNELS, SIDES, EMBEDDING = (48, 96, 192, 384), (24, 12, 6, 3), 1920
"""The teacher's: maps as of a Swin at 96 px, an embedding as of class tokens of a ViT-S."""

TERMS: dict[str, Callable[[], Term]] = {
    "SoftTargets": SoftTargets,
    "Decoupled": losses.Decoupled,
    "Correlation": losses.Correlation,
    "LogitStandardised": lambda: losses.LogitStandardised(SoftTargets()),
    "Balanced": losses.Balanced,
    "PriorRemoved": lambda: losses.PriorRemoved(SoftTargets()),
    "Confident": lambda: losses.Confident(SoftTargets(temperature=2.0), rows="all"),
    "FeatureMaps": losses.FeatureMaps,
    "AttentionTransfer": losses.AttentionTransfer,
    "MaskedGenerative": losses.MaskedGenerative,
    "StageLogits": losses.StageLogits,
    "UnlikeMaps": losses.UnlikeMaps,
    "CosineEmbedding (linear)": lambda: losses.CosineEmbedding(projector="linear", standardise=True),
    "Relational": losses.Relational,
}

LABELS: dict[str, Callable[[], Term]] = {
    "Focal": losses.Focal,
    "CrossEntropy": losses.CrossEntropy,
    "ClassBalanced": losses.ClassBalanced,
    "LDAM": losses.LDAM,
}


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu_time", action="store_true", help="processor time, for a busy machine, --threads 1")
    parser.add_argument("--bare", action="store_true", help="terms alone, forwards and backwards, without the student")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = {ALONE: side({"labels": BalancedSoftmax()}, options)}
    sides |= {name: side({"labels": BalancedSoftmax(), "term": made()}, options) for name, made in TERMS.items()}
    sides |= {name: side({"labels": made()}, options) for name, made in LABELS.items()}
    clock = time.process_time if options.cpu_time else time.perf_counter
    rounds = 11 if options.full else 3
    seconds = interleaved(sides, 20 * rounds if options.bare else rounds, clock)
    ratios: list[Ratio] = [compared(name, seconds, ALONE, name) for name in (*TERMS, *LABELS)]
    notes = [f"ConvNeXt-atto size, batch {options.batch}, {options.size} px, float32, {options.threads} threads"]
    what = "Terms" if options.bare else "Step"
    report(f"{what} with a term / with labels alone", ratios, notes, options.json)


def side(terms: dict[str, Term], options: argparse.Namespace) -> Callable[[], None]:
    """Builds a student with an objective, and returns its training step."""
    torch.manual_seed(0)
    shape = {"depths": [2, 2, 4, 2], "dims": [32, 64, 128, 256]}
    backbone = build_backbone(BackboneSpec("convnext_atto", image_size=options.size, args=shape), CLASSES)
    objective = Objective(terms)
    objective.count_classes(COUNTS)
    objective.weigh_classes([1.0] * CLASSES)
    probe = Probe(backbone, objective.student_needs)
    objective.build(probe.widths, {"teacher": Widths(CLASSES, CHANNELS, EMBEDDING)})
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (options.batch,))
    maps = tuple(torch.randn(options.batch, *of) for of in zip(CHANNELS, SIDES, SIDES, strict=True))
    teacher = Outputs(torch.randn(options.batch, CLASSES), maps, torch.randn(options.batch, EMBEDDING))
    learned = [*backbone.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
    weights = objective.weights(0)
    seen = probe.run(backbone, images)
    given: Outputs = tree_map_only(torch.Tensor, lambda value: value.detach().requires_grad_(), seen)

    def step() -> None:
        own = given if options.bare else probe.run(backbone, images)
        found = objective(own, {"teacher": teacher}, labels, weights)
        found.total.backward()
        if options.bare:
            return
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
