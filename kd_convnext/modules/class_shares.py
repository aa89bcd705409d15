"""Finds class weights and counts anew where photographs turned out to be unreadable after a module was built."""

from collections.abc import Mapping
from typing import Any

from kd_convnext.data.loading.class_weights import class_counts, inverse_frequency
from kd_convnext.data.loading.datamodule import SpecimenDataModule


def changed_shares(given: Mapping[str, Any], data: SpecimenDataModule | None) -> dict[str, Any]:
    """Finds the class weights and counts of the photographs that are used, in place of those of the whole division.

    Args:
        given: Hyperparameters of a module, ``class_weights`` and ``class_counts`` among them.
        data: After its ``setup``; None for foreign data.

    Returns:
        What has changed since the data told it, by name; weights that the user chose stay.
    """
    if data is None:
        return {}
    planned = class_counts(data.manifest.labels[data.split.rows("train")], data.num_classes)
    told = {
        "class_weights": (inverse_frequency(planned), data.class_weights),
        "class_counts": (planned, data.class_counts),
    }
    return {name: now for name, (then, now) in told.items() if then != now and given.get(name) == then}
