"""Runs the notebooks and keeps their outputs: small, without paths, times and warnings of this machine.

Usage: python scripts/run_notebooks.py [notebooks/01_quickstart.ipynb ...], by default all; a file is replaced when its
run has ended without an error.
"""

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SECONDS = 3600
"""Time for one cell."""

_FOLDER = re.compile(r"(?:/private)?/(?:tmp|var)/[\w./+-]*?kd-convnext-\w+")


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs a notebook in an empty folder, and cleans its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [cleaned(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def cleaned(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replaces paths in a cell's output by words, and its picture by one of 128 colours."""
    if "text" in output:
        output.text = without_paths(output.text)
    data = output.get("data", {})
    for kind in [kind for kind in data if kind.startswith("text/")]:
        data[kind] = without_paths(data[kind])
    for kind in [kind for kind in data if kind not in ("text/plain", "text/html", "text/markdown", "image/png")]:
        del data[kind]
    if "image/png" in data:
        with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
            small = io.BytesIO()
            picture.convert("RGB").quantize(128).save(small, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(small.getvalue()).decode("ascii")
    return output


def without_paths(text: str) -> str:
    """Writes ``FOLDER`` for the notebook's temporary folder."""
    return _FOLDER.sub("FOLDER", text)


def main(names: list[str]) -> int:
    """Runs notebooks one after the other."""
    for path in map(Path, names) if names else sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path.name, flush=True)
        nbformat.write(executed(nbformat.read(path, as_version=4)), path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
