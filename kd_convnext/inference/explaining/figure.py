"""Draws a heat map beside its photograph and the training cases like it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_convnext.inference.explaining.explainer import Explanation

from pathlib import Path

from matplotlib.figure import Figure


def explanation_figure(explanation: "Explanation") -> Figure:
    """Draws a photograph's crop, the heat maps over it, and the training cases most like it.

    Args:
        explanation: Of one photograph.

    Returns:
        The figure: crop and maps above, training cases below where there are any. A cross marks the hottest cell.
    """
    region, cases = explanation.region, explanation.neighbours
    columns = max(1 + len(explanation.views), len(cases))
    rows = 2 if cases else 1
    figure = Figure(figsize=(2.9 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
        panel.set(xticks=[], yticks=[])  # hidden ones too are laid out, which takes longer than all else
    panels[0, 0].imshow(explanation.crop)
    panels[0, 0].set_title(Path(str(explanation.photograph)).name, fontsize=8)
    for panel, view in zip(panels[0, 1:], explanation.views, strict=False):
        panel.imshow(view.picture)
        if view.peak is not None:
            panel.plot(view.peak[0] - region.x, view.peak[1] - region.y, "+", color="cyan", markersize=12)
        says = f"says {view.predicted} ({view.probabilities.max():.2f})"
        panel.set_title(f"{view.model}\n{says}\nevidence for {explanation.target}", fontsize=8)
    for panel, case in zip(panels[-1] if cases else (), cases, strict=False):
        panel.imshow(case.crop)
        panel.set_title(f"training: {case.label}\nsimilarity {case.similarity:.2f}", fontsize=8)
    return figure
