"""Lists every view that a training with a limited number of views can ask for."""

from collections.abc import Sequence

import numpy as np

from kd_convnext.data.loading.dataset import SpecimenDataset, View
from kd_convnext.data.loading.mixing import MixedDataset
from kd_convnext.data.loading.sampler import view_seeds
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.loading.teacher_outputs import view_name


def limited_views(
    part: SpecimenDataset, loader: LoaderSpec, epochs: int | None, *, unlabelled_an_epoch: int = 0
) -> list[View]:
    """Lists the views of the labelled crops, by choice also of those without labels.

    Args:
        part: The training part.
        loader: With a number of ``views``.
        epochs: Of the fit, where it is known.
        unlabelled_an_epoch: Crops without labels that an epoch draws, whose views are then listed too.

    Returns:
        The first views of all crops, then the second ones, and so on.
    """
    # One view a pass, in turn; balanced classes draw any of them.
    numbers = loader.views or 0
    once = loader.sampling == "natural" and loader.least_batches == 1
    if once and epochs is not None and epochs > 0:
        numbers = min(numbers, epochs)
    seed = loader.seed if loader.views_seed is None else loader.views_seed
    parts = [(0, part.rows, seed, numbers)]
    if unlabelled_an_epoch and isinstance(part, MixedDataset):
        # Each pass over them sees the next view, however many epochs a pass takes.
        others, numbers = part.unlabelled.rows, loader.views or 0
        if epochs is not None and epochs > 0 and loader.unlabelled_sampling == "natural":
            numbers = min(numbers, -(-epochs * unlabelled_an_epoch // len(others)))
        parts.append((len(part.rows), others, seed + 1, numbers))
    return [
        View(first + position, seed)
        for first, rows, seed_of_part, count in parts
        for number in range(count)
        for position, seed in enumerate(view_seeds(seed_of_part, rows, np.full(len(rows), number)).tolist())
    ]


def view_names(part: SpecimenDataset, views: Sequence[View]) -> list[int]:
    """Names views for a store of outputs, whatever the split and the part.

    Args:
        part: Whose views they are.
        views: The views, N of them.

    Returns:
        N names of `view_name`.
    """
    places = (part.place(view.position) for view in views)
    return [view_name(place.crops.key(place.row), view.seed) for place, view in zip(places, views, strict=True)]
