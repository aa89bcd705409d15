"""Finds the timm architecture behind a name of the Hugging Face hub, so that its weights serve from a local file."""

import json
from dataclasses import dataclass, field
from typing import Any

from kd_convnext.errors import Finding
from kd_convnext.models.timm_import import timm

PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
"""How timm's names of other places than its own list begin."""


@dataclass(frozen=True)
class Architecture:
    """Describes a published network in options of a `BackboneSpec`, for its 224 px.

    Attributes:
        name: The timm model that it is built from.
        args: What differs in it.
        mean: Of its input, where timm does not know it.
        std: The same.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def options(self) -> str:
        """Returns the options as YAML, with a place for the file."""
        parts = [f"name: {self.name}"]
        parts += [f"{name}: {list(values)}" for name, values in (("mean", self.mean), ("std", self.std)) if values]
        if self.args:
            parts.append(f"args: {json.dumps(self.args)}")
        return "{" + ", ".join([*parts, "image_size: 224", "weights: FILE"]) + "}"


_VIRCHOW = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375}
_OPTIMUS = Architecture(
    "vit_giant_patch14_reg4_dinov2", mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517)
)

KNOWN: dict[str, Architecture] = {
    "MahmoodLab/UNI": Architecture(
        "vit_large_patch16_224", {"init_values": 1e-5}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "MahmoodLab/UNI2-h": Architecture(
        "vit_giant_patch14_reg4_dinov2", {"depth": 24, "mlp_ratio": 5.33334, "reg_tokens": 8}
    ),
    "paige-ai/Virchow": Architecture("vit_giant_patch14_dinov2", _VIRCHOW),
    "paige-ai/Virchow2": Architecture("vit_giant_patch14_dinov2", {**_VIRCHOW, "reg_tokens": 4}),
    "bioptimus/H-optimus-0": _OPTIMUS,
    "bioptimus/H-optimus-1": _OPTIMUS,
}
"""Networks of pathology by their names on the hub.

Built thus, each has the tensors of the network that its authors' code builds and, with the same weights, its numbers.
"""


def hub_name_finding(name: str) -> Finding | None:
    """Refuses a name of the hub and describes how its weights are used without network.

    Args:
        name: Of a network, as a user gives it.

    Returns:
        The finding; None for names without a place.
    """
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return None
    place = name.removeprefix(prefix)
    known = {key.lower(): architecture for key, architecture in KNOWN.items()}.get(place.lower())
    own = place.removeprefix("timm/")
    if known is None and timm.is_model(own):
        known = Architecture(own)
    if known is not None:
        remedy = f"Download its weights and give {known.options}."
    else:
        remedy = (
            "Download its weights and give them as `weights`; `name` and `args` are `architecture` and `model_args` of "
            "its config.json, where it is of timm."
        )
    return Finding("backbone.name", f"{name} names a place, which is not asked for a network", remedy)
