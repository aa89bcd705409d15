"""Draws a heat map beside its photograph and the training cases like it."""

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from kd_convnext.common.figures import put_caption, wrapped

if TYPE_CHECKING:
    from kd_convnext.inference.explaining.explainer import Explanation

_PANEL = 2.9
"""Inches a picture."""

_OUTLINE = [withStroke(linewidth=4.5, foreground="white")]
"""Around the cross, which lies on the palest colour of the map and may lie on any."""

_SIZE = 8
"""Points of the titles."""


def explanation_figure(explanation: "Explanation") -> Figure:
    """Draws a photograph's crop, the heat maps over it, and the training cases most like it.

    Args:
        explanation: Of one photograph.

    Returns:
        The figure: crop and maps above, training cases below where there are any. A cross marks the hottest cell.
    """
    region, cases, name = explanation.region, explanation.neighbours, Path(str(explanation.photograph)).name
    columns = max(1 + len(explanation.views), len(cases), 2)
    rows = 2 if cases else 1
    figure = Figure(figsize=(_PANEL * columns, (_PANEL + 1.0) * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
        panel.set(xticks=[], yticks=[])  # hidden ones too are laid out, which takes longer than all else
    panels[0, 0].imshow(explanation.crop)
    _put_title(panels[0, 0], name)
    for panel, view in zip(panels[0, 1:], explanation.views, strict=False):
        panel.imshow(view.picture)
        if view.peak is not None:
            at = view.peak[0] - region.x, view.peak[1] - region.y
            panel.plot(*at, "+", color="black", markersize=12, markeredgewidth=1.8, path_effects=_OUTLINE)
        _put_title(panel, f"{view.model}\nsays {view.predicted} ({view.probabilities.max():.2f})")
    for panel, case in zip(panels[-1] if cases else (), cases, strict=False):
        panel.imshow(case.crop)
        _put_title(panel, f"training: {case.label}\nsimilarity {case.similarity:.2f}")
    put_caption(
        figure,
        f"Evidence for {explanation.target}: grey none, from violet to yellow more; the cross marks the strongest. "
        "It is what the network used, no finding.",
    )
    return figure


def _put_title(panel: Axes, text: str) -> None:
    panel.set_title(wrapped(text, _PANEL - 0.2, _SIZE), fontsize=_SIZE, parse_math=False)
