"""Accepts configurations and options of fits from before objective and data had groups of options."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kd_convnext.checkpoints.flat_arguments import EQ5, FLAT, TAPS, TERMS, modern_arguments, warn_of_flat
from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import yaml_of
from kd_convnext.data.loading.flat_options import FLAT as FLAT_DATA
from kd_convnext.data.loading.flat_options import grouped
from kd_convnext.data.loading.flat_options import warn_of_flat as warn_of_flat_data
from kd_convnext.data.loading.flat_words import grouped_words, switched_on
from kd_convnext.errors import ConfigError, Finding

_OBJECTIVE = "--model.objective"
_STARTS = ("--model.init_args.", "--model.")


@contextmanager
def modern_words(words: Sequence[str]) -> Iterator[list[str]]:
    """Rewrites flat options of `DistillModule` and of the data, typed and in files; warns once of each.

    An option of the objective without its class means Eq. 5.

    Args:
        words: Subcommand and options.

    Yields:
        The words; files that had to be rewritten are copies, which exist inside the block.

    Raises:
        ConfigError: A file cannot be read, or mixes flat arguments with another objective.
    """
    with tempfile.TemporaryDirectory() as folder:
        known = _Known(Path(folder))
        words, typed = grouped_words(words, "--data.")
        found = list(known.rewritten(words))
        if known.old:
            warn_of_flat(list(dict.fromkeys(known.old)))
        if known.old_data or typed:
            warn_of_flat_data([*known.old_data, *typed])
        yield found


class _Known:
    """Collects what a command line says of the model, word after word, and rewrites its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old: list[str] = []
        self.old_data: list[str] = []
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
            if name == "--data":
                yield f"--data={self._section(value if equals else next(rest, ''))}"
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
        self.dropped = self.dropped - {name} if switched_on(value, f"--model.{name}") else self.dropped | {name}
        yield f"{_OBJECTIVE}.drop=[{','.join(term for term in TERMS if term in self.dropped)}]"

    def _config(self, file: str) -> str:
        """Returns the file, or a copy of the same name in the present spelling."""
        content = _content(file)
        changed = self._modern_model(file, content)
        data = content.get("data") if isinstance(content, dict) else None
        if isinstance(data, dict) and self._is_flat(data):
            content["data"] = grouped(data)
            changed = True
        return self._copy(file, content) if changed else file

    def _section(self, file: str) -> str:
        """Returns a file of the data's options, or a copy in the present spelling."""
        data = _content(file)
        return self._copy(file, grouped(data)) if isinstance(data, dict) and self._is_flat(data) else file

    def _is_flat(self, data: dict[str, Any]) -> bool:
        names = [name for name in data if name in FLAT_DATA]
        self.old_data += names
        return bool(names)

    def _modern_model(self, file: str, content: Any) -> bool:
        """Rewrites the model's arguments in place; returns whether it had to."""
        arguments = _model_arguments(content)
        if arguments is None:
            return False
        self.teacher = str(content["model"].get("class_path", "")).endswith("TeacherModule") or "backbone" in arguments
        self.objective |= isinstance(arguments.get("objective"), Mapping)
        if not any(name in FLAT for name in arguments) or self.teacher:
            return False
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
        return True

    def _copy(self, file: str, content: Any) -> str:
        copy = self.folder / str(len(list(self.folder.iterdir()))) / Path(file).name
        copy.parent.mkdir()
        copy.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        return str(copy)


def _content(file: str) -> Any:
    """Reads a file; of one that cannot be read the parser says what is wrong."""
    try:
        return yaml_of(read_bytes(file))
    except (OSError, ValueError):
        return None


def _model_arguments(content: Any) -> dict[str, Any] | None:
    model = content.get("model") if isinstance(content, dict) else None
    arguments = model.get("init_args") if isinstance(model, dict) else None
    return arguments if isinstance(arguments, dict) else None
