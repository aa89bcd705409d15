"""What `prepare` does besides filling, and what a data module does about a cache that is not as expected."""

import multiprocessing
import os
import pickle
import shlex
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.tiny import data, trainer
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.packed import pack, pack_path
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import CacheError

SPEC = CropSpec(upscaler="bicubic", store_size=40)
OPTIONS = ["--upscaler", "bicubic", "--crops.store_size", "40"]


def prepare(manifest, cache, *more) -> int:
    return main(["prepare", "--manifest", str(manifest), "--cache_dir", str(cache), *OPTIONS, *more])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("[0-9a-f]*.png"))


@pytest.fixture
def halves(tiny_manifest, tmp_path):
    """Two manifests of the same photographs, 30 rows each."""
    head, *rows = tiny_manifest.read_text().splitlines()
    rows = [f"{tiny_manifest.parent}/{row}" for row in rows]
    for name, part in (("first", rows[:30]), ("second", rows[30:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *part]) + "\n")
    return tmp_path / "first.csv", tmp_path / "second.csv"


def test_the_data_section_of_a_fit_is_enough(tiny_manifest, tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    section = {"manifest": str(tiny_manifest), "upscaler": "bicubic", "store_size": 40, "batch_size": 8}
    config.write_text(yaml.safe_dump({"data": section, "trainer": {"max_epochs": 3}, "model": {"lr": 1}}))
    assert main(["prepare", "--config", str(config), f"--cache_dir={tmp_path / 'cache'}"]) == 0
    said = capsys.readouterr().out
    assert "60 made, 0 found" in said
    # The fit is the file's own, and what the file says is not said again.
    assert said.endswith(f"  kd-convnext fit --config {config} --data.cache_dir {tmp_path / 'cache'}\n")
    assert CropCache(tmp_path / "cache", SPEC).survey(read_manifest(tiny_manifest)).missing == ()
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"store_size": 20}))
    words = ["prepare", f"--config={config}", f"--config={over}", f"--cache_dir={tmp_path / 'cache'}"]
    assert main(words) == 0
    assert "60 made, 0 found" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["data: [", None])
def test_a_configuration_that_cannot_be_read(tmp_path, capsys, text):
    path = tmp_path / "bad.yaml"
    if text:
        path.write_text(text)
    assert main(["prepare", "--config", str(path)]) == 2
    assert f"--config {path}" in capsys.readouterr().err


def test_pruning_lists_and_removes_only_when_told(halves, tmp_path, capsys):
    first, second = halves
    cache = tmp_path / "cache"
    assert prepare(first, cache) == prepare(second, cache) == 0
    assert len(entries(cache)) == 60
    capsys.readouterr()
    assert prepare(first, cache, "--prune", "true", "--also", f"['{second}']") == 0
    assert "prune: 0 files" in capsys.readouterr().out
    assert prepare(first, cache, "--prune", "true") == 0
    printed = capsys.readouterr().out
    assert "prune: 30 files" in printed and "nothing is removed without --yes true" in printed
    assert len(entries(cache)) == 60
    assert prepare(first, cache, "--prune", "true", "--yes", "true") == 0
    assert "30 removed" in capsys.readouterr().out
    assert len(entries(cache)) == 30
    assert CropCache(cache, SPEC).fill(read_manifest(first)).summary.found == 30


def test_pruning_keeps_what_the_index_has_forgotten(halves, tmp_path, capsys):
    first, second = halves
    cache = tmp_path / "cache"
    assert prepare(first, cache) == prepare(second, cache) == 0
    opened = CropCache(cache, SPEC)
    shutil.rmtree(opened.folder / "index")
    assert prepare(first, cache, "--prune", "true", "--also", f"['{second}']", "--yes", "true") == 0
    assert len(entries(cache)) == 60


def test_pruning_removes_old_leftovers_and_foreign_packs(tiny_manifest, halves, tmp_path):
    import os

    cache = CropCache(tmp_path / "cache", SPEC)
    whole = cache.fill(read_manifest(tiny_manifest))
    part = cache.fill(read_manifest(halves[0]))
    kept, gone = pack(whole).path, pack(part).path
    young, old = (cache.folder / "ab" / f".x.png.{name}.tmp" for name in ("young", "old"))
    young.parent.mkdir(exist_ok=True)
    young.touch(), old.touch()
    os.utime(old, (0, 0))
    assert prepare(tiny_manifest, tmp_path / "cache", "--prune", "true", "--yes", "true") == 0
    assert kept.exists() and young.exists() and not gone.exists() and not old.exists()


def test_preview_shows_crop_bicubic_and_super_resolved(tiny_manifest, tmp_path, capsys):
    assert prepare(tiny_manifest, tmp_path / "cache", "--preview", "2") == 0
    path = Path(capsys.readouterr().out.rpartition("preview: ")[2].splitlines()[0])
    with Image.open(path) as picture:
        picture.load()
        assert picture.width > 600 and np.asarray(picture.convert("L")).std() > 10


def test_packed_crops_are_the_entries(tiny_manifest, tmp_path):
    crops = CropCache(tmp_path / "cache", SPEC).fill(read_manifest(tiny_manifest))
    packed = pack(crops)
    assert all(np.array_equal(packed.load(row), crops.load(row)) for row in range(60))
    stamp = packed.path.stat().st_mtime_ns
    assert pack(crops).path.stat().st_mtime_ns == stamp, "made once"


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_pack_that_is_not_whole_is_made_again(tiny_manifest, tmp_path, damage):
    crops = CropCache(tmp_path / "cache", SPEC).fill(read_manifest(tiny_manifest))
    path = pack(crops).path
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-100])
        case "foreign":
            np.save(path, np.zeros(60))
    pack(crops)
    assert path.read_bytes() == content


def test_a_damaged_record_is_read_from_its_entry(tiny_manifest, tmp_path, capsys):
    crops = CropCache(tmp_path / "cache", SPEC).fill(read_manifest(tiny_manifest))
    packed = pack(crops)
    with packed.path.open("r+b") as file:
        file.seek(-2000, 2)
        file.write(b"\0\1\2\3")
    with pytest.warns(UserWarning, match="damaged"):
        for row in range(60):
            assert np.array_equal(packed.load(row), crops.load(row))
    assert prepare(tiny_manifest, tmp_path / "cache", "--verify", "true") == 0
    assert "was damaged and is removed" in capsys.readouterr().out
    assert not pack_path(crops.folder, crops.keys).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_record_is_checked_once_for_all_processes(tiny_manifest, tmp_path, monkeypatch):
    packed = pack(CropCache(tmp_path / "cache", SPEC).fill(read_manifest(tiny_manifest)))
    process = multiprocessing.get_context("fork").Process(target=lambda: [packed.load(row) for row in range(59)])
    process.start()
    process.join()
    checked, plain = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda content: checked.append(1) or plain(content))
    again = [packed.load(row) for row in range(60)]
    assert len(checked) == 1
    copy = pickle.loads(pickle.dumps(packed))  # for a process that is not forked: it checks by itself
    assert all(np.array_equal(copy.load(row), again[row]) for row in range(60))
    assert len(checked) == 61


def test_whole_crops_cannot_be_packed(tiny_manifest, tmp_path):
    crops = CropCache(tmp_path / "cache", CropSpec(upscaler="none", store_size=None)).fill(read_manifest(tiny_manifest))
    with pytest.raises(CacheError, match="store_size"):
        pack(crops)


def test_what_a_pack_needs_is_compared_with_the_disk_before_any_work(tiny_manifest, tmp_path, monkeypatch, capsys):
    crops = CropCache(tmp_path / "cache", SPEC).fill(read_manifest(tiny_manifest))
    size = 60 * (40 * 40 * 3 + 4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(CacheError, match=r"packed crops need 0\.288 MB, 0\.288 MB are free"):
        pack(crops)
    assert not pack_path(crops.folder, crops.keys).exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    pack(crops)
    assert "0.288 MB of 0.288 MB free" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_module_reads_packed_crops(tiny_manifest, tmp_path, workers):
    batches = []
    for packed in (True, False):
        source = data(tiny_manifest, str(tmp_path / "cache"), packed=packed, num_workers=workers)
        source.setup("fit")
        batches.append(next(iter(source.train_dataloader()))["image"])
    assert (batches[0] == batches[1]).all()
    assert len(list((tmp_path / "cache").rglob("packed/*.npy"))) == 1


def test_misses_raise_by_choice(tiny_manifest, tmp_path):
    cache = tmp_path / "cache"
    strict = {"on_miss": "raise"}
    with pytest.raises(CacheError, match="kd-convnext prepare") as caught:
        source = data(tiny_manifest, str(cache), **strict)
        source.setup("fit")
    assert len(caught.value.findings) == len(source.split.rows("train")) + len(source.split.rows("val"))
    command = caught.value.findings[0].remedy.partition(": ")[2]
    assert shlex.split(command) == ["kd-convnext", "prepare", "--manifest", str(tiny_manifest)]
    assert not entries(cache)
    assert prepare(tiny_manifest, cache) == 0
    source = data(tiny_manifest, str(cache), **strict)
    source.setup("fit")
    row = int(source.train_set.rows[0])
    path = source.crops.folder / source.crops.keys[row][:2] / f"{source.crops.keys[row]}.png"
    path.write_bytes(b"")
    with pytest.raises(CacheError, match="gone or damaged"):
        source.train_set[0]


@pytest.mark.parametrize("on_miss", ["make", "raise"])
def test_an_entry_damaged_during_a_fit(tiny_manifest, tmp_path, on_miss):
    import lightning.pytorch as pl
    from helpers.tiny import teacher

    source = data(tiny_manifest, str(tmp_path / "cache"), num_workers=1)
    source.setup("fit")  # fills
    source = data(tiny_manifest, str(tmp_path / "cache"), num_workers=1, on_miss=on_miss)

    class Damage(pl.Callback):
        def on_train_start(self, trainer, module):
            for path in entries(tmp_path / "cache"):
                path.write_bytes(path.read_bytes()[:50])

    fit = trainer(tmp_path, callbacks=[Damage()])
    if on_miss == "raise":
        with pytest.raises(CacheError, match="gone or damaged") as caught:
            fit.fit(teacher(source), datamodule=source)
        (finding,) = caught.value.findings
        assert finding.where.endswith(".png") and finding.remedy.startswith("Run kd-convnext prepare")
    else:
        fit.fit(teacher(source), datamodule=source)
        read = [source.crops.load(int(row)) for row in source.train_set.rows]
        assert all(crop.std() > 1 for crop in read), "never a black picture"
