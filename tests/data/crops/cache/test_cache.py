import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact

from kd_convnext.common.files import atomic_write, default_cache_dir
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.entries import read_entry, write_entry
from kd_convnext.data.crops.cache.prepared import entry_path
from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import CacheError

SPEC = CropSpec(upscaler="bicubic", store_size=48)


class Counting:
    """An upscaler that counts, and does something else at one of its calls."""

    def __init__(self, upscaler, at=None, action=None):
        self.identity, self.upscaler = upscaler.identity, upscaler
        self.calls, self.at, self.action = 0, at, action

    def __call__(self, crop):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return self.upscaler(crop)


@pytest.fixture
def folder(tmp_path):
    """Six photographs, the first with three regions."""
    rng = np.random.default_rng(0)
    lines = ["image,label,lesion_id,x,y,width,height"]
    (tmp_path / "photographs").mkdir()
    for number in range(6):
        noise = rng.integers(0, 256, (40, 60, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photographs" / f"{number}.png"), cv2.GaussianBlur(noise, (9, 9), 3))
        boxes = ["2,3,20,30", "10,5,33,12", "0,0,60,40"] if number == 0 else ["5,6,30,30"]
        lines += [f"photographs/{number}.png,{'ab'[number % 2]},L{number},{box}" for box in boxes]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def manifest(folder):
    return read_manifest(folder / "manifest.csv")


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.pth"
    torch.save({"params": Compact(num_feat=4, num_conv=1, upscale=4).state_dict()}, path)
    return path


def _entries(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


def _leftovers(root: Path) -> list[Path]:
    return sorted(root.rglob("*.tmp"))


def test_crops_come_back_as_made(folder, manifest):
    root = folder / "cache"
    prepared = CropCache(root, SPEC).fill(manifest)
    assert prepared.summary == replace(prepared.summary, made=8, found=0, failed=0)
    assert prepared.summary.bytes == sum(path.stat().st_size for path in _entries(root))
    assert prepared.rows.tolist() == list(range(8))
    again = pickle.loads(pickle.dumps(prepared))
    for row in range(8):
        expected = make_crop(manifest.image_path(row), manifest.box(row), SPEC, SPEC.build_upscaler())
        assert expected.shape == (48, 48, 3)
        assert np.array_equal(again.load(row), expected)
    for path in _entries(root):
        assert path.parent.name == path.stem[:2] and len(path.stem) == 64
        assert cv2.imread(str(path)).shape == (48, 48, 3)
    with pytest.raises(KeyError):
        CropCache(root, SPEC).fill(manifest, np.array([1])).load(0)


def test_a_second_run_neither_upscales_nor_decodes(folder, manifest, monkeypatch):
    first = CropCache(folder / "cache", SPEC).fill(manifest)
    cache = CropCache(folder / "cache", SPEC)
    cache.upscaler = Counting(cache.upscaler)
    monkeypatch.setattr("kd_convnext.data.crops.cache.reading.read_image", lambda path: pytest.fail("decoded"))
    index_files = list((folder / "cache").rglob("*.jsonl"))
    second = cache.fill(manifest)
    assert cache.upscaler.calls == 0
    assert (second.summary.made, second.summary.found) == (0, 8)
    assert second.summary.bytes == first.summary.bytes
    assert second.keys == first.keys
    assert list((folder / "cache").rglob("*.jsonl")) == index_files


def test_without_the_index_photographs_are_decoded_and_nothing_is_upscaled(folder, manifest):
    CropCache(folder / "cache", SPEC).fill(manifest)
    for path in (folder / "cache").rglob("*.jsonl"):
        lines = path.read_text().splitlines()
        assert json.loads(lines[0])["run"]["torch"]
        path.write_text("\n".join(lines[:3]) + '\n{"crop": ["/half\n\x00\x00\n[1, 2]\n{"crop": 3}\n')
    cache = CropCache(folder / "cache", SPEC)
    cache.upscaler = Counting(cache.upscaler)
    assert len(cache.survey(manifest).found) == 2
    assert cache.fill(manifest).summary.found == 8
    assert cache.upscaler.calls == 0


def test_whatever_changes_pixels_changes_the_keys(folder, manifest, weights):
    other = folder / "other.pth"
    torch.manual_seed(1)
    torch.save({"params": Compact(num_feat=4, num_conv=1, upscale=4).state_dict()}, other)
    specs = [
        SPEC,
        replace(SPEC, upscaler="none"),
        replace(SPEC, upscaler="spandrel", sr_weights=str(weights)),
        replace(SPEC, upscaler="spandrel", sr_weights=str(other)),
        replace(SPEC, store_size=47),
        replace(SPEC, store_size=None),
        replace(SPEC, resize="pad"),
        replace(SPEC, sr_max_side=20),
        replace(SPEC, roi_margin=0.1),
    ]
    keys = set()
    for spec in specs:
        keys |= set(CropCache(folder / "cache", spec).fill(manifest).keys.values())
    assert len(keys) == 8 * len(specs)
    enlarged = 8 * 2  # what the two networks made is kept at its own size
    assert len(_entries(folder / "cache")) == 8 * len(specs) + enlarged
    moved = folder / "moved.pth"
    moved.write_bytes(weights.read_bytes())
    assert replace(specs[2], sr_weights=str(moved)).identity() == specs[2].identity()


def test_equal_pixels_share_an_entry_wherever_they_lie(folder, manifest):
    first = CropCache(folder / "cache", SPEC).fill(manifest)
    copy = folder / "copy"
    (folder / "photographs").rename(folder / "moved")
    copy.mkdir()
    (folder / "moved").rename(copy / "photographs")
    (copy / "manifest.csv").write_text((folder / "manifest.csv").read_text())
    second = CropCache(folder / "cache", SPEC).fill(read_manifest(copy / "manifest.csv"))
    assert second.summary.made == 0
    assert second.keys == first.keys


def _flip(path, others):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path, others: path.write_bytes(path.read_bytes()[:-200]),
    "cut at the start": lambda path, others: path.write_bytes(path.read_bytes()[200:]),
    "empty": lambda path, others: path.write_bytes(b""),
    "gone": lambda path, others: path.unlink(),
    "another crop": lambda path, others: path.write_bytes(others[0].read_bytes()),
    "another size": lambda path, others: write_entry(path, np.zeros((9, 9, 3), np.uint8)),
    "a foreign picture": lambda path, others: cv2.imwrite(str(path), np.zeros((48, 48, 3), np.uint8)),
    "zeros at the end": lambda path, others: path.write_bytes(path.read_bytes() + b"\0" * 9),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "a flipped bit"])
def test_damaged_entries_are_made_again_while_loading(folder, manifest, damage):
    prepared = CropCache(folder / "cache", SPEC).fill(manifest)
    path = entry_path(prepared.folder, prepared.keys[1])
    others = [other for other in _entries(folder / "cache") if other != path]
    expected, whole = prepared.load(1), path.read_bytes()
    DAMAGE.get(damage, _flip)(path, others)
    assert read_entry(path, 48) is None
    assert np.array_equal(prepared.load(1), expected)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_made_again_while_filling(folder, manifest, damage):
    prepared = CropCache(folder / "cache", SPEC).fill(manifest)
    path = entry_path(prepared.folder, prepared.keys[1])
    others = [other for other in _entries(folder / "cache") if other != path]
    whole = path.read_bytes()
    DAMAGE[damage](path, others)
    assert CropCache(folder / "cache", SPEC).fill(manifest).summary.made == 1
    assert path.read_bytes() == whole


def test_verifying_reads_every_byte(folder, manifest):
    prepared = CropCache(folder / "cache", SPEC).fill(manifest)
    path = entry_path(prepared.folder, prepared.keys[1])
    whole = path.read_bytes()
    _flip(path, None)
    assert CropCache(folder / "cache", SPEC).fill(manifest).summary.made == 0
    assert CropCache(folder / "cache", SPEC).fill(manifest, verify=True).summary.made == 1
    assert path.read_bytes() == whole


def test_a_photograph_that_changed_is_prepared_anew_and_never_passed_for_the_old(folder, manifest):
    prepared = CropCache(folder / "cache", SPEC).fill(manifest)
    cv2.imwrite(str(folder / "photographs" / "5.png"), np.full((40, 60, 3), 9, np.uint8))
    assert prepared.load(7).std() > 1  # what was prepared is still what is loaded
    entry_path(prepared.folder, prepared.keys[7]).unlink()
    with pytest.raises(CacheError, match="has changed since"):
        prepared.load(7)
    assert CropCache(folder / "cache", SPEC).fill(manifest).load(7).std() == 0


FILL = """
import sys
from pathlib import Path
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import read_manifest
folder = Path(sys.argv[1])
prepared = CropCache(folder / "cache", CropSpec(upscaler="bicubic", store_size=48)).fill(
    read_manifest(folder / "manifest.csv")
)
assert prepared.summary.made + prepared.summary.found == 8, prepared.summary
assert "torch" not in sys.modules, "torch is for networks only"
"""


def test_two_processes_fill_one_folder(folder, manifest):
    running = [subprocess.Popen([sys.executable, "-c", FILL, str(folder)]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert not _leftovers(folder)
    prepared = CropCache(folder / "cache", SPEC).fill(manifest, verify=True)
    assert prepared.summary.found == 8
    assert len(_entries(folder / "cache")) == 8


def _full_disk(monkeypatch, after):
    """From the given call on, nothing can be flushed any more."""
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_loses_nothing(folder, manifest):
    with pytest.MonkeyPatch.context() as patch:
        _full_disk(patch, after=4)  # the configuration and three crops
        with pytest.raises(CacheError, match="Free some space"):
            CropCache(folder / "cache", SPEC).fill(manifest)
    assert len(_entries(folder / "cache")) == 3
    assert not _leftovers(folder)
    summary = CropCache(folder / "cache", SPEC).fill(manifest).summary
    assert (summary.made, summary.found) == (5, 3)


def test_a_full_disk_while_loading_is_a_warning(folder, manifest, monkeypatch):
    prepared = CropCache(folder / "cache", SPEC).fill(manifest)
    expected = prepared.load(0)
    entry_path(prepared.folder, prepared.keys[0]).unlink()
    _full_disk(monkeypatch, after=0)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert np.array_equal(prepared.load(0), expected)


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, broken)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_in_place_of_the_folder(folder, manifest):
    (folder / "cache").write_text("in the way")
    with pytest.raises(CacheError, match="A file stands where a folder is needed"):
        CropCache(folder / "cache", SPEC).fill(manifest)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(folder, manifest):
    (folder / "cache").mkdir(mode=0o500)
    with pytest.raises(CacheError, match="write permission"):
        CropCache(folder / "cache", SPEC).fill(manifest)


def test_a_filled_cache_is_read_where_nothing_can_be_written(folder, manifest, monkeypatch):
    CropCache(folder / "cache", SPEC).fill(manifest)
    _full_disk(monkeypatch, after=0)
    assert CropCache(folder / "cache", SPEC).fill(manifest).summary.found == 8


def _break_two(folder):
    (folder / "photographs" / "0.png").write_bytes(b"not a photograph")
    (folder / "photographs" / "3.png").unlink()


def test_all_unreadable_photographs_are_named_after_the_rest_is_made(folder, manifest):
    _break_two(folder)
    with pytest.raises(CacheError) as caught:
        CropCache(folder / "cache", SPEC).fill(manifest)
    assert [finding.where for finding in caught.value.findings] == [
        *(f"manifest.csv, row {line} (photographs/0.png)" for line in (2, 3, 4)),
        "manifest.csv, row 7 (photographs/3.png)",
    ]
    assert len(_entries(folder / "cache")) == 4


def test_unreadable_photographs_can_be_left_out(folder, manifest):
    _break_two(folder)
    prepared = CropCache(folder / "cache", SPEC).fill(manifest, on_error="skip")
    assert sorted(prepared.failed) == [0, 1, 2, 5]
    assert prepared.rows.tolist() == [3, 4, 6, 7]
    assert prepared.summary.failed == 4
    assert prepared.load(3).shape == (48, 48, 3)
    with pytest.raises(CacheError, match="row 7"):
        prepared.load(5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_filling_is_continued(folder, manifest, error):
    def interrupt():
        raise error

    cache = CropCache(folder / "cache", SPEC)
    cache.upscaler = Counting(cache.upscaler, at=5, action=interrupt)
    with pytest.raises(error):
        cache.fill(manifest)
    made = len(_entries(folder / "cache"))
    assert made >= 1
    assert not _leftovers(folder)
    summary = CropCache(folder / "cache", SPEC).fill(manifest).summary
    assert (summary.made, summary.found) == (8 - made, made)


def _load_in_child(prepared, row, connection):
    torch.set_num_threads(1)  # as a loader worker does
    connection.send(prepared.load(row))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_loader_worker_makes_a_lost_crop_again(folder, manifest, weights):
    spec = replace(SPEC, upscaler="auto", sr_weights=str(weights))
    prepared = CropCache(folder / "cache", spec).fill(manifest)
    expected = prepared.load(2)
    entry_path(prepared.folder, prepared.keys[2]).unlink()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_load_in_child, args=(prepared, 2, sender))
    child.start()
    try:
        assert receiver.poll(30), "the worker hangs"
        assert np.array_equal(receiver.recv(), expected)
    finally:
        child.kill()
        child.join()


def test_stored_shapes(folder, manifest):
    def load(row, **changes):
        return CropCache(folder / "cache", replace(SPEC, **changes)).fill(manifest, np.array([row])).load(row)

    assert load(1, store_size=None).shape == (48, 132, 3)
    assert load(1, store_size=None, sr_max_side=11).shape == (16, 44, 3)
    padded = load(1, resize="pad")
    assert padded.shape == (48, 48, 3)
    bars = padded.max(axis=(1, 2)) == 0
    assert bars.sum() == 48 - round(48 * 12 / 33)
    assert bars[0] and bars[-1] and not bars[24]


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("KD_CONVNEXT_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "kd-convnext"
