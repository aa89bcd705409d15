"""Trains the packaged upscaler ``drawn-specimens-x4``: a small SRVGG that has seen drawn specimens and nothing else.

Pictures are drawn at twice the wanted size and reduced, so that the camera's noise is small in what the network should
give; what it gets is degraded by the steps of Real-ESRGAN (Wang et al. 2021, section 3.1, first order): blur,
downscaling by one of three interpolations, Gaussian noise, JPEG. The loss is the absolute difference. Run once from the
repository's root (about a quarter of an hour on one core)::

    OMP_NUM_THREADS=1 python scripts/train_tiny_sr.py
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

from kd_convnext.data.drawn.lesions import draw_lesion, photograph
from kd_convnext.data.drawn.specimens import DEMO_LESIONS, HEIGHT, WIDTH, class_structure

Pixels = npt.NDArray[np.uint8]

TARGET = Path(__file__).resolve().parent.parent / "kd_convnext" / "assets" / "sr_drawn_specimens_x4.safetensors"
TRAINING_SEED, HELD_OUT_SEED = 20261123, 20261124
SCALE = 4
PATCH = 32
BATCH = 16
PEAK_RATE = 2e-3
LABELS = tuple(DEMO_LESIONS)


def draw(seed: int, count: int, size: float | None = None) -> Iterator[Pixels]:
    """Draws photographs of lesions, one each: uint8 RGB [H, W, 3], sides multiples of 4.

    Args:
        seed: Decides everything.
        count: How many.
        size: Size in units of the demo's photographs; by default another one from 1 to 4 for each.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        lesion = draw_lesion(rng, class_structure(rng, LABELS[number % len(LABELS)]))
        chosen = rng.uniform(1, SCALE)
        width, height = (SCALE * round((size or chosen) * side / SCALE) for side in (WIDTH, HEIGHT))
        large = photograph(rng, lesion, 2 * width, 2 * height).image
        yield np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def degrade(rng: np.random.Generator, picture: Pixels) -> Pixels:
    """Makes the small, blurred, noisy, compressed picture that the network gets.

    Args:
        rng: Source of every random choice.
        picture: uint8 RGB [H, W, 3], sides multiples of 4.

    Returns:
        uint8 RGB [H / 4, W / 4, 3].
    """
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), *rng.uniform(0.2, 3.0, 2)), np.uint8)
    way = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(rng.integers(3))]
    size = (picture.shape[1] // SCALE, picture.shape[0] // SCALE)
    small = cv2.resize(picture, size, interpolation=way).astype(np.float32)
    shape = small.shape if rng.random() < 0.6 else (*small.shape[:2], 1)  # of each channel, or gray
    small += rng.uniform(1, 10) * rng.standard_normal(shape, dtype=np.float32)
    noisy = cv2.cvtColor(small.round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))])
    return np.ascontiguousarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[:, :, ::-1], np.uint8)


def psnr(truth: Pixels, found: Pixels) -> float:
    """Returns the peak signal-to-noise ratio in dB over all channels."""
    return float(10 * np.log10(255**2 / np.mean((truth.astype(np.float64) - found) ** 2)))


def build() -> Compact:
    """Returns the network, 53 thousand parameters: 106 KB in half precision."""
    torch.manual_seed(TRAINING_SEED)
    return Compact(num_feat=24, num_conv=8, upscale=SCALE)


def patches(rng: np.random.Generator, pictures: list[Pixels]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws a batch: inputs [B, 3, 32, 32] and what they should become [B, 3, 128, 128], 0 to 1."""
    pairs = []
    margin = 2  # of the small picture: neither blur nor JPEG should see the patch's border
    side = SCALE * (PATCH + 2 * margin)
    for _ in range(BATCH):
        picture = pictures[int(rng.integers(len(pictures)))]
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        wanted = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
        inner = slice(margin, margin + PATCH)
        outer = slice(SCALE * margin, SCALE * (margin + PATCH))
        pairs.append((degrade(rng, np.ascontiguousarray(wanted))[inner, inner], wanted[outer, outer]))
    given, wanted = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in zip(*pairs, strict=True))
    return given.float() / 255, wanted.float() / 255


def train(network: Compact, pictures: list[Pixels], steps: int) -> None:
    """Fits the network to random patches of the pictures."""
    rng = np.random.default_rng(TRAINING_SEED)
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.05)
    start, running = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        given, wanted = patches(rng, pictures)
        loss = F.l1_loss(network(given.contiguous(memory_format=torch.channels_last)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += loss.item()
        if step % 200 == 0:
            print(f"{step}: {255 * running / 200:.2f} levels, {time.perf_counter() - start:.0f} s", flush=True)
            running = 0.0


def measure(file: Path, count: int) -> None:
    """Prints the gain over bicubic interpolation on pictures of another seed."""
    from kd_convnext.data.crops.upscaling.build import build_upscaler

    network, bicubic = build_upscaler("spandrel", file), build_upscaler("bicubic", None)
    for name, size in (("1 to 4 times", None), ("the demo's size", 1.0), ("4 times", 4.0)):
        rng = np.random.default_rng(HELD_OUT_SEED)
        ratios: dict[str, list[tuple[float, float]]] = {"degraded": [], "clean": []}
        for truth in draw(HELD_OUT_SEED, count, size):
            half = (truth.shape[1] // SCALE, truth.shape[0] // SCALE)
            clean = np.asarray(cv2.resize(truth, half, interpolation=cv2.INTER_CUBIC), np.uint8)
            for kind, small in (("degraded", degrade(rng, truth)), ("clean", clean)):
                ratios[kind].append((psnr(truth, network(small)), psnr(truth, bicubic(small))))
        for kind, pairs in ratios.items():
            ours, theirs = np.mean(pairs, axis=0)
            print(f"{name}, {kind}: {ours:.2f} dB, bicubic {theirs:.2f} dB, gain {ours - theirs:+.2f} dB", flush=True)


def main() -> None:
    """Draws, trains, writes the weights in half precision, and measures what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=int, default=130)
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--held_out", type=int, default=20)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    start = time.perf_counter()
    pictures = list(draw(TRAINING_SEED, options.lesions))
    print(f"{len(pictures)} pictures, {time.perf_counter() - start:.0f} s", flush=True)
    network = build()
    train(network, pictures, options.steps)
    state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    save_file(state, options.out)
    measure(options.out, options.held_out)


if __name__ == "__main__":
    main()
