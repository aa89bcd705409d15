"""Divides groups of unequal size and mixed classes into parts with given shares of every class.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD
2011) carried over from single photographs to groups: the rarest class is served first, its largest groups first.
An exchange of groups between parts then removes what deviation is left.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_ABSENT = 1e6  # cost of a class without a photograph in a part: above any sum of deviations
_MAX_EXCHANGES = 500
_MAX_KINDS = 600  # pairs of kinds are compared at once: 600² pairs and five classes are 14 MB


def part_targets(totals: IntArray, ratios: tuple[float, float, float]) -> IntArray:
    """Sets how many photographs of each class each part should get.

    Training gets its share rounded up, as in the paper's Table 1 (33/1054/157/97/437 at 8:1:1); the rest is divided
    between validation and test. Every part with a share gets one at least, taken from training.

    Args:
        totals: Photographs of each class [K].
        ratios: Shares of train, val, test, of sum 1.

    Returns:
        int64 [3, K], columns summing to `totals`.
    """
    others = np.count_nonzero(ratios[1:])
    train = np.ceil(ratios[0] * totals - 1e-9).astype(np.int64)
    train = np.maximum(np.minimum(train, totals - others), np.minimum(totals, 1))
    rest = totals - train
    share = ratios[1] / (ratios[1] + ratios[2]) if others else 0.0
    val = np.floor(rest * share + 1e-9).astype(np.int64)
    if others == 2:
        val = np.maximum(val, np.minimum(rest, 1))
        val = np.minimum(val, np.maximum(rest - 1, 0))
    return np.stack([train, val, rest - val]) if others else np.stack([totals, 0 * totals, 0 * totals])


def scarce_classes(counts: IntArray, ratios: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Finds classes with fewer groups than there are parts.

    Args:
        counts: Photographs of each class in each group [G, K].
        ratios: Shares of train, val, test; a part with share 0 needs no group.

    Returns:
        bool [K].
    """
    scarce: NDArray[np.bool_] = (counts > 0).sum(axis=0) < np.count_nonzero(ratios)
    return scarce


def stratify(counts: IntArray, ratios: tuple[float, float, float], order: FloatArray, choice: FloatArray) -> IntArray:
    """Assigns whole groups to parts.

    Args:
        counts: Photographs of each class in each group [G, K].
        ratios: Shares of train, val, test, of sum 1; train above 0.
        order: Random numbers in [0, 1) [G]: the order among groups of equal size.
        choice: Random numbers in [0, 1) [G]: the part among those where the group fits.

    Returns:
        int64 [G]: 0 train, 1 val, 2 test. Groups of scarce classes are in training. Every other class is in every
        part with a share, as long as groups of several classes do not make it impossible.
    """
    active = np.flatnonzero(ratios)
    targets = part_targets(counts.sum(axis=0), ratios)
    scarce = scarce_classes(counts, ratios)
    parts = np.full(len(counts), -1, dtype=np.int64)
    parts[counts[:, scarce].any(axis=1)] = 0
    fixed = parts == 0
    _serve_rarest_first(counts, targets, active, parts, scarce, order, choice)
    _exchange(counts, targets, active, parts, scarce, fixed, order)
    return parts


def _serve_rarest_first(
    counts: IntArray,
    targets: IntArray,
    active: IntArray,
    parts: IntArray,
    scarce: NDArray[np.bool_],
    order: FloatArray,
    choice: FloatArray,
) -> None:
    """Fills `parts` where it is -1."""
    present = counts > 0
    held = np.stack([counts[parts == part].sum(axis=0) for part in range(3)])
    need = targets - held
    waiting = present[parts < 0].sum(axis=0)
    queues: list[Iterator[int]] = [
        iter(np.lexsort((order, -counts[:, k]))[: int(present[:, k].sum())].tolist()) for k in range(counts.shape[1])
    ]
    while waiting[~scarce].any():
        rarest = int(np.where((waiting > 0) & ~scarce, waiting, np.iinfo(np.int64).max).argmin())
        group = next(group for group in queues[rarest] if parts[group] < 0)
        allowed = active
        absent = active[held[active, rarest] == 0]
        if waiting[rarest] <= len(absent):
            allowed = absent
        part = _choose(need[allowed], counts[group], rarest, choice[group])
        parts[group] = chosen = allowed[part]
        held[chosen] += counts[group]
        need[chosen] -= counts[group]
        waiting -= present[group]


def _choose(need: IntArray, size: IntArray, rarest: int, uniform: float) -> int:
    """Draws one of the parts where a group fits, in proportion to what they still need of the rarest class."""
    fits = (need >= size).all(axis=1)
    if not fits.any():
        fits = need[:, rarest] >= size[rarest]
    if not fits.any():
        return int(need[:, rarest].argmax())
    weights = np.cumsum(np.where(fits, need[:, rarest], 0))
    return int(np.searchsorted(weights, uniform * weights[-1], side="right"))


def _exchange(
    counts: IntArray,
    targets: IntArray,
    active: IntArray,
    parts: IntArray,
    scarce: NDArray[np.bool_],
    fixed: NDArray[np.bool_],
    order: FloatArray,
) -> None:
    """Swaps or moves groups as long as the class counts come nearer to the targets; changes `parts`."""
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    kinds = np.concatenate([kinds, np.zeros((1, counts.shape[1]), np.int64)])  # the last: nothing comes back
    kind = kind.reshape(-1)
    weights = np.where(scarce, 0.0, 1.0 / np.maximum(counts.sum(axis=0), 1))

    def cost(held: IntArray, part: int) -> FloatArray:
        deviation = (np.abs(held - targets[part]) * weights).sum(axis=-1)
        total: FloatArray = deviation + _ABSENT * ((held <= 0) & ~scarce).sum(axis=-1)
        return total

    held = np.stack([counts[parts == part].sum(axis=0) for part in range(3)])
    for _ in range(_MAX_EXCHANGES):
        best = (-1e-9, 0, 0, 0, 0)
        for one, two in combinations(active.tolist(), 2):
            mine = _kinds_in(kind, (parts == one) & ~fixed, len(kinds))
            theirs = _kinds_in(kind, (parts == two) & ~fixed, len(kinds))
            now = cost(held[one], one) + cost(held[two], two)
            for give, take in _blocks(mine, theirs):
                delta = kinds[take][None, :] - kinds[give][:, None]
                gain = cost(held[one] + delta, one) + cost(held[two] - delta, two) - now
                i, j = np.unravel_index(int(gain.argmin()), gain.shape)
                best = min(best, (float(gain[i, j]), one, two, int(give[i]), int(take[j])))
        gained, one, two, given, taken = best
        if gained == -1e-9:
            return
        for source, target, moved in ((one, two, given), (two, one, taken)):
            if moved < len(kinds) - 1:
                members = np.flatnonzero((kind == moved) & (parts == source) & ~fixed)
                parts[members[order[members].argmin()]] = -2 - target
        parts[parts < -1] = -2 - parts[parts < -1]
        held = np.stack([counts[parts == part].sum(axis=0) for part in range(3)])


def _kinds_in(kind: IntArray, members: NDArray[np.bool_], nothing: int) -> IntArray:
    """Lists the kinds of group in a part, and "nothing" as the last."""
    return np.append(np.unique(kind[members]), nothing - 1)


def _blocks(mine: IntArray, theirs: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Pairs of kinds to compare: all, or only moves to one side where there are too many."""
    if max(len(mine), len(theirs)) <= _MAX_KINDS:
        return [(mine, theirs)]
    return [(mine, theirs[-1:]), (mine[-1:], theirs)]
