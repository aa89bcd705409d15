"""Exports a checkpoint to ONNX, OpenVINO or torch and compares the outputs: the command ``export``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_convnext.common.console import tell
from kd_convnext.common.counting import counted
from kd_convnext.common.files import move_in, sha256_of, staged
from kd_convnext.errors import ConfigError, ExportError, Finding

if TYPE_CHECKING:
    from kd_convnext.inference.exporting.comparison import Compared
    from kd_convnext.inference.exporting.deployed import Words
    from kd_convnext.inference.exporting.samples import ExportSamples
    from kd_convnext.inference.predictor import Predictor

LARGEST_DIFFERENCE = 1e-4
"""Between the probabilities of a float32 export and those of the checkpoint, on any photograph."""

LARGEST_GATE_DIFFERENCE = 1e-3
"""Between their gate scores, where 1 is what passes; above that, as a share of the score."""


def export(
    ckpt_path: str,
    out: str,
    format: Literal["onnx", "openvino", "torch"] = "onnx",
    int8: bool = False,
    pixels: Literal["uint8", "float32"] = "uint8",
    manifest: str | None = None,
    columns: str | None = None,
    cache_dir: str | None = None,
    sr_weights: str | None = None,
    calibration: str = "auto",
    tta: bool | None = None,
    samples: int = 64,
    overwrite: bool = False,
) -> Path:
    """Writes the network of a checkpoint as a file that answers without this package.

    Normalisation, temperature, mirror images and, of a calibrated checkpoint, the gate are inside; crops, class names,
    thresholds and the rule for abstaining are described in the file and in a JSON beside it. No format holds a pickle.
    The file is loaded again and must give the checkpoint's probabilities within 1e-4, its gate scores within 1e-3 and
    always its class, for one photograph and for several at once; else nothing is left.

    Args:
        ckpt_path: The checkpoint: a teacher, a baseline or a distilled student.
        out: Folder of model.onnx, model.xml and .bin, or model.pt2, and of model.json; beside model.onnx crop.onnx from
            whole photographs to its input, and before that, where a network enlarges the crops, enlarge.onnx.
        format: For ONNX Runtime, OpenVINO or torch.export.load.
        int8: Whole-number products where they pay, and what they cost; not for torch.
        pixels: Type of the input; uint8 0..255 or float32 0..1.
        manifest: Photographs to compare on, with labels for the accuracy of int8; by default the run's own, else drawn.
        columns: Other names of the manifest's columns: image=file,label=diagnosis; by default as the run's config.yaml
            says.
        cache_dir: Crop cache; by default as the run's config.yaml says.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        calibration: auto takes calibration.json beside the checkpoint; none leaves it; else a file.
        tta: Average over the mirror images of each photograph; by default as calibrated.
        samples: Photographs to compare on, at most.
        overwrite: Write into a folder that is not empty.

    Returns:
        The file to load.

    Raises:
        ExportError: The file does not answer as the checkpoint does.
        KDConvNeXtError: The checkpoint, the photographs, a package or an option cannot be used.
    """
    from kd_convnext.inference.exporting.crop import ENLARGE, FILE, why_no_crop, write_crop
    from kd_convnext.inference.exporting.deployed import words_of
    from kd_convnext.inference.exporting.formats import FILES, check_packages
    from kd_convnext.inference.exporting.samples import samples_of
    from kd_convnext.inference.predictor import Predictor
    from kd_convnext.runs.folder import require_empty

    folder = Path(out).expanduser()
    wish = _Wish(format, int8, pixels)
    _check(wish, samples)
    check_packages(format)
    require_empty(folder, permitted=overwrite, option="--overwrite true")
    predictor = Predictor.from_checkpoint(ckpt_path, sr_weights=sr_weights, calibration=calibration, tta=tta)
    shown = samples_of(predictor, ckpt_path, manifest, columns, cache_dir, samples)
    precision = "int8" if int8 else "float32"
    words = words_of(predictor.network, predictor.calibration, tta=predictor.tta, pixels=pixels, precision=precision)
    with staged(folder) as place:
        found = _write(predictor, place, wish, words, shown)
        made = [place / f"model{ending}" for ending in FILES[format]]
        lacking = why_no_crop(predictor)
        if format == "onnx":
            made += write_crop(predictor, pixels, place) if lacking is None else []
        _describe(place / "model.json", words, made, found, shown)
        # Crops of an earlier export: the example would use them.
        stale = {FILE, ENLARGE} - {file.name for file in made} if format == "onnx" else set()
        kept = move_in([*made, place / "model.json"], folder, made[0].name, stale)
    _report(kept, found, shown)
    if format == "onnx" and lacking is not None:
        tell(
            f"There is no crop.onnx: {lacking}. Without it docs/examples/onnx_only.py cannot run; crops come from "
            "kd_convnext.inference.predictor.Predictor, which makes them as in training."
        )
    return kept[0]


@dataclass(frozen=True)
class _Wish:
    """The options of an export."""

    format: Literal["onnx", "openvino", "torch"]
    int8: bool
    pixels: Literal["uint8", "float32"]


def _check(wish: _Wish, samples: int) -> None:
    findings = []
    if wish.int8 and wish.format == "torch":
        findings.append(Finding("--int8", "there is no int8 form for torch", "Choose --format onnx or openvino."))
    if samples < 1:
        findings.append(Finding("--samples", counted(samples, "photograph"), "Compare on one at least."))
    if findings:
        raise ConfigError(findings)


def _write(predictor: "Predictor", place: Path, wish: _Wish, words: "Words", shown: "ExportSamples") -> "Compared":
    """Writes ``model.*`` and compares it; of int8 the float32 form is compared first, and must be near."""
    from kd_convnext.inference.exporting import formats
    from kd_convnext.inference.exporting.comparison import as_input, compare
    from kd_convnext.inference.exporting.convnext_blocks import with_pixel_convolutions
    from kd_convnext.inference.exporting.deployed import Deployed
    from kd_convnext.inference.exporting.int8 import write_dynamic, write_static

    backbone = predictor.network.backbone
    if wish.format == "onnx" and not wish.int8:
        backbone = with_pixel_convolutions(backbone)
    program = formats.traced(Deployed(backbone, predictor.calibration, predictor.tta), wish.pixels)
    exact, whole = place / "float32.onnx", place / "int8.onnx"

    def compared(path: Path) -> "Compared":
        return compare(formats.load(path), predictor, shown, wish.pixels)

    if wish.format == "torch":
        formats.write_torch(program, words, place / "model.pt2")
        return _near(compared(place / "model.pt2"))
    formats.write_onnx(program, exact)
    if wish.int8:
        _near(compared(exact))
        if wish.format == "onnx":
            write_dynamic(exact, whole)
        else:
            write_static(exact, whole, as_input(shown.learned, wish.pixels))
    source = whole if wish.int8 else exact
    if wish.format == "onnx":
        target = source.replace(place / "model.onnx")
        formats.describe_onnx(target, words)
    else:
        target = place / "model.xml"
        formats.write_openvino(source, words, target)
    found = compared(target)
    return found if wish.int8 else _near(found)


def _near(found: "Compared") -> "Compared":
    """Refuses outputs that differ from the checkpoint's."""
    gate = found.gate_difference or 0.0
    if found.largest_difference < LARGEST_DIFFERENCE and gate < LARGEST_GATE_DIFFERENCE and found.agreement == 1:
        return found
    what = (
        f"the file's probabilities are up to {found.largest_difference:.2g} from the checkpoint's, "
        f"its gate scores up to {gate:.2g}, the class is the same in {found.agreement:.1%} of {found.photographs} "
        "photographs"
    )
    raise ExportError(Finding("--format", what, "Nothing was written. Choose another --format, and report this."))


def _describe(path: Path, words: "Words", files: list[Path], found: "Compared", shown: "ExportSamples") -> None:
    """Writes the JSON beside the file: its metadata, its hash, and the result of the comparison."""
    facts = {
        "files": {file.name: sha256_of(file) for file in files},
        "compared": {"photographs": shown.source, **asdict(found)},
    }
    path.write_text(json.dumps({**words.content, **facts}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _report(files: list[Path], found: "Compared", shown: "ExportSamples") -> None:
    from kd_convnext.evaluation.proportions import digits

    size = sum(file.stat().st_size for file in files) / 1e6
    percent, places = digits(found.photographs) - 2, digits(found.labelled)
    tell(f"Wrote {files[0]}, {', '.join(file.name for file in files[1:])} ({size:.1f} MB)")
    tell(
        f"Compared with the checkpoint on {shown.source}: largest difference of a probability "
        f"{found.largest_difference:.2g}, same class in {found.agreement:.{percent}%}"
    )
    if found.gate_difference is not None:
        same = f"same decision in {found.decisions:.{percent}%}"
        tell(f"Largest difference of a gate score {found.gate_difference:.2g}, {same}")
    if found.labelled:
        pairs = ((found.accuracy, found.accuracy_checkpoint), (found.f1_macro, found.f1_macro_checkpoint))
        (accuracy, f1) = (f"{own:.{places}f} (checkpoint {before:.{places}f})" for own, before in pairs)
        tell(f"On {counted(found.labelled, 'labelled photograph')}: accuracy {accuracy}, macro F1 {f1}")
