"""Photographs damaged inside: what a strict reader can see is refused, and what is whole is not."""

import struct

import numpy as np
import pytest
from PIL import Image

from kd_convnext.data.manifest.images import read_image, read_size, read_thumbnail
from kd_convnext.errors import ManifestError


def picture(seed=0, flat=0, size=(120, 160)):
    """Smooth noise, as of skin; the lowest rows one colour where asked for."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 200, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).copy()
    pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    if flat:
        pixels[-flat:] = (0, 0, 0) if seed % 2 else (250, 250, 250)
    return Image.fromarray(pixels)


def saved(path, seed=0, flat=0, **options):
    picture(seed, flat).save(path, **{"quality": 90, **options})
    return path.read_bytes()


def tiff(path, width, height, rows, compression=1):
    """Writes a grey TIFF of one strip that has fewer rows than its header promises."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 0, 277: 1, 278: rows, 279: width * rows}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head + b"\x07" * (width * rows))
    return path


def test_strips_that_are_missing_are_refused_and_not_black(tmp_path):
    whole = read_image(tiff(tmp_path / "a.tif", 100, 80, 80))
    assert whole.shape == (80, 100, 3) and whole.all()
    for reader in (read_image, lambda path: read_thumbnail(path, (8, 8))):
        with pytest.raises(ManifestError, match="parts of the picture are missing"):
            reader(tiff(tmp_path / "a.tif", 100, 80, 79))


@pytest.mark.parametrize("size", [(1, 134_228_553), (134_228_553, 1)])
def test_a_line_of_pixels_as_long_as_megapixels_is_refused_unread(size, tmp_path):
    """Of its 143 bytes a decoder would make gigabytes."""
    for reader in (read_size, read_image, lambda path: read_thumbnail(path, (8, 8))):
        with pytest.raises(ManifestError, match="a side of 134228553 pixels"):
            reader(tiff(tmp_path / "a.tif", *size, 0))
    assert read_size(tiff(tmp_path / "b.tif", 1, 20_000, 20_000)) == (1, 20_000)


@pytest.mark.parametrize("seed", range(8))
def test_a_second_half_of_zeros_is_refused(seed, tmp_path):
    path = tmp_path / "a.jpg"
    whole = saved(path, seed, quality=70 + 3 * seed, optimize=bool(seed % 2), progressive=seed > 5)
    read_image(path)
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    for read in (read_image, lambda file: read_thumbnail(file, (8, 8))):
        with pytest.raises(ManifestError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_cut_and_closed_is_refused(seed, share, tmp_path):
    path = tmp_path / "a.jpg"
    whole = saved(path, seed, quality=75 + 2 * seed, optimize=bool(seed % 2), subsampling=seed % 3)
    path.write_bytes(whole[: int(len(whole) * share)].rstrip(b"\xff") + b"\xff\xd9")
    with pytest.raises(ManifestError, match=r"was cut|cannot be read"):
        read_image(path)


@pytest.mark.parametrize("flat", [16, 40, 100])
@pytest.mark.parametrize("seed", range(6))
def test_a_flat_bottom_is_no_damage(seed, flat, tmp_path):
    path = tmp_path / "a.jpg"
    saved(path, seed, flat, optimize=bool(seed % 2), subsampling=seed % 3, progressive=seed == 5)
    assert read_image(path).shape == (160, 120, 3)


def test_what_is_whole_is_read(tmp_path):
    for number, mode in enumerate(("RGB", "L", "CMYK")):
        path = tmp_path / f"{number}.jpg"
        picture(number).convert(mode).save(path)
        read_image(path)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.jpg")
    assert read_image(tmp_path / "white.jpg").min() >= 254
    # Something behind the end, as some cameras write it.
    path.write_bytes((tmp_path / "0.jpg").read_bytes() + bytes(100_000))
    read_image(path)


def test_a_small_picture_in_the_header_is_not_taken_for_the_end(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "x" * 10
    picture().save(tmp_path / "thumb.jpg")
    whole = saved(path, exif=exif, comment=b"\xff\xd8" + (tmp_path / "thumb.jpg").read_bytes()[:3000] + b"\xff\xd9")
    read_image(path)
    path.write_bytes(whole[: -len(whole) // 3] + bytes(200_000))
    with pytest.raises(ManifestError):
        read_image(path)
