"""Reports how faithful the enlarged crops of a manifest are, and names the worst."""

import numpy as np
import numpy.typing as npt

from kd_convnext.common.counting import counted
from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.data.crops.fidelity import LOW_PSNR, TOLERANCE
from kd_convnext.data.manifest.manifest import Manifest

_NAMED = 3


def least_faithful(prepared: PreparedCrops) -> list[int]:
    """Orders the rows whose enlargement was measured, the least faithful first."""
    found = prepared.fidelities()
    return sorted(found, key=lambda row: (found[row].psnr, row))


def fidelity_figures(prepared: PreparedCrops, rows: npt.NDArray[np.int64]) -> dict[str, float]:
    """Sums up how faithful the enlarged crops of some rows are.

    Args:
        prepared: The stored crops.
        rows: Of the manifest.

    Returns:
        ``psnr_median`` and ``psnr_worst`` in dB, and ``changed``, the mean over the crops of their
        shares of changed pixels; empty where nothing was measured.
    """
    known = prepared.fidelities()
    found = [known[row] for row in rows.tolist() if row in known]
    if not found:
        return {}
    psnr = np.array([kept.psnr for kept in found])
    changed = float(np.mean([kept.changed for kept in found]))
    return {"psnr_median": float(np.median(psnr)), "psnr_worst": float(psnr.min()), "changed": changed}


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
    figures = fidelity_figures(prepared, prepared.rows)
    low = sum(kept.psnr < LOW_PSNR for kept in found.values())
    lines = [
        f"fidelity of {counted(len(found), 'enlarged crop')}, reduced again: median {figures['psnr_median']:.1f} dB, "
        f"worst {figures['psnr_worst']:.1f} dB; on average {figures['changed']:.1%} of a crop's pixels are off by "
        f"more than {TOLERANCE} levels"
    ]
    if low:
        worst = least_faithful(prepared)[: min(low, _NAMED)]
        names = ", ".join(f"{manifest.where(row)} ({found[row].psnr:.1f} dB)" for row in worst)
        lines.append(
            f"warning: {low} of them below {LOW_PSNR:.0f} dB: there the network has changed what was there: {names}; "
            "look at --preview 12, or keep them true with --crops.sr_consistent true"
        )
    return lines
