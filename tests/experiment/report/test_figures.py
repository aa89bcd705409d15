"""What the figures of a report show, apart from the numbers they are given."""

import math
from types import SimpleNamespace

from helpers.figure_layout import assert_readable, collisions

from kd_convnext.evaluation.proportions import Interval
from kd_convnext.experiment.report.checklist import ITEMS
from kd_convnext.experiment.report.descriptions import DESCRIBED, describe
from kd_convnext.experiment.report.figures import Bar, score_bars
from kd_convnext.experiment.report.learning import Point, learning_curve
from kd_convnext.runs.folder import RunFolder


def test_a_score_of_which_nothing_is_known_is_no_score_of_nothing():
    unknown, none = Bar(0.0, (math.nan, math.nan)), Bar(0.0, (0.0, 0.3))
    figure = score_bars({"A": {"Precision": unknown, "Recall": none}, "B": {"Precision": none, "Recall": none}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["-"]


def test_methods_say_how_their_networks_were_trained(tmp_path):
    vit = {"name": "vit_small_patch14_dinov2"}
    linear = {"backbone": vit, "loss": "cross_entropy", "finetune": "linear", "linear_c": 0.03}
    shown = described(tmp_path, linear)
    assert shown["Network"].endswith("; frozen, logistic regression, C 0.03")
    assert (shown["Epochs"], shown["Optimiser"]) == ("-", "-")
    assert described(tmp_path, linear | {"finetune": "head_only"})["Network"].endswith("; finetune head_only")
    full = described(tmp_path, linear | {"finetune": "full"})
    assert ";" not in full["Network"] and full["Epochs"] == "1"
    labels = {"class_path": "kd_convnext.losses.BalancedSoftmax", "init_args": {"weight": 0.5, "tau": 0.5}}
    soft = {"class_path": "kd_convnext.losses.SoftTargets", "init_args": {"weight": 1.0, "temperature": 2.0}}
    alike = {"class_path": "kd_convnext.losses.CosineEmbedding", "init_args": {"weight": 1.0}}
    objective = {"init_args": {"terms": {"labels": labels, "soft": soft, "embedding": alike}}}
    shown = described(tmp_path, {"student": {"name": "convnext_atto"}, "objective": objective})
    assert shown["Loss"] == "0.5 BalancedSoftmax (tau 0.5) + 1.0 SoftTargets (temperature 2.0) + 1.0 CosineEmbedding"


def described(folder, options):
    """A line of the table of methods, by column."""
    config = {"model": {"init_args": options}, "trainer": {"max_epochs": 1}}
    result = SimpleNamespace(config=config, run=RunFolder(folder))
    return dict(zip(DESCRIBED, describe(SimpleNamespace(title="a", results=[result])), strict=True))


def test_bars_of_many_classes_lie_and_stay_readable():
    known, unknown = Bar(0.5, (0.3, 0.7), (0.45, 0.55)), Bar(0.0, (math.nan, math.nan))
    names = [f"Class {number}, of a long name\n(12 lesions)" for number in range(20)]
    groups = {name: {"Precision": unknown, "Recall": known, "F1": known} for name in names}
    figure = score_bars(groups)
    assert_readable(figure)
    assert figure.get_figwidth() <= 8
    ticks = figure.axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == names
    tops = [tick.get_window_extent().y1 for tick in ticks]
    assert tops == sorted(tops, reverse=True)  # the first class is above
    assert {bar.get_width() for bar in figure.axes[0].patches} == {0.0, 0.5}
    assert score_bars(dict(list(groups.items())[:8])).axes[0].patches[-1].get_height() == 0.5


def test_labels_of_a_learning_curve_stay_apart():
    def point(network, lesions):
        return Point(None, network, lesions, 2 * lesions, 0.5, Interval(0.4, 0.6))

    points = [point("a", 91.4), point("a", 182.4), point("b", 92.0), point("b", 183.3)]
    figure = learning_curve(points)
    assert collisions(figure) == []
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["91", "182"]
    figure = learning_curve([point("a", 100), point("a", 106)])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["100", "106"]


def test_several_commands_share_a_cell_of_the_checklist():
    (item,) = (item for item in ITEMS if item.topic.startswith("Data and code available"))
    analysis = SimpleNamespace(settings=SimpleNamespace(command="kd-convnext fit\nkd-convnext test"))
    assert item.answer(analysis) == "Command: kd-convnext fit; kd-convnext test"
