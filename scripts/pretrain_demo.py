"""Makes the start weights of the demo: a small Swin and a small ConvNeXt that have seen other drawn specimens.

They learn to name the class of 1,000 lesions of another seed, 200 of each class; the demo fine-tunes both with new
heads on its own few and uneven lesions. The ConvNeXt learns from the labels; a Swin this small does not get going
alone, so it follows the ConvNeXt's feature maps and answers as well. Run once from the repository's root::

    python scripts/pretrain_demo.py
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.drawn.specimens import DEMO_LESIONS, class_structure, draw_photographs
from kd_convnext.losses import FeatureLoss, SoftTargetLoss
from kd_convnext.losses.projectors import Regressors
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone
from kd_convnext.models.taps import FeatureTaps
from kd_convnext.tools.demo_fits import CONVNEXT, SWIN, DemoSettings

ROOT = Path(__file__).resolve().parent.parent
ASSETS, FIXTURES = ROOT / "kd_convnext" / "assets", ROOT / "tests" / "fixtures"
SEED = 20230918
BATCH = 16
LABELS = tuple(DEMO_LESIONS)
SIZE = DemoSettings().image_size


def draw(lesions: int, store_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws crops as the demo prepares them: uint8 [N, 3, S, S], and their classes, int64 [N]."""
    spec = CropSpec(upscaler="bicubic", store_size=store_size)
    upscaler = spec.build_upscaler()
    crops, labels = [], []
    for number in range(lesions):
        rng = np.random.default_rng([SEED, number])
        structure = class_structure(rng, LABELS[number % len(LABELS)])
        for drawn in draw_photographs(rng, structure, 2):
            image = cv2.imdecode(np.frombuffer(drawn.jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].copy()
            crops.append(make_crop(np.asarray(image, np.uint8), drawn.box, spec, upscaler))
            labels.append(number % len(LABELS))
    pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.tensor(labels)


def views(images: torch.Tensor, raw: float) -> torch.Tensor:
    """Flips, turns and shifts a batch; [B, 3, SIZE, SIZE], ``raw`` of it normalised as it is and the rest evened."""
    images = images.float() / 255
    for axis in (2, 3):
        flipped = torch.rand(len(images)) < 0.5
        images[flipped] = images[flipped].flip(axis)
    turned = torch.rand(len(images)) < 0.5
    images[turned] = images[turned].transpose(2, 3)
    side = int(0.9 * images.shape[-1])
    top, left = np.random.randint(0, images.shape[-1] - side + 1, 2)
    images = images[..., top : top + side, left : left + side]
    images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    normal = (images - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    even = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)
    return raw * normal + (1 - raw) * even


class Guide:
    """A trained network whose feature maps and answers another follows."""

    def __init__(self, guide: Backbone, learner: Backbone) -> None:
        """Taps the four stages of both."""
        self.guide = guide.eval().requires_grad_(False)
        self.taps = FeatureTaps(guide), FeatureTaps(learner)
        self.regressors = Regressors(self.taps[1].channels, self.taps[0].channels)
        self.feature, self.soft = FeatureLoss(), SoftTargetLoss(temperature=2.0)

    def loss(self, pictures: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Compares the learner, whose forward pass has just run, with the guide."""
        with torch.no_grad():
            answers = self.guide.network(pictures)
        maps, own = (list(taps.pop().values()) for taps in self.taps)
        even = [(found - found.mean((0, 2, 3), keepdim=True)) / found.std((0, 2, 3), keepdim=True) for found in maps]
        return 2 * self.feature(self.regressors(own, even), even) + self.soft(logits, answers)


def pretrain(
    backbone: Backbone, data: tuple[torch.Tensor, torch.Tensor], epochs: int, guide: Backbone | None = None
) -> Backbone:
    """Trains one network, alone or after a guide."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    network = backbone.network
    follow = Guide(guide, backbone) if guide else None
    learning = [*network.parameters(), *(follow.regressors.parameters() if follow else ())]
    held_out = len(data[0]) // 10
    crops, labels = data[0][held_out:], data[1][held_out:]
    steps = epochs * (len(crops) // BATCH)
    optimizer = torch.optim.AdamW(learning, 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        start = time.perf_counter()
        network.train()
        for rows in torch.randperm(len(crops)).split(BATCH)[: len(crops) // BATCH]:
            # From evened to raw pictures: texture is slow to learn in the raw ones.
            pictures = views(crops[rows], raw=min(1.0, 2 * schedule.last_epoch / steps))
            logits = network(pictures)
            loss = F.cross_entropy(logits, labels[rows])
            if follow:
                loss = loss + follow.loss(pictures, logits)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            answers = torch.cat([network(views(part, raw=1.0)) for part in data[0][:held_out].split(64)])
        right = (answers.argmax(1) == data[1][:held_out]).float().mean()
        print(
            f"{backbone.name} {epoch}: loss {loss.item():.3f}, held-out accuracy {right:.2f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return backbone


def keep(backbone: Backbone, file: Path) -> None:
    """Writes the body in half precision."""
    body = {key: value for key, value in backbone.network.state_dict().items() if not key.startswith("head.fc.")}
    save_file({key: value.half().contiguous() for key, value in body.items()}, file)


def main() -> None:
    """Draws, trains both networks and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=int, default=1000)
    parser.add_argument("--convnext_epochs", type=int, default=36)
    parser.add_argument("--swin_epochs", type=int, default=16)
    parser.add_argument(
        "--convnext", help="Start weights made before: only its head needs a few epochs, only the Swin is written."
    )
    options = parser.parse_args()
    data = draw(options.lesions, DemoSettings().store_size)
    print(f"{len(data[0])} crops", flush=True)
    spec = BackboneSpec("convnext_atto", image_size=SIZE, args=CONVNEXT, weights=options.convnext)
    torch.manual_seed(SEED)
    convnext = build_backbone(spec, len(LABELS))
    pretrain(convnext, data, options.convnext_epochs)
    if options.convnext is None:
        keep(convnext, FIXTURES / "demo_convnext.safetensors")
    swin = build_backbone(BackboneSpec("swin_tiny_patch4_window7_224", image_size=SIZE, args=SWIN), len(LABELS))
    keep(pretrain(swin, data, options.swin_epochs, convnext), ASSETS / "demo_swin.safetensors")


if __name__ == "__main__":
    main()
