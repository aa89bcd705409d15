"""Functions and files of the package stay small enough to be read at once."""

import ast

from helpers.paths import REPOSITORY

FUNCTION, FILE = 50, 400
"""Largest number of lines: of a function without its docstring, comments and blank lines; of a file with them."""


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Counts the lines of a function that hold code, its signature among them."""
    counted = set(range(function.lineno, (function.end_lineno or 0) + 1))
    if ast.get_docstring(function) is not None:
        counted -= set(range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1))
    return sum(lines[number - 1].strip()[:1] not in ("", "#") for number in counted)


def too_long(text: str) -> list[str]:
    """Lists the functions of a source text that are too long."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node.name for node in functions if code_lines(node, text.splitlines()) > FUNCTION]


def test_no_function_or_file_is_too_long():
    texts = {path: path.read_text("utf-8") for path in (REPOSITORY / "kd_convnext").rglob("*.py")}
    found = [f"{path}: {name}" for path, text in texts.items() for name in too_long(text)]
    assert found + [str(path) for path, text in texts.items() if text.count("\n") > FILE] == []


def test_a_function_of_one_line_more_is_found():
    body = ["    x = 1  # counted"] * (FUNCTION - 1)
    padding = ['    """Words.', "", '    More."""', "    # why", ""]
    assert too_long("\n".join(["def f():", *padding, *body])) == []
    assert too_long("\n".join(["def f():", *padding, *body, "    return x"])) == ["f"]
