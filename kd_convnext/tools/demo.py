"""Shows on drawn specimens what distillation is for, from photographs to a table: the command ``demo``.

A ConvNeXt from scratch learns from few labelled lesions: alone, by the paper's method, and by a recipe that also uses
photographs without labels. The teacher of both is a Swin that has seen many other lesions. The task is drawn, the
training is real: nothing in the printed table is known beforehand.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kd_convnext.common.files import write_text
from kd_convnext.common.parsing import require_at_least
from kd_convnext.common.process import quiet_libraries, stopping_cleanly
from kd_convnext.common.reading import read_yaml
from kd_convnext.common.words import command_line
from kd_convnext.errors import ConfigError, Finding, Terminated
from kd_convnext.runs.folder import RunFolder, require_empty
from kd_convnext.tools.demo_fits import METHODS, DemoFits, DemoSettings, Method, described
from kd_convnext.tools.demo_sets import DrawnSets, draw_sets, labelled_counts

if TYPE_CHECKING:
    from kd_convnext.tools.demo_table import DemoTable


def demo(
    out: str = "runs/demo",
    seed: int = 0,
    overwrite: bool = False,
    lesions: list[int] | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    resume: bool = False,
) -> Path:
    """Draws specimens, then runs everything: crops, cache, teacher, students alone and distilled, test, table.

    Args:
        out: Folder of the run.
        seed: Decides the specimens.
        overwrite: Write into a folder that is not empty.
        lesions: Labelled training lesions of each of the five classes, for a smaller or larger task; at least three
            each. The other sets grow with them.
        epochs: Epochs of every student, where fewer are wanted.
        seeds: Fits of each student, from different start weights; all are judged by the same lesions.
        resume: Go on with an interrupted demo: networks that were tested are kept, the others are fitted anew.

    Returns:
        The folder: ``results.csv``, ``comparisons.csv``, ``figures/``, and one run folder for each network.

    Raises:
        KDConvNeXtError: The folder is not empty, holds another demo, or cannot be written.
    """
    start = time.perf_counter()
    folder, counts = RunFolder(Path(out)), labelled_counts(lesions)
    require_at_least(seeds=(seeds, 1), seed=(seed, 0), epochs=(epochs, 1))
    settings = DemoSettings()
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    config = described(settings, seed=seed, seeds=seeds, lesions=counts)
    sets = _begin(folder, config, overwrite=overwrite, resume=resume)
    print(f"{sum(counts.values())} labelled lesions of five classes to train on (1 to {_imbalance(counts)}), in {out}")
    if not resume or not sets.unlabelled.is_file():
        with stopping_cleanly():  # fits answer to SIGTERM themselves
            sets = draw_sets(folder.path / "specimens", counts, seed)
    quiet_libraries()
    fits = DemoFits(folder.path, sets, settings)
    with _stopped_in_words(folder):
        for number in range(seeds):
            _fit_all(fits, number, resume=resume)
    with stopping_cleanly():
        table = _summarise(fits, seeds)
    table.show()
    _say_next(fits, out, start)
    return folder.path


def _begin(folder: RunFolder, config: dict[str, object], *, overwrite: bool, resume: bool) -> DrawnSets:
    require_empty(folder.path, permitted=overwrite or resume, option="--overwrite true, or --resume true,")
    remedy = "Give the same options as then, or name another folder."
    if resume and folder.config.is_file() and read_yaml(folder.config, remedy) != config:
        raise ConfigError(Finding(str(folder.path), "it holds a demo of other settings", remedy))
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, yaml.safe_dump(config, sort_keys=False))
    return DrawnSets.below(folder.path / "specimens")


def _fit_all(fits: DemoFits, seed: int, *, resume: bool) -> None:
    for method, name in METHODS.items():
        if method == "teacher" and seed:
            continue
        if resume and fits.done(method, seed):
            print(f"{name}, seed {seed}: tested before")
            continue
        print(f"\n{name}" + ("" if method == "teacher" else f", seed {seed}"))
        fits.train(method, seed)


@contextlib.contextmanager
def _stopped_in_words(folder: RunFolder) -> Iterator[None]:
    """Says how a demo goes on that a signal has ended: Lightning ends the process as if all was done."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    def finding(how: str) -> Finding:
        remedy = "Networks that were tested stay: give the command again with --resume true."
        return Finding(str(folder.path), f"the demo {how} before it had ended", remedy)

    try:
        yield
    except SIGTERMException:  # a SystemExit without a code
        raise Terminated(finding("was told to stop (SIGTERM)")) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(str(finding("was interrupted"))) from None
        raise


def _summarise(fits: DemoFits, seeds: int) -> "DemoTable":
    from kd_convnext.tools.demo_table import DemoTable, draw_figures

    answers: dict[Method, list[Path]] = {
        method: [fits.tested(method, number).predictions for number in range(seeds)] for method in METHODS
    }
    table = DemoTable(answers)
    table.write(fits.folder)
    draw_figures(fits)
    return table


def _say_next(fits: DemoFits, out: str, start: float) -> None:
    best = fits.run_of("best", 0)
    photograph = next(iter(sorted((fits.sets.labelled.parent / "images").iterdir())))
    answers = str(fits.folder / "answers")
    print(f"Run folder: {out} (results.csv, comparisons.csv, figures/, one folder per network), {_minutes(start)}")
    print("Next:")
    for words in (
        ["report", str(best.path)],
        ["classify", str(photograph), "--ckpt_path", str(best.best), "--out", answers],
        ["explain", str(photograph), "--ckpt_path", str(best.best), "--out", f"{answers}-explained"],
    ):
        print(f"  {command_line(words)}")


def _imbalance(counts: dict[str, int]) -> str:
    return f"{max(counts.values()) / min(counts.values()):.3g}"


def _minutes(start: float) -> str:
    seconds, used = time.perf_counter() - start, time.process_time() / 60
    return f"{math.floor(seconds / 60)} min {seconds % 60:.0f} s, {used:.1f} core-minutes"
