"""What is done by the handful, or once, gives what is done one by one, or each time."""

import hashlib

import pytest
from helpers import tiny
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from PIL import Image

from kd_convnext.common import figures
from kd_convnext.data.manifest import inspection as photographs
from kd_convnext.data.manifest.inspection import first_of_same_bytes, inspect_files
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.training.outputs import show_figure


@pytest.mark.parametrize("count", [0, 1, 2, 37, 200])
@pytest.mark.parametrize("handful", [1, 3, 64])
def test_files_are_inspected_in_order(tmp_path, monkeypatch, count, handful):
    monkeypatch.setattr(photographs, "_HANDFUL", handful)
    monkeypatch.setattr("kd_convnext.data.manifest.inspection.available_cores", lambda: 1)
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if number % 7 == 3:
            path.write_bytes(b"no picture")
        elif number % 7 != 5:  # absent
            Image.new("RGB", (2 + number % 5, 3 + number), (number % 2, 0, 0)).save(path)
    found = inspect_files(paths)
    assert [(file.width, file.height) for file in found] == [
        (0, 0) if number % 7 in (3, 5) else (2 + number % 5, 3 + number) for number in range(count)
    ]
    assert [file.size for file in found] == [
        path.stat().st_size if file.width else 0 for path, file in zip(paths, found, strict=True)
    ]
    assert [str(path) in str(file.problem) for path, file in zip(paths, found, strict=True)] == [
        not file.width for file in found
    ]


def test_copies_are_found_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_HANDFUL", 2)
    paths = [tmp_path / f"{number}.bin" for number in range(90)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number % 40, 1, 2]))
    copies = first_of_same_bytes(paths, [3] * len(paths))
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert copies == {number: digests.index(digest) for number, digest in enumerate(digests)}


def test_groups_are_worked_out_once(tiny_manifest, monkeypatch):
    manifest = read_manifest(tiny_manifest)
    first = {kind: manifest.groups(kind) for kind in ("lesion", "image")}
    monkeypatch.setattr("kd_convnext.data.manifest.manifest.group_names", None)
    assert manifest.groups("lesion") is first["lesion"]
    assert len(set(first["lesion"])) == 30 and len(set(first["image"])) == 60
    with pytest.raises(ValueError, match="read-only"):
        first["lesion"][0] = "other"


def test_a_figure_is_drawn_once_into_a_runs_folder(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_draw", lambda figure, suffix, file, dpi: drawn.append(file.write(b"png")))
    loggers = [CSVLogger(tmp_path / "run", name="", version=""), CSVLogger(tmp_path / "other", name="", version="")]
    trainer = tiny.trainer(tmp_path / "run", logger=loggers)
    show_figure(trainer, "train/curves", Figure())
    for folder in ("run", "other"):
        assert (tmp_path / folder / "figures" / "curves.png").read_bytes() == b"png"
    assert len(drawn) == 3  # the run's own folder holds it as PDF besides
