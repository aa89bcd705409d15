import concurrent.futures
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.manifests import save_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kd_convnext.data.manifest import images as roi
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image, read_size
from kd_convnext.errors import ConfigError, ManifestError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN, GREEN], [BLUE, WHITE, WHITE]], dtype=np.uint8)  # 3 wide, 2 high
# What a viewer shows for each EXIF orientation, from the standard's definition of row 0 and column 0.
UPRIGHT = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: CORNERS[::-1].transpose(1, 0, 2),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: CORNERS[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    large = CORNERS.repeat(16, axis=0).repeat(16, axis=1)  # whole JPEG blocks, so that corners stay pure
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(large).save(path, exif=exif, **options)

    image = read_image(path)

    assert np.abs(image[8::16, 8::16].astype(int) - UPRIGHT[orientation]).max() <= (4 if suffix == "jpg" else 0)
    assert read_size(path) == (image.shape[1], image.shape[0])


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(CORNERS).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])  # the last 12 bytes are IEND

    assert read_size(path) == (2, 3)
    assert np.array_equal(read_image(path), UPRIGHT[6])


def test_orientation_in_the_xmp_text_of_a_png_is_found(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>')
    Image.fromarray(CORNERS).save(tmp_path / "a.png", pnginfo=notes)
    assert read_size(tmp_path / "a.png") == (2, 3)
    assert np.array_equal(read_image(tmp_path / "a.png"), UPRIGHT[6])


def test_gray_becomes_rgb(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([values] * 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_is_scaled_by_257(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [385, 386, 32896, 65535]], dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(read_image(path)[:, :, 0], expected)
    assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (1, 1), (100, 0, 200, 128)).save(tmp_path / "a.png")
    expected = [round(value * 128 / 255 + 255 * 127 / 255) for value in (100, 0, 200)]
    assert np.abs(read_image(tmp_path / "a.png")[0, 0].astype(int) - expected).max() <= 1


def test_cmyk_and_palette_are_converted(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - RED).max() <= 3
    Image.fromarray(CORNERS).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png"), CORNERS)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_image(tmp_path / "a.webp")[0, 0], RED)


def test_jpeg_is_decoded_exactly_as_pillow_does(tmp_path):
    path = save_image(tmp_path / "a.jpg", size=(64, 48))
    image = read_image(path)
    assert np.array_equal(image, np.asarray(Image.open(path).convert("RGB")))
    assert image.flags.c_contiguous and image.flags.writeable


@pytest.mark.parametrize("strip", [1, 100, 3 * 7 * 4, 10**6])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_strips_are_the_picture(tmp_path, monkeypatch, strip, mode):
    monkeypatch.setattr(roi, "_STRIP", strip)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "small.png")
    found = read_image(tmp_path / "small.png")
    assert np.array_equal(found, np.array(Image.open(tmp_path / "small.png").convert("RGB")))
    assert found.flags.writeable and found.flags.c_contiguous and found.base is None


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_are_refused(tmp_path, mode):
    Image.fromarray(np.full((2, 2), 70000, np.float32 if mode == "F" else np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ManifestError, match=r"a\.tif.*32-bit"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"", "empty"), (b"no image at all", "not an image"), ("cut", "truncated")],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_broken_files_are_named_with_the_reason(tmp_path, content, reason, suffix):
    path = tmp_path / f"broken.{suffix}"
    if content == "cut":
        save_image(path, size=(200, 200))
        path.write_bytes(path.read_bytes()[:5000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"broken\.{suffix}.*{reason}"):
        read_image(path)


def test_a_folder_is_not_a_photograph(tmp_path):
    with pytest.raises(ManifestError, match="it is a folder"):
        read_image(tmp_path)


def test_too_many_pixels_are_refused_and_pillows_limit_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(roi, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    small, large = save_image(tmp_path / "s.png", size=(10, 10)), save_image(tmp_path / "l.png", size=(11, 10))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read_size, [small] * 200)) == {(10, 10)}
    assert read_image(small).shape == (10, 10, 3)
    for read in (read_size, read_image):
        with pytest.raises(ManifestError, match=r"l\.png.*pixels"), pytest.warns(Image.DecompressionBombWarning):
            read(large)
    assert Image.MAX_IMAGE_PIXELS == 10


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
        lambda size: st.tuples(st.just(size), st.integers(0, size[0] - 1), st.integers(0, size[1] - 1), st.floats(0, 3))
    ),
    st.data(),
)
def test_a_crop_is_the_box_with_its_margin_inside_the_photograph(drawn, data):
    (width, height), x, y, margin = drawn
    box = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack([columns, rows, rows], axis=2).astype(np.uint8)  # each pixel holds its own place

    crop = crop_roi(image, box, margin)

    left, right = crop[0, 0, 0], crop[0, -1, 0]
    top, bottom = crop[0, 0, 1], crop[-1, 0, 1]
    assert left == max(0, x - round(margin * box.width))
    assert right == min(width, x + box.width + round(margin * box.width)) - 1
    assert top == max(0, y - round(margin * box.height))
    assert bottom == min(height, y + box.height + round(margin * box.height)) - 1
    assert crop.flags.c_contiguous and not np.shares_memory(crop, image)


def test_no_box_is_the_whole_photograph():
    assert np.array_equal(crop_roi(CORNERS, None, 0.5), CORNERS)


@pytest.mark.parametrize("box", [Box(-1, 0, 2, 2), Box(0, 0, 4, 2), Box(0, 1, 1, 2), Box(0, 0, 0, 1)])
def test_a_box_outside_is_refused(box):
    with pytest.raises(ManifestError, match="3 x 2 pixels"):
        crop_roi(CORNERS, box)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_a_wrong_margin_is_refused(margin):
    with pytest.raises(ConfigError, match="roi_margin"):
        crop_roi(CORNERS, Box(0, 0, 1, 1), margin)


@pytest.mark.realdata
def test_real_photographs_have_the_size_their_header_says(shared_dir):
    paths = sorted(Path(shared_dir, "data/bccd/images").iterdir())[:10]
    for path in paths:
        width, height = read_size(path)
        assert read_image(path).shape == (height, width, 3)
