"""The preview's titles can be read, whatever the classes are called."""

import numpy as np
from helpers.figure_layout import assert_readable, drawn_texts

from kd_convnext.data.crops.fidelity import Fidelity
from kd_convnext.data.crops.preparing.preview import Comparison, preview_grid


def test_one_way_to_enlarge_is_drawn_once():
    crop = np.zeros((96, 96, 3), np.uint8)
    figure = preview_grid([Comparison("MIA", crop, crop, crop, Fidelity(51.0, 0.0))], "bicubic x4")
    assert_readable(figure)
    told = " ".join(text for text, _ in drawn_texts(figure))
    assert len(figure.axes) == 2 and told.count("bicubic x4") == 1 and "two ways" not in told


def test_titles_of_long_names_are_whole():
    crop = np.zeros((96, 96, 3), np.uint8)
    names = ("Grade 1 & 2 (wenig differenziert) $p$, 119 x 117 px", "Dermatofibrosarkom, 8 x 8 px")
    shown = [Comparison(name, crop, crop, crop, Fidelity(35.62, 0.085)) for name in names]
    figure = preview_grid(shown, "super-resolved x4 (Compact)")
    assert_readable(figure)
    told = " ".join(" ".join(text.split()) for text, _ in drawn_texts(figure))
    assert all(name in told for name in names) and "$p$" in told
    assert told.count("super-resolved x4 (Compact) reduced again: 35.6 dB, 8.5% of the pixels changed") == 2
