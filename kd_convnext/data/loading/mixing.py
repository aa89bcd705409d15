"""Mixes labelled and unlabelled crops in every batch of a training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_convnext.data.loading.dataset import Place, SpecimenDataset, View
from kd_convnext.data.loading.sampler import ViewSampler, view_seeds
from kd_convnext.data.loading.sampling import drawn_weights
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.errors import ConfigError, Finding

_OFTEN = 4
"""A photograph without a label that is drawn so many times as often as a labelled one is too much of the training."""

_FEWEST = 4
"""Labelled images of a batch at least: over fewer, outputs cannot be standardised, and a step is much noise."""


class MixedDataset(SpecimenDataset):
    """A training part followed by crops without labels: positions from ``len(labelled)`` on are unlabelled.

    ``rows`` and ``labels`` are those of the labelled crops.

    Attributes:
        labelled: The training part.
        unlabelled: The crops without labels.
    """

    def __init__(self, labelled: SpecimenDataset, unlabelled: SpecimenDataset) -> None:
        """Joins two datasets that draw pictures alike.

        Args:
            labelled: The training part.
            unlabelled: Rows of another manifest, all with label -1.
        """
        self.crops, self.views, self.shape = labelled.crops, labelled.views, labelled.shape
        self.rows, self.labels = labelled.rows, labelled.labels
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        """Returns the number of labelled and unlabelled crops together."""
        return len(self.labelled) + len(self.unlabelled)

    def place(self, position: int) -> Place:
        """Finds a crop; the index of an unlabelled one is ``-1 - row``.

        Args:
            position: 0..N-1.

        Returns:
            Where it comes from.
        """
        count = len(self.labelled)
        if position < count:
            return self.labelled.place(position)
        found = self.unlabelled.place(position - count)
        return found._replace(number=-1 - found.row)


class MixedSampler(ViewSampler):
    """Yields blocks of labelled views followed by unlabelled ones, so that every batch has its share of both.

    The labelled views are those of :class:`ViewSampler`, in its order. Unlabelled crops are drawn without replacement,
    pass after pass over all of them, whatever the number of epochs a pass takes; or with replacement, by weights.
    """

    def __init__(
        self, dataset: MixedDataset, *, block: int, ratio: float, other_weights: Tensor | None = None, **options: Any
    ) -> None:
        """Prepares the draw.

        Args:
            dataset: Labelled and unlabelled crops.
            block: Labelled images a batch.
            ratio: Unlabelled images for each labelled one, above 0.
            other_weights: float [U], how often each unlabelled crop is drawn; None for all alike.
            **options: Those of :class:`ViewSampler`.
        """
        super().__init__(dataset.labelled, **options)
        self.first, self.other_rows = len(dataset.labelled), dataset.unlabelled.rows
        self.other_weights = other_weights
        sizes = [block] * (self.num_samples // block)
        if rest := self.num_samples % block:
            sizes.append(rest)
        self.blocks = [(size, unlabelled_share(size, ratio)) for size in sizes]

    @property
    def unlabelled_an_epoch(self) -> int:
        """Unlabelled crops that an epoch draws, those of all processes."""
        return self.num_replicas * sum(extra for _, extra in self.blocks)

    def __len__(self) -> int:
        """Returns the number of views of this process's epoch."""
        return sum(size + extra for size, extra in self.blocks)

    def __iter__(self) -> Iterator[View]:
        """Yields this process's share of the epoch, block by block."""
        labelled, others = super().__iter__(), iter(self._others())
        for size, extra in self.blocks:
            yield from (next(labelled) for _ in range(size))
            yield from (next(others) for _ in range(extra))

    def _others(self) -> list[View]:
        """Lists this process's unlabelled views of the epoch."""
        positions, passes = self._passes() if self.other_weights is None else self._weighted(self.other_weights)
        seed, numbers = (self.seed, passes) if self.views is None else (self.views_seed, passes % self.views)
        seeds = view_seeds(seed + 1, self.other_rows[positions], numbers)
        return [
            View(self.first + position, seed) for position, seed in zip(positions.tolist(), seeds.tolist(), strict=True)
        ]

    def _passes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draws pass after pass; returns positions and the number of their pass, which names a view."""
        wanted = sum(extra for _, extra in self.blocks)
        # Processes take turns, so that none sees another's crop of the same pass.
        places = (self.epoch * wanted + np.arange(wanted)) * self.num_replicas + self.rank
        passes, within = np.divmod(places, len(self.other_rows))
        positions = np.empty(wanted, np.int64)
        for number in np.unique(passes):
            chosen = passes == number
            positions[chosen] = self._order(int(number))[within[chosen]]
        return positions, passes

    def _weighted(self, weights: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draws with replacement; returns positions and numbers by chance, which name views."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + 700_001 + self.epoch)
        positions = torch.multinomial(weights, self.unlabelled_an_epoch, replacement=True, generator=generator)
        numbers = torch.randint(2**31, (len(positions),), generator=generator)
        mine = slice(self.rank, None, self.num_replicas)
        return positions[mine].numpy(), numbers[mine].numpy()

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_009 + number)
        return torch.randperm(len(self.other_rows), generator=generator).numpy()


def unlabelled_share(labelled: int, ratio: float) -> int:
    """Counts the unlabelled images beside some labelled ones in a batch.

    Args:
        labelled: Labelled images.
        ratio: Unlabelled images for each of them.

    Returns:
        At least 1.
    """
    return max(1, round(labelled * ratio))


def predicted_weights(part: MixedDataset, loader: LoaderSpec) -> Tensor | None:
    """Computes how often unlabelled crops are drawn, by the classes that the first teacher predicts.

    Args:
        part: With the teacher's stored outputs.
        loader: The way of sampling.

    Returns:
        float64 [U]; None where all are drawn alike.

    Raises:
        ConfigError: No outputs are stored, or the way of sampling returns no weights.
        CacheError: An output is damaged.
    """
    option = "--data.loader.unlabelled_sampling"
    if loader.unlabelled_sampling == "natural":
        return None
    if not part.answers:
        what = "it goes by the classes that a teacher predicts, and no teacher's outputs are stored"
        raise ConfigError(Finding(option, what, "Give --model.teacher_cache true or still, or leave it natural."))
    store, shared = next(iter(part.answers.values()))
    others = part.unlabelled
    seed = loader.seed if loader.views_seed is None else loader.views_seed
    seeds = view_seeds(seed + 1, others.rows, np.zeros_like(others.rows)).tolist()  # of the first view of each
    keys = [others.crops.key(row) for row in others.rows.tolist()]
    seen = (store.load(key, view if shared is None else shared) for key, view in zip(keys, seeds, strict=True))
    predicted = np.array([outputs.logits.argmax() for outputs in seen], np.int64)
    weights = drawn_weights(loader.unlabelled_sampling, predicted, option)
    return None if weights is None else torch.from_numpy(weights)


def often_drawn(part: MixedDataset, loader: LoaderSpec, block: int) -> str | None:
    """Finds whether so few photographs without labels fill their share of every batch that they come over and over.

    Args:
        part: Labelled and unlabelled crops.
        loader: The shares.
        block: Labelled images a batch.

    Returns:
        A sentence with the remedy; None where each is drawn less than four times as often as a labelled one.
    """
    # Of one pass: an epoch of several passes draws both kinds so many times as often.
    sampler = MixedSampler(part, block=block, ratio=loader.unlabelled_ratio, seed=loader.seed)
    times = sampler.unlabelled_an_epoch / len(part.unlabelled)
    if times < _OFTEN:
        return None
    what = f"each of the {len(part.unlabelled)} photographs without labels is drawn {times:.3g} times an epoch"
    ratio = max(loader.unlabelled_ratio / times, 1 / block)
    return f"{what}, a labelled one once: give more of them, or --data.loader.unlabelled_ratio {ratio:.2g}"


def drops_last(sampler: ViewSampler, block: int) -> bool:
    """Tells whether the last batch of an epoch is left out: it has one, or much fewer labelled images than the others.

    Args:
        sampler: Of the training part.
        block: Labelled images a batch.
    """
    whole, rest = divmod(sampler.num_samples, block)
    return whole > 0 and 0 < rest < max(2, min(_FEWEST, block / 2))


def training_sampler(
    part: SpecimenDataset, loader: LoaderSpec, block: int, *, drawn: bool = True, **ranks: Any
) -> tuple[ViewSampler, int]:
    """Builds the sampler of a training part.

    Args:
        part: Labelled crops, or labelled and unlabelled ones.
        loader: Order, views and shares.
        block: Labelled images a batch.
        drawn: Whether it will draw, or is only to be counted, before any teacher has answered.
        **ranks: ``num_replicas`` and ``rank`` of several processes.

    Returns:
        The sampler, and all images of a batch.
    """
    options: dict[str, Any] = {"seed": loader.seed, "sampling": loader.sampling, "views": loader.views}
    least = loader.least_batches * block * ranks.get("num_replicas", 1) if loader.least_batches > 1 else 0
    options |= {"views_seed": loader.views_seed, "least": least, **ranks}
    if not isinstance(part, MixedDataset):
        return ViewSampler(part, **options), block
    options["other_weights"] = predicted_weights(part, loader) if drawn else None
    sampler = MixedSampler(part, block=block, ratio=loader.unlabelled_ratio, **options)
    return sampler, block + unlabelled_share(block, loader.unlabelled_ratio)
