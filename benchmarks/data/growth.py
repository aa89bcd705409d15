"""Where it stops scaling, and why: rows of a manifest, loader processes, batch, ranks, and many GPUs on paper.

Rows: a manifest of up to a million rows is read, checked, split and drawn from; the headers of the photographs are
not read (their rate is measured apart). Ranks: real processes, one thread each. On paper: the ring all-reduce of the
gradients at a given bandwidth beside a measured step, with and without overlap with the backward pass.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.figures import Grid, tell
from benchmarks.harness.timing import arguments
from kd_convnext.common.machine import available_cores

ROWS, MORE_ROWS = (1_000, 10_000, 100_000), (1_000, 10_000, 100_000, 1_000_000)
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
SHARES = (0.02, 0.59, 0.09, 0.05, 0.25)  # as in the paper
GPUS = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB/s of the slowest link (100 Gbit: 12.5)")
    parser.add_argument("--step_ms", type=float, help="ConvNeXt-T's step, for the table of GPUs; measured by default")
    parser.add_argument("--only_rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only_ranks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_rows:
        print(json.dumps(of_rows(options.only_rows)))
        return
    if options.only_ranks:
        print(json.dumps(of_ranks(options.only_ranks)))
        return
    grids = [rows_grid(MORE_ROWS if options.full else ROWS)]
    notes = []
    with tempfile.TemporaryDirectory() as name:
        loader, rate = loader_grid(Path(name), 4000 if options.full else 640)
        grids.append(loader)
        notes.append(
            f"reading headers of photographs adds {1e6 / rate:.0f} s for a million ({rate:.0f} files a second)"
        )
    grids += [batch_grid(), ranks_grid()]
    step, said = measured_step() if options.step_ms is None else (options.step_ms / 1e3, "as given")
    grids.append(paper_grid(step, options.bandwidth))
    notes.append(f"GPUs: step {step * 1e3:.1f} ms ({said}), {options.bandwidth} GB/s, ring all-reduce")
    tell("Growth", [], grids, notes, options.json)


# ---- rows of a manifest


def rows_grid(sizes: tuple[int, ...]) -> Grid:
    """Measures each size in a process of its own, for its peak memory."""
    found = [_alone("--only_rows", size) for size in sizes]
    steps = [name for name in found[0] if name != "MB"]
    rows: list[list[object]] = [
        [f"{name}, s", *(each[name] for each in found), _exponent(sizes, [each[name] for each in found])]
        for name in steps
    ]
    rows.append(["peak memory, MB", *(round(each["MB"]) for each in found), ""])
    return Grid("Rows of a manifest", ("", *(f"{size:,}" for size in sizes), "grows as rows to the"), rows)


def _exponent(sizes: tuple[int, ...], seconds: list[float]) -> str:
    """Says with which power of the rows the time grows at the end."""
    return f"{np.log(seconds[-1] / seconds[-2]) / np.log(sizes[-1] / sizes[-2]):.2f}"


def of_rows(count: int) -> dict[str, float]:
    """Reads, splits and draws from a manifest whose photographs do not exist; seconds, and megabytes."""
    from kd_convnext.common.machine import peak_memory
    from kd_convnext.data.manifest import inspection as photographs
    from kd_convnext.data.manifest.grouping import group_hashes
    from kd_convnext.data.manifest.manifest import read_manifest
    from kd_convnext.data.manifest.splits import make_split

    photographs._inspect = lambda path: photographs.PhotographFile(512, 384, 100_000 + int(path.stem))
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        seconds[name] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "manifest.csv"
        _write(path, count)
        manifest = timed("read_manifest", lambda: read_manifest(path))
    split = timed("make_split by lesion", lambda: make_split(manifest))
    timed("make_split by image", lambda: make_split(manifest, group_by="image"))
    rows = split.rows("train")
    timed("group_hashes", lambda: group_hashes(manifest, rows))
    megabytes = peak_memory() / 1e6  # before torch is imported
    from kd_convnext.data.loading.dataset import SpecimenDataset
    from kd_convnext.data.loading.sampler import ViewSampler
    from kd_convnext.data.loading.views import Views

    no_crops: Any = None  # an order is drawn without them
    dataset = SpecimenDataset(no_crops, rows, manifest.labels, Views(224, 3))
    timed("an epoch's order", lambda: sum(1 for _ in ViewSampler(dataset, seed=0)))
    return {**seconds, "MB": megabytes}


def _write(path: Path, count: int) -> None:
    """Writes rows of lesions of one to eight photographs, two lesions a patient."""
    draw = np.random.default_rng(0)
    lesions = np.repeat(np.arange(count), draw.integers(1, 9, count))[:count]
    labels = draw.choice(len(CLASSES), count, p=SHARES)[lesions]
    with path.open("w", encoding="utf-8") as file:
        file.write("image,label,lesion_id,patient_id,x,y,width,height\n")
        for row, (lesion, label) in enumerate(zip(lesions.tolist(), labels.tolist(), strict=True)):
            file.write(f"images/{row:08d}.png,{CLASSES[label]},L{lesion},P{lesion // 2},10,20,200,180\n")


# ---- loader, batch


def loader_grid(folder: Path, count: int) -> tuple[Grid, float]:
    """Measures the loader with packed crops and the quick augmentation; and headers read a second."""
    import cv2
    import torch
    from feeding import SIZE, prepared

    from kd_convnext.data.crops.cache.packed import pack
    from kd_convnext.data.loading.augment import AugmentSpec
    from kd_convnext.data.loading.dataset import SpecimenDataset, View
    from kd_convnext.data.loading.loader import specimen_loader
    from kd_convnext.data.loading.views import Views
    from kd_convnext.data.manifest.inspection import inspect_files

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    crops, files = prepared(folder, 120)
    start = time.perf_counter()
    inspect_files(files * 10)
    rate = 10 * len(files) / (time.perf_counter() - start)
    packed = pack(crops, progress=False)
    known = np.arange(len(files), dtype=np.int64)
    dataset = SpecimenDataset(
        packed, known, np.zeros(len(files), np.int64), Views(SIZE, 3, AugmentSpec(engine="opencv"))
    )
    batches = (8, 16, 32, 64)
    rows: list[list[object]] = []
    for workers in (0, 1, 2, *(more for more in (4, 8, 15) if more < available_cores())):
        speeds: list[object] = []
        views = [View(number % len(files), number) for number in range(count * max(1, workers // 2))]
        for batch in batches:
            loader = specimen_loader(dataset, batch, workers, sampler=views)
            seconds = [_seconds(lambda loader=loader: sum(1 for _ in loader)) for _ in range(2)]
            speeds.append(round(len(views) / seconds[1]))
            del loader
        rows.append([f"{workers} worker processes", *speeds])
    title = f"Loader alone, images of {SIZE} px a second (packed, opencv), on {available_cores()} cores"
    return Grid(title, ("", *(f"batch {batch}" for batch in batches)), rows), rate


def batch_grid() -> Grid:
    """Measures steps of a small student over the batch."""
    import torch

    torch.set_num_threads(available_cores())
    rows = []
    for batch in (8, 16, 32, 64):
        run = _step("convnext_atto", 96, batch)
        seconds = min(_seconds(run) for _ in range(4))
        rows.append([f"batch {batch}", seconds * 1e3, batch / seconds])
    return Grid("ConvNeXt-atto at 96 px, a step alone", ("", "ms", "images a second"), rows)


# ---- ranks, GPUs


def ranks_grid() -> Grid:
    """Measures one and two processes with gradients averaged between them."""
    one, two = (_alone("--only_ranks", ranks) for ranks in (1, 2))
    rows = [
        [f"{ranks} rank{'s' * (ranks > 1)}", found["seconds"] * 1e3, found["rate"], found["rate"] / ranks / one["rate"]]
        for ranks, found in ((1, one), (2, two))
    ]
    title = "ConvNeXt-atto at 96 px, batch 16 a rank, one thread a rank, gloo"
    return Grid(title, ("", "step ms", "images a second", "efficiency"), rows)


def of_ranks(ranks: int) -> dict[str, float]:
    """Starts the ranks; returns the median step of the slowest, and images a second of all."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as name:
        mp.spawn(_rank, (ranks, name), nprocs=ranks)  # type: ignore[attr-defined]
        seconds = max(float((Path(name) / f"{rank}.txt").read_text()) for rank in range(ranks))
    return {"seconds": seconds, "rate": 16 * ranks / seconds}


def _rank(rank: int, ranks: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    run = _step("convnext_atto", 96, 16, parallel=True)
    seconds = [_seconds(run) for _ in range(8)]
    (Path(folder) / f"{rank}.txt").write_text(str(float(np.median(seconds[2:]))))
    dist.destroy_process_group()


def measured_step() -> tuple[float, str]:
    """Measures ConvNeXt-T's own step on the device at hand."""
    import torch

    if torch.cuda.is_available():
        run, said, rounds = _step("convnext_tiny", 224, 32, device="cuda"), "batch 32, bf16, eager, this GPU", 20
    else:
        run, said, rounds = _step("convnext_tiny", 224, 4), "batch 4, float32, this CPU", 3
    return float(np.median([_seconds(run) for _ in range(rounds)][1:])), said


def paper_grid(step: float, bandwidth: float) -> Grid:
    """Works out the efficiency of many GPUs from what they must exchange.

    A ring all-reduce sends 2 (N - 1) / N times the gradients over each link. At best it hides behind the backward
    pass, two thirds of a step; at worst behind nothing.
    """
    import torch

    from kd_convnext.losses.projectors import Regressors
    from kd_convnext.models.backbones import BackboneSpec, build_backbone

    with torch.device("meta"):
        student = build_backbone(BackboneSpec("convnext_tiny"), len(CLASSES))
    widths = [stage.channels for stage in student.stages]
    networks = (student, Regressors(widths, widths))
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    columns, rows = ["GPUs"], [[str(gpus)] for gpus in GPUS]
    for name, size in (("fp32", 4), ("bf16", 2)):
        columns += [f"{name}: all-reduce ms", f"{name}: no overlap", f"{name}: overlap"]
        for row, gpus in zip(rows, GPUS, strict=True):
            exchange = 2 * (gpus - 1) / gpus * count * size / (bandwidth * 1e9)
            hidden = step / 3 + max(2 * step / 3, exchange)
            row += [f"{exchange * 1e3:.2f}", f"{step / (step + exchange):.0%}", f"{step / hidden:.0%}"]
    return Grid(f"On paper: {count / 1e6:.1f} M gradients (ConvNeXt-T and regressors)", columns, rows)


# ---- common


def _step(name: str, side: int, batch: int, *, device: str = "cpu", parallel: bool = False) -> Callable[[], None]:
    """Builds what trains a network by one step."""
    import torch

    from kd_convnext.models.backbones import BackboneSpec, build_backbone
    from kd_convnext.modules.optim import OptimSpec, build_optimizer

    network = build_backbone(BackboneSpec(name, image_size=side), len(CLASSES)).to(device)
    optimizer = build_optimizer(OptimSpec(), network.body_parameters(), network.head_parameters())
    forward: Any = torch.nn.parallel.DistributedDataParallel(network) if parallel else network
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(len(CLASSES), (batch,), device=device)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _alone(option: str, value: int) -> dict[str, float]:
    """Runs a part of this script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, option, str(value)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    if not {"--only_rows", "--only_ranks"} & set(sys.argv):
        print(f"{time.perf_counter() - start:.0f} s in all")
