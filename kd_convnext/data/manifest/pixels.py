"""Decodes every photograph of a manifest, to find truncated and damaged files before work begins."""

from pathlib import Path

from kd_convnext.data.manifest.images import read_image
from kd_convnext.data.manifest.inspection import in_parallel
from kd_convnext.data.manifest.likeness import look_at
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import Finding, ManifestError


def refuse_undecodable(manifest: Manifest) -> None:
    """Refuses photographs whose headers are sound but whose pixels cannot be decoded.

    A photograph that was decoded before and has not changed since is not decoded again.

    Args:
        manifest: The photographs.

    Raises:
        ManifestError: With one finding for each of them.
    """
    first = manifest.table.drop_duplicates("image").index.tolist()
    paths = [manifest.image_path(row) for row in first]
    known = look_at(paths, manifest.root).known
    doubtful = [(row, path) for row, path, decoded in zip(first, paths, known, strict=True) if not decoded]
    found = in_parallel(_problem, [path for _, path in doubtful], "Decoding photographs")
    findings = [
        Finding(manifest.where(row), f"{problem.what}: {problem.where}", problem.remedy)
        for (row, _), problem in zip(doubtful, found, strict=True)
        if problem is not None
    ]
    if findings:
        raise ManifestError(findings)


def _problem(path: Path) -> Finding | None:
    try:
        read_image(path)
    except ManifestError as error:
        return error.findings[0]
    return None
