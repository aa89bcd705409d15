"""Summarises the training data in a checkpoint (data card), to crop new photographs alike and to refuse leaks."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from kd_convnext.errors import Finding, LeakError

if TYPE_CHECKING:
    import pandas as pd  # which an answer does not need

Groups = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataCard:
    """Describes the data of a trained network: classes, input, crops, and hashes of what was seen in training.

    Attributes:
        class_names: Names in the order of the outputs.
        image_size: Side of the input in pixels.
        in_chans: 3 (RGB) or 1 (luminance).
        crop: The crop specification (`CropSpec.to_dict`).
        crop_identity: What decided the stored pixels (`CropSpec.identity`), with the weights' sha256.
        split_hash: Names the division into parts.
        group_by: What was kept together.
        seen_groups: int64, sorted hashes, salted, of every lesion, patient and photograph that training saw, the
            teacher's and those of the start weights included where their salt is the same.
        leak_allowed: Whether a leak was found and overridden on the way to this network.
        salt: Of `seen_groups`: one list of guessed ids cannot be looked up in all checkpoints. "" for none.
        seen_elsewhere: Salts and hashes of what a teacher or start weights of another salt saw.
        regions: Boxes of the training (`regions_of`): ``share`` of its rows that have one, and ``smallest`` and
            ``largest``, the 1st and 99th percentile of their longer sides in pixels. Empty where nothing is known.
    """

    class_names: tuple[str, ...]
    image_size: int
    in_chans: int
    crop: Mapping[str, Any]
    crop_identity: Mapping[str, Any]
    split_hash: str
    group_by: str
    seen_groups: Groups
    leak_allowed: bool = False
    salt: str = ""
    seen_elsewhere: tuple[tuple[str, Groups], ...] = ()
    regions: Mapping[str, float] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Returns plain values and tensors, loadable with ``weights_only=True``."""
        return {
            **{name: getattr(self, name) for name in ("image_size", "in_chans", "split_hash", "group_by")},
            "class_names": list(self.class_names),
            "crop": dict(self.crop),
            "crop_identity": dict(self.crop_identity),
            "seen_groups": torch.from_numpy(self.seen_groups.copy()),
            "leak_allowed": self.leak_allowed,
            "salt": self.salt,
            "regions": dict(self.regions),
            "seen_elsewhere": [[salt, torch.from_numpy(groups.copy())] for salt, groups in self.seen_elsewhere],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DataCard":
        """Reads what `to_state` gave."""
        values = dict(state)
        values["class_names"] = tuple(values["class_names"])
        values["seen_groups"] = values["seen_groups"].numpy()
        values["seen_elsewhere"] = tuple((salt, groups.numpy()) for salt, groups in values.get("seen_elsewhere", ()))
        return cls(**values)

    def public_crop(self) -> dict[str, Any]:
        """Returns `crop` for files that are handed on: of paths of weights the file names alone are left."""
        # Of Windows, which splits at both kinds of strokes: the checkpoint may come from there.
        paths = {name: self.crop.get(name) for name in ("sr_weights", "sr_wdn_weights")}
        return {**self.crop, **{name: PureWindowsPath(path).name if path else None for name, path in paths.items()}}

    def having_seen(self, other: "DataCard", leak_allowed: bool = False) -> "DataCard":
        """Adds what a teacher or the start weights were trained on."""
        found = {self.salt: self.seen_groups} | dict(self.seen_elsewhere)
        for salt, groups in ((other.salt, other.seen_groups), *other.seen_elsewhere):
            found[salt] = np.union1d(found.get(salt, groups), groups)
        own = found.pop(self.salt)
        leak_allowed = self.leak_allowed or leak_allowed
        return replace(self, seen_groups=own, seen_elsewhere=tuple(found.items()), leak_allowed=leak_allowed)

    def shared(self, judged: Groups) -> Groups:
        """Finds what was seen in training among lesions, patients and photographs that are to be judged.

        Args:
            judged: Hashes without salt (:func:`kd_convnext.data.manifest.grouping.group_hashes`).

        Returns:
            Those of them that were seen.
        """
        seen = np.zeros(len(judged), np.bool_)
        for salt, groups in ((self.salt, self.seen_groups), *self.seen_elsewhere):
            seen |= np.isin(salted(judged, salt, ordered=False), groups)
        return judged[seen]

    def without(self, others: Groups) -> "DataCard":
        """Leaves out photographs whose names alone were seen: looked at, they turned out to be others.

        Args:
            others: Hashes without salt, of names in the manifest of this card.
        """
        return replace(self, seen_groups=np.setdiff1d(self.seen_groups, salted(others, self.salt)))


def regions_of(table: "pd.DataFrame") -> dict[str, float]:
    """Summarises the boxes of a training part.

    Args:
        table: Rows of a manifest, with width and height in pixels, NaN where a row has no box.

    Returns:
        See `DataCard.regions`.
    """
    sides = table[["width", "height"]].astype(float).max(axis=1).dropna().to_numpy()
    if not len(table):
        return {}
    found = {"share": len(sides) / len(table)}
    if len(sides):
        smallest, largest = np.percentile(sides, (1, 99))
        found |= {"smallest": float(smallest), "largest": float(largest)}
    return found


def salted(groups: Groups, salt: str, *, ordered: bool = True) -> Groups:
    """Hashes hashes with a salt.

    Args:
        groups: int64 [M].
        salt: Any text; "" leaves them as they are.
        ordered: Sort the result.

    Returns:
        int64 [M], 63 bits of the sha256 of salt and hash.
    """
    if not salt:
        return groups
    digests = (hashlib.sha256(f"{salt}:{value}".encode()).digest() for value in groups.tolist())
    found = np.array([int.from_bytes(digest[:8], "big") >> 1 for digest in digests], dtype=np.int64)
    return np.sort(found) if ordered else found


def check_leak(
    shared: Groups, *, who: str, part: str, allow: bool, group_by: tuple[str, str], by_path: bool = False
) -> bool:
    """Refuses to judge a network on lesions that it, or its teacher, was trained on.

    Args:
        shared: What the network has seen of the part (:meth:`DataCard.shared`).
        who: The network, for the message: ``--model.teacher_ckpt best.ckpt``.
        part: The part's name, for the message.
        allow: Go on all the same.
        group_by: What was kept together in the network's training, and what is here.
        by_path: Only paths of photographs are shared, which others may have too.

    Returns:
        Whether there is a leak (that was allowed).

    Raises:
        LeakError: There is one and it is not allowed.
    """
    if not len(shared):
        return False
    if not allow:
        theirs, ours = group_by
        cause = ""
        if theirs != ours:
            cause = f"It was trained with --data.split.group_by {theirs}, here it is {ours}: give the same. "
        what = f"it was trained on {len(shared)} of the lesions, patients or photographs of the {part} part"
        if by_path:
            what = f"it was trained on photographs with the paths of {len(shared)} photographs of the {part} part"
            cause += "If they are others, name these by a table in a folder above, so that their paths differ. "
        raise LeakError(
            Finding(
                who,
                what,
                f"{cause}Use a checkpoint of the same split (the split.csv of its run; --data.split.seed, index and "
                "group_by), or --data.allow_leak true to go on; the results then say so.",
            )
        )
    return True
