"""Real processes on one cache folder: killed at random, at once, over ranks, on a disk that is full."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.disks import small_disk

from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.entries import read_entry
from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import read_manifest

pytestmark = pytest.mark.slow
SIDE = 64
SPEC = CropSpec(upscaler="bicubic", store_size=SIDE)
OPTIONS = ["--upscaler", "bicubic", "--crops.store_size", str(SIDE)]
ROUNDS = 10


@pytest.fixture
def manifest(tmp_path):
    """30 photographs with 80 regions each."""
    rng = np.random.default_rng(0)
    lines = ["image,label,lesion_id,x,y,width,height"]
    for number in range(30):
        noise = rng.integers(0, 256, (300, 400, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), cv2.GaussianBlur(noise, (5, 5), 2))
        for region in range(80):
            lines.append(f"{number}.jpg,{'ab'[number % 2]},L{number},{region},{2 * region},48,40")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def start(manifest, cache, *more) -> subprocess.Popen:
    words = [sys.executable, "-m", "kd_convnext.cli", "prepare", "--manifest", str(manifest), "--cache_dir", str(cache)]
    pipe = subprocess.PIPE
    return subprocess.Popen([*words, *OPTIONS, *more], stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def entries(cache: Path) -> set[Path]:
    return set(cache.rglob("[0-9a-f]*.png"))


def wait_for_new(cache: Path, before: set[Path], process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None and not entries(cache) - before:
        time.sleep(0.01)


def all_right(manifest, cache) -> None:
    table = read_manifest(manifest)
    prepared = CropCache(cache, SPEC).fill(table, verify=True)
    assert prepared.summary.made == 0 and prepared.summary.found == len(table)
    upscaler = SPEC.build_upscaler()
    for row in range(0, len(table), 97):
        assert np.array_equal(prepared.load(row), make_crop(table.image_path(row), table.box(row), SPEC, upscaler))


def test_killed_at_random_times_nothing_is_lost_and_nothing_is_corrupt(manifest, tmp_path):
    cache, draw = tmp_path / "cache", random.Random(0)
    known: set[Path] = set()
    killed = 0
    for _ in range(ROUNDS):
        process = start(manifest, cache)
        wait_for_new(cache, known, process)
        time.sleep(draw.uniform(0, 0.12))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        now = entries(cache)
        assert known <= now
        assert all(read_entry(path, SIDE) is not None for path in now - known)
        known = now
    assert killed >= ROUNDS // 2, "the rounds must interrupt real work"
    process = start(manifest, cache)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert made_and_found(printed) == (30 * 80 - len(known), len(known))
    all_right(manifest, cache)


def test_two_writers_of_which_one_is_killed(manifest, tmp_path):
    cache = tmp_path / "cache"
    first, second = start(manifest, cache), start(manifest, cache)
    wait_for_new(cache, set(), first)
    second.kill()
    second.communicate()
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    all_right(manifest, cache)


def made_and_found(printed: str) -> tuple[int, int]:
    words = next(line for line in printed.splitlines() if " made, " in line).split()
    return int(words[0]), int(words[2])


def test_two_ranks_share_the_crops_unevenly(manifest, tmp_path):
    lines = manifest.read_text().splitlines()
    odd = manifest.with_name("odd.csv")
    odd.write_text("\n".join(lines[: 1 + 7 * 80]) + "\n")  # seven photographs for two ranks
    cache = tmp_path / "cache"
    process = start(odd, cache, "--devices", "2")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert made_and_found(printed) == (7 * 80, 0)
    assert len(list(cache.rglob("index/*.jsonl"))) == 2, "each rank writes its own share"
    all_right(odd, cache)


def test_a_rank_is_killed_and_the_job_given_again(manifest, tmp_path):
    cache = tmp_path / "cache"
    process = start(manifest, cache, "--devices", "2")
    wait_for_new(cache, set(), process)
    rank = child_of(process.pid)
    os.kill(rank, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0, errors
    before = len(entries(cache))
    assert 0 < before < 30 * 80
    again = start(manifest, cache, "--devices", "2")
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-3000:]
    assert made_and_found(printed) == (30 * 80 - before, before)
    all_right(manifest, cache)


def child_of(pid: int) -> int:
    """Returns the rank that Lightning started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "prepare" in command:
            return int(stat.parent.name)
    raise AssertionError("no second rank is running")


def test_a_disk_that_is_full(manifest, tmp_path):
    with small_disk(tmp_path, "3m") as disk:
        process = start(manifest, disk / "cache")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2 and "Free some space" in errors and "Traceback" not in errors
        kept = entries(disk / "cache")
        assert kept and all(read_entry(path, SIDE) is not None for path in kept)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        again = start(manifest, disk / "cache")
        _, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        assert kept <= entries(disk / "cache")
        all_right(manifest, disk / "cache")
