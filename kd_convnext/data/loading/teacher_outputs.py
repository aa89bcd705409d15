"""Stores a teacher's outputs for views of crops on disk, for every run that shares teacher and views.

A record is named by the crop and the seed of its view, so that it can only ever be given to the picture it was made of;
the folder is named by everything else that decides an answer (`AnswerKind`).
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import stored_array
from kd_convnext.common.counting import counted
from kd_convnext.common.files import atomic_write, require_space, write_finding
from kd_convnext.errors import CacheError, Finding

_FORMAT = 1

Record = npt.NDArray[np.void]

STILL = 0
"""The seed of a crop's view without augmentation."""


class StoredOutputs(NamedTuple):
    """A teacher's outputs for one view, in float16: logits [K], maps [C, H, W], embedding [D] or None."""

    logits: npt.NDArray[np.float16]
    maps: list[npt.NDArray[np.float16]]
    embedding: npt.NDArray[np.float16] | None


@dataclass(frozen=True)
class AnswerKind:
    """Identifies a teacher's stored outputs by all that decides them but crop and seed.

    Attributes:
        teacher: sha256 of the teacher's weights and architecture.
        taps: Its modules whose maps are kept; none where the logits suffice.
        views: How crops become pictures, with the versions of the packages that draw (`Views.identity`).
        precision: Of the trainer, such as ``bf16-mixed``.
        num_classes: Width of the logits, K.
        maps: Shapes [C, H, W] of the kept maps.
        embedding: Width D of the kept embedding; 0 where none is kept.
    """

    teacher: str
    taps: tuple[str, ...]
    views: dict[str, Any]
    precision: str
    num_classes: int
    maps: tuple[tuple[int, ...], ...]
    embedding: int = 0

    @property
    def record(self) -> np.dtype[np.void]:
        """One view: its name, a checksum, logits and maps in float16; 22 bytes for five classes without maps."""
        fields: list[tuple[Any, ...]] = [("view", "<u8"), ("crc32", "<u4"), ("logits", "<f2", (self.num_classes,))]
        fields += [(f"map{number}", "<f2", shape) for number, shape in enumerate(self.maps)]
        if self.embedding:
            fields.append(("embedding", "<f2", (self.embedding,)))
        return np.dtype(fields)

    @property
    def large(self) -> bool:
        """Whether records are too large to be read all at once."""
        return bool(self.maps or self.embedding)

    def folder(self, root: Path) -> Path:
        """Returns where answers of this kind lie below a cache's root."""
        return root / "teacher" / hashlib.sha256(self.text().encode()).hexdigest()[:32]

    def text(self) -> str:
        """Returns all of it as JSON."""
        values = asdict(self)
        if not self.embedding:
            del values["embedding"]  # named as before there were any: what is stored stays valid
        return json.dumps({"format": _FORMAT, **values}, sort_keys=True, indent=2) + "\n"


class OutputSource(Protocol):
    """Protocol of a store of teacher outputs by crop and seed."""

    def load(self, crop_key: str, seed: int) -> StoredOutputs:
        """Reads the outputs for a view."""


class StoredTeacher(NamedTuple):
    """A teacher with stored outputs.

    Attributes:
        store: The outputs.
        seed: The seed under which they are stored, where all views of a crop share them; None where each has its own.
    """

    store: OutputSource
    seed: int | None = None


def view_name(crop_key: str, seed: int) -> int:
    """Names a view of a crop: 64 bits of a hash.

    Args:
        crop_key: Of the crop in the cache: its pixels and how it was made.
        seed: Of the view.
    """
    return int.from_bytes(hashlib.blake2b(f"{crop_key} {seed}".encode(), digest_size=8).digest(), "little")


@dataclass
class TeacherAnswers:
    """Answers of one kind. Picklable, for loader workers: each maps the files itself.

    Attributes:
        path: Their folder.
        kind: What they are answers of.
    """

    path: Path
    kind: AnswerKind
    _shards: list[Record] | None = field(default=None, repr=False)
    _names: npt.NDArray[np.uint64] = field(init=False, repr=False)
    _places: npt.NDArray[np.int64] = field(init=False, repr=False)

    def missing(self, names: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns the views without stored outputs.

        Args:
            names: From `view_name`.

        Returns:
            bool [N].
        """
        self._open()
        wanted = np.array(names, np.uint64)
        places = np.searchsorted(self._names, wanted)
        known = places < len(self._names)
        known[known] = self._names[places[known]] == wanted[known]
        return ~known

    def load(self, crop_key: str, seed: int) -> StoredOutputs:
        """Reads the stored outputs for a view.

        Args:
            crop_key: Of the crop.
            seed: Of the view.

        Returns:
            The outputs, in float16.

        Raises:
            CacheError: There is none, or it is damaged.
        """
        self._open()
        assert self._shards is not None
        name = view_name(crop_key, seed)
        found = int(np.searchsorted(self._names, np.uint64(name)))
        remedy = f"Start again: it is made again. If that does not help, delete {self.path}."
        if found == len(self._names) or int(self._names[found]) != name:
            raise CacheError(Finding(str(self.path), "the teacher's answer for a view is gone", remedy))
        shard, place = self._places[found]
        records = self._shards[shard][place : place + 1].copy()
        if self.kind.large and not _sound(records)[0]:
            what = f"a teacher's answer in {self.path} is damaged"
            raise CacheError(Finding(str(self.path), what, f"Delete {self.path}, and start again."))
        maps = [records[f"map{number}"][0] for number in range(len(self.kind.maps))]
        return StoredOutputs(records["logits"][0], maps, records["embedding"][0] if self.kind.embedding else None)

    def add(
        self,
        names: Sequence[int],
        logits: npt.NDArray[Any],
        maps: Sequence[npt.NDArray[Any]] = (),
        embedding: npt.NDArray[Any] | None = None,
    ) -> None:
        """Writes answers into a file of their own, whole or not at all.

        Args:
            names: From `view_name`, N of them.
            logits: [N, K].
            maps: [N, C, H, W] of each kept stage.
            embedding: [N, D], where it is kept.

        Raises:
            CacheError: They cannot be written, or do not fit into half precision.
        """
        records = np.zeros(len(names), self.kind.record)
        with np.errstate(over="ignore"):  # said below, with a remedy
            records["view"], records["logits"] = names, logits
            for number, values in enumerate(maps):
                records[f"map{number}"] = values
            if embedding is not None:
                records["embedding"] = embedding
        fields = [name for name in records.dtype.names or () if name not in ("view", "crc32")]
        if not all(np.isfinite(records[name]).all() for name in fields):
            remedy = "Set --model.teacher_cache false; check that the teacher's own results are sound."
            raise CacheError(Finding("teacher", "an answer is not finite in half precision", remedy))
        records["crc32"] = _checksums(records)
        path = self.path / f"{zlib.crc32(records['view'].tobytes()):08x}-{len(records)}.npy"
        try:
            atomic_write(self.path / "about.json", lambda file: file.write(self.kind.text().encode()))
            atomic_write(path, lambda file: np.save(file, records, allow_pickle=False))
        except OSError as error:
            raise CacheError(write_finding(path, error)) from error
        self._shards = None

    def require_space(self, views: int) -> str:
        """Prints the disk space that outputs will take, and refuses what does not fit.

        Args:
            views: How many.

        Returns:
            One line.

        Raises:
            CacheError: They do not fit.
        """
        size = self.kind.record.itemsize
        remedy = "Lower --data.loader.views, tap fewer stages (--model.taps.teacher), or name another --data.cache_dir."
        need = require_space(self.path, size * views, f"the teacher's answers for {counted(views, 'view')}", remedy)
        return f"The teacher answers {counted(views, 'view')} once, {size} bytes each, {need}: {self.path}"

    def _open(self) -> None:
        if self._shards is not None:
            return
        kind, shards = self.kind.record, []
        for path in sorted(self.path.glob("*.npy")):
            found = stored_array(path)  # where it is damaged, its views are answered again
            if found is not None and found.dtype == kind and found.ndim == 1:
                # Records with maps are too large to be read all: each is checked when it is loaded.
                shards.append(found if self.kind.large else found[_sound(found)])
        names = [np.asarray(shard["view"]) for shard in shards]
        places = [np.stack([np.full(len(shard), n), np.arange(len(shard))], 1) for n, shard in enumerate(shards)]
        flat = np.concatenate(names) if names else np.zeros(0, np.uint64)
        self._names, first = np.unique(flat, return_index=True)
        self._places = np.concatenate(places)[first] if places else np.zeros((0, 2), np.int64)
        self._shards = shards

    def __getstate__(self) -> dict[str, object]:
        """Leaves the open files behind."""
        return {"path": self.path, "kind": self.kind, "_shards": None}


def _checksums(records: Record) -> npt.NDArray[np.uint32]:
    copy = records.copy()
    copy["crc32"] = 0
    content, size = copy.view(np.uint8).data, copy.dtype.itemsize
    return np.fromiter((zlib.crc32(content[at : at + size]) for at in range(0, len(content), size)), np.uint32)


def _sound(records: Record) -> npt.NDArray[np.bool_]:
    return np.asarray(_checksums(records) == records["crc32"])
