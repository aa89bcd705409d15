"""Finds the training photographs most like a new one, by the network's features."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.counting import counted
from kd_convnext.common.files import atomic_write, is_special
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.inference.run_data import CalibrationData
from kd_convnext.inference.trust.gate import Features

_CHUNK = 64  # pictures held at once


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A training photograph.

    Attributes:
        image: Path relative to the manifest.
        box: Its region of interest.
        label: Its class.
        lesion_id: Its lesion; empty where unknown.
        similarity: Cosine of the angle between the features of both, at most 1.
        crop: As stored, uint8 RGB [S, S, 3].
    """

    image: str
    box: Box | None
    label: str
    lesion_id: str
    similarity: float
    crop: Pixels


class TrainingCases:
    """Stores the features of all training photographs in a file beside the checkpoint, and searches them."""

    def __init__(self, data: CalibrationData, file: Path) -> None:
        """Reads the features, or lets the network see every training photograph once.

        Args:
            data: Of the checkpoint.
            file: Where the features are kept; written if it is missing or of another checkpoint or split.

        Raises:
            KDConvNeXtError: Photographs cannot be read, or the file cannot be written.
        """
        self.data = data
        self.crops, self.rows = data.crops(data.rows("train"))
        self.features = self._known(file)

    def nearest(self, features: Features, count: int) -> list[Neighbour]:
        """Finds the most alike.

        Args:
            features: float32 [D] of a new photograph, of the same network.
            count: How many at most; one a lesion.

        Returns:
            Them, the most alike first.
        """
        direction = features / max(float(np.linalg.norm(features)), 1e-12)
        similar = np.einsum("nd,d->n", self.features, direction)  # not by BLAS, as in `Gate.distances`
        lesions = self.data.manifest.groups("lesion")[self.rows]
        order = np.argsort(-similar, kind="stable")
        _, first = np.unique(lesions[order], return_index=True)
        return [self._case(int(place), float(similar[place])) for place in order[np.sort(first)][:count]]

    def _case(self, place: int, similarity: float) -> Neighbour:
        manifest, row = self.data.manifest, int(self.rows[place])
        image, label, lesion = (str(manifest.table.at[row, name]) for name in ("image", "label", "lesion_id"))
        return Neighbour(image, manifest.box(row), label, lesion, similarity, self.crops.load(row))

    def _known(self, file: Path) -> Features:
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import save

        identity = self._identity()
        try:
            if not is_special(file):
                with safe_open(file, framework="numpy") as kept:
                    features = np.asarray(kept.get_tensor("features"), dtype=np.float32)
                    if kept.metadata() == _marks(identity, features) and len(features) == len(self.rows):
                        return features
        except (OSError, SafetensorError):
            pass  # none yet, or damaged: made again
        features = self._features()
        marks = _marks(identity, features)
        atomic_write(file, lambda target: target.write(save({"features": features}, marks)))
        return features

    def _features(self) -> Features:
        predictor, found = self.data.predictor, []
        print(f"The network sees its {counted(len(self.rows), 'training photograph')} once, to find the most alike")
        for start in range(0, len(self.rows), _CHUNK):
            pictures = [predictor.picture(self.crops.load(int(row))) for row in self.rows[start : start + _CHUNK]]
            found.append(predictor.outputs(pictures)[1])
        features: npt.NDArray[np.float32] = np.concatenate(found)
        lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return np.asarray(features / lengths, dtype=np.float32)

    def _identity(self) -> str:
        """Hashes the network and the crops, in their order: a name may hold another photograph by now."""
        keys = [self.crops.key(row) for row in self.rows.tolist()]
        content = [self.data.predictor.network.info.checkpoint_sha256, self.data.predictor.tta, keys]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _marks(identity: str, features: Features) -> dict[str, str]:
    """Names what features are of, with a checksum, which the file format lacks."""
    return {"belongs_to": identity, "sha256": hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()}
