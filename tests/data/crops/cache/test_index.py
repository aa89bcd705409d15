"""The index of a cache: joined files know what the single ones knew."""

import json
import os

from kd_convnext.data.crops.cache.index import Index, Stamp, compact
from kd_convnext.data.manifest.boxes import Box

BOX = Box(1, 2, 3, 4)


def stamp(name, time=1):
    return Stamp(f"/photos/{name}", 10, time, 2, 3)


def written(folder, *entries):
    """Adds entries as a process of its own, and returns its file."""
    before = set(folder.glob("*.jsonl"))
    with Index(folder, {"who": len(before)}) as index:
        for entry in entries:
            index.add(*entry)
    (file,) = set(folder.glob("*.jsonl")) - before
    # By name, in the order of their writing: of one second it would be left to chance.
    return file.rename(folder / f"{len(before)}.jsonl")


def test_old_files_are_joined_without_what_was_replaced(tmp_path):
    first = written(tmp_path, (stamp("a"), None, "k1"), (stamp("b"), BOX, "k2"))
    second = written(tmp_path, (stamp("a", time=9), None, "k3"), (stamp("c"), None, "k4"))
    with second.open("a") as file:
        file.write('{"crop": ["cut')
    for moment, path in enumerate((first, second)):
        os.utime(path, (moment, moment))
    young = written(tmp_path, (stamp("c", time=7), None, "k5"))
    assert compact(tmp_path) == 1
    left = sorted(tmp_path.glob("*.jsonl"))
    assert len(left) == 2 and young in left
    index = Index(tmp_path, {})
    assert index.find(stamp("a"), None) is None  # another photograph lies there now
    assert index.find(stamp("a", time=9), None) == "k3" and index.find(stamp("b"), BOX) == "k2"
    assert index.find(stamp("c"), None) == "k4" and index.find(stamp("c", time=7), None) == "k5"
    (joined,) = set(left) - {young}
    lines = [json.loads(line) for line in joined.read_text().splitlines()]
    assert [line["run"] for line in lines if "run" in line] == [{"who": 0}, {"who": 1}]
    assert len(lines) == 5


def test_a_single_old_file_stays(tmp_path):
    os.utime(written(tmp_path, (stamp("a"), None, "k1")), (0, 0))
    assert compact(tmp_path) == 0
    assert Index(tmp_path, {}).find(stamp("a"), None) == "k1"


def test_what_an_earlier_version_read_of_a_tiff_is_read_again(tmp_path):
    for name, found in (("a.tif", None), ("a.DCM", None), ("a.jpg", "k1")):
        (tmp_path / name).write_bytes(b"x")
        now = Stamp.of(tmp_path / name)
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        written(folder, (Stamp(*now[:5]), None, "k1"))
        assert Index(folder, {}).find(now, None) == found
        written(folder, (now, None, "k2"))
        assert Index(folder, {}).find(now, None) == "k2"
