"""Reads a run for the page: report, model card, figures, and its test photographs one by one."""

import math
from dataclasses import astuple, replace
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from kd_convnext.common.configs import data_options
from kd_convnext.common.tables import read_table
from kd_convnext.common.words import command_line
from kd_convnext.data.manifest.boxes import Box, box_of
from kd_convnext.data.manifest.columns import refuse_edges
from kd_convnext.data.manifest.source import image_name
from kd_convnext.errors import ConfigError, Finding, ManifestError
from kd_convnext.inference.prediction import Photograph
from kd_convnext.page.manifest_file import ManifestFile
from kd_convnext.runs.folder import RunFolder, run_of_checkpoint
from kd_convnext.runs.tables import read_metrics

CORRECTIONS = "corrections"
"""The manifest's column that says which label was changed when."""

_CARD = "MODEL_CARD.md"
_NEEDED = ("image", "lesion_id", "label", "prediction")


class Reading:
    """A checkpoint's run.

    Attributes:
        run: Its folder.
    """

    def __init__(self, ckpt_path: str, manifest: Path | None = None, columns: str | None = None) -> None:
        """Finds the run of a checkpoint.

        Args:
            ckpt_path: The checkpoint.
            manifest: Of its photographs, where the run does not say it.
            columns: Other names of the manifest's columns, where the run does not say them.
        """
        self.ckpt_path = ckpt_path
        self.run: RunFolder = run_of_checkpoint(Path(ckpt_path).expanduser())
        options = (data_options(str(self.run.config)) or {}) if self.run.config.is_file() else {}
        named = options.get("manifest")
        self.manifest = Path(named).expanduser() if named else manifest
        self.columns = options.get("columns") if named else columns

    def overview(self) -> dict[str, Any]:
        """Lists what there is to read.

        Returns:
            Whether there are a report and a card, the commands that make them, figures, and test metrics.
        """
        metrics = {name: value for name, value in read_metrics(self.run).items() if math.isfinite(value)}
        return {
            "run": str(self.run.path),
            "report": self.run.report.is_file(),
            "report_command": command_line(["report", str(self.run.path)]),
            "card": (self.run.path / _CARD).is_file(),
            "card_command": command_line(["card"], ckpt_path=self.ckpt_path),
            "figures": sorted(path.name for path in self.run.figures.glob("*.png")),
            "metrics": {name: value for name, value in metrics.items() if name.startswith("test/")},
            "test_command": command_line(["test"], config=self.run.config, ckpt_path=self.ckpt_path),
        }

    def card(self) -> str:
        """Returns the model card as HTML; text that looks like HTML is shown as text.

        Raises:
            ConfigError: There is none.
        """
        from markdown_it import MarkdownIt

        path = self.run.path / _CARD
        if not path.is_file():
            remedy = command_line(["card"], ckpt_path=self.ckpt_path)
            raise ConfigError(Finding(_CARD, "the run has no model card", remedy))
        text = path.read_text(encoding="utf-8")
        if text.startswith("---"):  # the hub's front matter
            text = text.split("\n---", 1)[-1].partition("\n")[2]
        html: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
        return html

    def figure(self, name: str) -> Path:
        """Finds a figure.

        Raises:
            ConfigError: The run has none of that name.
        """
        for path in self.run.figures.glob("*.png"):
            if path.name == name:
                return path
        raise ConfigError(Finding(name[:120], "the run has no such figure", "Choose one from the list."))

    def table(self) -> list[dict[str, Any]]:
        """Lists the test photographs.

        Returns:
            Of each: row (its number), image, lesion, label, prediction, probability of both, right, box, corrections.
            The wrong ones that the network was surest of come first. Empty where nothing was tested.
        """
        frame, changed = self._frame(), self._corrections()
        rows = []
        for number, row in enumerate(frame.to_dict("records")):
            label, prediction = str(row["label"]), str(row["prediction"])
            image = str(row["image"])
            rows.append(
                {
                    "row": number,
                    "image": image,
                    "lesion_id": str(row["lesion_id"]),
                    "label": label,
                    "prediction": prediction,
                    "probability": float(row[f"prob_{prediction}"]),
                    "probability_of_label": float(row.get(f"prob_{label}", math.nan)) if label else None,
                    "right": label == prediction,
                    "box": _box_values(row),
                    "corrections": changed.get((image, _box_values(row)), ""),
                }
            )
        return sorted(rows, key=lambda row: (row["right"], -row["probability"]))

    def photograph(self, row: int) -> Photograph:
        """Finds a test photograph with its box.

        Args:
            row: Its number in the table.

        Raises:
            ManifestError: There is no such row.
            ConfigError: The run does not say where its photographs are.
        """
        frame = self._frame()
        if not 0 <= row < len(frame):
            raise ManifestError(Finding("row", f"there is no row {row}", "Choose one from the table."))
        if self.manifest is None:
            what = f"{self.run.config} does not say where the photographs are"
            raise ConfigError(Finding("manifest", what, "Keep config.yaml in the run's folder."))
        found = frame.iloc[row].to_dict()
        root = self.manifest if self.manifest.is_dir() else self.manifest.parent
        values = _box_values(found)
        return Photograph(root / str(found["image"]), Box(*values) if values else None, name=str(found["image"]))

    def correct(self, row: int, label: str, note: str) -> str:
        """Changes a test photograph's label in the manifest, with the date; the run's own files stay as they are.

        Args:
            row: Its number in the table.
            label: The right class.
            note: Why; may be empty.

        Returns:
            What the column `CORRECTIONS` says now.

        Raises:
            ManifestError: The row is not in the manifest once, or its label was changed already by hand.
            ConfigError: The manifest is a folder, names far edges of boxes, or cannot be written.
        """
        photograph = self.photograph(row)
        assert self.manifest is not None  # else `photograph` has raised
        if self.manifest.is_dir():
            what = "its labels are the names of folders"
            raise ConfigError(Finding(str(self.manifest), what, "Move the photograph into the folder of its class."))
        if not label.strip() or not (label + note).isprintable():
            raise ManifestError(Finding("label", f"{label!r} is no class", "Choose one from the list."))
        file, was = ManifestFile(self.manifest, self.columns), str(self._frame().iloc[row]["label"])
        refuse_edges(file.columns)  # else no row would be found to have this box
        content, image = file.read(), str(photograph)
        regions = content.regions(image)
        matching = [place for place, region in enumerate(regions) if region.box == photograph.box]
        if len(matching) != 1:
            what = f"{len(matching)} rows of {self.manifest.name} are this region"
            raise ManifestError(Finding(image, what, "Correct the manifest by hand."))
        (place,) = matching
        before = content.value(content.rows(image)[place], CORRECTIONS)
        entry = f"{date.today().isoformat()} {regions[place].label} -> {label}" + (f" ({note})" if note else "")
        if regions[place].label == label:
            what = f"the manifest says {label!r} already (the run was trained when it said {was!r})"
            raise ManifestError(Finding(image, what, "Nothing to do."))
        history = f"{before}; {entry}" if before else entry
        regions[place] = replace(regions[place], label=label, more=((CORRECTIONS, history),))
        file.replace(image, content.version(image), regions)
        return history

    def _frame(self) -> pd.DataFrame:
        if not self.run.predictions.is_file():
            return pd.DataFrame()
        return read_table(self.run.predictions, _NEEDED)

    def _corrections(self) -> dict[tuple[str, tuple[int, ...] | None], str]:
        if self.manifest is None or not self.manifest.is_file():
            return {}
        content = ManifestFile(self.manifest, self.columns).read()
        found = {}
        for record in content.records:
            text = content.value(record, CORRECTIONS)
            if text:
                image = image_name(content.value(record, "image").strip(), self.manifest.parent)
                box = content.box(record)
                found[image, astuple(box) if box else None] = text
        return found


def _box_values(row: dict[Any, Any]) -> tuple[int, int, int, int] | None:
    box = box_of([str(row.get(name, "")) for name in ("x", "y", "width", "height")], decimal_comma=False)
    return astuple(box) if box else None
