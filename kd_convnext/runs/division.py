"""Records how a run's photographs came into their parts, which its ``split.csv`` does not say."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import json_of
from kd_convnext.runs.folder import RunFolder

if TYPE_CHECKING:
    from kd_convnext.data.manifest.manifest import Manifest
    from kd_convnext.data.manifest.splits import Split

DIVIDED = "divided"
"""Entry of a run's ``environment.json``."""


@dataclass(frozen=True)
class Divided:
    """How photographs came into parts.

    Attributes:
        given: Whether the manifest gave the parts; else they were drawn.
        alike: Sets of near-identical photographs that are in more than one part.
    """

    given: bool = False
    alike: int = 0


DRAWN = Divided()
"""Of runs without a record."""


def divided(manifest: "Manifest", split: "Split") -> dict[str, object]:
    """Makes the record of a division.

    Args:
        manifest: What was divided.
        split: Its division.
    """
    table = manifest.table.assign(part=split.parts)
    alike = table[(table["alike"] != "") & (table["part"] != "")].groupby("alike")["part"].nunique()
    return asdict(Divided(manifest.parts_given, int((alike > 1).sum())))


def read_divided(run: RunFolder) -> Divided:
    """Reads the record of a division; of runs without one, parts count as drawn.

    Args:
        run: Of a fit.
    """
    try:
        found = json_of(read_bytes(run.environment)).get(DIVIDED)
        return Divided(bool(found["given"]), int(found["alike"]))
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return DRAWN
