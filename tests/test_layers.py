"""The rooms of the package import only from rooms above them, and no circle of imports exists."""

import ast
from pathlib import Path

from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "kd_convnext"
ORDER = [
    *("_version", "errors", "common", "evaluation", "metrics", "losses"),
    *("data.manifest", "data.crops", "data.loading", "data.drawn"),
    *("models", "checkpoints", "runs", "modules", "inference", "training", "experiment", "page", "tools", "cli"),
]
"""Rooms in the order of the data's way; a later one may import an earlier one, never the reverse."""

STRANGERS = {("inference", "experiment"), ("experiment", "inference")}
"""Rooms that do not know each other."""


def modules(package: Path) -> dict[str, set[str]]:
    """Returns, for each module of a package, the package's modules that it imports, lazily or not."""
    root = package.name
    files = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        if name == root:
            continue  # its public names are loaded when they are asked for
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in names else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in names}
        found[name] -= {name, root}
    return found


def room(module: str) -> str:
    """Returns the room of a module: two words below ``data``, one elsewhere."""
    words = module.split(".")[1:]
    return ".".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]


def wrong_imports(found: dict[str, set[str]]) -> list[str]:
    """Lists imports against the order of the rooms."""
    wrong = []
    for name, imported in found.items():
        if name.count(".") == 0 or room(name) == "data":
            continue
        for other in imported:
            own, theirs = room(name), room(other)
            if own == theirs or theirs == "data":
                continue
            if ORDER.index(theirs) >= ORDER.index(own) or (own, theirs) in STRANGERS:
                wrong.append(f"{name} imports {other}")
    return wrong


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the names of one circle of a graph, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def walk(node: str) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if found := walk(other):
                return found
        path.pop()
        done.add(node)
        return []

    for start in sorted(graph):
        if found := walk(start):
            return found
    return []


def children(found: dict[str, set[str]], folder: str) -> dict[str, set[str]]:
    """Returns the graph between the files and folders directly inside a folder."""
    prefix, depth = folder + ".", folder.count(".") + 2
    graph: dict[str, set[str]] = {}
    for name, imported in found.items():
        if not name.startswith(prefix):
            continue
        own = ".".join(name.split(".")[:depth])
        inside = {".".join(other.split(".")[:depth]) for other in imported if other.startswith(prefix)}
        graph[own] = graph.get(own, set()) | (inside - {own})
    return graph


def test_no_room_imports_a_later_one():
    assert wrong_imports(modules(PACKAGE)) == []


def test_common_knows_only_errors():
    found = modules(PACKAGE)
    known = {room(other) for name in found if name.startswith("kd_convnext.common.") for other in found[name]}
    assert known <= {"common", "errors"}


def test_no_circle_in_the_whole_or_within_any_folder():
    imports = modules(PACKAGE)
    assert circle(imports) == []
    folders = {name.rpartition(".")[0] for name in imports if "." in name}
    assert [found for folder in sorted(folders) if (found := circle(children(imports, folder)))] == []


def test_every_room_is_in_the_order():
    rooms = {room(name) for name in modules(PACKAGE) if "." in name}
    assert rooms - {"data"} == set(ORDER)


def test_a_wrong_import_is_found(tmp_path):
    package = tmp_path / "kd_convnext"
    for path in ("__init__", "common/__init__", "common/files", "data/__init__", "data/crops/__init__", "data/crops/a"):
        file = package / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (package / "common/files.py").write_text("def f():\n    from kd_convnext.data.crops import a\n")
    (package / "data/crops/a.py").write_text("from kd_convnext.common.files import f\n")
    found = modules(package)
    assert wrong_imports(found) == ["kd_convnext.common.files imports kd_convnext.data.crops.a"]
    assert circle(found) == ["kd_convnext.common.files", "kd_convnext.data.crops.a"]
