"""TIFFs of scanners and cameras: planes, white at zero, thumbnails before the picture."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from kd_convnext.data.manifest.images import read_image, read_size, read_thumbnail
from kd_convnext.errors import ManifestError

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 30000)])  # planes [3, H, W]
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def write_planes(path, planes, order="<", rows=48):
    """Writes [C, H, W] plane by plane, uncompressed, in strips of some rows."""
    count, height, width = planes.shape
    bits = 8 * planes.itemsize
    kind = f"{order}u{planes.itemsize}"
    strips = [plane[top : top + rows].astype(kind).tobytes() for plane in planes for top in range(0, height, rows)]
    places, data = [], b""
    for strip in strips:
        places.append(8 + len(data))
        data += strip
    arrays = [struct.pack(f"{order}{count}H", *[bits] * count), struct.pack(f"{order}{len(strips)}I", *places)]
    arrays.append(struct.pack(f"{order}{len(strips)}I", *map(len, strips)))
    where = [8 + len(data) + sum(map(len, arrays[:k])) for k in range(3)]
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, count, where[0]), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, len(strips), where[1]), (277, 3, 1, count), (278, 3, 1, rows), (279, 4, len(strips), where[2])]
    tags.append((284, 3, 1, 2))
    entries = b"".join(
        struct.pack(order + ("HHIHxx" if kind == 3 and n == 1 else "HHII"), tag, kind, n, value)
        for tag, kind, n, value in tags
    )
    table = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    place = 8 + len(data) + sum(map(len, arrays))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(mark + struct.pack(order + "I", place) + data + b"".join(arrays) + table)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [48, 10])
def test_colour_of_sixteen_bits_in_planes_is_read(tmp_path, order, rows):
    path = write_planes(tmp_path / "a.tif", COLOUR, order, rows)
    assert np.array_equal(read_image(path), np.moveaxis(COLOUR >> 8, 0, 2))
    assert np.array_equal(read_image(write_planes(tmp_path / "b.tif", (COLOUR >> 8).astype(np.uint8), order, rows)),
                          np.moveaxis(COLOUR >> 8, 0, 2))  # fmt: skip
    with pytest.raises(ManifestError, match="12-bit colour that cannot be decoded: save it with 8 bits"):
        read_image(write_planes(tmp_path / "c.tif", COLOUR >> 4, order, rows))


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_white_at_zero_is_no_negative(tmp_path, bits, compression):
    values = RAMP >> (16 - bits)
    for name, photometric in (("white.tif", 0), ("black.tif", 1)):
        Image.fromarray(values).save(tmp_path / name, tiffinfo={262: photometric}, compression=compression)
        content = (tmp_path / name).read_bytes()
        entry = struct.pack("<HHI", 262, 3, 1)
        start = content.index(entry) + len(entry)  # Pillow writes its own
        (tmp_path / name).write_bytes(content[:start] + bytes([photometric]) + content[start + 1 :])
    assert np.array_equal(read_image(tmp_path / "white.tif"), 255 - read_image(tmp_path / "black.tif"))
    assert read_image(tmp_path / "white.tif")[0, 0, 0] == 255
    white, black = (read_thumbnail(tmp_path / name, (8, 6))[0] for name in ("white.tif", "black.tif"))
    assert np.array_equal(white, 255 - black) and white[0, 0] > 200


def pages(path, first, more, kind=1, tags=None):
    """Writes a TIFF of two pages, the first of a kind (NewSubfileType)."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in {254: kind, **(tags or {})}.items():
        info[tag] = value
    others = [Image.fromarray(one) for one in more]
    Image.fromarray(first).save(path, "TIFF", tiffinfo=info, save_all=True, append_images=others)
    return path


def refused(path):
    for reader in (read_image, read_size, lambda one: read_thumbnail(one, (9, 8))):
        with pytest.raises(ManifestError, match="camera raw or thumbnail: save as TIFF or JPEG"):
            reader(path)


def test_a_thumbnail_before_the_picture_is_refused(tmp_path):
    small = np.ascontiguousarray(PICTURE[::4, ::4])
    refused(pages(tmp_path / "a.tif", small, [PICTURE]))
    refused(pages(tmp_path / "b.dng", small, [], 0, {50706: b"\1\4\0\0"}))
    canon = tmp_path / "c.cr2"
    Image.fromarray(PICTURE).save(canon, "TIFF")
    content = canon.read_bytes()
    assert struct.unpack("<I", content[4:8]) == (8,)
    moved = len(content) + len(content) % 2  # the header's table behind the mark
    count = struct.unpack("<H", content[8:10])[0]
    table = content[8 : 8 + 2 + 12 * count + 4]
    mended = b"II*\0" + struct.pack("<I", moved) + b"CR\2\0" + content[12:].ljust(moved - 12, b"\0") + table
    canon.write_bytes(mended)
    refused(canon)


def with_part(path, picture, part):
    """Writes a TIFF whose SubIFDs name one more picture, of which only the size is given."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[330] = 1
    info.tagtype[330] = 4
    Image.fromarray(picture).save(path, "TIFF", tiffinfo=info)
    content = path.read_bytes()
    content += b"\0" * (len(content) % 2)
    entry = struct.pack("<HHI", 330, 4, 1)
    start = content.index(entry) + len(entry)
    table = struct.pack("<HHHIHxxHHIHxxI", 2, 256, 3, 1, part[0], 257, 3, 1, part[1], 0)
    path.write_bytes(content[:start] + struct.pack("<I", len(content)) + content[start + 4 :] + table)
    return path


def test_a_larger_picture_inside_is_refused_and_a_smaller_one_is_not(tmp_path):
    refused(with_part(tmp_path / "a.nef", PICTURE, (800, 600)))
    assert np.array_equal(read_image(with_part(tmp_path / "pyramid.tif", PICTURE, (40, 30))), PICTURE)


def test_ordinary_pages_are_read(tmp_path):
    small = np.ascontiguousarray(PICTURE[::4, ::4])
    assert np.array_equal(read_image(pages(tmp_path / "a.tif", PICTURE, [small], 0)), PICTURE)
    assert np.array_equal(read_image(pages(tmp_path / "b.tif", PICTURE, [PICTURE // 2], 2)), PICTURE)  # a fax's page
    assert np.array_equal(read_image(pages(tmp_path / "c.tif", small, [], 1)), small)  # reduced, and nothing else there
    content = with_part(tmp_path / "d.tif", PICTURE, (800, 600)).read_bytes()
    (tmp_path / "d.tif").write_bytes(content[:-20])  # a table that was cut off
    assert np.array_equal(read_image(tmp_path / "d.tif"), PICTURE)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_twelve_bit_colour_with_alpha_is_not_black(tmp_path, name):
    wide = np.dstack([(PICTURE.astype(np.uint32) * 4095 // 255), np.full((60, 80), 65535)]).astype(np.uint16)
    wide[:, :20, 3] = 0
    assert cv2.imwrite(str(tmp_path / name), wide[..., [2, 1, 0, 3]])
    found = read_image(tmp_path / name)
    assert np.abs(found[:, 20:].astype(int) - PICTURE[:, 20:]).max() <= 1
    assert (found[:, :20] == 255).all()
    wide[..., 3] >>= 4  # alpha of twelve bits too
    assert cv2.imwrite(str(tmp_path / name), wide[..., [2, 1, 0, 3]])
    assert np.array_equal(read_image(tmp_path / name), found)
    wide = (np.dstack([PICTURE, np.full((60, 80), 255)]) * 257).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / name), wide[..., [2, 1, 0, 3]])
    assert np.array_equal(read_image(tmp_path / name), PICTURE)
