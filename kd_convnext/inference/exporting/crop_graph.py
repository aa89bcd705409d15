# mypy: ignore-errors
"""Builds the ONNX graphs that crop: a whole photograph in, the input of the exported network, or of the enlarging, out.

It repeats what OpenCV does for `enlarge` and `still_view`: by area along sides that shrink, by cubic interpolation
along sides that grow, rounded to whole levels after each step. These are ONNX's operators in the words of Python, which
onnxscript compiles (and mypy cannot follow); nothing here runs in Python. Pictures are [C, height, width], sizes height
and width. Sums are taken pixel by pixel, in OpenCV's order: float32 rounds otherwise in another one.
"""

from onnxscript import BOOL, FLOAT, INT64, UINT8, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

_own = Opset("kd_convnext", 1)
_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # as ONNX numbers types


@script(_own)
def area(values: FLOAT, new: INT64, whole: BOOL) -> FLOAT:
    """Sums the old pixels in each new one along the last axis, each by its share, or as it is where ``whole``."""
    old = op.Squeeze(op.Shape(values, start=2, end=3))
    scale = op.Cast(old, to=_DOUBLE) / op.Cast(new, to=_DOUBLE)
    low = op.Cast(op.Range(0, new, 1), to=_DOUBLE) * scale
    first = op.Cast(op.Floor(low), to=_INT64)
    total = op.Gather(values * 0.0, first, axis=2)
    for tap in range(old / new + 2):
        pixel = first + tap
        common = op.Min(low + scale, op.Cast(pixel + 1, to=_DOUBLE)) - op.Max(low, op.Cast(pixel, to=_DOUBLE))
        counted = op.Where(common > 0.001, common, common * 0.0)
        share = op.Cast(op.Where(whole, op.Sign(counted), counted / scale), to=_FLOAT)
        total = total + op.Gather(values, op.Min(pixel, old - 1), axis=2) * share
    return total


@script(_own)
def cubic(values: FLOAT, new: INT64) -> FLOAT:
    """Interpolates along the last axis, a = -0.75."""
    old = op.Squeeze(op.Shape(values, start=2, end=3))
    scale = op.Cast(old, to=_DOUBLE) / op.Cast(new, to=_DOUBLE)
    centre = (op.Cast(op.Range(0, new, 1), to=_DOUBLE) + 0.5) * scale - 0.5
    first = op.Cast(op.Floor(centre), to=_INT64) - 1
    total = op.Gather(values * 0.0, op.Clip(first, 0, 0), axis=2)
    for tap in range(4):
        pixel = first + tap
        d = op.Abs(centre - op.Cast(pixel, to=_DOUBLE))
        near = (1.25 * d - 2.25) * d * d + 1.0
        far = ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0
        weight = op.Cast(op.Where(d <= 1.0, near, far), to=_FLOAT)
        total = total + op.Gather(values, op.Max(op.Min(pixel, old - 1), [0]), axis=2) * weight
    return total


@script(_own)
def shrunk(picture: FLOAT, new: INT64) -> FLOAT:
    """Resizes by area; where both sides are halved OpenCV rounds halves up, else to even."""
    old = op.Shape(picture, start=1, end=3)
    whole = op.ReduceMax(op.Mod(old, new), keepdims=0) < 1
    across = area(picture, op.Gather(new, 1), whole)
    down = area(op.Transpose(across, perm=[0, 2, 1]), op.Gather(new, 0), whole)
    exact = op.Transpose(down, perm=[0, 2, 1])
    part = op.Cast(op.ReduceProd(op.Cast(new, to=_DOUBLE), keepdims=0), to=_FLOAT) / op.Cast(
        op.ReduceProd(op.Cast(old, to=_DOUBLE), keepdims=0), to=_FLOAT
    )
    exact = op.Where(whole, exact * part, exact)
    halved = op.ReduceMax(op.Abs(old - new * 2), keepdims=0) < 1
    return op.Where(halved, op.Floor(exact + 0.5), op.Round(exact))


@script(_own)
def grown(picture: FLOAT, new: INT64) -> FLOAT:
    """Resizes by cubic interpolation."""
    across = cubic(picture, op.Gather(new, 1))
    down = cubic(op.Transpose(across, perm=[0, 2, 1]), op.Gather(new, 0))
    return op.Clip(op.Round(op.Transpose(down, perm=[0, 2, 1])), 0.0, 255.0)


@script(_own)
def fitted(size: INT64, side: INT64) -> INT64:
    """The size of the same proportions whose longer side is given."""
    exact = op.Cast(size * side, to=_DOUBLE) / op.Cast(op.ReduceMax(size), to=_DOUBLE)
    return op.Max(op.Cast(op.Round(exact), to=_INT64), [1])


@script(_own)
def reduced(photograph: UINT8, most: INT64) -> FLOAT:
    """The photograph [C, height, width], by area where its longer side is above ``most``."""
    given = op.Shape(photograph, start=0, end=2)
    size = op.Where(op.ReduceMax(given) > most, fitted(given, most), given)
    return shrunk(op.Transpose(op.Cast(photograph, to=_FLOAT), perm=[2, 0, 1]), size)


@script()
def reduce(photograph: UINT8, most: INT64) -> FLOAT:
    """Brings a photograph to what a network enlarges.

    Args:
        photograph: RGB [H, W, 3], the way a viewer shows it.
        most: Longest side that is enlarged; becomes a constant.
    """
    return op.Unsqueeze(reduced(photograph, most), [0])


@script()
def crop(
    photograph: UINT8,
    most: INT64,
    scale: INT64,
    side: INT64,
    padded: INT64,
    size: INT64,
    channels: FLOAT,
) -> FLOAT:
    """Crops, resizes and normalises; all inputs but the first become constants.

    Args:
        photograph: RGB [H, W, 3], the way a viewer shows it.
        most: Longest side that is enlarged.
        scale: Of the enlargement.
        side: Of the stored square.
        padded: 1 where proportions are kept, 0 where the crop is stretched.
        size: Side of the network's input.
        channels: Brings RGB to the network's channels, [C, 3].
    """
    small = reduced(photograph, most)
    enlarged = op.Shape(small, start=1, end=3) * scale
    inside = op.Where(padded > 0, fitted(enlarged, side), op.Expand(side, [2]))
    stored = grown(shrunk(grown(small, enlarged), op.Min(enlarged, inside)), inside)
    before = (side - inside) / 2
    square = op.Pad(stored, op.Concat([0], before, [0], side - inside - before, axis=0))
    seen = shrunk(square, op.Expand(size, [2]))
    mixed = op.MatMul(op.Transpose(seen, perm=[1, 2, 0]), op.Transpose(channels, perm=[1, 0]))
    return op.Transpose(op.Floor(mixed + 0.5), perm=[2, 0, 1])
