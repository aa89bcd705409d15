"""Cross-conformal calibration: lesions that other networks of the same recipe have held out, where one has too few.

The networks are those of other repeats of the split, each asked only for its own validation lesions (Vovk 2015,
doi:10.1007/s10472-013-9368-4). The proven forms need every network at every answer: CV+ then covers ``1 - 2 (1 - c)``
at least, up to a term of the number of lesions (Barber, Candès, Ramdas, Tibshirani 2021, arXiv:1905.02928). Here one
network answers. Its coverage is near c as far as training on other lesions leaves the scores alike, which no theorem
says: such classes are never called guaranteed, and `checked` measures how alike they are.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kd_convnext.checkpoints.network import Network
from kd_convnext.data.manifest.overlap import belonging
from kd_convnext.errors import Checks, ConfigError, Finding, KDConvNeXtError
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import CalibrationData, LabelledAnswers, Rows, RunSource, own_data, refuse_leak
from kd_convnext.inference.trust.prediction_sets import Coverage, Held, fit_thresholds, observed_coverage
from kd_convnext.runs.folder import run_of_checkpoint


class HeldOut(NamedTuple):
    """Lesions that another network has held out.

    Attributes:
        data: The network and its photographs.
        rows: Of them, its validation part without what belongs to lesions that are judged.
    """

    data: CalibrationData
    rows: Rows

    def answers(self) -> LabelledAnswers:
        """Predicts them."""
        return self.data.answers(self.rows)


def held_out_by(ckpt_paths: Sequence[str], data: CalibrationData, source: RunSource) -> list[HeldOut]:
    """Finds lesions that other networks of the same recipe have held out.

    Args:
        ckpt_paths: Their checkpoints, each in its run folder.
        data: Of the network that is calibrated; what belongs to its test part, by all that is known and not only by
            what its split keeps apart, is left out, to judge it on.
        source: The photographs, the same for all.

    Returns:
        The validation part of each network.

    Raises:
        KDConvNeXtError: Checkpoints are not of the same recipe and photographs, have the split of another one, or have
            seen their own validation lesions: all of them, each named.
    """
    splits = {data.predictor.network.card.split_hash}
    found, checks = [], Checks()
    for path in ckpt_paths:
        with checks.going_on():
            other = _checked(path, data, source, splits)
            held = other.rows("val")
            rows = held[~belonging(other.manifest, data.manifest, data.rows("test"), likeness=True)[held]]
            if len(rows):
                found.append(HeldOut(other, rows))
    checks.refuse()
    if not found:
        what = "all lesions that they have held out are in the test part"
        raise ConfigError(Finding("--also", what, "Give checkpoints of further repeats."))
    return found


def _checked(path: str, data: CalibrationData, source: RunSource, splits: set[str]) -> CalibrationData:
    """Opens a checkpoint whose split is none of those known so far, and adds its own to them."""
    try:
        other = _opened(path, data, source)
        refuse_leak(other, "val")
    except KDConvNeXtError as error:
        raise type(error)(replace(finding, where=f"--also {path}") for finding in error.findings) from error
    split = other.predictor.network.card.split_hash
    if split in splits:
        what = "has the same split as another one: it has held out no other lesions"
        raise ConfigError(Finding(f"--also {path}", what, "Give checkpoints of other repeats (--data.split.index)."))
    splits.add(split)
    return other


def checked(own: Held, others: Held, class_names: Sequence[str], coverage: float) -> Coverage | None:
    """Tests whether thresholds of the other networks hold for the one that answers.

    Args:
        own: Of lesions that it has held out itself.
        others: Of lesions that the others have; those among ``own`` are left out.
        class_names: K names.
        coverage: Asked for.

    Returns:
        How many of its own lesions have the true class in the sets that the others' lesions alone give, over all
        classes with enough of those; None where there is no such class.
    """
    apart = ~np.isin(others.groups, own.groups)
    if not apart.any():
        return None
    kept = Held(others.probabilities[apart], others.labels[apart], others.groups[apart])
    thresholds = fit_thresholds(*kept, class_names, coverage=coverage)
    usable = np.array(thresholds.guaranteed)[own.labels]
    if not usable.any():
        return None
    held = thresholds.sets(own.probabilities)[np.arange(len(own.labels)), own.labels][usable]
    (found,) = observed_coverage(held[:, None], np.zeros(len(held), np.int64), ("all",), own.groups[usable])
    return found


def _opened(path: str, data: CalibrationData, source: RunSource) -> CalibrationData:
    own = data.predictor
    predictor = Predictor.from_checkpoint(
        path,
        sr_weights=source.sr_weights,
        device=str(own.network.device),
        calibration="none",
        tta=own.tta,
        per_pass=16,
    )
    then, now = _recipe(own.network), _recipe(predictor.network)
    findings = [
        Finding(path, f"its {name} is {now[name]}, not {then[name]}", "Give networks of the same recipe.")
        for name in then
        if now[name] != then[name]
    ]
    if findings:
        raise ConfigError(findings)
    return own_data(predictor, source, run_of_checkpoint(path))


def _recipe(network: Network) -> dict[str, object]:
    card = network.card
    return {
        "network": network.info.name,
        "kind": network.info.kind,
        "list of classes": card.class_names,
        "input": (card.in_chans, card.image_size),
        "cropping": dict(card.crop_identity),
        "grouping": card.group_by,
    }
