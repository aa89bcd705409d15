"""What a checkpoint says of the data: enough to answer for a new photograph, and to refuse a leak."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kd_convnext.errors import Finding, LeakError

Groups = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataCard:
    """Everything a trained network must know of its data.

    Attributes:
        class_names: Names in the order of the outputs.
        image_size: Side of the input in pixels.
        in_chans: 3 (RGB) or 1 (luminance).
        crop: The crop specification (`CropSpec.to_dict`).
        crop_identity: What decided the stored pixels (`CropSpec.identity`), with the weights' sha256.
        split_hash: Names the division into parts.
        group_by: What was kept together.
        seen_groups: int64, sorted hashes of every lesion, patient and photograph that training saw, the teacher's and
            those of the start weights included.
        leak_allowed: Whether a leak was found and overridden on the way to this network.
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

    def to_state(self) -> dict[str, Any]:
        """Returns plain values and one tensor, loadable with ``weights_only=True``."""
        return {
            **{name: getattr(self, name) for name in ("image_size", "in_chans", "split_hash", "group_by")},
            "class_names": list(self.class_names),
            "crop": dict(self.crop),
            "crop_identity": dict(self.crop_identity),
            "seen_groups": torch.from_numpy(self.seen_groups.copy()),
            "leak_allowed": self.leak_allowed,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DataCard":
        """Reads what `to_state` gave."""
        values = dict(state)
        values["class_names"] = tuple(values["class_names"])
        values["seen_groups"] = values["seen_groups"].numpy()
        return cls(**values)

    def having_seen(self, groups: Groups, leak_allowed: bool = False) -> "DataCard":
        """Adds what a teacher or the start weights were trained on."""
        seen = np.union1d(self.seen_groups, groups)
        return replace(self, seen_groups=seen, leak_allowed=self.leak_allowed or leak_allowed)


def check_leak(seen: Groups, judged: Groups, *, who: str, part: str, allow: bool) -> bool:
    """Refuses to judge a network on lesions that it, or its teacher, was trained on.

    Args:
        seen: Hashes of what training saw.
        judged: Hashes of the part.
        who: The network, for the message: ``--model.teacher_ckpt best.ckpt``.
        part: The part's name, for the message.
        allow: Go on all the same.

    Returns:
        Whether there is a leak (that was allowed).

    Raises:
        LeakError: There is one and it is not allowed.
    """
    shared = np.intersect1d(seen, judged)
    if not len(shared):
        return False
    if not allow:
        raise LeakError(
            Finding(
                who,
                f"it was trained on {len(shared)} of the lesions, patients or photographs of the {part} part",
                "Use a checkpoint of the same split (same split.csv, split_seed and split_index), "
                "or --data.allow_leak true to go on; the results then say so.",
            )
        )
    return True
