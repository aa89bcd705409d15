"""Explains predictions: heat maps of one network or two, and the training photographs most like the new one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_convnext.checkpoints.network import Network
from kd_convnext.common.arrays import Pixels, Values, softmax
from kd_convnext.data.manifest.boxes import Box, region_of
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.inference.explaining.neighbours import Neighbour, TrainingCases
from kd_convnext.inference.prediction import Failure, Photograph
from kd_convnext.inference.predictor import Predictor
from kd_convnext.models.heatmaps import (
    Heat,
    explaining_stage,
    heat_maps,
    overlay,
    peak_of,
    place_on,
    resized,
    spread_over,
)


@dataclass(frozen=True, eq=False)
class NetworkView:
    """Prediction and heat map of one network for a photograph.

    Attributes:
        model: Its timm name, with what was changed of the published network.
        checkpoint_sha256: Hash of its checkpoint.
        stage: Module whose map it is.
        heat: float32 [h, w], 0..1, evidence for the explained class; zeros where there is none.
        probabilities: float64 [K]; of the explained network calibrated where it is.
        predicted: Its own most probable class.
        peak: Pixel (x, y) of the photograph in the middle of the hottest cell; None without evidence.
        picture: uint8 RGB [H, W, 3], the map over the crop.
    """

    model: str
    checkpoint_sha256: str
    stage: str
    heat: Heat
    probabilities: Values
    predicted: str
    peak: tuple[int, int] | None
    picture: Pixels


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of a class in one photograph.

    Attributes:
        photograph: Which one.
        target: The explained class.
        region: What the network saw of it, in pixels of the photograph.
        crop: Its pixels, uint8 RGB [H, W, 3].
        views: Of the explained network, then of its teacher where one was given.
        neighbours: Training photographs, the most alike first.
    """

    photograph: Photograph
    target: str
    region: Box
    crop: Pixels
    views: tuple[NetworkView, ...]
    neighbours: tuple[Neighbour, ...]

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns plain values for JSON; maps with their values, pictures left out.

        Args:
            class_names: K names in the order of the outputs.
        """
        return {
            "image": str(self.photograph),
            "lesion_id": self.photograph.lesion_id,
            "region": asdict(self.region),
            "explained_class": self.target,
            "networks": [_view_entry(view, class_names, self.target) for view in self.views],
            "neighbours": [_neighbour_entry(neighbour) for neighbour in self.neighbours],
        }


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explains photographs.

    Attributes:
        predictor: The network to explain, with its cropping.
        teacher: Its teacher, which is shown the same pictures; None for none.
        target: The class whose evidence is sought; None for the one that the network predicts.
        reduction: See `explaining_stage`.
        cases: The training photographs; None for none.
        neighbours: How many of them to show.
    """

    predictor: Predictor
    teacher: Network | None = None
    target: str | None = None
    reduction: int | None = None
    cases: TrainingCases | None = None
    neighbours: int = 3

    def __post_init__(self) -> None:
        """Checks that the parts belong together; see `require_together`."""
        require_together(self.predictor.network, self.teacher, self.target, self.reduction)

    def __call__(self, photographs: Iterable[Photograph]) -> Iterator[Explanation | Failure]:
        """Explains photographs, in their order, as they come.

        Args:
            photographs: The photographs.

        Yields:
            For each its explanation, or why there is none.
        """
        for photograph, picture in self.predictor.pictures(photographs):
            yield picture if isinstance(picture, Failure) else self._explained(photograph, picture)

    def _explained(self, photograph: Photograph, picture: Pixels) -> Explanation:
        network, calibration = self.predictor.network, self.predictor.calibration
        logits, features = self.predictor.outputs([picture])
        probabilities = softmax(logits[0], calibration.temperature if calibration else 1.0)
        target = self.target or network.card.class_names[int(probabilities.argmax())]
        image = read_image(photograph.image) if isinstance(photograph.image, Path) else photograph.image
        region = region_of(photograph.box, self.predictor.spec.roi_margin, *image.shape[:2])
        crop = image[region.y : region.y + region.height, region.x : region.x + region.width]
        views = [self._view(network, picture, probabilities, target, crop, region)]
        if self.teacher is not None:
            seen = resized(picture, self.teacher.backbone.image_size)
            answer = softmax(self.teacher(torch.from_numpy(seen).permute(2, 0, 1)[None])[0].double().numpy()[0])
            views.append(self._view(self.teacher, seen, answer, target, crop, region))
        alike = self.cases.nearest(features[0], self.neighbours) if self.cases is not None else []
        return Explanation(photograph, target, region, crop, tuple(views), tuple(alike))

    def _view(
        self, network: Network, picture: Pixels, probabilities: Values, target: str, crop: Pixels, region: Box
    ) -> NetworkView:
        names = network.card.class_names
        stage = explaining_stage(network.backbone, self.reduction)
        images = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
        (heat,) = heat_maps(network.backbone, images, torch.tensor([names.index(target)]), stage)
        height, width = crop.shape[:2]
        padded = self.predictor.spec.resize == "pad"
        found = peak_of(heat)
        peak = None
        if found is not None:
            place = place_on(found, height, width, padded=padded)
            x, y = min(int(place.x * width), width - 1), min(int(place.y * height), height - 1)
            peak = (region.x + x, region.y + y)
        return NetworkView(
            model=network.info.name,
            checkpoint_sha256=network.info.checkpoint_sha256,
            stage=stage.name,
            heat=heat,
            probabilities=probabilities,
            predicted=names[int(probabilities.argmax())],
            peak=peak,
            picture=overlay(crop, spread_over(heat, height, width, padded=padded)),
        )


def require_together(network: Network, teacher: Network | None, target: str | None, reduction: int | None) -> None:
    """Checks what is to be explained before any photograph is seen.

    Args:
        network: The explained one.
        teacher: See `Explainer`.
        target: See `Explainer`.
        reduction: See `Explainer`.

    Raises:
        ConfigError: The teacher knows other classes or colours, the class to explain is unknown, or a network has no
            such stage.
    """
    card, findings = network.card, []
    if target is not None and target not in card.class_names:
        what = f"{target!r} is no class of this network"
        findings.append(Finding("--target", what, f"Classes: {', '.join(card.class_names)}."))
    if teacher is not None:
        other = teacher.card
        if (other.class_names, other.in_chans) != (card.class_names, card.in_chans):
            what = f"it knows {', '.join(other.class_names)} on {other.in_chans} channels, the network "
            what += f"{', '.join(card.class_names)} on {card.in_chans}"
            findings.append(Finding("--teacher_ckpt", what, "Give the teacher of this student."))
    for one in (network, teacher):
        try:
            if one is not None:
                explaining_stage(one.backbone, reduction)
        except ConfigError as error:
            findings += error.findings
    if findings:
        raise ConfigError(findings)


def _view_entry(view: NetworkView, class_names: Sequence[str], target: str) -> dict[str, Any]:
    return {
        "model": view.model,
        "checkpoint_sha256": view.checkpoint_sha256,
        "predicted": view.predicted,
        "probability": float(view.probabilities[class_names.index(target)]),
        "stage": view.stage,
        "peak": None if view.peak is None else {"x": view.peak[0], "y": view.peak[1]},
        "map": [[round(float(value), 4) for value in row] for row in view.heat],
    }


def _neighbour_entry(neighbour: Neighbour) -> dict[str, Any]:
    return {
        "image": neighbour.image,
        "box": asdict(neighbour.box) if neighbour.box else None,
        "lesion_id": neighbour.lesion_id,
        "label": neighbour.label,
        "similarity": round(neighbour.similarity, 4),
    }
