"""What leaves the house: a network with everything inside that an answer needs, and the words that go with it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_convnext.inference.calibration import Calibration, Level
from kd_convnext.inference.network import Network
from kd_convnext.inference.predictor import MIRRORED
from kd_convnext.models.backbones import Backbone

PixelType = Literal["uint8", "float32"]
"""Type of the input: 0..255, or 0..1."""

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
KEY = "kd_convnext"
"""Prefix of the entries in an ONNX file, root of those in an OpenVINO file, name of the file inside a torch archive."""

FORMAT_VERSION = 1


class Deployed(nn.Module):
    """A trained classifier from pixels to calibrated probabilities.

    Attributes:
        backbone: The network, with its normalisation.
        temperature: Divides the logits before the softmax.
        tta: Whether the logits are means over the mirror images.
    """

    def __init__(self, backbone: Backbone, temperature: float = 1.0, tta: bool = False) -> None:
        """Wraps a network in evaluation mode."""
        super().__init__()
        self.backbone, self.temperature, self.tta = backbone, temperature, tta

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers.

        Args:
            images: [B, C, S, S], uint8 0..255 or float32 0..1.

        Returns:
            Logits [B, K], not scaled by the temperature, and calibrated probabilities [B, K].
        """
        if self.tta:
            # Rows and columns are the first two axes of a picture, the last two of a batch.
            views = [self.backbone(images.flip([axis + 2 for axis in axes])) for axes in MIRRORED]
            logits = torch.stack(views).mean(dim=0)
        else:
            logits = self.backbone(images)
        return logits, (logits / self.temperature).softmax(dim=1)


@dataclass(frozen=True)
class Words:
    """What a deployed file says of itself.

    Attributes:
        content: JSON types by name.
    """

    content: dict[str, Any]

    def strings(self) -> dict[str, str]:
        """Returns each entry as JSON text."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in self.content.items()}

    def text(self) -> str:
        """Returns all of it as one JSON text."""
        return json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"


def words_of(
    network: Network, calibration: Calibration | None, *, tta: bool, pixels: PixelType, precision: str
) -> Words:
    """Describes a deployed network: its input, its crops, its classes, and how far to trust it.

    Args:
        network: The network.
        calibration: Of it; None where it was not calibrated.
        tta: Whether the mirror images are inside.
        pixels: Type of its input.
        precision: ``float32`` or ``int8``.

    Returns:
        The words.
    """
    card, backbone = network.card, network.backbone
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "intended_use": "For research. Not a medical device; no answer may decide about a patient.",
        "class_names": list(card.class_names),
        "precision": precision,
        "input": {
            "name": INPUT,
            "shape": ["batch", card.in_chans, card.image_size, card.image_size],
            "type": pixels,
            "range": [0, 255] if pixels == "uint8" else [0, 1],
            "colours": "RGB" if card.in_chans == 3 else "luminance",
        },
        "normalisation": {
            "inside_the_network": True,
            "mean": backbone.mean.flatten().tolist(),
            "std": backbone.std.flatten().tolist(),
        },
        "mirror_images_inside": tta,
        "crop": {**card.crop, "sr_weights": None, "upscaler_identity": card.crop_identity["upscaler"]},
        "temperature": calibration.temperature if calibration else None,
        "prediction_set": _sets(calibration) if calibration else None,
        "gate": "not inside: classify also stops photographs unlike those of the training",
        "model": asdict(network.info),
    }
    return Words(content)


def _sets(calibration: Calibration) -> dict[str, Any]:
    classes = calibration.lesion.classes
    return {
        "rule": "a class is in the set where 1 - softmax(logits) is not above its threshold (null: always in it)",
        "coverage": calibration.coverage,
        "photograph": _thresholds(calibration.photograph, calibration.class_names),
        "lesion": _thresholds(calibration.lesion, calibration.class_names),
        "lesions": dict(zip(calibration.class_names, classes.lesions, strict=True)),
        "guaranteed": dict(zip(calibration.class_names, classes.guaranteed, strict=True)),
    }


def _thresholds(level: Level, class_names: Sequence[str]) -> dict[str, float | None]:
    values = (value if value != float("inf") else None for value in level.classes.values)
    return dict(zip(class_names, values, strict=True))
