"""The guides of CONTRIBUTING, followed: a command in a file of its own, and everything they name exists."""

import re
import sys

from helpers.paths import REPOSITORY

from kd_convnext import cli

TOOL = '''"""Counts the rows of a manifest: the command ``rows``."""

from kd_convnext.data.manifest.manifest import read_manifest


def rows(manifest: str, at_least: int = 1) -> int:
    """Counts the photographs of a manifest.

    Args:
        manifest: CSV file.
        at_least: Fewer are an error.
    """
    found = len(read_manifest(manifest))
    print(f"{found} rows, {at_least} wanted")
    return found
'''


def test_a_command_is_a_file_and_a_line(tmp_path, tiny_manifest, monkeypatch, capsys):
    (tmp_path / "own_rows.py").write_text(TOOL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.TOOLS, "rows", ("own_rows:rows", "count photographs"))
    try:
        assert cli.main(["rows", f"--manifest={tiny_manifest}", "--at_least", "3"]) == 0
        assert capsys.readouterr().out == "60 rows, 3 wanted\n"
        assert cli.main(["rows", f"--manifest={tiny_manifest}", "--at_least=few"]) == 2
        assert "at_least" in capsys.readouterr().err
        assert cli.main(["rows", f"--manifest={tmp_path / 'none.csv'}"]) == 2
        assert "none.csv" in capsys.readouterr().err
        assert cli.main([]) == 0
        assert "count photographs" in capsys.readouterr().out
    finally:
        sys.modules.pop("own_rows", None)


def test_what_the_guides_name_exists():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    guides = text[text.index("## Add a loss") : text.index("## Pull requests")]
    named = re.findall(r"`((?:kd_convnext|tests|models|experiment|common|configs)/[^`]*)`", guides)
    assert len(named) > 8
    for path in named:
        start = re.split(r"NAME|\.\.\.", path)[0]
        path = path if start == path else start.rpartition("/")[0]
        assert (REPOSITORY / path).exists() or (REPOSITORY / "kd_convnext" / path).exists(), path
    source = "\n".join(file.read_text("utf-8") for file in (REPOSITORY / "kd_convnext").rglob("*.py"))
    for name in ("Term", "UpscalerName", "build_upscaler", "BicubicUpscaler", "Upscaler", "TOOLS", "show_figure"):
        assert f"`{name}`" in guides or f"{name}" in guides
        assert re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE), name
