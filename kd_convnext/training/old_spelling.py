"""Accepts configurations and options of fits from before the objective was built of terms."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kd_convnext.checkpoints.flat_arguments import EQ5, FLAT, TAPS, TERMS, modern_arguments, warn_of_flat
from kd_convnext.errors import ConfigError, Finding

_OBJECTIVE = "--model.objective"
_STARTS = ("--model.init_args.", "--model.")


@contextmanager
def modern_words(words: Sequence[str]) -> Iterator[list[str]]:
    """Rewrites flat options of `DistillModule` in a command line, and in the files it names; warns once.

    An option of the objective without its class means Eq. 5.

    Args:
        words: Subcommand and options.

    Yields:
        The words; files that had to be rewritten are copies, which exist inside the block.

    Raises:
        ConfigError: A file cannot be read, or mixes flat arguments with another objective.
    """
    with tempfile.TemporaryDirectory() as folder:
        old: list[str] = []
        known = _Known(Path(folder), old)
        found = list(known.rewritten(words))
        if old:
            warn_of_flat(list(dict.fromkeys(old)))
        yield found


class _Known:
    """Collects what a command line says of the model, word after word."""

    def __init__(self, folder: Path, old: list[str]) -> None:
        self.folder, self.old = folder, old
        self.objective = False
        # Its ``gamma`` is its own.
        self.teacher = False
        self.dropped: set[str] = set()

    def rewritten(self, words: Sequence[str]) -> Iterator[str]:
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            if name in ("--config", "-c"):
                yield f"--config={self._config(value if equals else next(rest, ''))}"
                continue
            if name == _OBJECTIVE or name in (f"{_OBJECTIVE}.class_path", f"{_STARTS[0]}objective"):
                self.objective = True
            start = next((start for start in _STARTS if name.startswith(start)), "")
            argument = name.removeprefix(start) if start else ""
            if name in ("--model", "--model.class_path"):
                value = value if equals else next(rest, "")
                self.teacher = value.endswith("TeacherModule")
                yield f"{name}={value}"
            elif argument in FLAT and not self.teacher:
                yield from self._flat(argument, value if equals else next(rest, ""))
            elif argument.startswith("objective.") and not self.objective:
                yield from self._eq5()
                yield word
            else:
                yield word

    def _eq5(self) -> Iterator[str]:
        if not self.objective:
            self.objective = True
            yield f"{_OBJECTIVE}={EQ5}"

    def _flat(self, name: str, value: str) -> Iterator[str]:
        self.old.append(name)
        if name in TAPS:
            yield f"--model.taps.{TAPS[name]}={value}"
            return
        yield from self._eq5()
        if name not in TERMS:
            yield f"{_OBJECTIVE}.{name}={value}"
            return
        self.dropped = self.dropped - {name} if yaml.safe_load(value) else self.dropped | {name}
        yield f"{_OBJECTIVE}.drop=[{','.join(term for term in TERMS if term in self.dropped)}]"

    def _config(self, file: str) -> str:
        """Returns the file, or a copy of the same name in the new spelling."""
        try:
            text = Path(file).read_text("utf-8")
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return file  # the parser says what is wrong with it
        arguments = _model_arguments(content)
        if arguments is None:
            return file
        self.teacher = str(content["model"].get("class_path", "")).endswith("TeacherModule") or "backbone" in arguments
        self.objective |= isinstance(arguments.get("objective"), Mapping)
        if not any(name in FLAT for name in arguments) or self.teacher:
            return file
        self.old += [name for name in arguments if name in FLAT]
        try:
            modern = modern_arguments(arguments)
        except ConfigError as error:
            raise ConfigError([Finding(f"--config {file}", f.what, f.remedy) for f in error.findings]) from error
        self.objective |= "objective" in modern
        objective = modern.get("objective")
        if isinstance(objective, Mapping):
            self.dropped = set(objective.get("init_args", {}).get("drop") or ())
        content["model"]["init_args"] = modern
        copy = self.folder / str(len(list(self.folder.iterdir()))) / Path(file).name
        copy.parent.mkdir()
        copy.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        return str(copy)


def _model_arguments(content: Any) -> dict[str, Any] | None:
    model = content.get("model") if isinstance(content, dict) else None
    arguments = model.get("init_args") if isinstance(model, dict) else None
    return arguments if isinstance(arguments, dict) else None
