"""Averages the answers of several teachers into those of one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.precision import at_least_float32
from kd_convnext.losses.term import Needs, Outputs, Term, logits_of

Average = Literal["probabilities", "logits"]
"""Whether probabilities are averaged, or logits (the geometric mean of probabilities)."""


@dataclass(frozen=True)
class Ensemble:
    """Averages the logits of several teachers, so that terms learn from all of them as from one.

    ``probabilities``: ``z = log(1/M sum_m softmax(z_m))``, as deep ensembles answer (Lakshminarayanan et al., NeurIPS
    2017); a term's temperature then softens the average. ``logits``: ``z = 1/M sum_m z_m``. Cost: O(M B K).

    Attributes:
        members: Names of the teachers, at least two.
        average: What is averaged.

    Raises:
        ConfigError: A value that cannot work; all of them together.

    Examples:
        >>> one, other = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> Ensemble(["swin", "vit"]).logits([one, other]).exp()
        tensor([[0.4000, 0.6000]])
    """

    members: list[str]
    average: Average = "probabilities"

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        findings = []
        if len(set(self.members)) < 2 or len(set(self.members)) != len(self.members):
            what = f"{list(self.members)} are not several teachers"
            findings.append(Finding("objective.ensembles", what, "Name at least two, each once."))
        if self.average not in get_args(Average):
            what, remedy = f"there is no average of {self.average!r}", f"Choose one of {', '.join(get_args(Average))}."
            findings.append(Finding("objective.ensembles", what, remedy))
        if findings:
            raise ConfigError(findings)

    def logits(self, logits: Sequence[Tensor]) -> Tensor:
        """Averages logits.

        Args:
            logits: [B, K] of each member.

        Returns:
            [B, K] in at least float32.
        """
        each = torch.stack([at_least_float32(values) for values in logits])
        if self.average == "logits":
            return each.mean(dim=0)
        return each.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(each))

    def outputs(self, teachers: Mapping[str, Outputs]) -> Outputs:
        """Returns the average of the members as the logits of one teacher.

        Args:
            teachers: Outputs by name, those of the members among them.
        """
        return Outputs(logits=self.logits([logits_of(teachers[name]) for name in self.members]))


def ensembles_of(given: Mapping[str, Any] | None, terms: Mapping[str, Term]) -> dict[str, Ensemble]:
    """Returns the ensembles of a configuration or a checkpoint, and checks that terms can learn from them.

    Args:
        given: By name, or their fields.
        terms: The objective's.

    Raises:
        ConfigError: A name or a member cannot be one, a term reads more than logits, or none learns from an ensemble.
    """
    found = {name: Ensemble(**value) if isinstance(value, Mapping) else value for name, value in (given or {}).items()}
    findings = []
    for name, ensemble in found.items():
        where, learners = f"objective.ensembles.{name}", {key: t for key, t in terms.items() if t.teacher == name}
        if not name.isidentifier():
            findings.append(Finding(where, f"{name!r} cannot be an ensemble's name", "Use letters, digits and _."))
        if nested := [member for member in ensemble.members if member in found]:
            what = f"{', '.join(nested)} is an ensemble itself"
            findings.append(Finding(where, what, "Name the teachers in it."))
        if not learners:
            findings.append(Finding(where, "no term learns from it", "Leave it out, or name it as a term's teacher."))
        findings += [
            Finding(
                f"objective.terms.{key}", f"an average of teachers like {name!r} has logits alone", "Name one teacher."
            )
            for key, term in learners.items()
            if term.needs != Needs.LOGITS
        ]
    if findings:
        raise ConfigError(findings)
    return found
