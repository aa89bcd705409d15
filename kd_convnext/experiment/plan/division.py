"""Reads the manifest of an experiment and divides it as its cells do."""

from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.splits import Split, SplitSpec
from kd_convnext.experiment.plan.cells import Cell


def manifest_of(cell: Cell) -> Manifest:
    """Reads and checks the manifest of a cell.

    Args:
        cell: A planned cell.

    Raises:
        ManifestError: With every problem found.
    """
    options = ungrouped(cell.config["data"])
    known = {name: options[name] for name in ("classes", "on_error", "group_by", "columns") if name in options}
    return read_manifest(options["manifest"], **known)


def split_of(cell: Cell, manifest: Manifest) -> Split:
    """Divides the manifest of a cell.

    Args:
        cell: A planned cell.
        manifest: See `manifest_of`.

    Raises:
        SplitError: It cannot be divided as asked.
    """
    return SplitSpec(**cell.config["data"]["split"]).apply(manifest)
