"""Locates weights of super-resolution networks by name: the official Real-ESRGAN releases and the packaged network.

Nothing is ever fetched unless `download` is called, which only a user's ``--download true`` does.
"""

import hashlib
import http.client
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from kd_convnext.common.files import atomic_write, is_special, mistaken_for_weights, sha256_of, write_finding
from kd_convnext.errors import Finding, UpscalerError

PACKAGED = {"drawn-specimens-x4": Path(str(files("kd_convnext"))) / "assets" / "sr_drawn_specimens_x4.safetensors"}
"""Networks of the package itself, trained on drawn specimens alone: for the demo and tests, not for photographs."""

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Release:
    """An official file of weights.

    Attributes:
        address: Where its authors offer it.
        scale: Enlargement of each side.
        sha256: What the file must be. The authors publish no hash: neither the repository nor the release pages name
            one. These are the ones that many independent projects record for the file at this very address.
    """

    address: str
    scale: int
    sha256: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.address.rsplit("/", 1)[1]


RELEASES = {
    "general-x4v3": Release(
        f"{_RELEASES}/v0.2.5.0/realesr-general-x4v3.pth",
        4,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
    ),
    "general-wdn-x4v3": Release(
        f"{_RELEASES}/v0.2.5.0/realesr-general-wdn-x4v3.pth",
        4,
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
    ),
    "animevideov3": Release(
        f"{_RELEASES}/v0.2.5.0/realesr-animevideov3.pth",
        4,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
    ),
    "x4plus": Release(
        f"{_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        4,
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
    "x4plus-anime": Release(
        f"{_RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        4,
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    ),
    "x2plus": Release(
        f"{_RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        2,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
}
"""The official releases by short name."""


def weights_dir() -> Path:
    """Returns the folder of downloaded weights: ``weights`` in the default cache folder."""
    from kd_convnext.common.files import default_cache_dir

    return default_cache_dir() / "weights"


def start_file(name: str) -> Path:
    """Finds a file of start weights: where it is named, else under its name in the folder of weights.

    Args:
        name: The file, as ``backbone.weights`` names it.

    Returns:
        Where it is, or where it may be put.
    """
    named = Path(name).expanduser()
    return named if named.is_file() else weights_dir() / named.name


def release_of(weights: str) -> Release | None:
    """Returns the official release that a value of ``sr_weights`` names, None for a path or a packaged network."""
    return RELEASES.get(weights)


def locate(weights: str) -> Path:
    """Finds the file behind a value of ``sr_weights``.

    Args:
        weights: A name of `RELEASES` or `PACKAGED`, else a path.

    Returns:
        The file; that of an official release is checked against its hash.

    Raises:
        UpscalerError: There is no such file (with its address and the place to put it), or it is another one.
    """
    if weights in PACKAGED:
        return PACKAGED[weights]
    release = release_of(weights)
    path = weights_dir() / release.file if release else Path(weights).expanduser().absolute()
    try:
        status = path.stat()
    except OSError:
        raise UpscalerError(_missing(weights, release, path)) from None
    if path.is_dir():
        raise UpscalerError(Finding("--sr_weights", f"{path} is a folder", "Name the file in it."))
    if is_special(path):
        raise UpscalerError(Finding("--sr_weights", f"{path} is a pipe or a device", "Name a file of weights."))
    mistaken = mistaken_for_weights(path)
    if mistaken:
        raise UpscalerError(Finding("--sr_weights", f"{path} {mistaken}", "Name the whole file."))
    if release and _digest(path, status.st_mtime_ns, status.st_size) != release.sha256:
        raise UpscalerError(_other_file(weights, release, str(path)))
    return path


def is_rrdb(file: Path) -> bool:
    """Tells whether weights are of an RRDB network, by the names of its layers alone.

    Args:
        file: Weights, ``.pth`` or ``.safetensors``.
    """
    return _names_blocks(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _names_blocks(file: Path, mtime_ns: int) -> bool:
    return re.search(rb"\.(RDB1|rdb1)\.conv1", file.read_bytes()) is not None


def weak_denoising(weights: str) -> str | None:
    """Returns what to blend weights with for a weaker denoising, by upstream's rule for file names.

    Args:
        weights: A name or a path.

    Returns:
        The name or path with ``general-wdn-x4v3`` for ``general-x4v3``, None where it has no such part.
    """
    *folder, name = weights.rsplit("/", 1)
    other = name.replace("general-x4v3", "general-wdn-x4v3")
    return None if other == name else "/".join([*folder, other])


def download(names: Iterable[str], progress: bool = True) -> None:
    """Fetches official releases that are not there yet, or not as they should be.

    A file takes its name only when it is whole and its hash right.

    Args:
        names: Names of `RELEASES`; packaged networks are passed over.
        progress: Whether a progress bar is shown (on stderr).

    Raises:
        UpscalerError: A name that is none, no network, a broken transfer, another file than expected, no space.
    """
    for name in names:
        release = release_of(name)
        if release:
            path = weights_dir() / release.file
            if not path.is_file() or sha256_of(path) != release.sha256:
                _fetch(name, release, path, progress)
        elif name not in PACKAGED:
            remedy = f"Names: {', '.join(RELEASES)}. A file of your own needs no --download."
            raise UpscalerError(Finding("--download", f"{name!r} is no official release", remedy))


def _fetch(name: str, release: Release, path: Path, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import wrap_file

    def copy(target: BinaryIO) -> None:
        with urlopen(release.address, timeout=_TIMEOUT) as response:  # https, or what a test put there
            length = int(response.headers.get("Content-Length", 0))
            console = Console(stderr=True, force_jupyter=False, quiet=not progress)
            digest, received = hashlib.sha256(), 0
            with wrap_file(response, length, description=release.file, console=console) as source:
                while block := source.read(_BLOCK):
                    received += target.write(block)
                    digest.update(block)
        if received < length:
            raise URLError(f"cut off after {received} of {length} bytes")
        if digest.hexdigest() != release.sha256:
            raise UpscalerError(_other_file(name, release, release.address))

    try:
        atomic_write(path, copy)
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        what = f"{release.file} cannot be downloaded ({_reason(error)})"
        raise UpscalerError(Finding(release.address, what, _by_hand(path))) from error
    except OSError as error:
        raise UpscalerError(write_finding(path, error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        return str(error.reason)
    return str(error) or type(error).__name__


@lru_cache(maxsize=8)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    """Hashes a file once while it does not change."""
    return sha256_of(path)


def _by_hand(path: Path) -> str:
    return f"Fetch it on another machine and put it at {path}, or give any file of weights as --sr_weights FILE."


def _missing(weights: str, release: Release | None, path: Path) -> Finding:
    if release:
        what = f"{weights} ({release.file}) is not on this machine: there is no {path}"
        remedy = (
            f"kd-convnext prepare --sr_weights {weights} --download true fetches {release.address}; "
            "without network, put that file there."
        )
        return Finding("--sr_weights", what, remedy)
    known = next((name for name, other in RELEASES.items() if path.name in (other.file, Path(other.file).stem)), None)
    names = ", ".join([*RELEASES, *PACKAGED])
    official = f"It is an official file: --sr_weights {known} --download true of prepare fetches it. " if known else ""
    remedy = f"{official}Give a file (.pth or .safetensors) or a name ({names}), or choose --upscaler bicubic."
    return Finding("--sr_weights", f"there is no file {weights}", remedy)


def _other_file(name: str, release: Release, where: str) -> Finding:
    what = f"is not the {release.file} that others know (its sha256 is not {release.sha256})"
    remedy = (
        f"Fetch it again (prepare --sr_weights {name} --download true). Its authors publish no hash: if they have "
        "replaced the file, give it by its path."
    )
    return Finding(where, what, remedy)
