"""Computes heat maps: where in a picture the evidence for a class lies, for any backbone."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.common.arrays import Pixels
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone, Stage

FEWEST_CELLS = 7
"""A map of fewer cells a side points nowhere: ConvNeXt and Swin have 7 at 224 px in their last stage."""

STEPS = 16
"""Gradients on the way (Gauss-Legendre)."""

Heat = npt.NDArray[np.float32]
"""[h, w], 0 to 1."""


@dataclass(frozen=True)
class Peak:
    """The hottest place of a map, as shares of the picture's width and height, 0..1."""

    x: float
    y: float


def explaining_stage(backbone: Backbone, reduction: int | None = None) -> Stage:
    """Chooses the stage whose map is shown.

    Args:
        backbone: The network.
        reduction: Side of the input over side of the map; by default that of the deepest stage (deeper ones know more
            of the class) whose map still has :data:`FEWEST_CELLS` a side.

    Returns:
        The stage.

    Raises:
        ConfigError: The network has no such stage.
    """
    stages = {stage.reduction: stage for stage in backbone.stages}
    fine = [stage for stage in backbone.stages if backbone.image_size // stage.reduction >= FEWEST_CELLS]
    if reduction is None and stages:
        return fine[-1] if fine else backbone.stages[0]
    if reduction in stages:
        return stages[reduction]
    known = ", ".join(map(str, stages)) or "none"
    what = f"{backbone.name} has no stage at 1/{reduction or 32} of its input (known: {known})"
    raise ConfigError(Finding("--reduction", what, "Give one of those, or explain another network."))


def heat_maps(backbone: Backbone, images: Tensor, classes: Tensor, stage: Stage) -> npt.NDArray[np.float32]:
    """Finds the evidence for a class in each picture.

    Integrated gradients of the class's logit at a stage's output, from a picture of one colour (its own mean) to the
    picture itself, summed over channels, negative sums set to 0: Grad-CAM with gradients averaged along the way
    (Sundararajan et al. 2017; Integrated Grad-CAM, Sattarzadeh et al. 2021, arXiv:2102.07805). The sums before that add
    up to how much the logit rises. Gradients at the picture alone say little here: ConvNeXt and Swin normalise each
    place right after a stage, so that activations times gradients all but cancel.

    Args:
        backbone: The network, in evaluation mode.
        images: uint8 [B, C, S, S].
        classes: int64 [B], whose evidence is sought in each.
        stage: Of the backbone, see `explaining_stage`.

    Returns:
        float32 [B, h, w], the largest value of each map 1; a map of zeros where nothing speaks for the class.
    """
    sums = evidence(backbone, images, classes, stage).clamp(min=0)
    largest = sums.amax(dim=(1, 2), keepdim=True)
    return np.asarray((sums / torch.where(largest > 0, largest, 1.0)).numpy(), dtype=np.float32)


def evidence(backbone: Backbone, images: Tensor, classes: Tensor, stage: Stage) -> Tensor:
    """Computes the sums of `heat_maps`, of both signs.

    Args:
        backbone: See there.
        images: See there.
        classes: See there.
        stage: See there.

    Returns:
        float32 [B, h, w] on the CPU; each adds up to the logit's difference between picture and plain colour.
    """
    from captum.attr import LayerIntegratedGradients

    device = backbone.mean.device
    # Lightning tests in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        pictures = images.to(device).clone().float() / 255
        plain = pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures).contiguous()
        method = LayerIntegratedGradients(backbone, backbone.network.get_submodule(stage.name))
        found: Tensor = method.attribute(pictures, plain, target=classes.to(device).clone(), n_steps=STEPS)
    return found.detach().sum(dim=-1 if stage.channels_last else 1).float().cpu()


def peak_of(heat: Heat) -> Peak | None:
    """Finds the middle of the hottest cell; None in a map of zeros."""
    if heat.max() <= 0:
        return None
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return Peak((float(column) + 0.5) / heat.shape[1], (float(row) + 0.5) / heat.shape[0])


def spread_over(heat: Heat, height: int, width: int, *, padded: bool) -> Heat:
    """Enlarges a map to the crop that the network saw as a square.

    Args:
        heat: [h, w], of the whole square.
        height: Of the crop in pixels.
        width: Of the crop in pixels.
        padded: The crop was padded to the square, not stretched.

    Returns:
        [height, width], bilinear.
    """
    if not padded:
        return np.asarray(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    side = max(height, width)
    square = np.asarray(cv2.resize(heat, (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    return square[top : top + height, left : left + width]


def place_on(peak: Peak, height: int, width: int, *, padded: bool) -> Peak:
    """Turns a place in the square into shares of the crop's own width and height; see `spread_over`."""
    if not padded:
        return peak
    side = max(height, width)
    x, y = ((share - 0.5) * side / length + 0.5 for share, length in ((peak.x, width), (peak.y, height)))
    return Peak(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))


def overlay(crop: Pixels, heat: Heat) -> Pixels:
    """Lays a map over a crop: grey where nothing is, from violet to yellow where the evidence lies.

    Args:
        crop: uint8 RGB [H, W, 3].
        heat: [H, W], see `spread_over`.

    Returns:
        uint8 RGB [H, W, 3].
    """
    from matplotlib import colormaps

    grey = np.repeat(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    hot = colormaps["inferno"](heat)[:, :, :3] * 255
    share = 0.65 * heat[:, :, None]
    return np.asarray((grey * (1 - share) + hot * share).round(), dtype=np.uint8)


def resized(picture: Pixels, size: int) -> Pixels:
    """Shows a teacher of another size the picture as during distillation.

    Args:
        picture: uint8 [S, S, C], as the student sees it.
        size: Side of the teacher's input.
    """
    if picture.shape[0] == size:
        return picture
    values = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].float()
    seen = F.interpolate(values, (size, size), mode="bilinear", antialias=True)[0]
    return np.asarray(seen.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def evidence_over(backbone: Backbone, picture: Pixels, target: int, crop: Pixels, *, padded: bool) -> Pixels:
    """Draws where a network's evidence for a class lies.

    Args:
        backbone: The network, in evaluation mode.
        picture: uint8 [S, S, C], as it sees the crop.
        target: Position of the class.
        crop: uint8 RGB [H, W, 3].
        padded: Whether the network sees the crop with borders that keep its proportions.

    Returns:
        uint8 RGB [H, W, 3].
    """
    images = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
    (heat,) = heat_maps(backbone, images, torch.tensor([target]), explaining_stage(backbone))
    return overlay(crop, spread_over(heat, *crop.shape[:2], padded=padded))
