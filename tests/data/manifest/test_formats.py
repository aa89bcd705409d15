"""Photographs as cameras, phones and hospitals write them; and files that are none."""

import os
import socket
import sys
import zlib

import numpy as np
import pytest
from helpers.dicom import dicom
from helpers.manifests import findings_of, save_image, write_csv
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.manifest.images import read_image, read_size
from kd_convnext.errors import ManifestError

CORNERS = np.array([[[220, 40, 40], [40, 220, 40]], [[40, 40, 220], [200, 200, 60]]], np.uint8)
BLOCKS = np.kron(CORNERS, np.ones((32, 48, 1), np.uint8))


@pytest.mark.parametrize(
    "name, options",
    [("a.jfif", {"format": "JPEG"}), ("a.webp", {}), ("a.tif", {}), ("a.avif", {"quality": 90}), ("a.jp2", {})],
)
def test_formats_are_read_with_their_colours(tmp_path, name, options):
    Image.fromarray(BLOCKS).save(tmp_path / name, **options)
    assert read_size(tmp_path / name) == (96, 64)
    assert np.abs(read_image(tmp_path / name)[8::16, 8::16].astype(int) - BLOCKS[8::16, 8::16]).max() <= 12


def test_heic_is_read_by_an_extra(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(BLOCKS).save(tmp_path / "a.HEIC", quality=90)
    assert read_size(tmp_path / "a.HEIC") == (96, 64)
    assert np.abs(read_image(tmp_path / "a.HEIC")[8::16, 8::16].astype(int) - BLOCKS[8::16, 8::16]).max() <= 12
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(ManifestError, match=r"HEIC needs pillow-heif.*kd-convnext\[heic\]"):
        read_size(tmp_path / "a.HEIC")


def test_dicom_is_read_by_an_extra(tmp_path, monkeypatch):
    assert np.array_equal(read_image(dicom(tmp_path / "rgb.dcm", BLOCKS)), BLOCKS)
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (16, 1))
    twelve = read_image(dicom(tmp_path / "twelve.dcm", ramp, BitsStored=12))
    assert twelve.shape == (16, 64, 3) and twelve[0, 0, 0] == 0 and twelve[0, -1, 0] == 255
    inverted = read_image(dicom(tmp_path / "m1.dcm", ramp, BitsStored=12, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - twelve)
    window = read_image(dicom(tmp_path / "w.dcm", ramp, BitsStored=12, WindowCenter=1000, WindowWidth=200))
    assert window[0, 0, 0] == 0 and window[0, 20, 0] == 255
    assert read_size(tmp_path / "twelve.dcm") == (64, 16)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ManifestError, match=r"DICOM needs pydicom.*kd-convnext\[dicom\]"):
        read_image(tmp_path / "rgb.dcm")


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_twelve_bit_colour_is_not_black_either(tmp_path, name):
    import cv2

    wide = (BLOCKS.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / name), wide[..., ::-1])
    assert np.abs(read_image(tmp_path / name).astype(int) - BLOCKS).max() <= 1
    # Of all sixteen bits the high byte is kept.
    assert cv2.imwrite(str(tmp_path / name), (BLOCKS.astype(np.uint16) * 257)[..., ::-1])
    assert np.array_equal(read_image(tmp_path / name), BLOCKS)


def test_twelve_bit_colour_is_turned_as_its_file_says(tmp_path):
    import cv2

    wide = (BLOCKS.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "flat.png"), wide[..., ::-1])
    content, exif = (tmp_path / "flat.png").read_bytes(), Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + block
    chunk = len(block).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "turned.png").write_bytes(content[:33] + chunk + content[33:])  # behind the header
    assert np.abs(read_image(tmp_path / "turned.png").astype(int) - np.rot90(BLOCKS, -1)).max() <= 1


def test_a_twelve_bit_picture_is_not_black(tmp_path):
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    shown = read_image(tmp_path / "a.png")
    assert shown[0, -1, 0] == 255 and abs(int(shown[0, 32, 0]) - 130) < 3


def test_postscript_starts_no_foreign_program(tmp_path, monkeypatch):
    marker, gs = tmp_path / "ran", tmp_path / "bin/gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {marker}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n%%EOF\n")
    with pytest.raises(ManifestError, match="not an image of a known format"):
        read_image(tmp_path / "a.jpg")
    assert not marker.exists()


def test_what_is_no_regular_file_is_a_finding_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)
        listening.bind("s.png")
    names = ["pipe.png", "loop.png", "dead.png", "null.png", "s.png", f"{'n' * 300}.png"]
    rows = [{"image": name, "label": "AB"[k % 2], "lesion_id": f"L{k}"} for k, name in enumerate(names)]
    found = findings_of(write_csv(tmp_path / "m.csv", rows))
    assert len(found) == len(names)
    assert sum("no regular file" in line for line in found) == 3
    assert "name too long" in found[-1] and "levels of symbolic links" in found[1] and "does not exist" in found[2]


def test_a_truncated_photograph_is_found_by_a_dry_run(tmp_path, capsys):
    rng, names = np.random.default_rng(0), ("a.jpg", "b.jpg", "c.png", "d.bmp")
    for name in names:
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / name)
    for name in ("b.jpg", "d.bmp"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    rows = [
        {"image": name, "label": "AB"[k % 2], "lesion_id": f"L{k}"}
        for k, name in enumerate(("a.jpg", "b.jpg", "c.png", "d.bmp"))
    ]
    manifest = write_csv(tmp_path / "m.csv", rows)
    words = ["prepare", "--manifest", str(manifest), "--cache_dir", str(tmp_path / "cache"), "--upscaler", "bicubic"]
    assert main([*words, "--dry_run", "true"]) == 2
    said = capsys.readouterr().err
    assert "m.csv, row 3" in said and "m.csv, row 5" in said and "row 2" not in said and "row 4" not in said


def test_a_folder_of_pictures_lists_what_it_cannot_read(tmp_path, tiny_run):
    save_image(tmp_path / "new/a.jpg", 0, (60, 50))
    save_image(tmp_path / "new/b.jpg", 1, (60, 50)).rename(tmp_path / "new/b.JFIF")
    (tmp_path / "new/c.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "new/d.cr2").write_bytes(b"II*\0rest")
    (tmp_path / "new/notes.txt").write_text("no picture")
    words = ["classify", str(tmp_path / "new"), "--ckpt_path", str(tiny_run), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    failures = (tmp_path / "out/failures.csv").read_text()
    assert "c.HEIC" in failures and "d.cr2" in failures and "notes" not in failures
    answers = (tmp_path / "out/answers.csv").read_text()
    assert "a.jpg" in answers and "b.JFIF" in answers
