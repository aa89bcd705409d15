"""Reads an offline W&B run back: the ``.wandb`` file is a LevelDB log of protobuf records.

wandb has no public reader of it. The framing: a header of 7 bytes, then blocks of 32 KiB with pieces of
(crc 4, length 2, type 1) and payload; type 1 is a whole record, 2, 3 and 4 are its first, middle and last
piece. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK, _PIECE = 7, 32768, 7
_WHOLE, _LAST = 1, 4
_PATIENCE = 120  # seconds


@dataclass
class OfflineRun:
    """What was logged.

    ``history`` has one dict a logged step. ``media`` is the folder that pictures' paths are relative to. ``stored``
    maps the paths within artifacts, where tables and their pictures are, to files.
    """

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    media: Path = Path()
    stored: dict[str, Path] = field(default_factory=dict)
    group: str = ""
    name: str = ""
    finished: bool = False

    def curve(self, name: str) -> list[float]:
        return [step[name] for step in self.history if name in step]

    def entry(self, name: str) -> dict[str, Any]:
        """The last value of a picture, table or chart: a dict that names its file."""
        return [step[name] for step in self.history if name in step][-1]

    def table(self, name: str) -> dict[str, Any]:
        """A table's ``columns`` and ``data``."""
        assert self.entry(name)["_type"] == "table-file"
        return json.loads(self.stored[f"{name}.table.json"].read_text())


def read_runs(folder: Path, count: int) -> list[OfflineRun]:
    """Reads the runs in ``folder/wandb/offline-run-<time>-<id>``, oldest first.

    wandb writes in a process of its own and may not be done when a run is finished: waits until ``count`` runs are.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        runs = [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
        finished = sum(run.finished for run in runs)
        if finished >= count:
            return runs
        assert time.monotonic() < until, f"{finished} of {count} runs are finished in {folder}"
        time.sleep(0.2)


def _read(file: Path) -> OfflineRun:
    run = OfflineRun(media=file.parent / "files")
    for payload in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        run.config |= _decoded(record.run.config.update) | _decoded(record.config.update)
        run.group, run.name = record.run.run_group or run.group, record.run.display_name or run.name
        run.finished |= record.HasField("exit")
        if record.history.item:
            run.history.append(_decoded(record.history.item))
        run.stored |= {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
    return run


def _records(content: bytes) -> Iterator[bytes]:
    place, record = _HEADER, b""
    while place + _PIECE <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _PIECE:  # the block's end is filled with zeros
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + _PIECE : place + _PIECE + length]
        place += _PIECE + length
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""


def _decoded(items: Iterable[Any]) -> dict[str, Any]:
    """Items by name; those with a path of names become nested dicts."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return found
