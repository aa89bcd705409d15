"""The command line: ``kd-convnext COMMAND``.

Four commands train and judge by configuration (Lightning's command line); the others are tools that need only files,
each the Python function of the same name. This module and the tools' ``--help`` load no torch.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, get_origin

from kd_convnext._version import __version__
from kd_convnext.common.configs import require_files, with_shipped_files
from kd_convnext.common.help import all_options, daily_options, plain_formatter, wanted_help
from kd_convnext.common.nearest import did_you_mean
from kd_convnext.common.parsing import PARSER, exit_code, parsing
from kd_convnext.common.process import process_state_kept, stopping_cleanly
from kd_convnext.common.trust import guard_parsers, require_trusted_words, trusting
from kd_convnext.common.words import files_first, flags_set, refuse_empty, with_home
from kd_convnext.data.loading.flat_words import tool_words
from kd_convnext.errors import ConfigError, Finding

TRAINING = {
    "fit": "train a teacher, a baseline or a distilled student",
    "validate": "judge a checkpoint on the validation part",
    "test": "judge a checkpoint on the test part: metrics, predictions, figures",
    "predict": "answer for the data of a configuration with a checkpoint",
}
TOOLS = {
    "init": ("kd_convnext.tools.init:init", "a first config.yaml for this machine, and a manifest template"),
    "demo": ("kd_convnext.tools.demo:demo", "what distillation is for, on drawn specimens, on a CPU"),
    "paper": (
        "kd_convnext.tools.paper:paper",
        "the paper's experiment: all methods, five splits, tables, report",
    ),
    "compare": ("kd_convnext.tools.compare:compare", "tested runs side by side: tables, tests, figures, report"),
    "report": ("kd_convnext.tools.compare:report", "one tested run as a page that opens without network"),
    "prepare": ("kd_convnext.tools.prepare:prepare", "check a manifest; crop, super-resolve and store its ROIs"),
    "classify": ("kd_convnext.tools.classify:classify", "answers for new photographs, from a checkpoint alone"),
    "explain": ("kd_convnext.tools.explain:explain", "heat maps over photographs, and training cases like them"),
    "page": ("kd_convnext.tools.page:page", "a local page: mark regions, ask a checkpoint, read its run"),
    "calibrate": ("kd_convnext.tools.calibrate:calibrate", "temperature, prediction sets and gate of a checkpoint"),
    "export": (
        "kd_convnext.tools.export:export",
        "a checkpoint as an ONNX, OpenVINO or torch file, compared with it",
    ),
    "card": ("kd_convnext.tools.card:card", "a run's model card: data, results, calibration, limits"),
    "publish": ("kd_convnext.tools.publish:publish", "a checkpoint and its card for the Hugging Face hub"),
    "doctor": ("kd_convnext.tools.doctor:doctor", "what this machine, folder or run lacks, with the remedy"),
}
FIRST = {"init": "manifest", "prepare": "manifest", "paper": "manifest"}
"""The option of a tool whose name may be left out where its value is the first word."""

POSITIONAL = {"classify": "photos", "explain": "photos", "compare": "runs", "report": "run"}
"""The one parameter of a tool that is given without its name; a list takes one word or more."""

OWN_SIGNALS = ("demo", "paper", "page")
"""Tools in which fits or the server answer to SIGTERM themselves."""

EXAMPLES = """\
examples:
  kd-convnext demo
  kd-convnext init photos/manifest.csv
  kd-convnext prepare --manifest photos/manifest.csv --sr_weights general-x4v3 --download
  kd-convnext fit --config configs/teacher_swin_tiny.yaml --data.manifest photos/manifest.csv
  kd-convnext fit --config configs/kd_convnext_tiny.yaml --data.manifest photos/manifest.csv \\
      --model.teacher_ckpt runs/teacher_swin_tiny/TIME/checkpoints/best.ckpt
  kd-convnext test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  kd-convnext calibrate --ckpt_path RUN/checkpoints/best.ckpt
  kd-convnext classify photo.jpg --ckpt_path RUN/checkpoints/best.ckpt --out answers"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Its words, without the program's name; by default the process's.

    Returns:
        0 when done, 2 for bad input (named on stderr, no traceback), 130 when interrupted, 143 when told to stop.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with process_state_kept():
        # albumentations asks the network for newer versions when it is imported.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        return exit_code(lambda: _run_trusting(with_home(words)), words)


def _run_trusting(words: list[str]) -> int:
    with trusting(words) as rest:
        return _run(rest)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help(), flush=True)
        return 0
    command, *rest = words
    if command in (*TRAINING, *TOOLS) and (page := wanted_help(rest)):
        parsers_own = partial(_run_command, command, ["--help"])
        print(daily_options(command) if page == "daily" else all_options(command, parsers_own), flush=True)
        return 0
    return _run_command(command, rest)


def _run_command(command: str, rest: list[str]) -> int:
    refuse_empty(rest)
    require_files(rest)
    if command == "--version":
        print(f"kd-convnext {__version__}")
        return 0
    if command in TRAINING:
        with parsing(command):
            from kd_convnext.training.command import run_training
        return run_training([command, *rest])
    if command in TOOLS:
        rest = files_first(with_shipped_files(_named(command, rest)))
        require_trusted_words(rest, callables=False)
        with contextlib.nullcontext() if command in OWN_SIGNALS else stopping_cleanly():
            _run_tool(command, rest)
        return 0
    names = [*TRAINING, *TOOLS]
    remedy = did_you_mean(command, names).strip() or f"Commands: {', '.join(names)}."
    raise ConfigError(Finding("kd-convnext", f"there is no command {command!r}", remedy))


def _named(command: str, words: list[str]) -> list[str]:
    """Puts the name before a first word that has none: ``prepare photos.csv``."""
    return (
        [f"--{FIRST[command]}={words[0]}", *words[1:]] if command in FIRST and words and words[0][:1] != "-" else words
    )


def _run_tool(command: str, words: list[str]) -> None:
    import jsonargparse

    guard_parsers()
    module, function = TOOLS[command][0].split(":")
    tool: Callable[..., Any] = getattr(import_module(module), function)
    described = inspect.cleandoc(tool.__doc__ or "").split("\nArgs:")[0]
    shown: dict[str, Any] = {"formatter_class": plain_formatter(), "description": described}
    parser = jsonargparse.ArgumentParser(prog=f"kd-convnext {command}", **PARSER, **shown)
    parser.add_argument("--config", action="config", help="Options from a YAML file, also from a fit's.")
    named = POSITIONAL.get(command)
    parser.add_function_arguments(tool, as_positional=False, skip={named} if named else None)
    if named:
        many = get_origin(inspect.signature(tool).parameters[named].annotation) is list
        count: dict[str, Any] = {"nargs": "+"} if many else {}
        parser.add_argument(named, type=str, metavar=named.upper().removesuffix("S"), **count)
    parameters = inspect.signature(tool).parameters
    words = tool_words(flags_set(words, parameters), parameters, command)
    try:
        with parsing(command, parser._option_string_actions):
            options = parser.instantiate(parser.parse_args(words))
    except SystemExit as stop:
        if stop.code:
            raise
        return  # help, or the printed configuration
    options.pop("config", None)
    tool(**options.as_dict())


def _help() -> str:
    lines = [
        f"kd-convnext {__version__}: photographs of specimens to a small classifier, by knowledge distillation",
        "",
        "usage: kd-convnext COMMAND [OPTIONS]",
        "  kd-convnext COMMAND --help: its daily options; --help all: every one",
        "",
        "train and judge by configuration:",
        *(f"  {name:<10} {text}" for name, text in TRAINING.items()),
        "",
        "tools:",
        *(f"  {name:<10} {text}" for name, (_, text) in TOOLS.items()),
        "",
        EXAMPLES,
    ]
    return "\n".join(lines)


def console() -> None:
    """Runs the installed program ``kd-convnext`` and exits with its code."""
    sys.exit(main())


if __name__ == "__main__":
    console()
