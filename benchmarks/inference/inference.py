"""One image through every runtime against the machine's matrix product; the whole path; the start of classify."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from kd_convnext import Predictor
from kd_convnext.checkpoints.format import FORMAT_VERSION, KEY
from kd_convnext.common.machine import pillow_memory_kept
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.loading.card import DataCard
from kd_convnext.data.manifest.images import read_image
from kd_convnext.inference.exporting.convnext_blocks import with_pixel_convolutions
from kd_convnext.inference.exporting.deployed import INPUT, Deployed, Words
from kd_convnext.inference.exporting.formats import load, traced, write_onnx, write_openvino, write_torch
from kd_convnext.inference.exporting.int8 import write_dynamic, write_static
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.calibration import Calibration, Level
from kd_convnext.inference.trust.gate import Distances, fit_gate
from kd_convnext.inference.trust.prediction_sets import ClassThresholds
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone

SPEC = BackboneSpec(name="convnext_tiny")
Clock = Callable[[], float]
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
WORK = 8.9e9
"""FLOP of ConvNeXt-T for one 224 px image."""

PRODUCT = "matrix product"
MEGAPIXELS = {1: (1152, 864), 12: (4000, 3000)}
FP32, INT8 = 1.6, 1.1
"""How many times the limit the recommended exports may take."""
PAUSE = 0.1
"""Seconds."""


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--photo", type=Path, help="a photograph for the whole path; a drawn texture by default")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime")
    parser.add_argument(
        "--cpu_time", action="store_true", help="processor time instead of the clock's; for a busy machine, --threads 1"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)
    rounds = 40 if options.full else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = build_backbone(SPEC, len(CLASSES)).eval().requires_grad_(False)
        checkpoint = saved(backbone, folder / "best.ckpt")
        ratios, notes = runtimes(backbone, folder, rounds, clock, options.full)
        found, more = whole_path(checkpoint, folder, options.photo, rounds, clock)
        ratios += [*found, start(checkpoint, folder, 7 if options.full else 3, options.cpu_time)]
    kind = ", processor time" if options.cpu_time else ""
    title = f"ConvNeXt-T, one 224 px image, threads: {options.threads}{kind}, fp32 unless said"
    report(title, ratios, notes + more, options.json)


def runtimes(backbone: Backbone, folder: Path, rounds: int, clock: Clock, full: bool) -> tuple[list[Ratio], list[str]]:
    """Compares all runtimes with the rate of a matrix product."""
    image = picture(224).transpose(2, 0, 1)[None].copy()
    files = exported(backbone, folder, image)
    sides: dict[str, Callable[[], object]] = {}
    for name, path in files.items():
        run = load(path, torch.get_num_threads())
        sides[name] = lambda run=run: run(image)
    resting = unspun(files["ONNX Runtime"], torch.get_num_threads())
    sides["ONNX Runtime, no spinning"] = lambda: resting(image)
    tensor = torch.from_numpy(image)
    sides["torch eager"] = torch.inference_mode()(lambda: backbone(tensor))
    if full:
        compiled = torch.compile(backbone, options={"freezing": True})
        sides["torch compiled"] = torch.no_grad()(lambda: compiled(tensor))
    product = torch.randn(1024, 1024)
    products = round(WORK / (2 * 1024**3))
    sides[PRODUCT] = lambda: [torch.mm(product, product) for _ in range(products)]
    seconds = interleaved(rested(sides), rounds, clock)
    seconds[PRODUCT] *= WORK / (products * 2 * 1024**3)
    targets = {"ONNX Runtime": 1 / FP32, "OpenVINO int8": 1 / INT8}
    ratios = [
        compared("share of the fp32 limit", seconds, name, PRODUCT, targets.get(name))
        for name in sides
        if name != PRODUCT
    ]
    expected = backbone(tensor).softmax(dim=1).numpy()
    notes = [
        f"{name}: {np.median(seconds[name] / seconds[PRODUCT]):.2f} times the limit, "
        f"{np.median(seconds[name]) * 1e3:.1f} ms"
        + (f", {np.abs(load(files[name])(image)[1] - expected).max():.1g} from torch" if name in files else "")
        for name in sides
    ]
    limits = f"{1 / FP32:.3f} for {FP32} times the limit, {1 / INT8:.3f} for {INT8} times"
    return ratios, [*notes, f"targets: {limits}"]


def rested(sides: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Puts a pause before each side: a runtime's threads turn on for up to 35 ms, on cores that the next one needs."""
    found: dict[str, Callable[[], object]] = {}
    for name, run in sides.items():
        found |= {f"pause before {name}": lambda: time.sleep(PAUSE), name: run}
    return found


def unspun(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """Loads an ONNX file whose threads sleep where they have nothing to do."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})


def exported(backbone: Backbone, folder: Path, image: np.ndarray) -> dict[str, Path]:
    """Writes the files that `kd-convnext export` writes, and the ONNX file as timm has the blocks."""
    program, plain = traced(Deployed(backbone), "uint8"), folder / "plain.onnx"
    files = {
        "ONNX Runtime": folder / "model.onnx",
        "ONNX Runtime, timm's blocks": plain,
        "ONNX Runtime int8": folder / "dynamic.onnx",
        "OpenVINO": folder / "model.xml",
        "OpenVINO int8": folder / "int8.xml",
        "torch.export": folder / "model.pt2",
    }
    write_onnx(traced(Deployed(with_pixel_convolutions(backbone)), "uint8"), files["ONNX Runtime"])
    write_onnx(program, plain)
    write_dynamic(plain, files["ONNX Runtime int8"])
    write_static(plain, folder / "static.onnx", image)
    write_openvino(plain, Words({}), files["OpenVINO"])
    write_openvino(folder / "static.onnx", Words({}), files["OpenVINO int8"])
    write_torch(program, Words({}), files["torch.export"])
    return files


def whole_path(
    checkpoint: Path, folder: Path, photo: Path | None, rounds: int, clock: Clock
) -> tuple[list[Ratio], list[str]]:
    """Compares file to answer with the network alone, and with decoding and the network."""
    predictor = Predictor.from_checkpoint(checkpoint)
    batch = torch.from_numpy(picture(224).transpose(2, 0, 1)[None].copy())
    ratios, notes = [], []
    for megapixels, size in MEGAPIXELS.items():
        file = folder / f"{megapixels}.jpg"
        source = Image.open(photo).convert("RGB") if photo else Image.fromarray(picture(1024))
        source.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
        sides: dict[str, Callable[[], object]] = {
            "file to answer": lambda file=file: predictor(file),
            "network alone": lambda: predictor.network(batch),
            "decoding": lambda file=file: read_image(file),
        }
        with pillow_memory_kept():
            seconds = interleaved(sides, rounds, clock)
        seconds["decoding + network"] = seconds["decoding"] + seconds["network alone"]
        name = f"{megapixels} megapixels"
        alone, both = (1 / 1.3, None) if megapixels == 1 else (None, 1 / 1.5)
        ratios.append(compared(name, seconds, "file to answer", "network alone", alone))
        ratios.append(compared(name, seconds, "file to answer", "decoding + network", both))
        for other in ("network alone", "decoding + network"):
            notes.append(f"{name}: {np.median(seconds['file to answer'] / seconds[other]):.2f} times {other}")
    return ratios, [*notes, "targets: 1.3 times the network at 1 megapixel, 1.5 times decoding + network at 12"]


def start(checkpoint: Path, folder: Path, rounds: int, cpu_time: bool) -> Ratio:
    """Compares `classify` for one image, a process of its own, with importing torch and timm."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = ["classify", str(folder / "1.jpg"), "--ckpt_path", str(checkpoint), "--overwrite=true"]
    sides = {
        "classify": [sys.executable, "-m", "kd_convnext.cli", *words, "--out", str(folder / "out")],
        "import torch, timm": [sys.executable, "-c", "import torch, timm"],
    }
    seconds = interleaved(
        {
            name: lambda command=command: subprocess.run(command, env=environment, check=True, capture_output=True)
            for name, command in sides.items()
        },
        rounds,
        (lambda: sum(os.times()[2:4])) if cpu_time else time.perf_counter,  # of children that have ended
    )
    return compared("start, one photograph", seconds, *sides, 0.5)


def saved(backbone: Backbone, path: Path) -> Path:
    """Writes a checkpoint as `fit` does, and its calibration."""
    spec = CropSpec(upscaler="none")
    card = DataCard(CLASSES, 224, 3, spec.to_dict(), spec.identity(), "", "lesion", np.zeros(0, np.int64))
    own = {"format_version": FORMAT_VERSION, "kind": "TeacherModule", "class_names": list(CLASSES)}
    content = {
        KEY: own | {"card": card.to_state()},
        "hyper_parameters": {"backbone": asdict(SPEC), "num_classes": len(CLASSES)},
        "state_dict": {f"backbone.{name}": value for name, value in backbone.state_dict().items()},
    }
    torch.save(content, path)
    calibrated(path)
    return path


def calibrated(checkpoint: Path) -> None:
    """Writes a calibration of the size a real one has: 1,778 training photographs."""
    predictor = Predictor.from_checkpoint(checkpoint, calibration="none")
    rng = np.random.default_rng(0)
    appearances = np.stack([appearance_of(picture(224, seed)) for seed in range(64)])
    gate = fit_gate(appearances, rng.normal(size=(1778, 768)).astype(np.float32))
    classes = ClassThresholds(CLASSES, (0.9,) * 5, (20,) * 5, (True,) * 5)
    level = Level(classes, Distances(1e9, 2.0, 1e9))
    digest = predictor.network.info.checkpoint_sha256
    Calibration(digest, CLASSES, 1.5, False, 0.9, "include", 0.05, level, level, gate).write(checkpoint.parent)


def picture(side: int, seed: int = 0) -> np.ndarray:
    """Draws a picture with structure at every scale, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 9, side)[:, None, None], np.linspace(0, 7, side)[None, :, None]
    waves = np.sin(rows * rng.uniform(1, 5, 3) + columns * rng.uniform(1, 5, 3))
    return np.asarray((127 + 90 * waves + rng.normal(0, 20, (side, side, 3))).clip(0, 255), np.uint8)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    begin = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begin:.0f} s in all")
