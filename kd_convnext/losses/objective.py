"""Sums named loss terms with their weights."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.described import Described, built
from kd_convnext.losses.ensemble import Ensemble, ensembles_of
from kd_convnext.losses.term import Needs, Outputs, Term, Widths

RESERVED = ("step", "total")
"""Names that would clash with logged ones."""


class Losses(NamedTuple):
    """Losses of a batch: the weighted total, and each term.

    Attributes:
        total: The weighted sum, a scalar: the one to minimise.
        values: [T], the terms without their weights, in the order of their names.
        divergences: By name of the term, the value without the teacher's entropy, where that is in it.
    """

    total: Tensor
    values: Tensor
    divergences: dict[str, Tensor]


class Objective(Described, nn.Module):
    """The weighted sum of named terms; each is logged as ``train/loss_<name>``.

    Where a term's value holds the teacher's entropy, the value without it is logged too, as ``train/loss_<name>_kl``.

    Attributes:
        terms: The terms by name.
        ensembles: Averages of several teachers by the names that terms call them.
    """

    def __init__(self, terms: dict[str, Term], ensembles: dict[str, Ensemble] | None = None) -> None:
        """Takes the terms.

        Args:
            terms: Name to term; a name is what the logs call it.
            ensembles: Name to an average of several teachers, which terms on logits name as their teacher.

        Raises:
            ConfigError: There is no term, a name cannot be one, or an ensemble cannot teach its terms.
        """
        super().__init__()
        findings = [
            Finding(
                "objective", f"{name!r} cannot be a term's name", "Use letters, digits and _, and not step or total."
            )
            for name in terms
            if not name.isidentifier() or name in RESERVED or hasattr(nn.ModuleDict, name)
        ]
        if not terms:
            findings.append(Finding("objective", "it has no term", "Keep at least one."))
        if findings:
            raise ConfigError(findings)
        self.terms = nn.ModuleDict({name: built(term, Term) for name, term in terms.items()})
        self.ensembles = ensembles_of(ensembles, self.named_terms())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(self.terms)

    def named_terms(self) -> dict[str, Term]:
        """Returns the terms by name."""
        return {name: cast(Term, term) for name, term in self.terms.items()}

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that terms learn from, alone or in an ensemble, each once."""
        return tuple(dict.fromkeys(name for term in self.named_terms().values() for name in self.asked_by(term)))

    def needs(self, teacher: str) -> Needs:
        """Returns what the terms read of a teacher: what is run and stored of it.

        Args:
            teacher: Its name.
        """
        learners = (term for term in self.named_terms().values() if teacher in self.asked_by(term))
        return reduce(or_, (term.needs for term in learners), Needs(0))

    def asked_by(self, term: Term) -> Sequence[str]:
        """Returns the names of the teachers that a term learns from."""
        if term.teacher is None:
            return ()
        return self.ensembles[term.teacher].members if term.teacher in self.ensembles else (term.teacher,)

    @property
    def student_needs(self) -> Needs:
        """Outputs that the terms read of the student; always its logits."""
        wanted = (t.needs if t.student_needs is None else t.student_needs for t in self.named_terms().values())
        return reduce(or_, wanted, Needs.LOGITS)

    def build(self, student: Widths, teachers: Mapping[str, Widths]) -> None:
        """Builds the projector of every term.

        Args:
            student: Sizes of the student's outputs.
            teachers: Sizes of each teacher's outputs.
        """
        known = dict(teachers)
        known |= {name: Widths(teachers[ensemble.members[0]].classes) for name, ensemble in self.ensembles.items()}
        for term in self.named_terms().values():
            term.build(student, None if term.teacher is None else known[term.teacher])

    def check_start(self, classes: int) -> None:
        """Refuses and warns of what no fit should begin with; see `Term.start_findings`.

        Args:
            classes: Number of classes.

        Raises:
            ConfigError: A term cannot learn.
        """
        if findings := [found for term in self.named_terms().values() for found in term.start_findings(classes)]:
            raise ConfigError(findings)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Hands the weights of the classes down to every term."""
        for term in self.named_terms().values():
            term.weigh_classes(weights)

    def count_classes(self, counts: Sequence[int]) -> None:
        """Hands the number of training images of each class down to every term."""
        for term in self.named_terms().values():
            term.count_classes(counts)

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 0, in every term."""
        for term in self.named_terms().values():
            term.begin_epoch(epoch)

    def weights(self, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """Returns the weights [T] of an epoch, float32; given to ``forward`` as data, they recompile nothing.

        Args:
            epoch: From 0.
            device: Where they are wanted.
        """
        return torch.tensor([term.weight_at(epoch) for term in self.named_terms().values()], device=device)

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], labels: Tensor, weights: Tensor) -> Losses:
        """Computes every term and their weighted sum.

        Args:
            student: The student's outputs.
            teachers: Each teacher's outputs, by name.
            labels: int64 [B], -1 for rows without a label; or probabilities [B, K].
            weights: [T], of `weights`.

        Returns:
            The total, and the terms without their weights. A term of weight 0 stays in the sum: under distributed
            training every parameter needs its gradient.
        """
        values: list[Tensor] = []
        divergences: dict[str, Tensor] = {}
        known = dict(teachers)
        known |= {name: ensemble.outputs(teachers) for name, ensemble in self.ensembles.items()}
        for name, term in self.named_terms().items():
            teacher = None if term.teacher is None else known[term.teacher]
            values.append(term(student, teacher, labels))
            entropy = term.entropy(teacher)
            if entropy is not None:
                divergences[name] = (values[-1] - entropy).detach()
        total = values[0] * weights[0]
        for number, value in enumerate(values[1:], 1):
            total = total + value * weights[number]
        return Losses(total, torch.stack(values).detach(), divergences)
