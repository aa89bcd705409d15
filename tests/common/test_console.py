"""Messages on a terminal and in a file, by commands in processes of their own."""

import io
import os
import pty
import shlex
import subprocess
import sys

import pytest
from helpers.paths import CONFIGS, REPOSITORY

from kd_convnext.common.console import fitted
from kd_convnext.common.words import command_line


def printed(words, terminal, folder, columns=60, module="kd_convnext.cli"):
    """What a command writes to a terminal, or into a pipe, as lines."""
    command = [sys.executable, "-m", module, *words]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": str(columns)}
    reading, writing = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=writing, cwd=folder, env=settings):
        os.close(writing)
        parts = []
        try:
            while part := os.read(reading, 4096):
                parts.append(part)
        except OSError:  # how Linux says that nobody writes to the terminal any more
            pass
    os.close(reading)
    return b"".join(parts).decode().replace("\r\n", "\n").splitlines()


@pytest.fixture
def folder(tmp_path):
    """Two manifests: one with columns of other names, one with two photographs that are not there."""
    (tmp_path / "named.csv").write_text("file name,class label\na.jpg,A\n")
    (tmp_path / "gone.csv").write_text("image,label\na.jpg,A\nb.jpg,B\n")
    return tmp_path


@pytest.mark.parametrize("name", ["named.csv", "gone.csv"])
def test_a_terminal_gets_lines_of_its_width_and_a_file_whole_ones(folder, name):
    words = ["prepare", name, "--dry_run", "--yes"]
    shown, kept = printed(words, True, folder), printed(words, False, folder)
    assert [line for line in shown if len(line) > 60] == []
    assert len(kept) < len(shown) and max(map(len, kept)) > 60
    assert " ".join(" ".join(shown).split()) == " ".join(" ".join(kept).split())
    assert any(line.startswith("warning: --yes") for line in kept)


def test_what_is_copied_out_of_a_message_stays_whole(folder):
    shown = printed(["prepare", "named.csv", "--dry_run"], True, folder, columns=40)
    assert any('"image=file name,label=class label"' in line for line in shown)


def test_a_value_in_single_quotes_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    name = "'convnext with a very long name of two parts and more than a line'"
    told = fitted(f"there is no method {name}, the methods are convnext and swin", Terminal())
    assert any(name in line for line in told.split("\n")) and "\n" in told


@pytest.mark.parametrize(
    "words",
    [
        ["report", "/data/my runs/with blanks of a length"],
        ["classify", "it's one of ours.jpg", "/data/my runs/b.jpg", "--ckpt_path", "/data/my runs/it's.ckpt"],
        ["fit", "--config", "/my runs/a.yaml", "--config", "configs/b.yaml", "--data.classes", '["A b", "C"]'],
    ],
)
def test_a_command_whose_paths_have_blanks_is_one_line(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "40")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    command = command_line(words)
    assert shlex.split(command) == ["kd-convnext", *words]
    for text in (f"  {command}", f"Of a run that has ended before its time: go on with {command}"):
        assert any(line.endswith(command) for line in fitted(text, Terminal()).split("\n"))


def test_findings_in_a_list_are_indented_below_their_bullets(folder):
    shown = printed(["prepare", "gone.csv", "--dry_run"], True, folder)
    begin = [number for number, line in enumerate(shown) if line.startswith("  - ")]
    assert len(begin) == 2 and all(shown[number + 1].startswith("    ") for number in begin)


def test_rows_of_a_table_stay_whole(tiny_manifest, tmp_path):
    words = ["prepare", str(tiny_manifest), "--dry_run", "--upscaler=bicubic", f"--cache_dir={tmp_path / 'cache'}"]
    shown = printed(words, True, tmp_path, columns=20)
    assert [line for line in shown if line.startswith("  class ")] and "  all " in "".join(shown)
    rows = [line for line in shown if line.startswith("  Grade ") and "(" in line]
    assert len(rows) == 3 and all(line.endswith(")") for line in rows)


def test_the_process_of_a_cell_warns_in_one_line_too(folder):
    (folder / "more.csv").write_text("image,label,site\na.jpg,A,x\nb.jpg,B,y\n")
    words = ["fit", "--config", str(CONFIGS / "small_cpu" / "alone.yaml"), "--data.manifest", "more.csv"]
    kept = printed(words, False, folder, module="kd_convnext.experiment.child")
    assert [line for line in kept if line.startswith("warning: more.csv") and "'site'" in line]
    assert not [line for line in kept if "UserWarning" in line or "ManifestWarning" in line]
