"""What the figures of a report show, apart from the numbers they are given."""

import math
from types import SimpleNamespace

from kd_convnext.experiment.report.checklist import ITEMS
from kd_convnext.experiment.report.figures import Bar, score_bars


def test_a_score_of_which_nothing_is_known_is_no_score_of_nothing():
    unknown, none = Bar(0.0, (math.nan, math.nan)), Bar(0.0, (0.0, 0.3))
    figure = score_bars({"A": {"Precision": unknown, "Recall": none}, "B": {"Precision": none, "Recall": none}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["-"]


def test_several_commands_share_a_cell_of_the_checklist():
    (item,) = (item for item in ITEMS if item.topic.startswith("Data and code available"))
    analysis = SimpleNamespace(settings=SimpleNamespace(command="kd-convnext fit\nkd-convnext test"))
    assert item.answer(analysis) == "Command: kd-convnext fit; kd-convnext test"
