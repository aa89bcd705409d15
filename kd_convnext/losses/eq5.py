"""Builds the paper's objective: alpha * feature maps + (1 - alpha) * soft targets + beta * focal (Eq. 5)."""

import math
from collections.abc import Sequence
from typing import Literal

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.features.feature_maps import Distance, FeatureMaps, Reduction
from kd_convnext.losses.labels.focal import Focal
from kd_convnext.losses.logits.soft_targets import SoftTargets
from kd_convnext.losses.objective import Objective
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import TEACHER, Term

EQ5_TERMS = ("feature", "soft", "focal")
"""Names of the three terms, in the order of the paper's three stages."""


class Eq5(Objective):
    """``alpha * feature + (1 - alpha) * soft + beta * focal`` (Eq. 5), with flat arguments for sweeps.

    A dropped term leaves the others their weight: the rows of the paper's ablation.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 1.0,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        gamma: float = 2.0,
        feature_distance: Distance = "mse",
        feature_reduction: Reduction = "mean",
        stages: Literal["joint", "sequential"] = "joint",
        stage_epochs: tuple[int, int] = (10, 10),
        drop: Sequence[str] = (),
        teacher: str = TEACHER,
    ) -> None:
        """Builds the three terms.

        Args:
            alpha: Weight of the feature term in 0..1; the soft-target term has 1 - alpha.
            beta: Weight >= 0 of the focal term.
            temperature: T > 0 of Eq. 2.
            scale_by_t2: Multiply the soft-target term by T² (``False`` is Eq. 3 to the letter).
            gamma: Focus >= 0 of the focal term.
            feature_distance: Squared (``mse``, Eq. 1) or absolute (``l1``, Fig. 5) differences.
            feature_reduction: ``mean`` over elements and stages, or ``sum`` (Eq. 1 to the letter).
            stages: ``joint``, one loss throughout; ``sequential``, the paper's three stages one after the other.
            stage_epochs: Epochs of the first two stages where they are sequential (features, soft targets).
            drop: Terms to leave out, of ``feature``, ``soft``, ``focal``.
            teacher: Name of the teacher of the first two.

        Raises:
            ConfigError: A value that cannot work; all are named.
        """
        findings = []
        if not 0 <= alpha <= 1:
            findings.append(Finding("alpha", f"{alpha} is outside 0..1", "The paper uses 0.5."))
        if not (math.isfinite(beta) and beta >= 0):
            findings.append(Finding("beta", f"{beta} is not 0 or more", "The paper uses 1."))
        listed = ", ".join(EQ5_TERMS)
        findings += [
            Finding("drop", f"there is no term {name!r}", f"Valid are {listed}.")
            for name in drop
            if name not in EQ5_TERMS
        ]
        if set(EQ5_TERMS) <= set(drop):
            findings.append(Finding("loss", "all three terms are dropped", "Keep at least one."))
        if stages == "sequential" and (drop or not (0 < alpha < 1 and beta > 0)):
            what = "three stages one after the other need all three terms, each with a weight above 0"
            findings.append(Finding("stages", what, "Use stages: joint to drop a term."))
        if findings:
            raise ConfigError(findings)
        first, second = _schedules(stages, stage_epochs)
        third = None if second is None else WeightSchedule(start=second.stop or 0)
        terms: dict[str, Term] = {
            "feature": FeatureMaps(alpha, teacher, first, feature_distance, feature_reduction),
            "soft": SoftTargets(1 - alpha, teacher, second, temperature, scale_by_t2, value="cross_entropy"),
            "focal": Focal(beta, third, gamma),
        }
        super().__init__({name: term for name, term in terms.items() if name not in drop})


def _schedules(stages: str, stage_epochs: Sequence[int]) -> tuple[WeightSchedule, WeightSchedule] | tuple[None, None]:
    if stages == "joint":
        return None, None
    first, second = stage_epochs
    return WeightSchedule(stop=first), WeightSchedule(start=first, stop=first + second)
