"""compare and report through the command line, and the page in a browser."""

import base64
import html
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.fake_cells import PAPER, answers, fake_cell, golden, grid, specimens
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.experiment.report import outputs
from kd_convnext.experiment.report.checklist import ITEMS
from kd_convnext.experiment.report.outputs import write_outputs

SECTIONS = ("question", "data", "methods", "results", "statistics", "limits", "repeat", "failed", "checklist")
EVIL = "<script>document.title='run'</script>"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def values(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


def run_folder(root, name, right, repeat=0, stamp="2026-01-02_03-04-05"):
    folder = root / "runs" / name / stamp
    fake_cell(folder, specimens(repeat, right), method=name, repeat=repeat, record=False)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two named runs on two splits each, compared."""
    root = tmp_path_factory.mktemp("compared")
    stamps = ("2026-01-02_03-04-05", "2026-01-02_03-04-06-2")
    runs = [
        run_folder(root, name, right, repeat, stamps[repeat])
        for name, right in (("alone", 0.6), ("distilled", 0.95))
        for repeat in range(2)
    ]
    words = ["compare", *map(str, runs), "--out", str(root / "out"), "--bootstrap", "300"]
    assert main(words) == 0
    return root / "out"


def test_runs_of_one_name_are_repeats_and_the_first_is_the_baseline(compared):
    table = pd.read_csv(compared / "results.csv")
    assert table[["method", "repeat", "family"]].values.tolist() == [
        ["alone", 0, "run"],
        ["alone", 1, "run"],
        ["distilled", 0, "run"],
        ["distilled", 1, "run"],
    ]
    text = (compared / "tables.md").read_text()
    assert "- distilled against alone: macro F1 better (+" in text
    assert "the paper's Table 2" not in text
    assert (compared / "figures" / "methods.pdf").is_file()


def test_the_page_has_every_section_and_asks_no_network(compared):
    page = Page(compared / "report.html")
    assert tuple(page.values("section", "id")) == SECTIONS
    assert {href[0] for href in page.values("a", "href")} == {"#"}
    sources = page.values("img", "src")
    assert len(sources) == 11
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert len(page.values("img", "alt")) == len(sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    text = re.sub(r'src="data:[^"]*"', "", (compared / "report.html").read_text())
    assert "http" not in text.replace("http-equiv", "")


def test_captions_of_the_page_are_not_drawn_once_more(compared):
    page = Page(compared / "report.html")
    for source, caption in zip(page.values("img", "src"), page.values("img", "alt"), strict=True):
        drawing = drawn_in(source)
        texts = [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", drawing, flags=re.DOTALL)]
        assert texts and not any(text.startswith(caption[:20]) for text in texts)
    # A picture that is taken out of its page still says what it shows.
    with Image.open(compared / "figures" / "methods.png") as file:
        width, height = map(
            float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn_in(page.values("img", "src")[0])).groups()
        )
        assert file.height / file.width > height / width


def drawn_in(source):
    return base64.b64decode(source.partition(",")[2]).decode()


def test_the_page_tells_data_methods_limits_and_how_to_repeat(compared):
    page = Page(compared / "report.html").text
    for words in (
        "Repeat 1: 0 lesions, 0 photographs in more than one part; patients are not named.",
        "Repeat 1, test Grade 1 4 (1) 1 (1) 24 (12) 4 (1) 1 (1) 24 (12)",
        "convnext_tiny timm's published weights 224 px bicubic, stretch focal, gamma 2.0 3 8 adamw, lr 0.001",
        "Divided 2 times: little is known of how results vary between divisions.",
        "kd-convnext compare",
        "CPU (1 thread), 32-true. Python 3.11.7 on Linux.",
        "No cell failed.",
        "of accuracy exact for as many trials as the lesions are worth (Korn & Graubard 1998); of means over the",
        "Intervals: of the pooled answers; exact for accuracy, shares and single classes",
        "to be filled in by the authors",
        "9. CLAIM 2024 and TRIPOD+AI",
        "20 12a, 16 Kept together",
        "checked in the split files: no named lesion or photograph file is in two parts",
        "For research. Not a medical device",
    ):
        assert words in page, words
    filled, lines = map(int, re.search(r"(\d+) of (\d+) lines are filled in from the files", page).groups())
    assert lines == len(ITEMS) and page.count("to be filled in by the authors") == lines - filled > 0


def test_every_item_of_both_checklists_has_its_line():
    claim = {number for item in ITEMS for number in _numbers(item.claim)}
    tripod = {number for item in ITEMS for number in _numbers(item.tripod)}
    assert claim == set(range(1, 45))
    assert tripod >= set(range(1, 28)) - {24}


def _numbers(text):
    found = set()
    for word in filter(None, text.split(", ")):
        first, _, last = word.partition("-")
        numbers = [int(re.match(r"\d+", part).group()) for part in (first, last or first)]
        found |= set(range(numbers[0], numbers[1] + 1))
    return found


def test_two_runs_of_one_name_on_one_split_stand_for_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outputs, "all_figures", lambda _: [])
    run_folder(Path(), "weaker", 0.3)
    for stamp, right in (("2026-01-02_03-04-05", 0.6), ("2026-01-02_03-04-06", 0.95)):
        run_folder(Path(), "same", right, stamp=stamp)
    runs = sorted(str(folder) for folder in Path("runs/same").iterdir())
    runs.append(str(next(Path("runs/weaker").iterdir())))
    words = ["compare", *runs, "--out", "out", "--bootstrap", "100"]
    assert main(words) == 0
    assert "## Confusion matrix: same, " in Path("out/tables.md").read_text()
    assert main([*words, "--overwrite", "--show", "weaker"]) == 0
    assert "## Confusion matrix: weaker" in Path("out/tables.md").read_text()
    # By as much of their paths as tells them apart.
    assert (
        "- same, 2026-01-02_03-04-06 against same, 2026-01-02_03-04-05: macro F1 better"
        in Path("out/tables.md").read_text()
    )


def test_compare_names_every_folder_that_is_no_tested_run(tmp_path, capsys):
    (tmp_path / "untested" / "checkpoints").mkdir(parents=True)
    (tmp_path / "grid" / "cells").mkdir(parents=True)
    words = [str(tmp_path / name) for name in ("untested", "grid", "absent")]
    assert main(["compare", *words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "3 problems found" in told
    assert "kd-convnext test --config" in told
    assert "--collect true" in told
    assert "there is no such folder" in told
    assert not (tmp_path / "out").exists()


def test_compare_refuses_what_it_cannot_do(tmp_path, capsys):
    run = str(run_folder(tmp_path, "alone", 0.6))
    out = tmp_path / "out"
    assert main(["compare", run, "--out", str(out), "--baseline", "nobody"]) == 2
    assert "no run is called nobody. The runs are alone." in capsys.readouterr().err
    assert main(["compare", run, "--out", str(out), "--show", "nobody"]) == 2
    assert "--show: no run is called nobody" in capsys.readouterr().err
    out.mkdir()
    (out / "notes.txt").touch()
    assert main(["compare", run, "--out", str(out)]) == 2
    assert "--overwrite true" in capsys.readouterr().err
    assert main(["compare", "--out", str(out)]) == 2
    assert "See kd-convnext compare --help." in capsys.readouterr().err


def test_report_of_one_run_lies_in_its_folder(tmp_path, capsys):
    run = tmp_path / "mine"
    fake_cell(run, golden(), record=False)
    before = {path for path in run.rglob("*") if path.is_file()}
    assert main(["report", str(run), "--bootstrap", "100"]) == 0
    assert {path for path in run.rglob("*") if path.is_file()} - before == {run / "report.html"}
    assert str(run / "report.html") in capsys.readouterr().out
    page = Page(run / "report.html").text
    assert "How well does this network answer" in page
    assert "85.6 79.9 74.6 0.772 0.751" in page
    assert "Nothing is compared here" in page
    assert "Photographs that do not name their lesion: 209." in page
    # What repeats it is the fit, its test, and then this report.
    again = f"{run}-again"
    assert f"kd-convnext fit --config {run}/config.yaml --trainer.default_root_dir {again}" in page
    assert f"kd-convnext test --config {again}/config.yaml --ckpt_path {again}/checkpoints/best.ckpt" in page
    assert f"kd-convnext report {again} --seed 0 --bootstrap 100" in page
    assert main(["report", str(run), "--out", str(tmp_path / "else"), "--bootstrap", "100"]) == 0
    assert (tmp_path / "else" / "report.html").is_file()


def test_the_page_says_by_what_the_epoch_was_chosen(tmp_path):
    for name, monitor in (("usual", None), ("loss", "val/loss")):
        cell = fake_cell(tmp_path / name, golden(), record=False)
        config = yaml.safe_load((cell.folder / "config.yaml").read_text())
        if monitor:
            config["checkpoint"] = {"monitor": monitor}
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["report", str(tmp_path / name), "--bootstrap", "100"]) == 0
        page = Page(tmp_path / name / "report.html").text
        assert f"best {monitor or 'macro F1 on validation'}" in page
        assert ("best macro F1 on validation" in page) is ("chooses the checkpoint" in page) is (monitor is None)


def test_report_of_a_broken_run_says_why(tmp_path, capsys):
    run = tmp_path / "mine"
    fake_cell(run, golden(), record=False)
    (run / "predictions.csv").write_text("image\n")
    assert main(["report", str(run)]) == 2
    assert "lacks the columns" in capsys.readouterr().err


def test_help_of_both_loads_no_torch(tmp_path):
    code = (
        "import sys; from kd_convnext.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'timm', 'lightning', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    for tool, usage in (("compare", "RUN [RUN ...]"), ("report", "RUN")):
        done = subprocess.run([sys.executable, "-c", code, tool], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert usage in done.stdout


@pytest.fixture(scope="module")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium: apt-get install chromium")
    pytest.skip("no Chromium")


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory):
    """An experiment with a failed cell, whose classes try to be markup."""
    out = tmp_path_factory.mktemp("odd")
    names = (*PAPER[:3], EVIL)
    cells = grid(out, {"convnext": 0.6, "swin": 0.7, "kd_both": 0.95, "coatnet": 0.6}, names=names)
    frame = answers([EVIL] * 4, [EVIL] * 4, names)
    cells.append(fake_cell(out / "failed", frame, names=names, status="failed", error=EVIL))
    write_outputs(out, cells, bootstrap=300, title=f"Trial {EVIL}", command="kd-convnext paper")
    return out / "report.html"


def browse(chromium, folder, *words):
    """What the browser prints; it finds no host, not even for itself."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    common += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([chromium, *common, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen_by_browser(chromium, folder, text):
    """What a browser makes of a page: a probe writes it into an attribute of the body."""
    probe = (
        "<script>addEventListener('load', () => { document.body.dataset.seen = JSON.stringify({"
        "pictures: [...document.images].map(i => i.complete && i.naturalWidth > 50),"
        "requests: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),"
        "scripts: document.scripts.length, title: document.title})})</script>"
    )
    # Without its policy, so that what it would have forbidden is seen.
    text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    page = folder / "probed.html"
    page.write_text(text.replace("</body>", f"{probe}</body>"))
    found = re.search(r'data-seen="([^"]*)"', browse(chromium, folder, "--dump-dom", page.as_uri()))
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.slow
def test_a_browser_shows_every_picture_and_asks_no_network(chromium, odd_page, tmp_path):
    seen = seen_by_browser(chromium, tmp_path, odd_page.read_text())
    assert seen == {"pictures": [True] * 12, "requests": [], "scripts": 1, "title": f"Trial {EVIL}"}


@pytest.mark.slow
def test_a_browser_would_tell_a_request_and_a_broken_picture(chromium, odd_page, tmp_path):
    spoiled = odd_page.read_text().replace("</body>", '<img src="http://pictures.invalid/a.png"></body>')
    seen = seen_by_browser(chromium, tmp_path, spoiled)
    assert seen["pictures"] == [*[True] * 12, False]
    assert seen["requests"] == ["http://pictures.invalid/a.png"]


@pytest.mark.slow
def test_the_screenshot_is_a_page_and_print_has_no_lost_text(chromium, odd_page, tmp_path):
    shot, printed = tmp_path / "shot.png", tmp_path / "page.pdf"
    browse(chromium, tmp_path, f"--screenshot={shot}", "--window-size=1300,6000", odd_page.as_uri())
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (6000, 1300)
    # Text and pictures down to the end of the window, on white.
    assert all((band < 128).any() for band in np.array_split(pixels, 20))
    assert (pixels > 250).mean() > 0.6
    browse(chromium, tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer", odd_page.as_uri())
    assert printed.read_bytes().startswith(b"%PDF-")
    assert 4 < len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) < 40


@pytest.mark.slow
def test_the_page_is_never_wider_than_its_window(chromium, odd_page, tmp_path):
    from playwright.sync_api import sync_playwright

    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(odd_page.read_text().replace("<nav>", '<div style="width: 2000px">wide</div><nav>'))
    wider = "document.scrollingElement.scrollWidth - innerWidth"
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which(chromium), args=["--no-sandbox"])
        for width in (480, 900, 1400):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(odd_page.as_uri())
            assert page.evaluate(wider) <= 0, width
            # Where a table is wider than its place, it is moved by itself.
            assert page.locator(".wide table").count() > 5
            page.goto(spoiled.as_uri())
            assert page.evaluate(wider) > 500, width
            page.close()
        browser.close()
