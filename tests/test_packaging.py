"""The project as a package: locks, metadata, make targets, lazy import, nothing borrowed tracked."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers.wheel import built_wheel, tracked_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kd_convnext import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-realesrgan.lock")
PYTHONS = ("3.11", "3.12", "3.13")


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
    }


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """The entries of a lock: requirement and its hashes."""
    entries = []
    for entry in re.split(r"\n(?=\S)", (ROOT / name).read_text().strip()):
        requirement, *hashes = entry.replace("\\\n", "").split("--hash=")
        entries.append((Requirement(requirement.strip()), [value.strip() for value in hashes]))
    return entries


def versions(python: str) -> dict[str, str]:
    """Name to version of what the locks install on one Python; fails on two versions of one package."""
    found: dict[str, str] = {}
    for requirement, _ in (entry for name in LOCKS for entry in locked(name)):
        if requirement.marker is None or requirement.marker.evaluate(environment(python)):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is locked twice for Python {python}"
            (pin,) = requirement.specifier
            found[name] = pin.version
    return found


def direct_requirements() -> list[str]:
    """What pyproject and the build of basicsr ask for, all extras included."""
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    build = (ROOT / "scripts/build-requirements.in").read_text().splitlines()
    return [*PROJECT["dependencies"], *extras, *(line for line in build if line and not line.startswith("#"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_cover_every_dependency_with_a_version_that_fits(python: str) -> None:
    found = versions(python)
    for text in direct_requirements():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate(environment(python)):
            continue
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"{text} is in no lock for Python {python}"
        assert requirement.specifier.contains(version, prereleases=True), f"{text}, but {version} is locked"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_is_pinned_and_hashed_and_names_no_address(name: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|\s@\s", (ROOT / name).read_text())
    for requirement, hashes in locked(name):
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


def test_only_the_headless_opencv_is_locked() -> None:
    """Another OpenCV would overwrite its files, and cannot be imported where libGL.so.1 is lacking."""
    names = {canonicalize_name(requirement.name) for name in LOCKS for requirement, _ in locked(name)}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "timm", "lightning", "albumentations", "matplotlib", "wandb", "pandas")
    code = f"import sys, kd_convnext; print(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == __version__


def test_make_alone_prints_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("install", "demo", "test", "test-slow", "bench", "format", "lint", "clean"):
        assert re.search(rf"^  make {target} +\w", done.stdout, flags=re.MULTILINE), target


def find_python(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/find_python.sh with only `folder` on the PATH."""
    shell = shutil.which("bash")
    assert shell is not None
    return subprocess.run(
        [shell, str(ROOT / "scripts/find_python.sh")],
        env={"PATH": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def fake(folder: Path, name: str, text: str) -> None:
    """Puts a shell script of that name into `folder`."""
    (folder / name).write_text(f"#!{shutil.which('sh')}\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_python_name_with_nothing_behind_it_is_passed_over(tmp_path: Path) -> None:
    fake(tmp_path, "python3.12", "echo 'command not found' >&2; exit 127")
    fake(tmp_path, "python3.11", f'exec "{sys.executable}" "$@"')
    done = find_python(tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(sys.executable)


@pytest.mark.parametrize(
    ("code", "remedy"), [(127, "no working Python 3.11"), (3, "no working Python 3.11"), (4, "python3-venv")]
)
def test_without_a_usable_python_the_remedy_is_named(tmp_path: Path, code: int, remedy: str) -> None:
    fake(tmp_path, "python3", f"exit {code}")
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert remedy in done.stderr


def test_a_python_chosen_by_name_is_not_replaced_silently(tmp_path: Path) -> None:
    fake(tmp_path, "python3", f'exec "{sys.executable}" "$@"')
    done = find_python(tmp_path, PYTHON="python9")
    assert done.returncode == 1
    assert "PYTHON=python9" in done.stderr


def test_nothing_large_is_tracked() -> None:
    assert [path for path in tracked_files() if path.stat().st_size > 5_000_000] == []


@pytest.mark.realdata
def test_no_file_of_the_real_data_is_tracked(shared_dir: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    tracked: dict[int, list[Path]] = {}
    for path in filter(Path.is_file, tracked_files()):
        tracked.setdefault(path.stat().st_size, []).append(path)
    borrowed = [Path(folder, name) for folder, _, names in os.walk(shared_dir) for name in names]
    copies = [
        (str(mine.relative_to(ROOT)), str(theirs))
        for theirs in borrowed
        for mine in tracked.get(theirs.stat().st_size, [])
        if digest(mine) == digest(theirs)
    ]
    assert copies == []


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_nothing_else(tmp_path: Path) -> None:
    wheel = built_wheel(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"kd_convnext-{__version__}.dist-info/"
    assert all(name.startswith(("kd_convnext/", info)) for name in names)
    assert {"kd_convnext/py.typed", f"{info}licenses/LICENSE", f"{info}entry_points.txt"} <= names
    tracked = {path.relative_to(ROOT).as_posix() for path in tracked_files() if path.is_file()}
    assert {name for name in tracked if name.startswith("kd_convnext/")} <= names
    assert {f"kd_convnext/{name}" for name in tracked if name.startswith("configs/")} <= names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
