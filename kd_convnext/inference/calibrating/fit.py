"""Fits a calibration on labelled photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values, softmax
from kd_convnext.inference.calibrating.cross_conformal import checked
from kd_convnext.inference.calibrating.judgement import Judgement, judge, lesions_of
from kd_convnext.inference.run_data import CalibrationData, LabelledAnswers
from kd_convnext.inference.trust.calibration import Calibration, Level
from kd_convnext.inference.trust.gate import LARGEST_BANK, Distances, fit_gate
from kd_convnext.inference.trust.prediction_sets import Coverage, Few, Held, fit_thresholds, weighted_threshold
from kd_convnext.inference.trust.temperature import cross_fitted, helpful_temperature

RANKED = ("appearance", "detail")
"""Distances that share the false alarms."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of a calibration.

    Attributes:
        coverage: Of the prediction sets, for each class.
        merged: Classes counted together.
        few: What becomes of classes with too few lesions.
        false_alarms: Share of ordinary photographs that the gate may stop.
    """

    coverage: float
    merged: Sequence[tuple[str, ...]]
    few: Few
    false_alarms: float


def fit_calibration(
    data: CalibrationData, answers: LabelledAnswers, options: CalibrationOptions, others: Sequence[LabelledAnswers] = ()
) -> Calibration:
    """Fits temperature, thresholds and gate.

    The thresholds stand on probabilities at temperature 1: the temperature is fitted on the same lesions, and scores
    must not be made by what has seen them. Lesions have thresholds of their own, from the means of their photographs.

    Args:
        data: The checkpoint's data; the gate is built from its training part.
        answers: Of labelled photographs whose lesions the training has not seen.
        options: Options of a calibration.
        others: Of other networks, each for lesions that it has held out; see `cross_conformal`. Only thresholds of
            classes with too few lesions use them; temperature and gate are the network's own.
    """
    gate = fit_gate(*_training(data))
    pairs = zip(answers.appearances, answers.features, strict=True)
    distances = [gate.distances(appearance, features) for appearance, features in pairs]
    lesions = lesions_of(answers, softmax(answers.logits), distances)
    network = data.predictor.network
    names = network.card.class_names
    thresholds: dict[str, Any] = {"coverage": options.coverage, "merged": options.merged, "few": options.few}
    further = Held.of([photographs(each) for each in others]) if others else None
    further_lesions = Held.of([whole(each) for each in others]) if others else None
    return Calibration(
        checkpoint_sha256=network.info.checkpoint_sha256,
        class_names=names,
        temperature=helpful_temperature(answers.logits, answers.labels, answers.groups),
        tta=data.predictor.tta,
        coverage=options.coverage,
        few=options.few,
        gate_false_alarms=options.false_alarms,
        photograph=Level(
            fit_thresholds(*photographs(answers), names, **thresholds, others=further),
            _limits(distances, answers.groups, options.false_alarms),
        ),
        lesion=Level(
            fit_thresholds(*lesions.held(), names, **thresholds, others=further_lesions),
            _limits(lesions.distances, lesions.groups, options.false_alarms),
        ),
        gate=gate,
        record={"manifest": data.manifest.name, "split_hash": network.card.split_hash, "unit": answers.unit},
    )


def photographs(answers: LabelledAnswers) -> Held:
    """Returns what thresholds of single photographs are found from."""
    return Held(softmax(answers.logits), answers.labels, answers.groups)


def whole(answers: LabelledAnswers) -> Held:
    """Returns what thresholds of lesions are found from."""
    unmeasured = [Distances(0.0, 0.0, 0.0)] * len(answers.labels)
    return lesions_of(answers, softmax(answers.logits), unmeasured).held()


def checked_transfer(
    calibration: Calibration, answers: LabelledAnswers, others: Sequence[LabelledAnswers]
) -> Coverage | None:
    """Tests on lesions whether thresholds of other networks hold for the one that is calibrated.

    See `cross_conformal.checked`.

    Args:
        calibration: The result of `fit_calibration`.
        answers: What it was fitted on.
        others: Those of the other networks; None is returned where there are none.
    """
    if not others:
        return None
    further = Held.of([whole(each) for each in others])
    return checked(whole(answers), further, calibration.class_names, calibration.coverage)


def judge_fit(calibration: Calibration, answers: LabelledAnswers) -> Judgement:
    """Evaluates a calibration on the photographs it was fitted on, with cross-fitted temperatures.

    Args:
        calibration: The result of `fit_calibration`.
        answers: What it was fitted on. The thresholds have seen them: their coverage here is no evidence.
    """
    if calibration.temperature == 1.0:
        return judge(calibration, answers, "val", softmax(answers.logits))
    return judge(calibration, answers, "val", cross_fitted(answers.logits, answers.labels, answers.groups))


def _training(data: CalibrationData) -> tuple[Values, npt.NDArray[np.float32]]:
    rows = data.rows("train")
    if len(rows) > LARGEST_BANK:
        rows = np.sort(np.random.default_rng(0).choice(rows, LARGEST_BANK, replace=False))
    trained = data.answers(rows)
    return trained.appearances, trained.features


def _limits(found: Sequence[Distances], groups: npt.NDArray[np.str_], false_alarms: float) -> Distances:
    """Returns the largest distances of the ordinary photographs that are not to be stopped.

    Those to be stopped are the strangest by rank, each photograph in appearance or detail, where it ranks higher: both
    together stop the share of groups that is asked for. None is, where there are too few groups. The features have no
    share in it: they find hardly a foreign photograph that these do not, and would take false alarms from them.
    """
    columns = np.array(found)
    _, member = np.unique(groups, return_inverse=True)
    weights = 1 / np.bincount(member)[member] / (member.max() + 1)
    strangest = np.max([_ranks(columns[:, Distances._fields.index(name)], weights) for name in RANKED], axis=0)
    inside = strangest <= weighted_threshold(strangest, groups, 1 - false_alarms)
    limits = np.maximum(columns[inside].max(axis=0), float(np.finfo(np.float32).tiny))
    # They are the very distances of some photographs, which another runtime's rounding must not stop.
    return Distances(*(limits * (1 + 1e-4)).tolist())


def _ranks(scores: Values, weights: Values) -> Values:
    """Returns the weight of all smaller scores for each."""
    order = np.argsort(scores)
    return np.asarray(np.cumsum([0.0, *weights[order]])[np.searchsorted(scores[order], scores)])
