"""Answers for a folder of photographs with an exported network and nothing but onnxruntime, numpy and Pillow.

python onnx_only.py EXPORTED PHOTOGRAPHS > answers.csv

PHOTOGRAPHS is a folder or a file. The CSV is that of ``kd-convnext classify PHOTOGRAPHS``, for 8-bit colour
photographs without transparency, taken whole.
Threads do not spin: after one session's work they would turn on for a while, on cores that the other session needs.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(sys.argv[1])
if lacking := [name for name in ("model.onnx", "crop.onnx") if not (folder / name).is_file()]:
    sys.exit(f"{folder} has no {lacking[0]}; kd-convnext export --format onnx writes both, or says why it cannot")
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
# Where a network enlarges the crops, enlarge.onnx comes before.
steps = [path for name in ("enlarge", "crop", "model") if (path := folder / f"{name}.onnx").is_file()]
*cropping, network = (onnxruntime.InferenceSession(path, options) for path in steps)
said = {key.split(".")[1]: json.loads(text) for key, text in network.get_modelmeta().custom_metadata_map.items()}
names, model, reasons = said["class_names"], said["model"], said["abstain"]["reasons"]
thresholds, limits = (said[key] and said[key]["photograph"] for key in ("prediction_set", "gate"))


def judged(logits: np.ndarray, score: float = 0.0, distances: Sequence[float] = ()) -> tuple[list[str], list[str], str]:
    """Returns the prediction set, why to abstain, and the gate's score; of an uncalibrated network the reason alone."""
    if thresholds is None:
        return [], [reasons["always"]], ""
    strange = 1 - np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    held = [n for n, value in zip(names, strange, strict=True) if thresholds[n] is None or value <= thresholds[n]]
    why = [reasons[kind] for kind, far in zip(limits, distances, strict=True) if far > limits[kind]]
    sure, always = ([n for n in held if (thresholds[n] is None) is null] for null in (False, True))
    key = "several" if len(sure) > 1 else "few" if held else "none"
    why += [] if len(held) == len(sure) == 1 else [reasons[key].format(count=len(sure), classes=", ".join(always))]
    return held, why, f"{score:.8g}"


def inert(text: str) -> str:
    """Puts an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{text}" if text.lstrip("'")[:1] in tuple("=+-@\t\r") else text


given = Path(sys.argv[2])
if not (paths := [given] if given.is_file() else sorted(given.rglob("*.*"))):
    sys.exit(f"{given} holds no photographs")
rows = []
for path in paths:
    images = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    for step in cropping:
        (images,) = step.run(None, {"photograph": images})
    logits, found, *more = (values[0].astype(float) for values in network.run(None, {"images": images}))
    held, why, score = judged(logits, *more)
    row = {"image": inert(str(path))} | dict.fromkeys(("lesion_id", "x", "y", "width", "height"))
    row |= {"prediction": inert(names[found.argmax()]), "probability": f"{found.max():.8g}"}
    row |= {f"prob_{name}": f"{value:.8g}" for name, value in zip(names, found, strict=True)}
    row |= {"prediction_set": inert("|".join(held)), "abstain": bool(why), "reasons": "; ".join(why)}
    row |= {"gate_score": score, "model": model["name"]}
    rows.append(row | {name: model[name] for name in ("checkpoint_sha256", "kd_convnext")})
csv.DictWriter(sys.stdout, rows[0], lineterminator="\n").writerows([{name: name for name in rows[0]}, *rows])
