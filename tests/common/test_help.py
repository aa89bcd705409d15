"""The pages of daily options: short, there for every command, and true to the parsers."""

import inspect
import re
from dataclasses import fields
from importlib import import_module

import pytest

from kd_convnext import cli
from kd_convnext.cli import POSITIONAL, TOOLS, TRAINING, main
from kd_convnext.common.help import daily_options
from kd_convnext.common.words import flags_set
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.manifest.splits import SplitSpec

OF_A_RUN = {"--config", "--name", "--teacher_config", "--ckpt_path", "--print_config", "--seed_everything", "--help"}


def options(page):
    return set(re.findall(r"--[a-z0-9_.]+", page))


def tool_of(command):
    module, function = TOOLS[command][0].split(":")
    return getattr(import_module(module), function)


@pytest.mark.parametrize("command", [*TRAINING, *TOOLS])
def test_a_page_is_short_and_says_where_the_rest_is(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith(f"usage: kd-convnext {command}") and len(lines) <= 60
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith(f"kd-convnext {command} --help all")
    assert not re.search(r"``|Args:|Raises:", printed)
    # Wherever the word stands, nothing is run.
    assert main([command, "--config=nowhere.yaml", "-h"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("command", TOOLS)
def test_the_options_of_a_tools_page_are_its_own(command):
    parameters = inspect.signature(tool_of(command)).parameters
    page = daily_options(command)
    known = {f"--{name}" for name in parameters} | {"--config", "--help"}
    assert options(page) <= known | {f"--crops.{one.name}" for one in fields(CropSpec) if "crops" in parameters}
    needed = {name for name, one in parameters.items() if one.default is inspect.Parameter.empty}
    assert {f"--{name}" for name in needed - {POSITIONAL.get(command), "grid"}} <= options(page)


def test_the_options_of_the_training_pages_are_the_parsers():
    from lightning.pytorch import Trainer

    from kd_convnext import DistillModule, SpecimenDataModule, TeacherModule
    from kd_convnext.models.backbones import BackboneSpec
    from kd_convnext.modules.optim import OptimSpec

    def names(kind):
        return set(inspect.signature(kind).parameters)

    nested = {"backbone": names(BackboneSpec), "student": names(BackboneSpec), "optim": names(OptimSpec)}
    nested |= {"crops": names(CropSpec), "split": names(SplitSpec), "loader": names(LoaderSpec)}
    for command in TRAINING:
        for option in options(daily_options(command)) - OF_A_RUN:
            section, name, *rest = option[2:].split(".")
            known = {
                "data": names(SpecimenDataModule),
                "trainer": names(Trainer),
                "model": names(TeacherModule) | names(DistillModule),
            }[section]
            assert name in known, option
            assert not rest or rest[0] in nested[name], option


def test_all_options_are_the_parsers_own_without_the_functions_docstring(capsys):
    assert main(["prepare", "--help", "all"]) == main(["paper", "--help", "all"]) == 0
    printed = capsys.readouterr().out
    assert "--crops.sr_wdn_weights" in printed and "--grid.sweep" in printed
    assert "Raises:" not in printed and "`" not in printed


@pytest.mark.parametrize("command", ["fit", "explain", "classify", "prepare"])
def test_all_options_are_told_without_the_marks_of_docstrings(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Only an option with its choices, which nobody can break, is longer.
    assert all(line.lstrip().startswith("[--") for line in lines if len(line) > 80)
    printed = " ".join(" ".join(lines).split())
    assert not re.findall(r"`|(?<=\s):[a-z]+:(?=\S)|(?<!\.)\.\. \w+:|\w::(?=\s)|Args:|Raises:|Returns:", printed)
    if command == "fit":
        assert "Warning: In a distributed environment" in printed and "Trainer.logger, :" not in printed


def test_the_page_of_all_options_is_made_once_for_a_width_and_set_of_packages(tmp_path, monkeypatch, capsys):
    made = []

    def page(*words):
        assert main(["doctor", *words]) == 0
        return capsys.readouterr().out

    def runs_the_parser(*words):
        made.append(words)
        return run_tool(*words)

    run_tool = cli._run_tool
    monkeypatch.setattr(cli, "_run_tool", runs_the_parser)
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    first = page("--help", "all")
    assert "usage: kd-convnext doctor" in first and len(made) == 1
    assert page("--help=all") == page("--quiet", "-h", "all") == first and len(made) == 1
    monkeypatch.setenv("COLUMNS", "60")
    assert page("--help", "all") != first and len(made) == 2
    (kept,) = (tmp_path / "help").iterdir()
    kept.write_bytes(b"\xff\n")
    monkeypatch.setenv("COLUMNS", "80")
    assert page("--help", "all") == first and len(made) == 3
    (tmp_path / "new" / "lightning-99.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "new")
    assert page("--help", "all") == first and len(made) == 4
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(kept))  # a file: nothing can be kept there
    assert page("--help", "all") == first and len(made) == 5


def test_switches_need_no_value_and_the_manifest_no_name(tiny_manifest, tiny_cache, capsys):
    words = ["prepare", str(tiny_manifest), "--dry_run", "--upscaler=bicubic", "--crops.store_size=40"]
    assert main([*words, f"--cache_dir={tiny_cache}"]) == 0
    assert "60" in capsys.readouterr().out
    parameters = inspect.signature(tool_of("prepare")).parameters
    assert flags_set(["--dry_run", "false", "--yes", "--preview", "3", "--download"], parameters) == [
        *("--dry_run", "false", "--yes=true", "--preview", "3", "--download=true")
    ]
