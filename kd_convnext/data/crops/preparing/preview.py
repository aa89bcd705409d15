"""Draws crops beside their bicubic and their super-resolved form, as a preview before all are made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.figures import put_caption, save_figure, wrapped
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.fidelity import Fidelity, consistent, fidelity
from kd_convnext.data.crops.resize import reduced_size, resize_to
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS, BicubicUpscaler, UpscalerIdentity
from kd_convnext.data.manifest.boxes import crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import KDConvNeXtError

_SHOWN = 96  # pixels of a crop's middle that are drawn
_CONTEXT = 64  # pixels around it that the upscaler sees as well
_WIDTH, _LETTERS = 9.0, 9.0  # of the figure in inches, of its titles in points


class Comparison(NamedTuple):
    """The middle of one crop in three forms, uint8 RGB: as cut (and reduced), enlarged bicubically, and upscaled.

    ``kept`` says how faithful the upscaled middle is.
    """

    title: str
    crop: Pixels
    bicubic: Pixels
    upscaled: Pixels
    kept: Fidelity


def write_preview(cache: CropCache, manifest: Manifest, count: int, worst: Sequence[int] = ()) -> Path:
    """Draws some crops of every class in their three forms, and first those that the upscaler changed most.

    Args:
        cache: Names crop and upscaler.
        manifest: The photographs; those that cannot be read are passed over.
        count: Crops to draw, the classes in turn.
        worst: Rows in the order of their fidelity, the least faithful first; a quarter of ``count`` are of these.

    Returns:
        ``preview.png`` in the cache's folder.

    Raises:
        ConfigError: The file cannot be written.
    """
    first = list(worst[: -(-count // 4)])
    others = [row for row in _readable(cache, manifest, count) if row not in first]
    comparisons = [compare(cache, manifest, row) for row in [*first, *others][:count]]
    path = cache.folder / "preview.png"
    save_figure(path, preview_grid(comparisons, _named(cache.upscaler.identity)))
    return path


def compare(cache: CropCache, manifest: Manifest, row: int) -> Comparison:
    """Makes the three forms of one crop.

    Args:
        cache: Names crop and upscaler.
        manifest: The photographs.
        row: Position in the manifest.

    Raises:
        ManifestError: The photograph cannot be read.
    """
    crop = crop_roi(read_image(manifest.image_path(row)), manifest.box(row), cache.spec.roi_margin)
    crop = resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], cache.spec.sr_max_side))
    label = manifest.class_names[manifest.labels[row]]
    title = f"{label}, {crop.shape[1]} x {crop.shape[0]} px"
    part, (top, left) = _middle(crop, _CONTEXT)
    forms = []
    upscaled = cache.upscaler(part)
    if cache.spec.sr_consistent:
        upscaled = consistent(part, upscaled)
    for form in (part, BicubicUpscaler()(part), upscaled):
        scale = form.shape[0] // part.shape[0]
        forms.append(form[top * scale : (top + _SHOWN) * scale, left * scale : (left + _SHOWN) * scale])
    as_cut, bicubic, middle = forms
    return Comparison(title, as_cut, bicubic, middle, fidelity(part, upscaled))


def preview_grid(comparisons: Sequence[Comparison], upscaler: str) -> Figure:
    """Draws one row a crop: as cut, bicubic, and as stored where that is another form.

    Args:
        comparisons: What to show.
        upscaler: What is stored.

    Returns:
        The figure; pixels of the crop are shown as squares.
    """
    bicubic = _named(BicubicUpscaler().identity)
    ways = 1 if upscaler == bicubic else 2
    figure = Figure(figsize=(_WIDTH, (5.7 - 1.2 * ways) * max(1, len(comparisons))), layout="constrained")
    panels = figure.subplots(max(1, len(comparisons)), 1 + ways, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
        panel.set(xticks=[], yticks=[])  # hidden ones too are laid out, which takes longer than all else
    for row, comparison in zip(panels, comparisons, strict=False):
        stored = (comparison.upscaled, f"{upscaler}\nreduced again: {comparison.kept}")
        forms = [(comparison.crop, comparison.title), (comparison.bicubic, bicubic), stored]
        for panel, (picture, title) in zip(row, forms if ways == 2 else [forms[0], stored], strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set_title(wrapped(title, _WIDTH / (1.2 + ways), _LETTERS), fontsize=_LETTERS, parse_math=False)
    enlarged = "enlarged" if ways == 1 else "enlarged in two ways"
    put_caption(figure, f"The middle of crops, {_SHOWN} px at most: as cut, and {enlarged}.")
    return figure


def _named(identity: UpscalerIdentity) -> str:
    if identity.name in NETWORKS:
        return f"super-resolved x{identity.scale} ({identity.architecture})"
    return f"{identity.name} x{identity.scale}"


def _middle(crop: Pixels, margin: int) -> tuple[Pixels, tuple[int, int]]:
    """Cuts out the middle of a crop with a margin; returns it and where the middle begins in it."""
    starts = [max(0, (side - _SHOWN) // 2) for side in crop.shape[:2]]
    top, left = (max(0, start - margin) for start in starts)
    cut = crop[top : starts[0] + _SHOWN + margin, left : starts[1] + _SHOWN + margin]
    return np.ascontiguousarray(cut), (starts[0] - top, starts[1] - left)


def _readable(cache: CropCache, manifest: Manifest, count: int) -> Iterator[int]:
    """Yields rows whose photographs can be read, the classes in turn."""
    rank = np.zeros(len(manifest), np.int64)  # index of each row within its class
    for label in range(len(manifest.class_names)):
        mine = manifest.labels == label
        rank[mine] = np.arange(mine.sum())
    for row in np.lexsort((manifest.labels, rank)).tolist():
        if count == 0:
            return
        try:
            crop_roi(read_image(manifest.image_path(row)), manifest.box(row), cache.spec.roi_margin)
        except KDConvNeXtError:
            continue  # the filling has reported it
        count -= 1
        yield row
