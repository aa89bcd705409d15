"""Names the array types that rooms share, maps stored arrays, and computes softmax."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_convnext.common.files import is_special, require_handles

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def softmax(logits: Logits, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Turns logits into probabilities, in double precision.

    Args:
        logits: [..., K].
        temperature: Above 0; above 1 flattens.

    Returns:
        [..., K], sums to 1 over the last axis.

    Examples:
        >>> softmax(np.array([0.0, 0.0])).tolist()
        [0.5, 0.5]
        >>> softmax(np.array([2.0, 0.0]), temperature=2.0).round(3).tolist()
        [0.731, 0.269]
    """
    # Not from SciPy: every answer needs it, and an answer is to import no more than it must.
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def stored_array(path: Path) -> "np.memmap[Any, Any] | None":
    """Maps an array of a ``.npy`` file into memory, without unpickling.

    The file stays open as long as the array, or a part of it, is there.

    Args:
        path: The file.

    Returns:
        The array, not writable; None where there is none, it is damaged, or a pipe or a device stands there.

    Raises:
        CacheError: It could not be looked at, as too many files are open.
    """
    try:
        found = None if is_special(path) else np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        return None
    except OSError as error:
        require_handles(path, error)
        return None
    return found if isinstance(found, np.memmap) else None
