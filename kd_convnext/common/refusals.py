"""Translates what a parser of options refuses into findings: the option, the value, and what is meant."""

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

from kd_convnext.common.nearest import did_you_mean
from kd_convnext.errors import Finding

_KINDS = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    **dict.fromkeys(("list", "tuple", "set", "Sequence", "Iterable"), "list"),
    **dict.fromkeys(("dict", "Mapping"), "mapping of names to values"),
}
"""Words for the types that options have."""

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted")
_ABSENT = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
_WORDS = re.compile(r"Literal\[(.*?)\]")
_SUBTYPE = re.compile(r"<class '([\w.]+)'>")
_NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val=")
_EXPECTED = re.compile(
    r"Expected a (?:typing\.)?(?:Literal\[(?P<names>.*?)\]|(?P<whole><class '(?:\w+\.)*(?P<kind>\w+)'>)"
    r"|(?P<plain>tuple|list|dict))(?: with (?P<count>\d+) elements)?(?:\. Got value: (?P<got>.+))?"
)
_GIVEN = re.compile(r"Given value: (.+)|Got value: (.+)")


def refusal(text: str) -> Finding | None:
    """Finds the option, its value and what it may be in what a parser says of a wrong value.

    Args:
        text: All of it, with its line breaks.

    Returns:
        The finding, whose remedy is empty or ends in a blank; None where the text is of another form.
    """
    keys = _KEY.findall(text)
    if missing := re.match(r"argument (--[\w.]+)\S*: expected (?:one|at least one) argument", text):
        return Finding(missing[1], "it has no value", f"Write it behind: {missing[1]} VALUE. ")
    if not keys:
        return None
    where = _option(keys)
    return _of_classes(text, where) or _of_kinds(text, where) or _of_files(text, where)


def _option(keys: Iterable[str]) -> str:
    """Joins the names of nested options, of which some are whole and some go on from the one before."""
    where = ""
    for key in keys:
        where = key if not where or key == where or key.startswith(f"{where}.") else f"{where}.{key}"
    return f"--{where}"


def _of_classes(text: str, where: str) -> Finding | None:
    if (unknown := _UNKNOWN.search(text)) and (kinds := _CLASS.findall(text[: unknown.start()])):
        kind = _loaded(kinds[-1])
        what = f"{kinds[-1].rpartition('.')[2]} has no such option"
        return Finding(f"{where}.{unknown[1]}", what, did_you_mean(unknown[1], _parameters(kind)))
    if absent := _ABSENT.search(text):
        module, name = absent.groups()
        held = vars(sys.modules[module]) if module in sys.modules else {}
        names = [*held.get("__all__", ()), *(one for one, value in held.items() if isinstance(value, type))]
        return Finding(where, f"there is no {module}.{name}", did_you_mean(name, names))
    if named := _NO_CLASS.search(text):
        subtypes = [_loaded(name) for name in _SUBTYPE.findall(text[: named.start()])]
        names = [kind.__name__ for found in subtypes if isinstance(found, type) for kind in _below(found)]
        words = [word.strip("'\"") for listed in _WORDS.findall(text) for word in listed.split(", ")]
        meant = did_you_mean(named[1].rpartition(".")[2], [*words, *names])
        if words:
            choices = f"Choose one of {', '.join(dict.fromkeys(words))}, or name a class by its path. "
            return Finding(where, f"there is no {named[1]!r}", meant or choices)
        remedy = meant or f"Name a class by its path, or give the options one by one: {where}.NAME=VALUE. "
        return Finding(where, f"{named[1]!r} is no class", remedy)
    if other := re.search(r"Not a valid subclass of (\w+)\. Got value: (.+)", text):
        return Finding(where, f"{other[2]!r} is no {other[1]}", "Name a class: class_path, and its init_args. ")
    return None


def _of_kinds(text: str, where: str) -> Finding | None:
    """Says of which kinds a value is none; where one within a list is wrong, of that."""
    expected = list(_EXPECTED.finditer(text))
    within = [one for one in expected if one["got"]]
    given = _GIVEN.search(text)
    if not expected or given is None:
        return None
    value = (within[0]["got"] if within else given[1] or given[2]).strip()
    expected = within[:1] or expected
    if nested := _NESTED.match(value):
        remedy = f"Name the class or the choice itself first, as {where}=NAME. "
        return Finding(f"{where}.{nested[1]}", f"{where} has no options of its own here", remedy)
    names = [name for one in expected if one["names"] for name in re.findall(r"'([^']*)'", one["names"])]
    kinds = [_KINDS.get(kind, kind) for one in expected if (kind := one["kind"] or one["plain"])]
    plain = list(dict.fromkeys(kind for kind in kinds if kind != "null" or (len(kinds) == 1 and not names)))
    shown = "null" if value == "None" and "null" not in kinds else repr(value)
    hint = _hint(value, plain, where, nullable="null" in kinds)
    if names:
        choices = [*names, *(["true", "false"] if "true or false" in plain else [])]
        others = [f"a {kind}" for kind in plain if kind != "true or false"]
        what = f"{shown} is none of {', '.join([*choices, *others])}"
        return Finding(where, what, did_you_mean(value, choices) + hint)
    if plain == ["true or false"]:
        return Finding(where, f"{shown} is none of true, false", hint)
    if not plain:
        return None
    if "whole number" in plain and "number" in plain:
        plain.remove("whole number")
    length = f" of {expected[0]['count']}" if expected[0]["count"] else ""
    return Finding(where, f"{shown} is no {' or '.join(plain)}{length}", hint)


def _hint(value: str, kinds: list[str], where: str, *, nullable: bool) -> str:
    """Says what is likely meant where a value is of another kind than it looks."""
    if "text" in kinds and re.fullmatch(r"-?[0-9.]+", value):
        return f'Text that looks like a number wants quotes: \'{where}=["0","1"]\' for a list, "0" in a file. '
    if where.endswith("image_size") and re.match(r"[\[(\d]", value):
        return "Images are square: give the side in pixels, such as 224. "
    if value == "None" and nullable:
        return f"Nothing is written null, not None: {where}=null. "
    if "list" in kinds and value[:1] not in "[(":
        return f"A list is written so: '{where}=[A,B]'. "
    if "mapping of names to values" in kinds:
        return f"It is written so: '{where}={{NAME: VALUE}}'. "
    return ""


def _of_files(text: str, where: str) -> Finding | None:
    if wrong := re.search(r"Unable to load config ['\"](.+)['\"]", text):
        what = f"{wrong[1]!r} is neither a file of options nor options"
        return Finding(where, what, f"Give them one by one: {where}.NAME=VALUE. ")
    return None


def _loaded(path: str) -> Any:
    """Finds a class that the parser has imported already; None where it has not."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _parameters(kind: Any) -> list[str]:
    """Lists the arguments of a class, with those that it hands on to its bases."""
    makers = [vars(one)["__init__"] for one in inspect.getmro(kind) if "__init__" in vars(one)] if kind else []
    found = [name for maker in makers for name in inspect.signature(maker).parameters]
    return [name for name in dict.fromkeys(found) if name not in ("self", "args", "kwargs", "options")]


def _below(kind: type[Any]) -> Iterable[type[Any]]:
    """Yields a class and all that are derived from it."""
    yield kind
    for one in kind.__subclasses__():
        yield from _below(one)
