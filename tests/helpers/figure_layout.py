"""What a reader would see of a figure's texts: whether any lie over each other or run out of the picture."""

import itertools
from unittest.mock import patch

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def drawn_texts(figure):
    """The texts that drawing really draws (hidden ticks are none), with their extents in pixels."""
    seen, draw = [], Text.draw

    def spy(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        return draw(self, renderer, *args, **kwargs)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout settles
    with patch.object(Text, "draw", spy):
        canvas.draw()
    renderer = canvas.get_renderer()
    unique = list({id(text): text for text in seen}.values())
    return [(text.get_text(), text.get_window_extent(renderer)) for text in unique]


def collisions(figure):
    """Pairs of texts that lie over each other."""
    found = []
    for (one, here), (other, there) in itertools.combinations(drawn_texts(figure), 2):
        wide = min(here.x1, there.x1) - max(here.x0, there.x0)
        high = min(here.y1, there.y1) - max(here.y0, there.y0)
        if wide > 1 and high > 1:
            found.append((one, other))
    return found


def cut_off(figure):
    """Texts that leave the picture."""
    page = figure.bbox
    return [
        text
        for text, box in drawn_texts(figure)
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1
    ]


def assert_readable(figure):
    """No text lies over another, none is cut off."""
    assert collisions(figure) == []
    assert cut_off(figure) == []
