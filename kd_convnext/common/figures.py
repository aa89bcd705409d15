"""Saves matplotlib figures atomically, turns them into pixels, and gives all of them one look."""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from PIL import Image

from kd_convnext.common.files import write_all

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#000000", "#CC79A7")
"""Colours that stay apart for colour-blind readers (Okabe & Ito 2008), for lines, bars and points."""

STYLES = ("-", "--", ":", "-.")
"""Strokes of lines once all colours are used."""

PRINT_DPI = 300.0
"""Pixels an inch of files: what journals ask of pictures."""

_LETTER = 0.62
"""Width of a letter over the height of its font, on the wide side."""


def line_look(number: int) -> tuple[str, str]:
    """Returns colour and stroke of the ``number``-th line of a figure; 28 differ."""
    return PALETTE[number % len(PALETTE)], STYLES[number // len(PALETTE) % len(STYLES)]


def wrapped(text: str, inches: float, size: float = 9.0) -> str:
    """Wraps a text into lines that fit a width; words that are too long for it are broken too.

    Args:
        text: May have line breaks, which stay.
        inches: The width.
        size: Of the font, in points.

    Returns:
        The lines, joined by line breaks.
    """
    letters = max(8, int(inches * 72 / (_LETTER * size)))
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters) or [""])


def put_caption(figure: Figure, caption: str, size: float = 9.0) -> None:
    """Writes above a figure what it shows, broken into lines of its width; nothing for an empty caption."""
    if caption:
        width = figure.get_figwidth()
        figure.suptitle(wrapped(caption, 0.94 * width, size), fontsize=size, x=0.02, ha="left", parse_math=False)


def label_ticks(axis: Axis, names: Sequence[str], inches: float, size: float = 9.0) -> float:
    """Names the places 0..N-1 of an axis: upright where the names fit side by side, else turned by 90 degrees.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``; names of the latter always lie.
        names: N names; line breaks stay.
        inches: From one place to the next.
        size: Of the font, in points.

    Returns:
        Inches that turned names need below the axis; 0 where none is turned.
    """
    longest = max((len(line) for name in names for line in name.split("\n")), default=0) * _LETTER * size / 72
    turned = isinstance(axis, XAxis) and longest > inches
    options: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top"} if turned else {}
    axis.set_ticks(range(len(names)), names, fontsize=size, parse_math=False, **options)
    return longest if turned else 0.0


def grid_shape(count: int, together: int = 1) -> tuple[int, int]:
    """Returns rows and columns of a nearly square grid.

    Args:
        count: Panels.
        together: So many that follow each other stay in one row.
    """
    columns = together * max(1, math.ceil(math.sqrt(count) / together))
    return max(1, math.ceil(count / columns)), columns


def as_picture(figure: Figure, dpi: float = 120.0) -> npt.NDArray[np.uint8]:
    """Renders a figure.

    Args:
        figure: Any figure.
        dpi: Pixels an inch.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    png = io.BytesIO()
    _draw(figure, ".png", png, dpi)
    return np.asarray(Image.open(png).convert("RGB"))


def as_svg(figure: Figure) -> bytes:
    """Renders a figure as drawn lines, without its caption: the page that it is part of says that in words.

    Args:
        figure: Any figure; what stands where is settled now, if it was not before.

    Returns:
        The SVG text, UTF-8.
    """
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    svg, (width, height) = io.BytesIO(), figure.get_size_inches()
    titles = [text for text in figure.texts if text.get_text() and text.get_text() == figure.get_suptitle()]
    for title in titles:
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        height = min(height, title.get_window_extent(renderer).y0 / figure.dpi)
        title.set_visible(False)
    try:
        figure.savefig(svg, format="svg", dpi=figure.dpi, bbox_inches=Bbox([[0, 0], [width, height]]))
    finally:
        for title in titles:
            title.set_visible(True)
    return svg.getvalue()


def save_figure(path: Path, figure: Figure, dpi: float | None = None) -> None:
    """Writes a figure, in the format of the file's ending.

    Args:
        path: The file (``.png``, ``.pdf``, ``.svg``), replaced at once; missing folders are made.
        figure: Any figure.
        dpi: Pixels an inch; by default `PRINT_DPI`.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_all({path: figure_writer(path.suffix, figure, dpi)})


def figure_writer(suffix: str, figure: Figure, dpi: float | None = None) -> Callable[[BinaryIO], object]:
    """Returns what writes a figure into a file.

    Args:
        suffix: The format: ``.png``, ``.pdf``, ``.svg``.
        figure: Any figure.
        dpi: Pixels an inch; by default `PRINT_DPI`.
    """
    return lambda file: _draw(figure, suffix, file, dpi or PRINT_DPI)


def save_for_print(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG with 300 pixels an inch, and as PDF with drawn lines beside it: both, or none.

    Args:
        path: The PNG file; the other has the ending ``.pdf``.
        figure: Any figure; what stands where is settled by the first file.

    Raises:
        ConfigError: A file cannot be written.
    """
    write_all(print_writers(path, figure))


def print_writers(path: Path, figure: Figure) -> dict[Path, Callable[[BinaryIO], object]]:
    """Returns what writes the two files of `save_for_print`, the PNG first, by path."""

    def pdf(file: BinaryIO) -> None:
        # To find what stands where is most of what drawing costs.
        figure.set_layout_engine("none")
        _draw(figure, ".pdf", file, PRINT_DPI)

    return {path: figure_writer(".png", figure), path.with_suffix(".pdf"): pdf}


def _draw(figure: Figure, suffix: str, file: BinaryIO, dpi: float) -> None:
    """Draws a figure once; ``Figure.savefig`` draws it twice, the first time for the layout alone."""
    before, canvas = figure.dpi, figure.canvas
    figure.set_dpi(dpi)
    try:
        match suffix:
            case ".png":
                FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
            case ".pdf":
                FigureCanvasPdf(figure).print_pdf(file)  # type: ignore[no-untyped-call]
            case _:
                FigureCanvasSVG(figure).print_svg(file)  # type: ignore[no-untyped-call]
    finally:
        figure.set_dpi(before)
        figure.set_canvas(canvas)
