"""Reports how faithful the enlarged crops of a manifest are, and names the worst."""

import numpy as np

from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.data.crops.fidelity import LOW_PSNR, TOLERANCE
from kd_convnext.data.manifest.manifest import Manifest

_NAMED = 3


def least_faithful(prepared: PreparedCrops) -> list[int]:
    """Orders the rows whose enlargement was measured, the least faithful first."""
    found = prepared.fidelities()
    return sorted(found, key=lambda row: (found[row].psnr, row))


def fidelity_lines(prepared: PreparedCrops, manifest: Manifest) -> list[str]:
    """Sums up how far enlarged crops, reduced again, differ from the crops they were made from.

    Args:
        prepared: The stored crops.
        manifest: Their photographs.

    Returns:
        Lines of text; none where nothing was measured (no network, or crops of an earlier version).
    """
    found = prepared.fidelities()
    if not found:
        return []
    psnr = np.array([kept.psnr for kept in found.values()])
    changed = np.array([kept.changed for kept in found.values()])
    low = int((psnr < LOW_PSNR).sum())
    lines = [
        f"fidelity of {len(found)} enlarged crops, reduced again: median {np.median(psnr):.1f} dB, worst "
        f"{psnr.min():.1f} dB; {changed.mean():.1%} of all pixels are off by more than {TOLERANCE} levels"
    ]
    if low:
        worst = least_faithful(prepared)[: min(low, _NAMED)]
        names = ", ".join(f"{manifest.where(row)} ({found[row].psnr:.1f} dB)" for row in worst)
        lines.append(
            f"warning: {low} of them are below {LOW_PSNR:.0f} dB, so the network has changed what was there: {names}; "
            "look at --preview 12, or keep them true with --crops.sr_consistent true"
        )
    return lines
