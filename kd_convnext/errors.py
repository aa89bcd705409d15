"""Defines the exceptions: what is wrong, where (file, row, argument), and how to mend it.

Everything a user can get wrong ends here. The command line prints the message without a traceback and
exits with code 2; in a notebook the same text is the exception's message.
"""

import contextlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

MAX_PRINTED = 50
"""Findings printed in one message; the rest are counted (all are in ``findings``)."""

CARRIED = "kd_convnext.findings: "
"""Begins the line of a traceback that carries the findings of a child process as JSON."""


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

    Examples:
        >>> raise ConfigError(Finding("--data.batch_size", "0 cannot work", "Use 1 or more."))
        Traceback (most recent call last):
        ...
        kd_convnext.errors.ConfigError: --data.batch_size: 0 cannot work. Use 1 or more.
    """

    exit_code = 2

    def __init__(self, findings: Finding | Iterable[Finding] | str) -> None:
        """Collects the findings of one check.

        Args:
            findings: One finding or several; or the traceback's text by which torch hands on a loader worker's error.
        """
        if isinstance(findings, str):
            findings = _carried(findings)
        self.findings = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__(self._message())
        if multiprocessing.parent_process() is not None:
            # Torch rebuilds a loader worker's exception from its traceback alone, and notes are part of that.
            self.add_note(CARRIED + json.dumps([asdict(finding) for finding in self.findings]))

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


class Checks:
    """Collects what several checks find, to report it together.

    Examples:
        >>> checks = Checks()
        >>> for option in ("--lr", "--seed"):
        ...     with checks.going_on():
        ...         raise ConfigError(Finding(option, "-1 cannot work", "Use 0 or more."))
        >>> checks.refuse()
        Traceback (most recent call last):
        ...
        kd_convnext.errors.ConfigError: 2 problems found:
          - --lr: -1 cannot work. Use 0 or more.
          - --seed: -1 cannot work. Use 0 or more.
    """

    def __init__(self) -> None:
        """Begins without a finding."""
        self._errors: list[KDConvNeXtError] = []

    @property
    def failed(self) -> bool:
        """Whether anything was found."""
        return bool(self._errors)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Keeps what a check raises, and goes on behind it."""
        try:
            yield
        except KDConvNeXtError as error:
            self._errors.append(error)

    def refuse(self) -> None:
        """Raises what was found.

        Raises:
            KDConvNeXtError: All findings, as an error of the first one's type.
        """
        if self._errors:
            findings = [finding for error in self._errors for finding in error.findings]
            raise type(self._errors[0])(findings) from self._errors[0]


def _carried(text: str) -> tuple[Finding, ...]:
    """Reads the findings that a traceback carries; where none does, the text itself is the finding."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(CARRIED):
            return tuple(Finding(**finding) for finding in json.loads(line.removeprefix(CARRIED)))
    return (Finding("another process", lines[-1] if lines else "it failed", "See its messages above."),)


class ManifestWarning(UserWarning):
    """Something in a manifest or its division that a person should look at once."""


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


class TrainingError(KDConvNeXtError):
    """A fit cannot go on: its numbers are no longer finite."""


class Terminated(KDConvNeXtError):
    """A command was told to stop by SIGTERM: a time limit, ``docker stop``, a guard against full memory."""

    exit_code = 143


class CellError(KDConvNeXtError):
    """Cells of an experiment have failed; the others are done."""

    exit_code = 1
