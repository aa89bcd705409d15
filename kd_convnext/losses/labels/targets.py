"""Reads labels of both kinds: class numbers or probabilities, with -1 where a row has none."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def warn_unweighted(who: str) -> None:
    """Warns that a term which is to weigh classes was told no weights.

    Args:
        who: Class of the term.
    """
    remedy = "give class_weights to the module (DistillModule(class_weights=data.class_weights)), or weighted: false"
    warnings.warn(f"{who} weighs all classes alike, as it was told no weights: {remedy}", stacklevel=3)


def labelled_rows(labels: Tensor) -> Tensor:
    """Tells which rows have a label.

    Args:
        labels: int64 [B], -1 where there is none; or probabilities [B, K], a row of -1 where there is none.

    Returns:
        bool [B].
    """
    return labels >= 0 if labels.ndim == 1 else (labels >= 0).all(dim=1)


def target_probabilities(labels: Tensor, classes: int, dtype: torch.dtype, smoothing: float = 0.0) -> Tensor:
    """Returns labels as probabilities.

    Args:
        labels: int64 [B] or probabilities [B, K].
        classes: K.
        dtype: Of the result.
        smoothing: Share of the label's probability that is spread over all classes, 0..1.

    Returns:
        [B, K], each row of sum 1; of a row without a label, any numbers from 0 to 1.
    """
    hard = labels.ndim == 1
    targets = F.one_hot(labels.clamp_min(0), classes).to(dtype) if hard else labels.clamp_min(0).to(dtype)
    return targets * (1 - smoothing) + smoothing / classes if smoothing else targets


def mean_of_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Averages over the rows that have a label.

    Args:
        values: [B], finite.
        labels: int64 [B] or probabilities [B, K].

    Returns:
        A scalar; 0 where no row has a label.
    """
    rows = labelled_rows(labels)
    return torch.where(rows, values, torch.zeros_like(values)).sum() / rows.sum().clamp_min(1)


def weighted_mean_of_labelled(values: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Averages weighted losses over the rows that have a label, divided by the sum of their labels' weights.

    Args:
        values: [B], finite, weighted already.
        labels: int64 [B] or probabilities [B, K].
        weights: One weight a class, [K].

    Returns:
        A scalar; 0 where no row has a label, or none of a class that weighs.
    """
    nothing = torch.zeros_like(values)
    shares = target_probabilities(labels, len(weights), values.dtype) * weights.to(values.dtype)
    total = torch.where(labelled_rows(labels), shares.sum(dim=1), nothing).sum()
    sum_of_losses = torch.where(labelled_rows(labels), values, nothing).sum()
    return sum_of_losses / torch.where(total > 0, total, torch.ones_like(total))
