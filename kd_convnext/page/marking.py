"""Marks regions in a folder of photographs, with class, lesion and patient, kept in its manifest."""

import json
import re
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_convnext.common.files import write_text
from kd_convnext.data.manifest.columns import refuse_edges
from kd_convnext.data.manifest.images import read_size
from kd_convnext.data.manifest.manifest import PAPER_CLASSES, read_manifest
from kd_convnext.errors import Finding, KDConvNeXtError, ManifestError
from kd_convnext.page.manifest_file import ConflictError, Content, ManifestFile, Record, Region
from kd_convnext.page.photographs import PhotographFolder
from kd_convnext.page.pictures import Thumbnails

KEPT_CHANGES = 500
"""Changes that can be taken back."""

GROUPS_FOR_SPLIT = 3
"""Lesions of a class that training, validation and test need, one each."""


@dataclass(frozen=True)
class Change:
    """One change of a photograph's regions.

    Attributes:
        client: The browser's tab that made it.
        image: The photograph.
        before: Its rows before.
        after: The version of its rows behind the change.
    """

    client: str
    image: str
    before: tuple[Record, ...]
    after: str


class Marking:
    """A folder of photographs and its manifest.

    Attributes:
        file: The manifest.
        folder: The photographs.
        thumbnails: Their small pictures.
    """

    def __init__(
        self, manifest: Path, cache_dir: Path, class_names: Sequence[str] = (), columns: str | None = None
    ) -> None:
        """Opens a folder.

        Args:
            manifest: A CSV file, or the folder of photographs; its ``manifest.csv`` is made with the first region.
            cache_dir: Where thumbnails are kept.
            class_names: The classes, where a checkpoint says them.
            columns: Other names of the manifest's columns.

        Raises:
            ManifestError: There is no such folder, or the file is no manifest.
            ConfigError: The names cannot be read, or are of edges of boxes, which could not be written.
        """
        file = manifest / "manifest.csv" if manifest.is_dir() else manifest
        if not file.parent.is_dir() or file.suffix.lower() != ".csv":
            remedy = "Give a folder of photographs, or its manifest (.csv)."
            raise ManifestError(Finding(str(manifest), "there is no such folder of photographs", remedy))
        self.file, self._columns = ManifestFile(file, columns), columns
        refuse_edges(self.file.columns)
        self.thumbnails = Thumbnails(cache_dir / "thumbnails")
        self.folder = PhotographFolder(file.parent, own=self.thumbnails.folder)
        self._class_names = tuple(class_names)
        self._changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self._lock = threading.Lock()
        self._checked: tuple[str, list[dict[str, Any]]] | None = None
        self.file.read()

    def start(self) -> None:
        """Starts making the thumbnails, in the background."""
        names = self.folder.names(frozenset(self.file.read().images))
        self.thumbnails.make([self.folder.path(name) for name in names if name.lower().endswith(_shown())])

    def close(self) -> None:
        """Ends the work in the background."""
        self.thumbnails.close()

    def photographs(self) -> dict[str, Any]:
        """Lists every photograph with how far it is.

        Returns:
            ``digest`` of the manifest, ``classes``, and ``photographs``: name, regions, and regions without a class.
        """
        content = self.file.read()
        listed = []
        for name in self.folder.names(frozenset(content.images)):
            rows = content.rows(name)
            bare = sum(content.value(record, "label") == "" for record in rows)
            listed.append([name, len(rows), bare])
        return {"digest": content.digest, "classes": self.classes(content), "photographs": listed}

    def regions(self, image: str) -> dict[str, Any]:
        """Returns a photograph's regions, and the size that their pixels mean.

        Args:
            image: Its name.

        Raises:
            ManifestError: It is none of this folder.
        """
        path, content = self.folder.path(image), self.file.read()
        problem = None
        try:
            width, height = read_size(path)
        except ManifestError as error:
            width, height, problem = 0, 0, error.findings[0].what
        return {
            "image": image,
            "width": width,
            "height": height,
            "problem": problem,
            "version": content.version(image),
            "regions": [asdict(region) for region in content.regions(image)],
        }

    def change(self, client: str, image: str, version: str, regions: Sequence[Region]) -> dict[str, Any]:
        """Writes a photograph's regions at once.

        Args:
            client: The browser's tab.
            image: The photograph.
            version: Of its rows, as last read.
            regions: What is to stand there.

        Returns:
            As `regions`.

        Raises:
            ConflictError: Somebody else was there before.
            ManifestError: A region does not lie in the photograph, or two are the same.
        """
        self._require_sound(image, regions)
        with self._lock:
            before = tuple(self.file.read().rows(image))
            after = self.file.replace(image, version, regions).version(image)
            if after != version:
                self._changes.append(Change(client, image, before, after))
        return self.regions(image)

    def undo(self, client: str) -> dict[str, Any]:
        """Takes a tab's last change back.

        Args:
            client: The browser's tab.

        Returns:
            As `regions`, of the photograph it was on.

        Raises:
            ConflictError: There is none, or somebody has changed the photograph since.
        """
        with self._lock:
            own = [change for change in self._changes if change.client == client]
            if not own:
                raise ConflictError(Finding("undo", "there is nothing to take back", "Change something first."))
            last = own[-1]
            version = self.file.restore(last.image, last.after, last.before).version(last.image)
            self._changes.remove(last)
            # The change before it on this photograph left what stands there again.
            earlier = [place for place, change in enumerate(self._changes) if change.image == last.image]
            if earlier:
                change = self._changes[earlier[-1]]
                self._changes[earlier[-1]] = Change(change.client, change.image, change.before, version)
        return self.regions(last.image)

    def classes(self, content: Content | None = None) -> list[str]:
        """Lists the classes: the checkpoint's or those named on the page, then others that rows have."""
        content = content or self.file.read()
        present = sorted({content.value(record, "label") for record in content.records} - {""})
        first = list(self._class_names) or self._saved() or ([] if present else list(PAPER_CLASSES))
        if set(present) == set(PAPER_CLASSES) and not first:
            return list(PAPER_CLASSES)
        return [*first, *(name for name in present if name not in first)]

    def name_classes(self, names: Sequence[str]) -> list[str]:
        """Keeps a list of classes for this manifest.

        Args:
            names: In the order of their number keys.

        Raises:
            ManifestError: A name is empty, too long, or stands twice.
        """
        clean = [name.strip() for name in names]
        if len(set(clean)) != len(clean) or not all(0 < len(name) <= 80 and name.isprintable() for name in clean):
            what = "a class is empty, named twice, or longer than 80 characters"
            raise ManifestError(Finding("classes", what, "Name each class once."))
        self._class_names = ()
        write_text(self._classes_file(), json.dumps(clean, ensure_ascii=False) + "\n")
        return self.classes()

    def progress(self, needed: int) -> list[dict[str, Any]]:
        """Counts the lesions of each class.

        Args:
            needed: Lesions of a class in the validation part that a calibrated prediction set needs.

        Returns:
            Of each class: its name, regions, lesions, and how many lesions a split and calibrated sets need.
        """
        content = self.file.read()
        lesions: dict[str, set[str]] = {name: set() for name in self.classes(content)}
        regions = dict.fromkeys(lesions, 0)
        for image in content.images:
            for region in content.regions(image):
                if region.label:
                    lesions[region.label].add(region.lesion_id or f"image:{image}")
                    regions[region.label] += 1
        return [
            {
                "label": name,
                "regions": regions[name],
                "lesions": len(found),
                "for_split": GROUPS_FOR_SPLIT,
                "for_sets": needed * 10,  # validation is a tenth of the split 8:1:1
            }
            for name, found in lesions.items()
        ]

    def checks(self) -> list[dict[str, Any]]:
        """Runs the checks of ``prepare`` on the manifest as it stands.

        Returns:
            Of each finding: severity, the photograph where one is meant, where, what and remedy.
        """
        content = self.file.read()
        if self._checked is None or self._checked[0] != content.digest:
            self._checked = (content.digest, self._findings(content) if content.records else [])
        return self._checked[1]

    def _findings(self, content: Content) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with self._lock, warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                read_manifest(self.file.path, columns=self._columns)
            except KDConvNeXtError as error:
                found += [{"severity": "error", **asdict(finding)} for finding in error.findings]
        found += [
            {"severity": "warning", "where": self.file.path.name, "what": str(warning.message), "remedy": ""}
            for warning in heard
        ]
        lines = {content.records[place].line: name for name, places in content.images.items() for place in places}
        for entry in found:
            row = re.search(r", row (\d+)$", entry["where"])
            entry["image"] = lines.get(int(row[1])) if row else None
        return found

    def _require_sound(self, image: str, regions: Sequence[Region]) -> None:
        """Refuses regions that ``prepare`` would refuse."""
        path, findings = self.folder.path(image), []
        size = read_size(path) if any(region.box for region in regions) else (0, 0)
        for number, region in enumerate(regions, 1):
            box, where = region.box, f"{image}, region {number}"
            if box is not None and not (
                box.x >= 0
                and box.y >= 0
                and box.width > 0
                and box.height > 0
                and box.x + box.width <= size[0]
                and box.y + box.height <= size[1]
            ):
                what = f"the region does not lie inside the photograph of {size[0]} x {size[1]} pixels"
                findings.append(Finding(where, what, "Draw it inside."))
            if region.box in [other.box for other in regions[: number - 1]]:
                findings.append(Finding(where, "the same region stands twice", "Delete one of them."))
            if any(not text.isprintable() for text in (region.label, region.lesion_id, region.patient_id)):
                findings.append(Finding(where, "a name holds characters that cannot be printed", "Type it again."))
        if findings:
            raise ManifestError(findings)

    def _classes_file(self) -> Path:
        name = re.sub(r"\W+", "_", str(self.file.path.absolute())).strip("_")[-150:]
        return self.thumbnails.folder.parent / "classes" / f"{name}.json"

    def _saved(self) -> list[str]:
        try:
            return [str(name) for name in json.loads(self._classes_file().read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []


def _shown() -> tuple[str, ...]:
    from kd_convnext.data.manifest.formats import IMAGE_SUFFIXES

    return tuple(IMAGE_SUFFIXES)
