"""Reads the options of a report: columns for subgroups, prevalence, thresholds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kd_convnext.common.nearest import did_you_mean
from kd_convnext.data.manifest.further import read_further
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError
from kd_convnext.experiment.report.results import Arm, CellResult
from kd_convnext.experiment.report.strata import SHARPNESS, SIZE


class Wishes(NamedTuple):
    """What is shown by choice.

    Attributes:
        prevalence: Share of classes where the model is to be used.
        by: Columns of the manifest to show subgroups by.
        thresholds: Classes, each with a probability from which it is called.
    """

    prevalence: Mapping[str, float]
    by: tuple[str, ...]
    thresholds: tuple[tuple[str, float], ...]


NO_WISHES = Wishes({}, (), ())

_ROUNDED = 0.011
"""By how much a sum of shares may differ from 1, as three of 0.33 do."""


def wishes(prevalence: str | None = None, by: str | None = None, thresholds: str | None = None) -> Wishes:
    """Reads the options of a command.

    Args:
        prevalence: ``MEL=0.02,NV=0.9``.
        by: ``site,device``.
        thresholds: ``MEL=0.2,MEL=0.5``.

    Raises:
        ConfigError: A part that is no class with a share, a class with several prevalences, or such of a sum above
            1: all of them.
    """
    findings: list[Finding] = []
    chances = _shares("--prevalence", prevalence, findings)
    calls = _shares("--thresholds", thresholds, findings)
    names = [name for name, _ in chances]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        findings.append(Finding("--prevalence", f"several shares of {', '.join(twice)}", "Give one for each class."))
    total = math.fsum(share for _, share in chances)
    if not twice and total > 1 + _ROUNDED:
        remedy = "Each photograph has one class: give shares of a sum of at most 1."
        findings.append(Finding("--prevalence", f"the shares add up to {total:.3g}", remedy))
    if findings:
        raise ConfigError(findings)
    return Wishes(dict(chances), _words(by), tuple(calls))


def completed(prevalence: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Adds the share of the only class without one, which is what the others leave.

    Args:
        prevalence: Shares of classes.
        names: The classes.
    """
    lacking = [name for name in names if name not in prevalence]
    if len(lacking) != 1 or len(names) < 2:
        return dict(prevalence)
    return {**prevalence, lacking[0]: max(0.0, 1 - math.fsum(prevalence.values()))}


def class_findings(wished: Wishes, names: Sequence[str]) -> list[Finding]:
    """Makes findings of shares and thresholds of classes that do not occur, and of shares of all whose sum is not 1.

    Args:
        wished: What is wished for.
        names: The classes.
    """
    asked = {"--prevalence": list(wished.prevalence), "--thresholds": [name for name, _ in wished.thresholds]}
    findings = []
    for option, name in [(option, name) for option, given in asked.items() for name in given]:
        if name not in names:
            remedy = f"{did_you_mean(name, names)}Classes: {', '.join(names)}."
            findings.append(Finding(option, f"no class is called {name!r}", remedy))
    total = math.fsum(wished.prevalence.values())
    lacking = [name for name in names if name not in wished.prevalence]
    if len(lacking) == 1 and total > 1 - 1e-9:
        what = f"the shares add up to {total:.3g}: nothing is left for {lacking[0]}"
        findings.append(Finding("--prevalence", what, "Each class has a share above 0."))
    if set(wished.prevalence) == set(names) and abs(total - 1) > _ROUNDED:
        remedy = "Give shares of a sum of 1, or leave out a class, which then has the rest."
        findings.append(Finding("--prevalence", f"the shares of all classes add up to {total:.3g}", remedy))
    return findings


def column_findings(wished: Wishes, arm: Arm | None) -> list[Finding]:
    """Makes findings of columns that the manifests of an arm's runs lack, or that are not to be read.

    Args:
        wished: What is wished for.
        arm: Whose subgroups are shown; None for none.
    """
    named = [name for name in wished.by if name not in (SIZE, SHARPNESS)]
    findings: list[Finding] = []
    for result in arm.results if named and arm is not None and len(arm.answers) else ():
        try:
            columns_of(result, named)
        except KDConvNeXtError as error:
            findings += error.findings
    return list(dict.fromkeys(findings))


def columns_of(result: CellResult, names: Sequence[str]) -> pd.DataFrame:
    """Reads further columns of the manifest of a run; see `read_further`.

    Args:
        result: The run.
        names: The columns.
    """
    data = (result.config or {}).get("data") or {}
    return read_further(Path(str(data.get("manifest", ""))), names, data.get("columns"), "--by")


def require_possible(wished: Wishes, names: Sequence[str], manifest: Path, columns: str | None) -> None:
    """Refuses wishes that the photographs cannot fulfil, before the work.

    Args:
        wished: What is wished for.
        names: The classes.
        manifest: With the columns.
        columns: Other names of columns, as a fit takes them.

    Raises:
        ConfigError: Classes or columns that do not occur: all of them.
    """
    findings = class_findings(wished, names)
    named = [name for name in wished.by if name not in (SIZE, SHARPNESS)]
    try:
        if named:
            read_further(manifest, named, columns, "--by")
    except KDConvNeXtError as error:
        findings += error.findings
    if findings:
        raise ConfigError(findings)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _shares(option: str, text: str | None, findings: list[Finding]) -> list[tuple[str, float]]:
    """Reads NAME=SHARE with commas between."""
    found = []
    for word in _words(text):
        name, _, share = word.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        found.append((name, value))
        if not name or not 0 < value < 1:
            remedy = f"Write {option} MEL=0.02,NV=0.9, each share between 0 and 1."
            findings.append(Finding(option, f"{word} is no class with its share", remedy))
    return found
