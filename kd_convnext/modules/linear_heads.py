"""Fits linear heads on frozen features by logistic regression, also such that have not seen a crop's lesion."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Embeddings = npt.NDArray[np.float32]

_FOLDS = 5

_COLUMNS = 64
"""Of how many features the squares are in memory at a time."""

_BELOW = 15.0
"""How far the logit of a class without crops lies below the lowest of an average crop: 3e-7 of its odds, T 1."""


class Head(NamedTuple):
    """A linear classifier: weight float32 [K, D], bias float32 [K]."""

    weight: Embeddings
    bias: Embeddings

    def logits(self, embedding: Embeddings) -> Embeddings:
        """Applies it: float32 [K] from float32 [D]."""
        return self.weight @ embedding + self.bias


def held_out_heads(
    features: Embeddings, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], num_classes: int, c: float
) -> list[Head | None]:
    """Fits, for each crop, a head that has not seen its group (five folds).

    Args:
        features: float32 [N, V, D], V looks at each crop.
        labels: int64 [N].
        groups: str [N], such as lesions; a fold holds whole groups.
        num_classes: K.
        c: As of :func:`fit_linear_head`.

    Returns:
        N heads, those of a fold one object; None for crops whose class no other group has: without them a head would
        take their class for impossible.
    """
    fold = _folds(labels, groups, num_classes)
    heads: list[Head | None] = [None] * len(labels)
    for number in range(fold.max() + 1):
        inside = fold != number
        asked = ~inside & np.isin(labels, labels[inside])
        if not asked.any():
            continue
        weight, bias = fit_linear_head(features[inside], labels[inside], num_classes, c)
        head = Head(weight.numpy(), bias.numpy())
        for place in np.flatnonzero(asked):
            heads[place] = head
    return heads


def _folds(labels: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], num_classes: int) -> npt.NDArray[np.int64]:
    """Assigns whole groups to folds: int64 [N].

    A class that two groups have lies in two folds at least, if one of them has fewer classes than there are folds.
    """
    names, members = np.unique(groups, return_inverse=True)
    # Rarest classes first, round after round, so that every fold has its share of each. A group counts as its rarest.
    frequency = np.bincount(labels, minlength=num_classes)
    commonest_first = np.argsort(-frequency[labels], kind="stable")
    label_of = np.zeros(len(names), np.int64)
    label_of[members[commonest_first]] = labels[commonest_first]
    order = np.lexsort((np.random.default_rng(0).random(len(names)), label_of, frequency[label_of]))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % _FOLDS
    holds = np.zeros((num_classes, len(names)), bool)
    holds[labels, members] = True
    shared = np.flatnonzero(holds.sum(1) > 1)
    for number in shared:
        if len(np.unique(fold[holds[number]])) == 1:
            _divide(fold, np.flatnonzero(holds[number]), holds[shared])
    return fold[members]


def _divide(fold: npt.NDArray[np.int64], together: npt.NDArray[np.int64], holds: npt.NDArray[np.bool_]) -> None:
    """Moves one of the groups that share a class and a fold to another fold, where this unites no other class."""
    for group in together:
        for other in range(min(_FOLDS, len(fold))):
            moved = fold.copy()
            moved[group] = other
            if all(len(np.unique(moved[own])) > 1 for own in holds[holds[:, group]]):
                fold[:] = moved
                return


def fit_linear_head(
    features: Embeddings, labels: npt.NDArray[np.int64], num_classes: int, c: float
) -> tuple[Tensor, Tensor]:
    """Fits a linear classifier by logistic regression, every class weighing alike.

    Features are standardised for the fit; the scaling is folded into the layer. L2 regularisation as scikit-learn's
    ``LogisticRegression``: the sum of weighted losses times ``c``, plus half the squared weights. Each look at a crop
    is a sample of its own, which teaches the head what turning does not change; a crop's loss is the mean over them.

    Args:
        features: float32 [N, V, D], V looks at each crop; standardised in place, as a copy may not fit into memory.
        labels: int64 [N]. A class that does not occur gets weights of 0 and a bias that never wins: the mean logit of
            the others is that of their biases, for every input, as their weights sum to 0. It lies no further below
            than it must, for those who standardise or soften logits.
        num_classes: K.
        c: Inverse strength of regularisation, above 0.

    Returns:
        Weight float32 [K, D] and bias float32 [K].
    """
    crops, looks = features.shape[:2]
    flat, labels = features.reshape(-1, features.shape[2]), labels.repeat(looks)
    mean, scale = _standardise(flat)
    values = torch.from_numpy(flat)
    targets = torch.from_numpy(labels)
    counts = torch.bincount(targets, minlength=num_classes).float()
    present = counts > 0
    per_class = torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), torch.zeros(()))
    # The penalty's curvature is 1 / (c crops): small c would part it from the losses' by orders of magnitude. In units
    # of `unit` it is 1 at most.
    unit = min(1.0, math.sqrt(c * crops))
    scaled = torch.zeros(num_classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    search = torch.optim.LBFGS(
        [scaled, bias],
        max_iter=300,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
    )

    def closure() -> Tensor:
        search.zero_grad()
        weight = scaled * unit
        losses = F.cross_entropy(
            F.linear(values, weight, bias)[:, present], _compact(present)[targets], reduction="none"
        )
        # Divided by c and the crops: the tolerances are absolute, and would end a fit of small c at its start. In
        # float64, so that the line search can tell values apart that float32 rounds to one.
        total: Tensor = (per_class[targets] * losses).double().mean() + weight.double().square().sum() / (2 * c * crops)
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    found = scaled.detach() * unit / torch.from_numpy(scale)
    lowest = bias.detach()[present].min()
    return found, torch.where(present, bias.detach(), lowest - _BELOW) - found @ torch.from_numpy(mean)


def _standardise(flat: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Subtracts the mean of each column and divides by its standard deviation, in place; returns both."""
    mean = flat.mean(0)
    flat -= mean
    # Some columns at a time: the squares of all would take as much memory as the values.
    parts = np.array_split(flat, max(1, flat.shape[1] // _COLUMNS), axis=1)
    scale = np.concatenate([np.sqrt(np.square(part).mean(0)) for part in parts]) + np.float32(1e-6)
    flat /= scale
    return mean, scale


def _compact(present: Tensor) -> Tensor:
    """Numbers the classes that occur, 0 .. K'-1."""
    return present.long().cumsum(0) - 1
