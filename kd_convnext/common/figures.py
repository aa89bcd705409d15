"""Saves matplotlib figures atomically and turns them into pixels."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from kd_convnext.common.files import atomic_write, write_finding
from kd_convnext.errors import ConfigError


def as_picture(figure: Figure, dpi: float = 120.0) -> npt.NDArray[np.uint8]:
    """Renders a figure.

    Args:
        figure: Any figure.
        dpi: Pixels an inch.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return np.asarray(Image.open(png).convert("RGB"))


def save_figure(path: Path, figure: Figure, dpi: float = 120.0) -> None:
    """Writes a figure, in the format of the file's ending.

    Args:
        path: The file (``.png``, ``.pdf``, ``.svg``), replaced at once; missing folders are made.
        figure: Any figure.
        dpi: Pixels an inch.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        atomic_write(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=dpi))
    except OSError as error:
        raise ConfigError(write_finding(path, error)) from error
