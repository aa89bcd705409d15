"""Figures that are no ratio of two sides: tables of them, targets, the record."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness.timing import machine


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: What was measured.
        value: The median.
        unit: Of the value.
        spread: Half the distance between the quartiles, or None where it was measured once.
        at_most: The target from above, or None.
        at_least: The target from below, or None.
    """

    name: str
    value: float
    unit: str
    spread: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        high = float("inf") if self.at_most is None else self.at_most
        low = float("-inf") if self.at_least is None else self.at_least
        return low <= self.value <= high


@dataclass(frozen=True)
class Grid:
    """A table: titles of the columns, and rows of numbers and words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def tell(title: str, figures: Sequence[Figure], grids: Sequence[Grid], notes: Sequence[str], path: Path | None) -> None:
    """Prints machine, tables, figures with their targets, and notes; writes them as JSON where a file is named."""
    known = machine()
    console = Console(width=150)
    console.print(", ".join(f"{name} {value}" for name, value in known.items()))
    for grid in grids:
        table = Table(title=grid.title)
        for number, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in grid.rows:
            table.add_row(*(_text(value) for value in row))
        console.print(table)
    if figures:
        table = Table(title=title)
        for column in ("", "measured", "target", ""):
            table.add_column(column, justify="left" if column == "" else "right")
        for figure in figures:
            table.add_row(figure.name, _measured(figure), _target(figure), _said(figure.met))
        console.print(table)
    for note in notes:
        console.print(note)
    if path is not None:
        record: dict[str, object] = {"title": title, "date": time.strftime("%Y-%m-%d"), "machine": known}
        record |= {"figures": [asdict(figure) | {"met": figure.met} for figure in figures]}
        record |= {"tables": [asdict(grid) for grid in grids], "notes": list(notes)}
        path.write_text(json.dumps(record, indent=2) + "\n")


def _text(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _measured(figure: Figure) -> str:
    spread = "" if figure.spread is None else f" +- {figure.spread:.2g}"
    return f"{figure.value:,.3g}{spread} {figure.unit}"


def _target(figure: Figure) -> str:
    texts = [f"<= {figure.at_most:g}"] if figure.at_most is not None else []
    texts += [f">= {figure.at_least:g}"] if figure.at_least is not None else []
    return " ".join(texts)


def _said(met: bool | None) -> str:
    return "" if met is None else ("met" if met else "NOT MET")
