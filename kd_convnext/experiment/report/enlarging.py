"""Tabulates crops enlarged in different ways: scores, and how faithful the enlargement is."""

import numpy as np

from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.descriptions import DESCRIBED, describe
from kd_convnext.experiment.report.results import Arm
from kd_convnext.experiment.report.tables import MEANS, NAMES, Table, means
from kd_convnext.runs.tables import FIDELITY


def crops(analysis: Analysis) -> Table | None:
    """Tabulates the scores of the super-resolution comparison by upscaler, and how faithful the crops are."""
    rows = [
        (*means(arm), describe(arm)[DESCRIBED.index("Crops")], _fidelity(arm))
        for arm in _differently_enlarged(analysis)
    ]
    if not rows:
        return None
    title = "Super-resolution switched (the paper's Fig. 3)"
    note = (
        f"{MEANS} Fidelity: the tested crops as a network has enlarged them, reduced again and compared with what they "
        "were made from (median and worst, pixels off by more than 8 levels of 255). Details that a network adds below "
        "the crop's own resolution it cannot show."
    )
    columns = ("Method", "Repeats", *NAMES.values(), "Crops", "Fidelity")
    return Table(title, columns, tuple(rows), note)


def crop_lines(analysis: Analysis) -> list[str]:
    """Writes score and fidelity of every upscaler, for the terminal."""
    return [
        f"{arm.title}: macro F1 {means(arm)[-1]}; fidelity {_fidelity(arm)}" for arm in _differently_enlarged(analysis)
    ]


def _differently_enlarged(analysis: Analysis) -> list[Arm]:
    switched = analysis.of_family("super_resolution")
    methods = {arm.record.method for arm in switched}
    return [*(arm for arm in analysis.methods if arm.record.method in methods), *switched]


def _fidelity(arm: Arm) -> str:
    """Sums up the fidelity of the crops of all repeats."""
    psnr = arm.values(f"{FIDELITY}psnr_median")
    if not np.isfinite(psnr).any():
        return "not measured (no network)"
    worst, changed = np.nanmin(arm.values(f"{FIDELITY}psnr_worst")), np.nanmean(arm.values(f"{FIDELITY}changed"))
    return f"{np.nanmedian(psnr):.1f} dB, worst {worst:.1f} dB; {changed:.1%} of the pixels changed"
