"""One exception family: what is wrong, where (file, row, argument), and how to mend it.

Everything a user can get wrong ends here. The command line prints the message without a traceback and
exits with code 2; in a notebook the same text is the exception's message.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_PRINTED = 50
"""Findings printed in one message; the rest are counted (all are in ``findings``)."""


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        where: The file, row or argument, as the user knows it: ``manifest.csv, row 17`` or ``--model.teacher_ckpt``.
        what: What is wrong, with the offending value.
        remedy: What the user can do about it.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """Returns the finding as one line."""
        return f"{self.where}: {self.what}. {self.remedy}"


class KDConvNeXtError(Exception):
    """Every problem found in one check, reported together.

    Attributes:
        findings: All problems, in the order found.
    """

    exit_code = 2

    def __init__(self, findings: Finding | Iterable[Finding] | str) -> None:
        """Collects the findings of one check.

        Args:
            findings: One finding or several; or the traceback's text by which torch hands on a loader worker's error.
        """
        if isinstance(findings, str):
            findings = _of_traceback(findings, type(self).__name__)
        self.findings = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__(self._message())

    def _message(self) -> str:
        if len(self.findings) == 1:
            return str(self.findings[0])
        lines = [f"{len(self.findings)} problems found:"]
        lines += [f"  - {finding}" for finding in self.findings[:MAX_PRINTED]]
        if len(self.findings) > MAX_PRINTED:
            lines.append(f"  ... and {len(self.findings) - MAX_PRINTED} more")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type["KDConvNeXtError"], tuple[tuple[Finding, ...]]]:
        """Keeps the findings when the exception crosses a process border (loader workers, DDP ranks)."""
        return type(self), (self.findings,)


def _of_traceback(text: str, name: str) -> Finding:
    """Finds the message at the end of a traceback: ``...errors.CacheError: where: what. remedy``."""
    where, _, rest = text.rpartition(f"{name}: ")[2].strip().partition(": ")
    what, _, remedy = rest.partition(". ")
    return Finding(where, what, remedy)


class ManifestError(KDConvNeXtError):
    """The manifest, its photographs or its boxes are not usable as they are."""


class SplitError(KDConvNeXtError):
    """The photographs cannot be divided as asked."""


class LeakError(KDConvNeXtError):
    """A model would be judged on, or taught by a model trained on, the same lesions."""


class CheckpointError(KDConvNeXtError):
    """A checkpoint is missing, foreign, or does not fit the data or the model."""


class UpscalerError(KDConvNeXtError):
    """The super-resolution weights or package are missing or not usable."""


class CacheError(KDConvNeXtError):
    """The crop cache cannot be written or read, or crops could not be made."""


class ConfigError(KDConvNeXtError):
    """An option has a value that cannot work."""


class ExportError(KDConvNeXtError):
    """An exported network does not answer as its checkpoint does."""


class CellError(KDConvNeXtError):
    """Cells of an experiment have failed; the others are done."""

    exit_code = 1
