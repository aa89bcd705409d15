"""Finds a folder's photographs by their names in the manifest, and nothing outside it."""

import os
from pathlib import Path

from kd_convnext.data.manifest.formats import IMAGE_SUFFIXES
from kd_convnext.errors import Finding, ManifestError


class PhotographFolder:
    """The photographs below a folder, and those a manifest names beside them.

    Attributes:
        root: The folder.
    """

    def __init__(self, root: Path, own: Path | None = None) -> None:
        """Names the folder.

        Args:
            root: The folder.
            own: Folder of the page's own pictures; they are no photographs where it lies below the root.
        """
        self.root = root
        self._own = None if own is None else own.absolute()
        self._named: frozenset[str] = frozenset()

    def names(self, named: frozenset[str]) -> list[str]:
        """Lists the photographs, by name.

        Args:
            named: Those in the manifest; a file that does not exist is listed too, so that it is seen to be missing.

        Returns:
            Paths relative to the root, with /.
        """
        self._named = named
        found: set[str] = set()
        for place, folders, files in os.walk(self.root):
            here = Path(place).absolute()
            folders[:] = [name for name in folders if not name.startswith(".") and here / name != self._own]
            below = Path(place).relative_to(self.root)
            found |= {
                (below / name).as_posix()
                for name in files
                if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
            }
        return sorted(found | (named - {""}))

    def path(self, name: str) -> Path:
        """Finds a photograph.

        Args:
            name: As in the manifest.

        Returns:
            The file, which may be missing.

        Raises:
            ManifestError: It lies outside the folder and no row of the manifest names it, or is no photograph.
        """
        path = self.root / name
        known = path.suffix.lower() in IMAGE_SUFFIXES and "\0" not in name and "\\" not in name
        # What the manifest names, it may name anywhere: its author can read there already.
        if not known or not (name in self._named or self._inside(path)):
            what = "is not one of this folder's photographs"
            raise ManifestError(Finding(name[:120], what, "Choose one from the list."))
        return path

    def _inside(self, path: Path) -> bool:
        """Tells whether a path lies below the root, whatever links it follows."""
        return path.resolve().is_relative_to(self.root.resolve())
