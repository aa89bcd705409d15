"""Computes calibration error, coverage of the sets, and accuracy against abstention rate."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values, softmax
from kd_convnext.common.counting import Unit, counted
from kd_convnext.evaluation.answers import EvaluatedPart, Evaluation
from kd_convnext.evaluation.proportions import digits
from kd_convnext.inference.prediction import mean_rows
from kd_convnext.inference.run_data import LabelledAnswers
from kd_convnext.inference.trust.calibration import Calibration, Decision
from kd_convnext.inference.trust.gate import Distances
from kd_convnext.inference.trust.prediction_sets import Coverage, Held, observed_coverage
from kd_convnext.inference.trust.temperature import Scores, scores


@dataclass(frozen=True, eq=False)
class Lesions:
    """Answers for lesions: those of their photographs, combined as `Predictor.combine` does.

    Attributes:
        raw: float64 [L, K], mean probabilities at temperature 1.
        probabilities: float64 [L, K], mean calibrated probabilities.
        distances: L mean distances.
        labels: int64 [L]; -1 where photographs of a lesion are labelled differently.
        groups: str [L], what is taken as independent: patients, where they are known.
    """

    raw: Values
    probabilities: Values
    distances: tuple[Distances, ...]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]

    def held(self) -> Held:
        """Returns what thresholds are found from."""
        known = self.labels >= 0
        return Held(self.raw[known], self.labels[known], self.groups[known])


def lesions_of(answers: LabelledAnswers, probabilities: Values, distances: list[Distances]) -> Lesions:
    """Combines photographs by lesion.

    Args:
        answers: Of N photographs.
        probabilities: float64 [N, K], calibrated.
        distances: N distances.
    """
    raw = softmax(answers.logits)
    spread = np.array(distances)
    names, first, member = np.unique(answers.lesions, return_index=True, return_inverse=True)
    members = [np.flatnonzero(member == number) for number in range(len(names))]
    labels = [set(answers.labels[rows].tolist()) for rows in members]
    return Lesions(
        raw=np.stack([mean_rows(list(raw[rows])) for rows in members]),
        probabilities=np.stack([mean_rows(list(probabilities[rows])) for rows in members]),
        distances=tuple(Distances(*mean_rows(list(spread[rows])).tolist()) for rows in members),
        labels=np.array([found.pop() if len(found) == 1 else -1 for found in labels], np.int64),
        groups=answers.groups[first],
    )


@dataclass(frozen=True, eq=False)
class Judgement:
    """Scores, coverage and abstention of a calibration on one part.

    Attributes:
        before: Photographs with the network's own probabilities.
        after: The same with calibrated ones.
        lesions: Lesions with calibrated ones.
        decisions: One a lesion.
        coverage: How often the lesions' sets held the true class.
        groups: How many of the groups that are taken as independent the lesions are of.
        unit: What these are.
    """

    before: Evaluation
    after: Evaluation
    lesions: Evaluation
    decisions: tuple[Decision, ...]
    coverage: tuple[Coverage, ...]
    groups: int
    unit: Unit

    @property
    def behind(self) -> str:
        """Says how many lesions there are, and of how many patients or groups."""
        of = "" if self.unit == "lesion" else f" of {counted(self.groups, self.unit)}"
        return f"{counted(len(self.lesions), 'lesion')}{of}"

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the most probable class is the true one, bool [L]."""
        return np.asarray(self.lesions.predictions == self.lesions.labels)

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Whether the model did not abstain, bool [L]."""
        return np.array([not decision.abstain for decision in self.decisions], np.bool_)

    def summary(self) -> dict[str, Any]:
        """Returns everything in plain numbers."""
        answered, right = self.answered, self.right
        sizes = [len(decision.prediction_set or ()) for decision in self.decisions]
        return {
            "photographs": len(self.before),
            "lesions": len(self.lesions),
            "groups": self.groups,
            "unit": self.unit,
            "before": asdict(scores(self.before)),
            "after": asdict(scores(self.after)),
            "accuracy": float(right.mean()),
            "answered": float(answered.mean()),
            "accuracy_answered": float(right[answered].mean()) if answered.any() else None,
            "stopped_by_gate": float(np.mean([(decision.gate_score or 0) > 1 for decision in self.decisions])),
            "mean_set_size": float(np.mean(sizes)),
            "coverage": [asdict(found) for found in self.coverage],
        }


def judge(
    calibration: Calibration, answers: LabelledAnswers, part: EvaluatedPart, probabilities: Values | None = None
) -> Judgement:
    """Applies a calibration to labelled photographs.

    Args:
        calibration: What to judge.
        answers: Of N photographs.
        part: Where they come from.
        probabilities: float64 [N, K], calibrated; by default as the calibration does. On the photographs that the
            temperature was fitted on, give cross-fitted ones.
    """
    if probabilities is None:
        probabilities = softmax(answers.logits, calibration.temperature)
    pairs = zip(answers.appearances, answers.features, strict=True)
    distances = [calibration.gate.distances(appearance, features) for appearance, features in pairs]
    lesions = lesions_of(answers, probabilities, distances)
    known = lesions.labels >= 0
    found = zip(lesions.raw[known], np.array(lesions.distances)[known], strict=True)
    level = calibration.lesion
    decisions = tuple(calibration.decide(level, raw, Distances(*spread.tolist())) for raw, spread in found)
    sets = level.classes.sets(lesions.raw[known])
    names = calibration.class_names

    def evaluation(labels: npt.NDArray[np.int64], values: Values) -> Evaluation:
        return Evaluation(part, np.arange(len(labels), dtype=np.int64), labels, values, names)

    return Judgement(
        before=evaluation(answers.labels, softmax(answers.logits)),
        after=evaluation(answers.labels, probabilities),
        lesions=evaluation(lesions.labels[known], lesions.probabilities[known]),
        decisions=decisions,
        coverage=observed_coverage(sets, lesions.labels[known], names, lesions.groups[known]),
        groups=len(np.unique(lesions.groups[known])),
        unit=answers.unit,
    )


def scores_line(name: str, found: Scores, groups: int) -> str:
    """Returns scores of answers about so many groups as one line of a table."""
    return f"  {name:<30}" + "".join(f"{value:>8.{digits(groups)}f}" for value in (found.nll, found.brier, found.ece))
