"""The README's ten minutes, word for word, with the program of the built wheel, in an environment of its own."""

import os
import re
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest
from helpers.paths import REPOSITORY
from helpers.wheel import built_wheel

from kd_convnext.data.drawn.specimens import draw_specimens

SECTION = re.compile(r"(?ms)^## Your own photographs, in ten minutes$(.*?)^## ")
BLOCK = re.compile(r"(?ms)^( *)```sh\n(.*?)^ *```")


def blocks():
    """The shell blocks of the section, without the list's indentation."""
    (section,) = SECTION.findall((REPOSITORY / "README.md").read_text("utf-8"))
    return [re.sub(rf"(?m)^{indent}", "", text) for indent, text in BLOCK.findall(section)]


def test_every_step_has_its_block():
    commands = re.findall(r"(?m)^kd-convnext (\w+)", "".join(blocks()))
    assert commands == ["init", "prepare", "prepare", "fit", "test", "report", "calibrate", "classify"]


def environment(folder: Path, wheel: Path) -> Path:
    """Makes a virtual environment with the wheel; packages it needs are read where this one has them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    target = Path(places["purelib"])
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (target / "packages.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_the_ten_minutes_work_word_for_word(tmp_path):
    bin_folder = environment(tmp_path / "env", built_wheel(tmp_path / "wheel"))
    here = tmp_path / "empty"
    lesions = dict.fromkeys(("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"), 10)
    manifest = draw_specimens(
        here / "photos", seed=1, lesions_per_class=lesions, photos_per_lesion=(1, 1), progress=False
    )
    table = pd.read_csv(manifest)
    for image in table["image"].head(2):
        new = here / "photos" / "new" / Path(image).name
        new.parent.mkdir(exist_ok=True)
        new.write_bytes((manifest.parent / image).read_bytes())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    settings = {
        **clean,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "KD_CONVNEXT_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = "set -e\n" + "\n".join(blocks())
    done = subprocess.run(["bash", "-c", script], cwd=here, env=settings, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = (here / "runs" / "first").iterdir()
    assert (run / "report.html").is_file() and (run / "teacher" / "checkpoints" / "best.ckpt").is_file()
    assert len(pd.read_csv(here / "answers" / "answers.csv")) == 2
    program = [str(bin_folder / "python"), "-c", "import kd_convnext; print(kd_convnext.__file__)"]
    # Not from the repository's folder, whose package would come first.
    found = subprocess.run(program, cwd=here, env=settings, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(tmp_path))
