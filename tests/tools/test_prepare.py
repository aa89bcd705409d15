import os
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from helpers.manifests import write_csv
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import CacheError, ManifestError
from kd_convnext.tools.prepare import prepare


@pytest.fixture
def manifest(tmp_path):
    """Four photographs of two classes; one is larger than sr_max_side."""
    rng = np.random.default_rng(0)
    lines = ["image,label,lesion_id,x,y,width,height"]
    for number, (height, width) in enumerate([(40, 60), (40, 60), (50, 50), (30, 600)]):
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (9, 9), 3)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        lines.append(f"{number}.png,{'ab'[number % 2]},L{number},{',,,' if number == 3 else '5,6,30,24'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


def test_makes_once_and_says_so(manifest, tmp_path, capsys):
    summary = prepare(str(manifest), cache_dir=str(tmp_path / "cache"), upscaler="bicubic")
    assert (summary.made, summary.found, summary.failed) == (4, 0, 0)
    printed = capsys.readouterr()
    assert "upscaler bicubic" in printed.out and "4 made, 0 found, 0 failed" in printed.out
    assert printed.err == ""
    assert prepare(str(manifest), cache_dir=str(tmp_path / "cache"), upscaler="bicubic").found == 4


def test_takes_the_default_folder_and_options(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "named"))
    crops = CropSpec(store_size=16, resize="pad", roi_margin=0.2, sr_max_side=20)
    prepare(str(manifest), upscaler="none", crops=crops)
    spec = replace(crops, upscaler="none")
    assert CropCache(tmp_path / "named", spec).fill(read_manifest(manifest)).summary.found == 4


def test_dry_run_writes_nothing(manifest, tmp_path, capsys):
    folder = tmp_path / "cache"
    summary = prepare(str(manifest), cache_dir=str(folder), upscaler="bicubic", dry_run=True)
    assert not folder.exists()
    assert (summary.made, summary.found) == (0, 0)
    assert summary.seconds > 0 and summary.bytes > 1000
    printed = capsys.readouterr().out
    assert "0 found, 4 to make" in printed
    assert "1 of them are first reduced to 512 px" in printed
    assert "estimated from one crop" in printed
    prepare(str(manifest), cache_dir=str(folder), upscaler="bicubic")
    capsys.readouterr()
    again = prepare(str(manifest), cache_dir=str(folder), upscaler="bicubic", dry_run=True)
    assert (again.found, again.seconds, again.bytes) == (4, 0.0, 0)
    assert "4 found, 0 to make" in capsys.readouterr().out


def _break_two(folder):
    """One photograph is empty, which the manifest's check sees; of one the pixels are damaged."""
    (folder / "0.png").write_bytes(b"")
    content = bytearray((folder / "2.png").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "2.png").write_bytes(content)


def test_unreadable_photographs_are_errors_that_name_their_rows(manifest, tmp_path):
    whole = (tmp_path / "0.png").read_bytes()
    _break_two(tmp_path)
    with pytest.raises(ManifestError, match=r"row 2.*0\.png"):
        prepare(str(manifest), str(tmp_path / "cache"), upscaler="bicubic")
    (tmp_path / "0.png").write_bytes(whole)
    with pytest.raises(CacheError, match=r"row 4 \(2\.png\)"):
        prepare(str(manifest), str(tmp_path / "cache"), upscaler="bicubic")


def test_unreadable_photographs_are_left_out_by_choice_and_listed(manifest, tmp_path, capsys):
    _break_two(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        summary = prepare(str(manifest), str(tmp_path / "cache"), upscaler="bicubic", on_error="skip")
    assert (summary.made, summary.failed) == (2, 1)
    errors = capsys.readouterr().err
    assert "row 2" in errors and "row 4 (2.png)" in errors


def test_importing_it_loads_no_torch():
    heavy = "{'torch', 'timm', 'lightning', 'albumentations', 'spandrel'}"
    code = f"import sys, kd_convnext.tools.prepare; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_progress_bar_is_shown_for_long_work_only(tmp_path, capsys):
    table = []
    for number in range(60):
        picture = np.full((4, 5, 3), number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
        table.append({"image": f"{number}.png", "label": "ab"[number % 2]})
    pd.DataFrame(table).to_csv(tmp_path / "manifest.csv", index=False)
    prepare(str(tmp_path / "manifest.csv"), str(tmp_path / "cache"), upscaler="none", crops=CropSpec(store_size=8))
    printed = capsys.readouterr().err
    assert "60/60" in printed and "crops/s" in printed


def _slice(shared_dir, tmp_path, data, rows):
    """The first rows of each class of a real manifest."""
    source = shared_dir / "data" / data
    table = pd.read_csv(source / "manifest.csv", dtype=str, keep_default_na=False)
    table["image"] = table["image"].map(lambda image: os.path.relpath(source / image, tmp_path))
    table.groupby("label").head(rows).to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("data", "weights"),
    [("ham_paper5", "realesr-general-x4v3-fp16src"), ("bccd", "realesr-animevideov3")],
)
def test_real_photographs_with_real_weights(shared_dir, tmp_path, data, weights):
    manifest = _slice(shared_dir, tmp_path, data, 2)
    path = str(shared_dir / "weights" / f"{weights}.pth")
    options = {"cache_dir": str(tmp_path / "cache"), "sr_weights": path, "crops": CropSpec(store_size=128)}
    estimate = prepare(str(manifest), dry_run=True, **options)
    summary = prepare(str(manifest), **options)
    table = read_manifest(manifest)
    assert summary.made == len(table.table)
    # Enlarged crops are kept beside the crops.
    written = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert written / 3 < estimate.bytes < written * 3
    spec = CropSpec(sr_weights=path, store_size=128)
    prepared = CropCache(tmp_path / "cache", spec).fill(table)
    assert prepared.summary.made == 0
    sharper = 0
    for row in prepared.rows.tolist():
        stored = prepared.load(row)
        bicubic = make_crop(table.image_path(row), table.box(row), spec, build_upscaler("bicubic", None))
        assert stored.shape == (128, 128, 3)
        difference = np.abs(stored.astype(int) - bicubic)
        assert difference.mean() < 12  # the same picture
        sharper += int(difference.max() > 8)  # but not the same pixels
    assert sharper == len(prepared.rows)


def test_a_photograph_replaced_by_one_of_the_same_size_and_time_is_made_anew(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{k}.bmp")
        rows.append({"image": f"{k}.bmp", "label": "AB"[k % 2], "lesion_id": f"L{k}"})
    table = str(write_csv(tmp_path / "m.csv", rows))
    words = ["prepare", "--manifest", table, "--upscaler", "bicubic", "--cache_dir", str(tmp_path / "cache")]
    assert main(words) == 0
    path = tmp_path / "0.bmp"
    before = path.stat()
    with Image.open(path) as picture:
        inverted = 255 - np.asarray(picture)
    Image.fromarray(inverted).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    capsys.readouterr()
    assert main(words) == 0
    assert "1 made, 3 found, 0 failed" in capsys.readouterr().out
