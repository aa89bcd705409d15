"""Decodes every photograph of a manifest, to find truncated and damaged files before work begins."""

from pathlib import Path

from kd_convnext.data.manifest.images import read_image
from kd_convnext.data.manifest.inspection import in_parallel
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import Finding, ManifestError


def refuse_undecodable(manifest: Manifest) -> None:
    """Refuses photographs whose headers are sound but whose pixels cannot be decoded.

    Args:
        manifest: The photographs, all of which are decoded at full size.

    Raises:
        ManifestError: With one finding for each of them.
    """
    rows = manifest.table.drop_duplicates("image").index.tolist()
    problems = in_parallel(_problem, [manifest.image_path(row) for row in rows], "Decoding photographs")
    findings = [
        Finding(manifest.where(row), f"{problem.what}: {problem.where}", problem.remedy)
        for row, problem in zip(rows, problems, strict=True)
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
