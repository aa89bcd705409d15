"""Answers for photographs with an exported network and nothing but onnxruntime, numpy and Pillow.

python onnx_only.py model.onnx photo.jpg ... > answers.csv

The CSV has the columns of ``kd-convnext classify`` that need no gate; prediction sets are those of single photographs.
For checkpoints with the upscaler ``bicubic`` or ``none`` and ``resize: stretch``; whole photographs, in colour.
"""

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def weights(old: int, new: int) -> np.ndarray:
    """How much each old pixel gives to each new one: by area when shrinking, cubic (a = -0.75) when growing."""
    if new <= old:
        edges, pixels = np.arange(new + 1)[:, None] * old / new, np.arange(old)
        return (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(0) * new / old
    centres, found = (np.arange(new) + 0.5) * old / new - 0.5, np.zeros((new, old))
    for pixel in np.floor(centres)[None] + np.arange(-1, 3)[:, None]:
        d = np.abs(centres - pixel)
        w = np.where(d <= 1, (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3)
        np.add.at(found, (np.arange(new), pixel.astype(int).clip(0, old - 1)), w)
    return found


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """First shrinks, then grows, each rounded to whole levels."""
    for h, w in ((min(image.shape[0], height), min(image.shape[1], width)), (height, width)):
        if (h, w) != image.shape[:2]:
            down, across = weights(image.shape[0], h), weights(image.shape[1], w)
            exact = np.einsum(
                "hv,vwc->hwc", down, np.einsum("wv,hvc->hwc", across, image, optimize=True), optimize=True
            )
            halves = image.shape[:2] == (2 * h, 2 * w)  # OpenCV rounds 0.5 up there, to even elsewhere
            image = (np.floor(exact + 0.5) if halves else np.rint(exact.astype(np.float32))).clip(0, 255)
    return image


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
props = session.get_modelmeta().custom_metadata_map
said = {name.removeprefix("kd_convnext."): json.loads(text) for name, text in props.items()}
crop, names, size = said["crop"], said["class_names"], said["input"]["shape"][-1]
if crop["upscaler_identity"]["weights_sha256"] or crop["resize"] != "stretch" or crop["store_size"] is None:
    sys.exit("this example makes no super-resolved, padded or unsized crops")
limits = said["prediction_set"] and [said["prediction_set"]["photograph"][name] for name in names]
table = csv.writer(sys.stdout, lineterminator="\n")
table.writerow(["image", "prediction", "probability", *(f"prob_{name}" for name in names), "prediction_set"])
for path in sys.argv[2:]:
    picture = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), float)
    longer, most, scale = max(picture.shape), crop["sr_max_side"], crop["upscaler_identity"]["scale"]
    if most and longer > most:
        picture = resized(picture, *(max(1, round(side * most / longer)) for side in picture.shape[:2]))
    picture = resized(picture, picture.shape[0] * scale, picture.shape[1] * scale)
    picture = resized(resized(picture, *[crop["store_size"]] * 2), size, size)
    image = picture.transpose(2, 0, 1)[None].astype(np.uint8)
    logits, found = (values[0].astype(float) for values in session.run(None, {"images": image}))
    raw = np.exp(logits - logits.max())
    strange = 1 - raw / raw.sum()
    held = limits and "|".join(n for n, s, t in zip(names, strange, limits, strict=True) if t is None or s <= t)
    numbers = [f"{value:.8g}" for value in (found.max(), *found)]
    table.writerow([path, names[int(found.argmax())], *numbers, held or ""])
