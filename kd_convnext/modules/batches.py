"""Reads batches of foreign loaders: ``(image, label)``, ``(image, label, index)`` or a dictionary."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kd_convnext.data.loading.dataset import Batch
from kd_convnext.errors import ConfigError, Finding

ForeignBatch = Batch | Mapping[str, Any] | Sequence[Tensor] | Tensor
"""What a loader may yield: our own ``Batch``; a mapping with ``image`` and, where known, ``label`` and ``index``;
images and labels, and perhaps indices, in a tuple or list; or images alone, for prediction.

Images are uint8 0..255 or floating 0..1, [B, C, H, W] in the network's size: networks normalise by themselves. Labels
are int64 or int32 [B], -1 where the class is unknown. Indices, int64 [B], name a picture in answers and merge those
that two processes judged; without them pictures are numbered as they come.
"""

_CONTRACT = "Yield (image, label), (image, label, index), or a dictionary with these names."


def understood(given: ForeignBatch, first: int = 0, step: int = 1) -> Batch:
    """Turns a batch of any loader into ours.

    Args:
        given: The batch.
        first: Number of its first picture, where it does not number them.
        step: From one number to the next.

    Returns:
        Image, label (-1 where unknown) and index, and whatever else a dictionary holds.

    Raises:
        ConfigError: It is none of the kinds that are understood.
    """
    if isinstance(given, Mapping):
        found: dict[str, Any] = dict(given)
    elif isinstance(given, Tensor):
        found = {"image": given}
    elif isinstance(given, Sequence) and 1 <= len(given) <= 3:
        found = dict(zip(("image", "label", "index"), given, strict=False))
    else:
        raise ConfigError(Finding("batch", f"a {type(given).__name__} is not understood", _CONTRACT))
    wrong = [name for name in ("image", "label", "index") if not isinstance(found.get(name, torch.empty(0)), Tensor)]
    if "image" not in found or wrong:
        what = f"no tensor under {', '.join(wrong) or 'image'}"
        raise ConfigError(Finding("batch", what, _CONTRACT))
    image = found["image"]
    found.setdefault("label", image.new_full((len(image),), -1, dtype=torch.int64))
    if found["label"].dtype == torch.int32:
        found["label"] = found["label"].long()
    if "index" not in found:
        found["index"] = first + step * torch.arange(len(image), device=image.device)
    return cast(Batch, found)


def check_foreign(batch: Batch, in_chans: int, image_size: int, num_classes: int, *, labelled: bool) -> None:
    """Refuses images and labels that a network would take for others than they are; on a GPU this waits for them.

    Args:
        batch: Of a foreign loader, as `understood`.
        in_chans: Channels of the network's input.
        image_size: Side of the network's input in pixels.
        num_classes: Width of its output, K.
        labelled: Whether some of the labels must be known.

    Raises:
        ConfigError: No labels, or labels or images of another shape, type or range: all findings.
    """
    images, findings = batch["image"], _label_findings(batch["label"], len(batch["image"]), num_classes)
    if labelled and not findings and not bool((batch["label"] >= 0).any()):
        findings.append(Finding("batch", "no image has a label to learn from", _CONTRACT))
    if tuple(images.shape[1:]) != (in_chans, image_size, image_size):
        what = f"images are {' x '.join(map(str, images.shape[1:]))}"
        remedy = f"The network takes {in_chans} x {image_size} x {image_size}: resize them, or change its image_size."
        findings.append(Finding("batch", what, remedy))
    if images.dtype != torch.uint8 and not images.is_floating_point():
        findings.append(Finding("batch", f"images are {images.dtype}", "Use uint8 0..255 or floating 0..1."))
    elif images.is_floating_point() and len(images):
        low, high = torch.aminmax(images.detach().float())
        if float(low) < 0 or float(high) > 1:
            what = f"floating images reach from {float(low):.3g} to {float(high):.3g}, not within 0..1"
            findings.append(Finding("batch", what, "Leave normalisation out of the transforms: networks do it."))
    if findings:
        raise ConfigError(findings)


def _label_findings(labels: Tensor, count: int, num_classes: int) -> list[Finding]:
    remedy = f"Use whole numbers from 0 to {num_classes - 1}, one for each image, and -1 where the class is unknown."
    if labels.dtype not in (torch.int64, torch.int32) or tuple(labels.shape) != (count,):
        kind = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        return [Finding("batch", f"labels of {count} images are {kind}", remedy)]
    highest = int(labels.max()) if len(labels) else 0
    return [Finding("batch", f"label {highest} for {num_classes} classes", remedy)] if highest >= num_classes else []
