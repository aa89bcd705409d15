"""Computes divergences between distributions that are given by their logarithms."""

import torch
from torch import Tensor

_NOTHING = -1e4
"""In place of -infinity, which times a probability of 0 would be undefined; its exponential is 0."""


def batch_kl(target: Tensor, given: Tensor) -> Tensor:
    """Computes the Kullback-Leibler divergence ``KL(target || given)``, mean over the batch.

    Args:
        target: Logarithms of probabilities, [B, N].
        given: The same of the distribution that is judged, [B, N].

    Returns:
        A scalar in nats.
    """
    return (target.exp() * (target - given)).sum(dim=1).mean()


def masked_log_softmax(logits: Tensor, kept: Tensor) -> Tensor:
    """Computes log-probabilities among some of the classes.

    Args:
        logits: [B, K].
        kept: bool [B, K] or [K], the classes that take part, at least one a row.

    Returns:
        [B, K]; -10,000 for the others, whose probability is 0.
    """
    return logits.masked_fill(~kept, _NOTHING).log_softmax(dim=1).masked_fill(~kept, _NOTHING)


def group_log_softmax(logits: Tensor, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """Computes log-probabilities of groups of classes.

    Args:
        logits: [B, K].
        groups: Classes of each of G groups; together all K.

    Returns:
        [B, G].
    """
    log_p = logits.log_softmax(dim=1)
    return torch.stack([log_p[:, list(group)].logsumexp(dim=1) for group in groups], dim=1)
