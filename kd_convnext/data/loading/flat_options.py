"""Translates options of the data between their groups (``crops.upscaler``) and the flat names they had before."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

_CROPS = (
    "sr_denoise",
    "sr_wdn_weights",
    "sr_consistent",
    "sr_precision",
    "sr_max_side",
    "store_size",
    "resize",
    "roi_margin",
)
_LOADER = ("num_workers", "views", "sampling", "unlabelled_ratio", "packed", "on_miss")

PLACES: dict[str, tuple[str, str]] = {
    **{name: ("crops", name) for name in _CROPS},
    "group_by": ("split", "group_by"),
    "ratios": ("split", "ratios"),
    "split_seed": ("split", "seed"),
    "split_index": ("split", "index"),
    "few_groups": ("split", "few_groups"),
    "train_fraction": ("split", "train_fraction"),
    **{name: ("loader", name) for name in _LOADER},
    "view_seed": ("loader", "seed"),
}
"""Group and field of each flat name."""

BALANCED = "class_balanced"
"""Flat switch that meant ``loader.sampling: balanced``."""

FLAT = (*PLACES, BALANCED)
CROPS = tuple(name for name, (group, _) in PLACES.items() if group == "crops")
GROUPS = ("crops", "split", "loader")
SHORT = ("upscaler", "sr_weights")
"""Fields of ``crops`` that may be given without the group, and then hold over it."""

_Spec = TypeVar("_Spec")


def spelling(name: str) -> str:
    """Returns the present name of a flat option, as ``group.field``."""
    return "loader.sampling" if name == BALANCED else ".".join(PLACES[name])


def grouped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Moves flat options into their groups.

    Args:
        options: Options by name, flat ones and groups; a flat one holds against the same one in its group.

    Returns:
        New options without flat names; the input's own groups are copied where they are tables.

    Examples:
        >>> grouped({"manifest": "m.csv", "store_size": 64, "split_index": 2, "crops": {"resize": "pad"}})
        {'manifest': 'm.csv', 'crops': {'resize': 'pad', 'store_size': 64}, 'split': {'index': 2}}
    """
    result = {name: value for name, value in options.items() if name not in FLAT}
    for name, (group, field) in PLACES.items():
        if name in options:
            result[group] = {**_table(result.get(group)), field: options[name]}
    if options.get(BALANCED):
        result["loader"] = {**_table(result.get("loader")), "sampling": "balanced"}
    return result


def ungrouped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Moves grouped options to the flat names, by which they are compared and hashed.

    What has never had a flat name is named by group and field.

    Args:
        options: Options by name, flat ones and groups.

    Returns:
        New options without groups.

    Examples:
        >>> ungrouped({"crops": {"upscaler": "none"}, "split": {"seed": 3}, "loader": {"views_seed": 1}})
        {'split_seed': 3, 'upscaler': 'none', 'loader.views_seed': 1}
    """
    nested = grouped(options)
    result = {name: value for name, value in nested.items() if name not in GROUPS}
    for name, (group, field) in PLACES.items():
        table = _table(nested.get(group))
        if field in table:
            result[name] = table[field]
    crops = _table(nested.get("crops"))
    result |= {name: crops[name] for name in SHORT if name in crops and result.get(name) is None}
    named = {*PLACES.values(), *(("crops", name) for name in SHORT)}
    for group in GROUPS:
        fields = _table(nested.get(group)).items()
        result |= {f"{group}.{field}": value for field, value in fields if (group, field) not in named}
    return result


def layered(options: Mapping[str, Any]) -> dict[str, Any]:
    """Moves flat options into their groups, and the upscaler out of them, so that a later layer holds over it.

    Args:
        options: Options by name; those of a group are younger than those beside it.

    Examples:
        >>> layered({"upscaler": "none", "crops": {"upscaler": "bicubic", "resize": "pad"}, "views": 2})
        {'upscaler': 'bicubic', 'loader': {'views': 2}, 'crops': {'resize': 'pad'}}
    """
    result = grouped(options)
    if not isinstance(result.get("crops"), Mapping):
        return result
    crops = dict(result.pop("crops"))
    for name in SHORT:
        value = crops.pop(name, None)
        if value is not None:
            result[name] = value
    return result | ({"crops": crops} if crops else {})


def with_flat(flat: Mapping[str, Any], crops: _Spec, split: Any, loader: Any) -> tuple[_Spec, Any, Any]:
    """Lays flat keyword arguments over the groups, with one warning.

    Args:
        flat: Keyword arguments of the data module that are none of its own.
        crops: A `CropSpec`.
        split: A `SplitSpec`.
        loader: A `LoaderSpec`.

    Returns:
        The three groups.

    Raises:
        TypeError: A name of no option.
    """
    unknown = [name for name in flat if name not in FLAT]
    if unknown:
        raise TypeError(f"SpecimenDataModule has no argument {', '.join(map(repr, unknown))}")
    if flat:
        warn_of_flat(flat)
    groups: dict[str, Any] = {"crops": crops, "split": split, "loader": loader}
    for name, options in grouped(flat).items():
        groups[name] = replace(groups[name], **options)
    return groups["crops"], groups["split"], groups["loader"]


def warn_of_flat(names: Iterable[str], owner: str = "the data") -> None:
    """Warns once of options in their old spelling.

    Args:
        names: The flat options that were given.
        owner: Whose options they are.
    """
    old = list(dict.fromkeys(names))
    now = ", ".join(dict.fromkeys(spelling(name) for name in old))
    text = f"{owner}: {', '.join(old)} is spelled {now} now; the old spelling will go"
    warnings.warn(text, UserWarning, stacklevel=3)


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
