"""Builds the exportable network (normalisation, temperature and gate included) and the metadata stored in the file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_convnext.checkpoints.network import Network
from kd_convnext.inference.exporting.deployed_gate import DeployedGate
from kd_convnext.inference.trust.calibration import NOT_CALIBRATED, Calibration, Level
from kd_convnext.inference.trust.gate import Distances
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.mirrored import MIRRORED_BATCH
from kd_convnext.models.taps import watched_features

PixelType = Literal["uint8", "float32"]
"""Type of the input: 0..255, or 0..1."""

INPUT = "images"
OUTPUTS = ("logits", "probabilities", "gate_score", "gate_distances")
"""Of a calibrated network; without calibration there are the first two."""
KEY = "kd_convnext"
"""Prefix of the entries in an ONNX file, root of those in an OpenVINO file, name of the file inside a torch archive."""

FORMAT_VERSION = 2


class Deployed(nn.Module):
    """Computes calibrated probabilities and the gate's score from pixels.

    Attributes:
        backbone: The network, with its normalisation.
        temperature: Divides the logits before the softmax.
        tta: Whether logits and features are means over the mirror images.
        gate: Measures how far pictures are from the training photographs; None without calibration.
        limits: Distances that the gate lets pass; None without calibration.
    """

    def __init__(self, backbone: Backbone, calibration: Calibration | None = None, tta: bool = False) -> None:
        """Wraps a network in evaluation mode.

        Args:
            backbone: The network.
            calibration: Of it.
            tta: See above.
        """
        super().__init__()
        self.backbone, self.tta = backbone, tta
        self.temperature = calibration.temperature if calibration else 1.0
        self.gate = DeployedGate(calibration.gate, backbone.image_size) if calibration else None
        self.limits = calibration.photograph.gate if calibration else None
        self._features = watched_features(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs the network.

        Args:
            images: [B, C, S, S], uint8 0..255 or float32 0..1.

        Returns:
            Logits [B, K], not scaled by the temperature, and calibrated probabilities [B, K]; of a calibrated network
            also the gate's score [B] and `Distances` [B, 3].
        """
        if self.tta:
            views = [self._seen(images.flip(axes)) for axes in MIRRORED_BATCH]
            logits, features = (torch.stack(values).mean(dim=0) for values in zip(*views, strict=True))
        else:
            logits, features = self._seen(images)
        probabilities = (logits / self.temperature).softmax(dim=1)
        if self.gate is None or self.limits is None:
            return logits, probabilities
        distances = self.gate(images, features)
        ratios = distances / distances.new_tensor(self.limits)
        return logits, probabilities, ratios.amax(dim=1), distances

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [B, K], and features [B, D] as the last linear layer sees them."""
        logits = self.backbone(images)
        return logits, self._features.pop().flatten(1)


@dataclass(frozen=True)
class Words:
    """Metadata stored in an exported file.

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
        "crop": {**card.public_crop(), "upscaler_identity": card.crop_identity["upscaler"]},
        "temperature": calibration.temperature if calibration else None,
        "prediction_set": _sets(calibration) if calibration else None,
        "gate": _gate(calibration) if calibration else None,
        "abstain": _abstain(calibration),
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
        "crossed": dict(zip(calibration.class_names, classes.crossed, strict=False)),
    }


def _thresholds(level: Level, class_names: Sequence[str]) -> dict[str, float | None]:
    values = (value if value != float("inf") else None for value in level.classes.limits)
    return dict(zip(class_names, values, strict=True))


def _gate(calibration: Calibration) -> dict[str, Any]:
    return {
        "rule": "gate_score is the larger of gate_distances, each divided by the photograph's limit; above 1 it stops",
        "distances": list(Distances._fields),
        "photograph": calibration.photograph.gate._asdict(),
        "lesion": calibration.lesion.gate._asdict(),
        "false_alarms": calibration.gate_false_alarms,
    }


def _abstain(calibration: Calibration | None) -> dict[str, Any]:
    """Describes the rule for abstaining and its reasons; `Calibration.decide` does the same."""
    if calibration is None:
        return {"rule": "always", "reasons": {"always": NOT_CALIBRATED}}
    return {
        "rule": (
            "where there is a reason; in this order: a gate distance above its limit; then, unless the set holds one "
            "class whose threshold is not null: several (two or more such classes), few (any class), or none"
        ),
        "reasons": calibration.reasons(),
        "lesion": "the same, of the means of softmax(logits) and gate_distances over its photographs, with its limits",
    }
