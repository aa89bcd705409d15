"""Makes the start weights of the demo: a small Swin and a small ConvNeXt that have seen other drawn specimens.

They learn to name the class of 1,000 lesions of another seed, 200 of each class; the demo fine-tunes both with new
heads on its own few and uneven lesions. Run once from the repository's root::

    python scripts/pretrain_demo.py
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kd_convnext.data.crops import CropSpec, make_crop
from kd_convnext.data.synthetic import DEMO_LESIONS, class_structure, draw_photographs
from kd_convnext.demo import CONVNEXT, SWIN, DemoSettings

ASSETS = Path(__file__).resolve().parent.parent / "kd_convnext" / "assets"
SEED = 20230918
BATCH = 16
NETWORKS = {"demo_convnext": ("convnext_atto", CONVNEXT), "demo_swin": ("swin_tiny_patch4_window7_224", SWIN)}
LABELS = tuple(DEMO_LESIONS)


def draw(lesions: int, store_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws crops as the demo prepares them: uint8 [N, 3, S, S], and their classes, int64 [N]."""
    spec = CropSpec(upscaler="bicubic", store_size=store_size)
    upscaler = spec.build_upscaler()
    crops, labels = [], []
    for number in range(lesions):
        rng = np.random.default_rng([SEED, number])
        structure = class_structure(rng, LABELS[number % len(LABELS)])
        for drawn in draw_photographs(rng, structure, 2):
            image = cv2.imdecode(np.frombuffer(drawn.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            crops.append(make_crop(np.asarray(image, np.uint8), drawn.box, spec, upscaler))
            labels.append(number % len(LABELS))
    pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.tensor(labels)


def views(images: torch.Tensor, size: int, raw: float = 1.0) -> torch.Tensor:
    """Flips, turns and shifts a batch; [B, 3, size, size], normalised, ``raw`` of it as it is and the rest evened."""
    images = images.float() / 255
    for axis in (2, 3):
        flipped = torch.rand(len(images)) < 0.5
        images[flipped] = images[flipped].flip(axis)
    turned = torch.rand(len(images)) < 0.5
    images[turned] = images[turned].transpose(2, 3)
    low = images.shape[-1] - int(0.9 * images.shape[-1])
    top, left = np.random.randint(0, low + 1, 2)
    side = images.shape[-1] - low
    images = images[..., top : top + side, left : left + side]
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    normal = (images - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    even = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)
    return raw * normal + (1 - raw) * even


def pretrain(name: str, arguments: dict, data: tuple[torch.Tensor, torch.Tensor], epochs: int, lr: float) -> dict:
    """Trains one network and returns its state dict without head, in half precision."""
    torch.manual_seed(SEED)
    np.random.seed(SEED % 2**31)
    size = DemoSettings().image_size
    sized = {"img_size": size} if name.startswith("swin") else {}
    network = timm.create_model(name, num_classes=len(LABELS), **arguments, **sized)
    held_out = len(data[0]) // 10
    crops, labels = data[0][held_out:], data[1][held_out:]
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    steps = epochs * (len(crops) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        network.train()
        for rows in torch.randperm(len(crops)).split(BATCH)[: len(crops) // BATCH]:
            raw = schedule.last_epoch / steps  # from evened to raw pictures: texture is slow to learn in the raw ones
            loss = F.cross_entropy(network(views(crops[rows], size, min(1.0, 2 * raw))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        network.eval()
        with torch.no_grad():
            answers = torch.cat([network(views(part, size)) for part in data[0][:held_out].split(64)])
        right = (answers.argmax(1) == data[1][:held_out]).float().mean()
        seconds = time.perf_counter() - start
        print(
            f"{name} {epoch}: loss {total / (len(crops) // BATCH):.3f}, held-out accuracy {right:.2f}, {seconds:.0f} s",
            flush=True,
        )
    head = tuple(f"{part}." for part in ("head.fc",))
    return {key: value.half().contiguous() for key, value in network.state_dict().items() if not key.startswith(head)}


def main() -> None:
    """Draws, trains both networks and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    data = draw(options.lesions, DemoSettings().store_size)
    print(f"{len(data[0])} crops")
    ASSETS.mkdir(exist_ok=True)
    for file in options.networks:
        save_file(pretrain(*NETWORKS[file], data, options.epochs, lr=1e-3), ASSETS / f"{file}.safetensors")


if __name__ == "__main__":
    main()
