"""Places that cannot be made, read or written are refused in words, before anything is computed for them."""

import io
import os
import subprocess
import sys

import pytest
from helpers.command_line import TINY, convnext
from helpers.disks import small_disk
from helpers.fake_cells import fake_cell, golden
from helpers.inference import copy_run
from PIL import Image

from kd_convnext.cli import main

PLACES = {
    "no disk": ("/proc/none", "cannot be written"),
    "below a device": ("/dev/null/out", "cannot be written"),
    "too long": ("/tmp/" + "x" * 300, "cannot be written"),
    "NUL": ("/tmp/a\0b", "NUL"),
    "of nobody": ("~nobodyofthisname/out", "no such user"),
}
ANOTHER = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as older disks have them."""
FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]


@pytest.fixture(scope="module")
def commands(tiny_run, tiny_manifest):
    """The words of each command but its --out; what it needs is there."""
    photo, checkpoint = str(next(tiny_manifest.parent.glob("*.png"))), ["--ckpt_path", str(tiny_run)]
    paper = ["paper", "--config", "configs/small_cpu/paper.yaml", "--manifest", str(tiny_manifest)]
    return {
        "classify": ["classify", photo, *checkpoint],
        "explain": ["explain", photo, *checkpoint],
        "calibrate": ["calibrate", *checkpoint],
        "export": ["export", *checkpoint],
        "publish": ["publish", *checkpoint],
        "paper": paper,
        "demo": ["demo"],
        "init": ["init", str(tiny_manifest)],
        "card": ["card", *checkpoint, "--resamples", "5"],
        "compare": ["compare", str(tiny_run.parent.parent)],
    }


def refused(words, told, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.count("error: ") == 1 and told in said.err and "Traceback" not in said.err
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "command", ["classify", "explain", "calibrate", "export", "publish", "paper", "demo", "init", "card", "compare"]
)
def test_an_out_that_cannot_be(command, place, commands, capsys):
    value, told = PLACES[place]
    said = refused([*commands[command], f"--out={value}"], told, capsys)
    assert "answered" not in said.out and "Temperature" not in said.out


@pytest.mark.parametrize(
    "command", ["classify", "explain", "calibrate", "export", "publish", "paper", "demo", "compare"]
)
def test_an_out_whose_name_is_in_another_encoding(command, commands, tmp_path, capsys):
    refused([*commands[command], f"--out={tmp_path / ANOTHER}"], "its name is not in UTF-8", capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["classify", "card", "init", "test", "fit"])
def test_options_with_nothing_behind_them(command, commands, capsys):
    words = commands.get(command, [command])
    for given in (["--out="], ["--out", ""], ["--data.manifest=", "--name=x"]):
        said = refused([*words, *given], "it is empty, as an unset variable of the shell is", capsys)
        assert given[0].rstrip("=") in said.err


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("option", ["--trainer.default_root_dir", "--data.cache_dir", "--checkpoint.dirpath"])
def test_a_fit_that_has_no_place(option, place, tiny_manifest, tiny_cache, tmp_path, capsys):
    value, told = PLACES[place]
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    said = refused([*FIT, *data, f"--trainer.default_root_dir={tmp_path / 'run'}", f"{option}={value}"], told, capsys)
    assert "Best epoch" not in said.out


def test_a_path_in_a_configuration(tiny_manifest, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    for text, told in (('"/tmp/a\\0b"', "NUL"), ("~nobodyofthisname/cache", "no such user")):
        file.write_text(f"manifest: {tiny_manifest}\ncache_dir: {text}\n")
        refused(["prepare", "--config", str(file)], told, capsys)


def test_nothing_is_left_of_a_place_that_was_tried(commands, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["classify", "gone.png", "--ckpt_path", str(tmp_path / "gone.ckpt"), f"--out={out}"]) == 2
    assert not out.parent.exists()


def test_crops_need_no_place_where_none_is_made(commands, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = [*commands["paper"], f"--cache_dir={tmp_path / 'file' / 'cache'}", f"--out={tmp_path / 'out'}"]
    assert main([*words, "--launcher=slurm"]) == 0
    assert "sbatch" in capsys.readouterr().out
    assert main([*words, "--collect=true"]) == 0
    assert "No cell is finished" in capsys.readouterr().err
    for here in (["--resume=true"], ["--resume=true", "--cell=0"]):
        refused([*words, *here], f"{tmp_path / 'file' / 'cache'}: ", capsys)


@pytest.mark.parametrize("command", ["test", "calibrate"])
def test_a_run_on_a_disk_that_is_read_only(command, tiny_run, tmp_path, capsys):
    with small_disk(tmp_path, "8m") as disk:
        checkpoint = copy_run(tiny_run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        config = ["--config", str(disk / "run" / "config.yaml"), "--model=TeacherModule"] if command == "test" else []
        said = refused([command, "--ckpt_path", str(checkpoint), *config], "read-only", capsys)
        assert "accuracy" not in said.out and str(disk) in said.err


def photographs_of_another_encoding(folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 36), "white").save(folder / "other.png")
    (folder / "other.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    Image.radial_gradient("L").resize((40, 36)).convert("RGB").save(folder / "good.png")


def test_names_of_photographs_in_another_encoding(commands, tmp_path, capsys):
    photographs_of_another_encoding(tmp_path / "photos")
    _, _, *checkpoint = commands["classify"]
    words = ["classify", str(tmp_path / "photos"), *checkpoint, f"--out={tmp_path / 'out'}"]
    said = refused(words, "its name is not in UTF-8: rename it", capsys)
    assert "1 photograph answered" in said.out
    assert "caf\\udce9.png" in (tmp_path / "out" / "failures.csv").read_text("utf-8")
    for label in ("a", "b"):
        photographs_of_another_encoding(tmp_path / "classes" / label)
    assert main(["prepare", str(tmp_path / "classes"), "--dry_run", "true"]) == 2
    error = capsys.readouterr().err
    assert error.count("its name is not in UTF-8: rename it") == 2 and "Traceback" not in error


@pytest.mark.parametrize("command", ["compare", "report"])
def test_links_that_lead_to_each_other(command, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    out = tmp_path / "out"
    assert main([command, str(tmp_path / "loop"), f"--out={out}"]) == 2
    assert "error: " in (error := capsys.readouterr().err) and str(tmp_path / "loop") in error


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_run_whose_name_is_in_another_encoding(command, tmp_path, capsys):
    folder = tmp_path / ANOTHER
    fake_cell(folder, golden(), record=False)
    refused([command, str(folder), f"--out={tmp_path / 'out'}"], "its name is not in UTF-8", capsys)


def test_weights_of_a_name_too_long(tiny_manifest, tmp_path, capsys):
    place = [f"--trainer.default_root_dir={tmp_path / 'run'}", f"--data.manifest={tiny_manifest}"]
    refused([*FIT, *place, f"--model.backbone.weights=/tmp/{'x' * 300}"], "(File name too long)", capsys)


@pytest.mark.parametrize("option", ["--data", "--config", "--data.manifest", "--model.backbone.weights"])
def test_a_file_whose_name_is_in_another_encoding(option, tiny_manifest, tmp_path, capsys):
    name, place = tmp_path / os.fsdecode(b"caf\xe9.yaml"), f"--trainer.default_root_dir={tmp_path / 'run'}"
    assert main([*FIT, place, f"--data.manifest={tiny_manifest}", f"{option}={name}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error and "codec" not in error


@pytest.mark.parametrize("command", ["prepare", "init"])
def test_a_folder_whose_name_is_in_another_encoding(command, tmp_path, capsys):
    folder = tmp_path / ANOTHER
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        Image.effect_noise((40, 36), 20).convert("RGB").save(folder / label / "1.png")
    out = [f"--out={tmp_path / 'out'}"] if command == "init" else ["--dry_run"]
    assert main([command, str(folder), *out]) == 2
    error = capsys.readouterr().err
    assert error.count("its name is not in UTF-8: rename it") == 2 and "Traceback" not in error


def test_a_terminal_that_lacks_a_letter(tmp_path, monkeypatch):
    for number in range(6):
        Image.effect_noise((40, 36), 20 + number).convert("RGB").save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{('Läsion', 'b')[number % 2]},L{number}" for number in range(6)]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,lesion_id", *rows]), encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["prepare", str(tmp_path / "manifest.csv"), "--dry_run", "--cache_dir", str(tmp_path / "cache")]) == 0
    terminal.flush()
    assert rb"L\xe4sion" in terminal.buffer.getvalue() and terminal.errors == "strict"


@pytest.mark.parametrize("dry", [["--dry_run"], []])
@pytest.mark.parametrize("kind", ["a file", "below a file", "a dead link"])
def test_an_experiment_whose_crops_have_no_place(kind, dry, commands, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "own"))
    (tmp_path / "own" / "weights").mkdir(parents=True)
    (tmp_path / "own" / "weights" / "best.ckpt").touch()  # the start weights that the grid names
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    place = {"a file": "file", "below a file": "file/cache", "a dead link": "link"}[kind]
    words = [*commands["paper"], *dry, f"--cache_dir={tmp_path / place}", f"--out={tmp_path / 'file' / 'out'}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "2 problems found" in said and f"{tmp_path / place}: " in said and f"{tmp_path / 'file' / 'out'}: " in said
    assert ("is a link that leads nowhere" in said) == (kind == "a dead link")


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_page_whose_thumbnails_have_no_place(kind, tiny_manifest, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    place = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "cache"
    refused(["page", "--manifest", str(tiny_manifest), "--port=0", f"--cache_dir={place}"], f"{place}: ", capsys)
