"""Computes divergences between distributions that are given by their logarithms."""

import math

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
        logits: [..., K].
        kept: bool [..., K], the classes that take part, at least one a row.

    Returns:
        [..., K]; -10,000 for the others, whose probability is 0.
    """
    return logits.masked_fill(~kept, _NOTHING).log_softmax(dim=-1).masked_fill(~kept, _NOTHING)


def group_log_softmax(logits: Tensor, members: Tensor) -> Tensor:
    """Computes log-probabilities of groups of classes.

    Args:
        logits: [B, K].
        members: bool [G, K], classes of each group, at least one; each class in one group.

    Returns:
        [B, G].
    """
    log_p = logits.log_softmax(dim=1)[:, None]
    return log_p.masked_fill(~members, -math.inf).logsumexp(dim=2)
