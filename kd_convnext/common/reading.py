"""Reads and writes JSON, and reads YAML and tensors, of files that people edit and cut: bad ones are one error."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from kd_convnext.common.files import read_bytes
from kd_convnext.errors import ConfigError, Finding

_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)
"""What the parsers raise for text that is not theirs, beside their own errors."""

_MERGED = "tag:yaml.org,2002:merge"  # <<, which takes over another mapping
_LARGEST = 1_000_000  # values of a file, those of its aliases each time that one stands for them


class UnsoundYamlError(ValueError):
    """Reports YAML that a parser takes, but not for what its writer means: repeated names, endless aliases."""


def yaml_of(text: str | bytes) -> Any:
    """Parses YAML to plain values.

    Args:
        text: YAML, bytes in UTF-8 or with a byte order mark.

    Returns:
        Mappings, lists and plain values.

    Raises:
        UnsoundYamlError: A name stands twice in one mapping, or aliases hold themselves or too much.
        ValueError: It is no YAML, whatever the parser makes of it.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _count(node, (), {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnsoundYamlError:
        raise
    except (yaml.YAMLError, *_DAMAGE) as error:
        raise ValueError(f"is not YAML ({_line(error)})") from error


def _count(node: yaml.Node | None, above: tuple[yaml.Node, ...], known: dict[yaml.Node, int]) -> int:
    """Counts the values of a node, those of aliases each time, and refuses what is unsound in it."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node in above:
        raise UnsoundYamlError(f"holds itself by an alias ({_place(node)})")
    if node not in known:
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated([name for name, _ in node.value])
            inner = [one for pair in node.value for one in pair]
        known[node] = 1 + sum(_count(one, (*above, node), known) for one in inner)
        if known[node] > _LARGEST:
            raise UnsoundYamlError(f"holds more than {_LARGEST:,} values by its aliases ({_place(node)})")
    return known[node]


def _refuse_repeated(names: Sequence[yaml.Node]) -> None:
    """Refuses a name that stands twice in one mapping: the parser would drop all but the last."""
    first: dict[tuple[str, str], yaml.Node] = {}
    for name in names:
        if not isinstance(name, yaml.ScalarNode) or name.tag == _MERGED:
            continue
        before = first.setdefault((name.tag, name.value), name)
        if before is not name:
            raise UnsoundYamlError(f"names {name.value} twice in one place ({_place(before)} and {_place(name)})")


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def tensors_of(file: Path | BinaryIO) -> Any:
    """Loads what ``torch.save`` wrote: tensors and plain values, never objects.

    Args:
        file: A path, or the open file.

    Returns:
        The content, on the CPU.

    Raises:
        Exception: Of whatever type a file that is not torch's happens to end in.
    """
    import torch

    with warnings.catch_warnings():
        # Of a file of another kind torch asks its user to write to torch's makers.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


def json_of(text: str | bytes) -> Any:
    """Parses JSON to plain values.

    Args:
        text: JSON, bytes in UTF-8.

    Returns:
        Mappings, lists and plain values.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except _DAMAGE as error:
        raise ValueError(f"is not JSON ({_line(error)})") from error


def json_text(value: Any) -> str:
    """Writes plain values as JSON that every reader takes: what is no number (NaN, infinity) becomes null.

    Args:
        value: Mappings, lists, tuples and plain values.

    Returns:
        The text, indented, with a line break at its end.
    """
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON file that holds a table of names and values.

    Args:
        path: The file.
        remedy: What to do where it cannot be used.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    return _table(path, json_of, remedy)


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a YAML file that holds a table of names and values.

    Args:
        path: The file.
        remedy: What to do where it cannot be used.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    return _table(path, yaml_of, remedy)


def _table(path: Path, parse: Any, remedy: str) -> dict[str, Any]:
    try:
        found = parse(read_bytes(path))
    except OSError as error:
        raise ConfigError(Finding(str(path), f"cannot be read ({error.strerror or error})", remedy)) from error
    except ValueError as error:
        raise ConfigError(Finding(str(path), str(error), remedy)) from error
    if not isinstance(found, dict):
        what = f"holds no table of names and values, but {type(found).__name__}"
        raise ConfigError(Finding(str(path), what, remedy))
    return found


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]
