"""Samples the views of a training part: order, class balance, seeds."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from kd_convnext.data.loading.dataset import SpecimenDataset, View
from kd_convnext.data.loading.sampling import ClassSampling, SamplingName, drawn_weights


def view_seeds(seed: int, rows: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Names a limited number of views of each crop.

    Args:
        seed: Decides all of them.
        rows: int64 [N], rows of the manifest: the same views whatever the split.
        numbers: int64 [N], which view of each.

    Returns:
        int64 [N] in 0..2**32-1.
    """
    mixed = pd.util.hash_array(np.full(len(rows), seed, np.uint64))
    for values in (rows, numbers):
        mixed = pd.util.hash_array(mixed + values.astype(np.uint64))
    return (mixed >> np.uint64(32)).astype(np.int64)


class ViewSampler(DistributedSampler[View]):
    """Shuffles (or balances) training, and names the view of every crop.

    Order and views depend on the seed and the epoch alone, not on workers or on where a run was resumed. A subclass of
    the distributed sampler, so that Lightning sets its epoch and does not wrap it again.
    """

    def __init__(
        self,
        dataset: SpecimenDataset,
        *,
        seed: int,
        sampling: SamplingName | ClassSampling = "natural",
        views: int | None = None,
        views_seed: int | None = None,
        least: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Prepares the draw.

        Args:
            dataset: The training part.
            seed: Decides order and views.
            sampling: ``natural``: each crop once a pass; all others draw with replacement.
            views: How many views there are of each crop: one a pass in turn, or by chance where classes are
                drawn with replacement. None for new ones in every epoch.
            views_seed: Decides these views; ``seed`` where None.
            least: Crops an epoch draws at least; of fewer than that it makes several passes.
            num_replicas: Processes that share an epoch.
            rank: This process, 0..num_replicas-1.
        """
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.passes = max(1, -(-least // max(1, len(dataset))))
        if self.passes > 1:
            self.num_samples = -(-least // num_replicas)
            self.total_size = self.num_samples * num_replicas
        self.rows, self.views = dataset.rows, views
        self.views_seed = seed if views_seed is None else views_seed
        weights = drawn_weights(sampling, dataset.labels)
        self.weights: Tensor | None = None if weights is None else torch.from_numpy(weights)

    def __iter__(self) -> Iterator[View]:
        """Yields this process's share of the epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        count = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is None:
            order = torch.cat([torch.randperm(count, generator=generator) for _ in range(self.passes)])
        else:
            order = torch.multinomial(self.weights, count * self.passes, replacement=True, generator=generator)
        order = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        # Drawn for the whole epoch, so that the views do not depend on the number of processes.
        seeds = torch.randint(2**32, (self.total_size,), generator=generator)
        if self.views is not None:
            passed = (torch.arange(self.total_size) // count).clamp_max(self.passes - 1)
            numbers = self.epoch * self.passes + passed if self.weights is None else seeds
            seeds = torch.from_numpy(view_seeds(self.views_seed, self.rows[order], (numbers % self.views).numpy()))
        mine = slice(self.rank, self.total_size, self.num_replicas)
        return map(View, order[mine].tolist(), seeds[mine].tolist())
