"""Makes manifests and photographs at random and reads them: each is read, or refused in words, in time and memory.

``make fuzz`` (or ``python tests/helpers/fuzz.py --count 10000``) runs it; a case is named by its seed, and what has
once gone wrong is kept in ``fuzz_seeds.json``, which the quick suite tries again.
"""

import argparse
import csv
import io
import json
import resource
import sys
import tempfile
import time
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from kd_convnext.data.manifest.images import read_image, read_size, read_thumbnail
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.splits import make_split
from kd_convnext.errors import KDConvNeXtError, ManifestError

SEEDS = Path(__file__).with_name("fuzz_seeds.json")
LONGEST = 20.0
"""Seconds that a case may take."""

FORMATS = (
    "JPEG",
    "PROGRESSIVE",
    "CMYK",
    "PNG",
    "PNG16",
    "PALETTE",
    "RGBA",
    "TIFF",
    "LZW",
    "WEBP",
    "BMP",
    "GIF",
    "JPEG2000",
)
FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    b"<!DOCTYPE html><title>404</title>",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    b"",
    b"\x00" * 500,
)


def picture(rng: np.random.Generator) -> bytes:
    """Draws a small photograph in one of the formats."""
    sizes = ((1, 1), (1, 400), (400, 1), (17, 31), (64, 48))
    width, height = sizes[rng.integers(len(sizes))]
    kind = FORMATS[rng.integers(len(FORMATS))]
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    content = io.BytesIO()
    match kind:
        case "JPEG" | "PROGRESSIVE":
            image.save(content, "JPEG", quality=int(rng.integers(5, 100)), progressive=kind == "PROGRESSIVE", exif=exif)
        case "CMYK":
            image.convert("CMYK").save(content, "JPEG")
        case "PNG":
            image.save(content, "PNG", exif=exif)
        case "PNG16":
            Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16)).save(content, "PNG")
        case "PALETTE":
            image.convert("P").save(content, "PNG", transparency=0)
        case "RGBA":
            image.convert("RGBA").save(content, "PNG")
        case "LZW":
            image.save(content, "TIFF", compression="tiff_lzw")
        case "GIF":
            image.save(content, "GIF", save_all=True, append_images=[image] * 2)
        case _:
            image.save(content, kind)
    return content.getvalue()


def harmed(content: bytes, rng: np.random.Generator) -> bytes:
    """Cuts, overwrites, repeats or exchanges bytes."""
    data = bytearray(content)
    for _ in range(rng.integers(0, 4)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
        match rng.integers(6):
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at : at + length] = bytes(min(length, len(data) - at))
            case 3:
                data[at:at] = rng.integers(0, 256, length, np.uint8).tobytes()
            case 4:
                data[at:at] = data[at : at + length]
            case _:
                data[at : at + 4] = int(rng.integers(0, 2**32)).to_bytes(4, "big")
    return bytes(data)


def try_photograph(seed: int, folder: Path) -> bool:
    """Reads a photograph.

    Returns:
        Whether it was read.

    Raises:
        AssertionError: It was read as something else than a picture.
    """
    rng = np.random.default_rng([seed, 1])
    content = FOREIGN[rng.integers(len(FOREIGN))] if rng.random() < 0.05 else harmed(picture(rng), rng)
    path = folder / "photograph.jpg"
    path.write_bytes(content)
    read = 0
    for reader in (read_size, read_image, lambda file: read_thumbnail(file, (8, 8))):
        try:
            found = reader(path)
        except ManifestError as error:
            assert str(path) in str(error)
            continue
        read += 1
        if reader is read_image:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.flags.c_contiguous
    return read == 3


NUMBERS = (
    "2",
    "",
    "nan",
    "inf",
    "-5",
    "1e309",
    "1e9",
    "1.5",
    "12",
    "\uff11\uff12",
    "0x10",
    "NA",
    "1,5",
    "99999999999999999999",
)
TEXTS = (
    "a",
    "b",
    "c",
    "NA",
    "None",
    "=1+1",
    "@x",
    "A",
    " a",
    "l\u00e4sion",
    "\u202eb",
    "x" * 3000,
    "",
    "007",
    "7",
    "7.0",
    "a\tb",
)
NAMES = (
    "p0.png",
    "p1.png",
    "p2.png",
    "l\u00e4sion.png",
    "../p0.png",
    "/etc/passwd",
    "p0.png\x00",
    "x" * 300,
    "gone.png",
    "",
    ".",
    "P0.PNG",
)
HEADERS = (
    "image",
    "label",
    "lesion_id",
    "patient_id",
    "x",
    "y",
    "width",
    "height",
    "split",
    "image",
    "Label",
    "xmin",
    "note",
    "",
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32")


def table(rng: np.random.Generator) -> bytes:
    """Writes a manifest as people, programs and accidents do."""
    ordinary = rng.random() < 0.6
    odd = 0.002 if ordinary else 0.1
    header = list(HEADERS[:9] if ordinary else rng.choice(HEADERS, rng.integers(1, 12)))
    rows = [header]
    for number in range(int(rng.integers(9, 13) if ordinary else rng.integers(0, 40))):
        row = []
        for name in header:
            if name == "image":
                row.append(f"p{number % 12}.png" if rng.random() >= odd else str(rng.choice(NAMES)))
            elif name in ("x", "y", "width", "height", "xmin"):
                row.append("2" if rng.random() >= odd else str(rng.choice(NUMBERS)))
            elif name == "split":
                row.append(
                    str(rng.choice(("train", "val", "test", "", "Train", "valid"))) if rng.random() < odd else ""
                )
            elif name in ("lesion_id", "patient_id"):
                row.append(f"L{number}" if rng.random() >= odd else str(rng.choice(TEXTS)))
            else:
                row.append("ab"[number % 2] if rng.random() >= odd else str(rng.choice(TEXTS)))
        rows.append(row[: len(row) - (rng.random() < odd / 5)])
    text = io.StringIO()
    csv.writer(
        text, delimiter=str(rng.choice([",", ",", ";", "\t"])), lineterminator=str(rng.choice(["\n", "\r\n", "\r"]))
    ).writerows(rows)
    written = text.getvalue()
    if rng.random() < 0.2:
        written = unicodedata.normalize(str(rng.choice(["NFC", "NFD"])), written)
    content = written.encode(str(rng.choice(ENCODINGS, p=[0.6, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])), "replace")
    return harmed(content, rng) if rng.random() < 0.4 else content


def photographs(folder: Path) -> None:
    """Draws the photographs that manifests name."""
    rng = np.random.default_rng(0)
    for name in (*(f"p{number}.png" for number in range(12)), unicodedata.normalize("NFD", "l\u00e4sion.png")):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(folder / name)


def try_manifest(seed: int, folder: Path) -> bool:
    """Reads a manifest and divides it.

    Returns:
        Whether it was read and divided.
    """
    rng = np.random.default_rng([seed, 2])
    path = folder / str(rng.choice(["manifest.csv", "manifest.csv", "manifest.tsv", "manifest.xlsx", "manifest.txt"]))
    path.write_bytes(table(rng))
    try:
        manifest = read_manifest(str(path), on_error="skip" if rng.random() < 0.5 else "raise")
        make_split(manifest)
    except KDConvNeXtError as error:
        assert error.findings and all(finding.what and finding.remedy for finding in error.findings)
        return False
    finally:
        path.unlink()
    return True


CASES = {"photograph": try_photograph, "manifest": try_manifest}


def run(kind: str, seed: int, folder: Path) -> tuple[bool, float]:
    """Runs one case.

    Returns:
        Whether it was read, and how many seconds it took.

    Raises:
        Exception: Whatever should not have come.
    """
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = CASES[kind](seed, folder)
    return read, time.monotonic() - begun


def main() -> int:
    """Runs many cases and keeps the seeds of those that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="cases, half photographs and half manifests")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    options = parser.parse_args()
    wrong: list[tuple[str, int]] = []
    read, slowest, begun = dict.fromkeys(CASES, 0), dict.fromkeys(CASES, (0.0, 0)), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder)
        for number in range(options.count):
            kind, seed = list(CASES)[number % 2], options.seed + number // 2
            try:
                well, seconds = run(kind, seed, folder)
            except Exception as error:  # that is what is looked for
                print(f"{kind} {seed}: {type(error).__name__}: {error}"[:300], flush=True)
                wrong.append((kind, seed))
                continue
            read[kind] += well
            slowest[kind] = max(slowest[kind], (seconds, seed))
            if seconds > LONGEST:
                wrong.append((kind, seed))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{options.count} cases from seed {options.seed} in {time.monotonic() - begun:.0f} s; {len(wrong)} went wrong"
    )
    longest = ", ".join(f"{kind} {seed} {seconds:.2f} s" for kind, (seconds, seed) in slowest.items())
    print(f"read: {read}; slowest: {longest}; memory +{grown:.0f} MB")
    if wrong:
        kept = {tuple(entry) for entry in json.loads(SEEDS.read_text())} | set(wrong)
        SEEDS.write_text(json.dumps(sorted(kept)) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
