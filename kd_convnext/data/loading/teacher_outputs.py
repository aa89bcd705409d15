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
from kd_convnext.common.files import atomic_write, require_handles, write_finding
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


@dataclass(frozen=True)
class Asker:
    """Names whoever has outputs stored, in the words of whom it tells and advises.

    Attributes:
        place: Where a fault of the outputs is reported.
        does: What is done, for a line that the number of views ends.
        outputs: What is stored, in the plural.
        not_finite: What to do about values that half precision does not hold.
        no_space: What to do where the outputs do not fit on the disk.
        no_memory: What to do where a linear head's fit on them does not fit into memory.
    """

    place: str
    does: str
    outputs: str
    not_finite: str
    no_space: str
    no_memory: str


STUDENT = Asker(
    "teacher",
    "The teacher answers",
    "the teacher's answers",
    "Set --model.teacher_cache false; check that the teacher's own results are sound.",
    "Lower --data.loader.views, tap fewer stages (--model.taps.teacher), or name another --data.cache_dir.",
    "Give the fit more memory, or a teacher that was trained with fewer --model.linear_looks.",
)
"""A fit that learns from stored outputs."""

LINEAR = Asker(
    "--model.finetune linear",
    "The frozen network sees",
    "the network's features",
    "Check the network's start weights (--model.backbone.weights), or set finetune: head_only, which stores none.",
    "Lower --model.linear_looks, or name another --data.cache_dir.",
    "Give the fit more memory, lower --model.linear_looks, or set finetune: head_only.",
)
"""A fit of a linear head on the stored features of its own network."""


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


@dataclass(frozen=True)
class _Shard:
    """A file of records. It is opened for each record that is read, as a process may open fewer than a store has.

    Attributes:
        path: The file.
        kind: Of a record.
        begin: Where in it the first record lies, in bytes.
        held: The records, where they are small enough to be in memory.
    """

    path: Path
    kind: np.dtype[np.void]
    begin: int
    held: Record | None

    def record(self, place: int) -> Record:
        """Reads the record at a place: an array of one, whose checksum is compared where it comes from the file.

        Raises:
            CacheError: It cannot be read, or is damaged.
        """
        if self.held is not None:
            return self.held[place : place + 1].copy()
        found = np.zeros(1, self.kind)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.begin + place * self.kind.itemsize)
                file.readinto(found.view(np.uint8).data)
        except OSError as error:
            require_handles(self.path, error)
            what, remedy = f"cannot be read ({error.strerror})", "Start again: answers that are gone are made again."
            raise CacheError(Finding(str(self.path), what, remedy)) from error
        if not _sound(found)[0]:
            remedy = f"Delete {self.path}, and start again: of all answers only those in it are made again."
            raise CacheError(Finding(str(self.path), "a teacher's answer in it is damaged", remedy))
        return found


@dataclass
class TeacherAnswers:
    """Answers of one kind. Picklable, for loader workers: each reads the files itself.

    Attributes:
        path: Their folder.
        kind: What they are answers of.
    """

    path: Path
    kind: AnswerKind
    _shards: list[_Shard] | None = field(default=None, repr=False)
    _names: npt.NDArray[np.uint64] = field(init=False, repr=False)
    _places: npt.NDArray[np.int64] = field(init=False, repr=False)

    def missing(self, names: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns the views without stored outputs.

        Args:
            names: From `view_name`.

        Returns:
            bool [N].

        Raises:
            CacheError: The folder or a file of it could not be looked at.
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
            CacheError: There is none, it is damaged, or it cannot be read.
        """
        self._open()
        assert self._shards is not None
        name = view_name(crop_key, seed)
        found = int(np.searchsorted(self._names, np.uint64(name)))
        remedy = f"Start again: it is made again. If that does not help, delete {self.path}."
        if found == len(self._names) or int(self._names[found]) != name:
            raise CacheError(Finding(str(self.path), "the teacher's answer for a view is gone", remedy))
        shard, place = self._places[found].tolist()
        records = self._shards[shard].record(place)
        maps = [records[f"map{number}"][0] for number in range(len(self.kind.maps))]
        return StoredOutputs(records["logits"][0], maps, records["embedding"][0] if self.kind.embedding else None)

    def add(
        self,
        names: Sequence[int],
        logits: npt.NDArray[Any],
        maps: Sequence[npt.NDArray[Any]] = (),
        embedding: npt.NDArray[Any] | None = None,
        asker: Asker = STUDENT,
    ) -> None:
        """Writes answers into a file of their own, whole or not at all.

        Args:
            names: From `view_name`, N of them.
            logits: [N, K].
            maps: [N, C, H, W] of each kept stage.
            embedding: [N, D], where it is kept.
            asker: Who is told where they do not fit into half precision.

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
            what = f"one of {asker.outputs} is not finite in half precision"
            raise CacheError(Finding(asker.place, what, asker.not_finite))
        records["crc32"] = _checksums(records)
        path = self.path / f"{zlib.crc32(records['view'].tobytes()):08x}-{len(records)}.npy"
        try:
            atomic_write(self.path / "about.json", lambda file: file.write(self.kind.text().encode()))
            atomic_write(path, lambda file: np.save(file, records, allow_pickle=False))
        except OSError as error:
            raise CacheError(write_finding(path, error)) from error
        self._shards = None

    def _open(self) -> None:
        if self._shards is not None:
            return
        shards, names = [], []
        for path in _files(self.path):
            found = stored_array(path)  # where it is damaged, its views are answered again
            if found is not None and found.dtype == self.kind.record and found.ndim == 1:
                # Records with maps are too large to be read all: each is checked when it is loaded.
                held = None if self.kind.large else np.asarray(found[_sound(found)])
                shards.append(_Shard(path, self.kind.record, found.offset, held))
                names.append(np.array((found if held is None else held)["view"]))  # a copy, so that the file is closed
        places = [np.stack([np.full(len(shard), n), np.arange(len(shard))], 1) for n, shard in enumerate(names)]
        flat = np.concatenate(names) if names else np.zeros(0, np.uint64)
        self._names, first = np.unique(flat, return_index=True)
        self._places = np.concatenate(places)[first] if places else np.zeros((0, 2), np.int64)
        self._shards = shards

    def __getstate__(self) -> dict[str, object]:
        """Leaves behind what was read."""
        return {"path": self.path, "kind": self.kind, "_shards": None}


def _files(folder: Path) -> list[Path]:
    """Lists the files of records in a folder; none where there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".npy")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        require_handles(folder, error)
        remedy = "Give yourself permission to read it, or name another --data.cache_dir."
        raise CacheError(Finding(str(folder), f"cannot be read ({error.strerror})", remedy)) from error


def _checksums(records: Record) -> npt.NDArray[np.uint32]:
    """Computes the CRC-32 of each record, its own field of it taken as 0."""
    content, size = records.view(np.uint8).data, records.dtype.itemsize
    begin = int(records.dtype.fields["crc32"][1])  # type: ignore[index]
    blank, end = bytes(4), begin + 4
    return np.fromiter(
        (
            zlib.crc32(content[at + end : at + size], zlib.crc32(blank, zlib.crc32(content[at : at + begin])))
            for at in range(0, len(content), size)
        ),
        np.uint32,
    )


def _sound(records: Record) -> npt.NDArray[np.bool_]:
    return np.asarray(_checksums(records) == records["crc32"])
