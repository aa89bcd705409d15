"""What the gate of a calibrated network stops: its own photographs, altered ones, and foreign ones from folders."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn import __file__ as sklearn_file

from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.images import read_image
from kd_convnext.inference.calibrating.foreign import KINDS, Stopped, altered, count_stopped
from kd_convnext.inference.inputs import photographs_of
from kd_convnext.inference.prediction import Photograph
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import CalibrationData, own_data, source_of
from kd_convnext.runs.folder import run_of_checkpoint

CUTS = 6
"""Squares cut from each natural picture, besides all of it."""


def main() -> None:
    """Measures and prints a table."""
    options = _options()
    calibrations = [options.calibration, *options.against]
    predictors = [Predictor.from_checkpoint(options.ckpt_path, calibration=each, per_pass=16) for each in calibrations]
    run = run_of_checkpoint(options.ckpt_path)
    data = own_data(predictors[0], source_of(run, None, None, None), run)
    print(f"| photographs | number | {' | '.join(map(str, calibrations))} |")
    print(f"|---|---|{'---|' * len(calibrations)}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in [*_names(options), *KINDS, "drawn specimens", "natural pictures"]:
            found = [count_stopped(each, kind, _photographs(kind, data, options, Path(folder))) for each in predictors]
            print(_row(found), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt_path", required=True, help="of a calibrated network, in its run folder")
    parser.add_argument("--calibration", default="auto", help="its calibration.json, where it lies elsewhere")
    parser.add_argument("--against", nargs="*", default=[], help="further calibrations of it, one column each")
    parser.add_argument("--foreign", nargs="*", default=[], metavar="NAME=PATH", help="folders or manifests")
    parser.add_argument("--at_most", type=int, default=400, help="photographs of each")
    return parser.parse_args()


def _names(options: argparse.Namespace) -> list[str]:
    return ["its own test photographs", *(word.split("=", 1)[0] for word in options.foreign)]


def _photographs(kind: str, data: CalibrationData, options: argparse.Namespace, folder: Path) -> Iterator[Photograph]:
    rows = data.rows("test")
    if kind in KINDS:
        return altered(kind, data, rows)
    if kind == "its own test photographs":
        return (Photograph(data.manifest.image_path(row), data.manifest.box(row)) for row in rows.tolist())
    if kind == "natural pictures":
        return _natural()
    if kind == "drawn specimens":
        given = str(folder / "manifest.csv")
        if not Path(given).exists():
            grades = {"Grade 1": 20, "Grade 2": 20, "Grade 3": 20, "AIS": 20, "MIA": 20}
            given = str(draw_specimens(folder, seed=20, lesions_per_class=grades, progress=False))
    else:
        given = dict(word.split("=", 1) for word in options.foreign)[kind]
    listed, _ = photographs_of([given])
    chosen = np.random.default_rng(0).permutation(len(listed))[: options.at_most]
    return (listed[place] for place in np.sort(chosen).tolist())


def _natural() -> Iterator[Photograph]:
    """Yields the pictures that come with scikit-image and scikit-learn, whole and in parts."""
    from skimage import __file__ as skimage_file

    places = (Path(skimage_file).parent / "data", Path(sklearn_file).parent / "datasets" / "images")
    rng = np.random.default_rng(0)
    for path in sorted(file for place in places for file in place.iterdir() if file.suffix in (".png", ".jpg")):
        image = read_image(path)
        height, width = image.shape[:2]
        yield Photograph(image, None)
        for _ in range(CUTS):
            side = int(rng.uniform(0.3, 0.9) * min(height, width))
            x, y = (int(rng.integers(0, free - side + 1)) for free in (width, height))
            yield Photograph(image, Box(x, y, side, side))


def _row(found: list[Stopped]) -> str:
    shares = " | ".join(f"{100 * each.share:.1f} %" if each.photographs else "" for each in found)
    return f"| {found[0].kind} | {found[0].photographs} | {shares} |"


if __name__ == "__main__":
    main()
