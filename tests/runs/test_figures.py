import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kd_convnext.common.figures import as_picture, save_figure
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.runs import figures as plotting

# The one matrix that fits the paper's Table 3.
PAPER = np.array([[3, 0, 0, 0, 2], [0, 122, 0, 0, 0], [0, 3, 11, 1, 1], [0, 0, 2, 10, 0], [0, 9, 6, 6, 33]])
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")


def evaluation_of(matrix: np.ndarray, confidence: float = 0.8) -> Evaluation:
    true, predicted = np.nonzero(matrix)
    labels = np.repeat(true, matrix[true, predicted])
    answers = np.repeat(predicted, matrix[true, predicted])
    count = len(matrix)
    probabilities = np.full((len(labels), count), (1 - confidence) / (count - 1))
    probabilities[np.arange(len(labels)), answers] = confidence
    return Evaluation("test", np.arange(len(labels)), labels, probabilities, CLASSES[:count])


@pytest.fixture(autouse=True)
def no_pyplot_state():
    """No function may open a pyplot figure or change the style."""
    before = dict(matplotlib.rcParams)
    yield
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_confusion_matrix_rows_are_true_and_cells_give_counts_and_rates():
    figure = plotting.confusion_matrix(PAPER, CLASSES)
    cells = np.array(texts(figure)).reshape(5, 5)
    assert cells[4, 1] == "9\n17%"  # true MIA, predicted Grade 2: 9 of 54
    assert cells[1, 4] == "0\n0%"
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)


def test_confusion_matrix_of_counts_alone():
    assert texts(plotting.confusion_matrix(PAPER, CLASSES, normalise=None))[6] == "122"


def test_confusion_matrix_with_an_absent_class_has_no_rate_there():
    assert texts(plotting.confusion_matrix([[0, 0], [1, 3]], "ab")) == ["0", "0", "1\n25%", "3\n75%"]
    plotting.confusion_matrix(np.zeros((2, 2), int), "ab", normalise=None).savefig(io.BytesIO())


def test_training_curves_show_what_was_logged_and_average_an_epoch():
    frame = pd.DataFrame(
        {
            "epoch": [0, 0, 0, 1, 1],
            "step": [0, 1, 1, 2, 3],
            "train/loss": [4.0, 2.0, np.nan, 1.0, np.nan],
            "train/loss_soft_step": [9.0, 9.0, np.nan, 9.0, 9.0],
            "train/loss_soft_epoch": [np.nan, np.nan, 0.5, np.nan, 0.25],
            "val/loss": [np.nan, np.nan, 3.5, np.nan, 2.5],
            "val/f1_macro": [np.nan, np.nan, 0.4, np.nan, 0.6],
        }
    )
    figure = plotting.training_curves(frame)
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    assert list(panels) == ["Loss", "Soft-target loss (Eq. 3)", "Macro F1"]
    curves = {line.get_label(): line for line in panels["Loss"].lines}
    assert list(curves["train"].get_ydata()) == [3.0, 1.0]
    assert list(curves["val"].get_ydata()) == [3.5, 2.5]
    assert list(panels["Soft-target loss (Eq. 3)"].lines[0].get_ydata()) == [0.5, 0.25]


def test_training_curves_of_an_empty_log_say_so():
    figure = plotting.training_curves(pd.DataFrame({"step": [0], "lr": [0.1]}))
    assert "no curves" in figure.axes[0].get_title()


def test_per_class_bars_show_the_metrics_and_the_support():
    figure = plotting.per_class_bars(evaluation_of(PAPER))
    axes = figure.axes[0]
    heights = [bar.get_height() for bar in axes.containers[1]]
    assert heights == pytest.approx([3 / 5, 1, 11 / 16, 10 / 12, 33 / 54])
    assert "Grade 1\n(n = 5)" in [label.get_text() for label in axes.get_xticklabels()]


def test_crop_grid_takes_pictures_of_any_sizes():
    pictures = [np.full((4 + n, 8, 3), 50 * n, np.uint8) for n in range(5)]
    figure = plotting.crop_grid(pictures, list("abcde"))
    assert [panel.get_title() for panel in figure.axes] == [*"abcde", ""]
    assert np.array_equal(figure.axes[2].images[0].get_array(), pictures[2])
    plotting.crop_grid([], [])


def test_reliability_diagram_places_accuracy_over_confidence():
    figure = plotting.reliability_diagram(evaluation_of(PAPER, confidence=0.81))
    bars = [bar for bar in figure.axes[0].patches if bar.get_height() > 0]
    assert len(bars) == 1
    assert bars[0].get_height() == pytest.approx(179 / 209)
    assert bars[0].get_x() + bars[0].get_width() / 2 == pytest.approx(12.5 / 15)
    assert figure.axes[0].get_title().endswith(f"{abs(179 / 209 - 0.81):.3f}")


def test_reliability_diagram_leaves_out_unlabelled_samples():
    known = evaluation_of(np.array([[2, 1], [0, 3]]))
    labels = known.labels.copy()
    labels[0] = -1
    figure = plotting.reliability_diagram(
        Evaluation("test", known.index, labels, known.probabilities, known.class_names)
    )
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 5


def test_figures_become_pictures_and_files(tmp_path):
    figure = plotting.confusion_matrix(PAPER, CLASSES)
    picture = as_picture(figure, dpi=50)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 0
    save_figure(tmp_path / "figures" / "c.png", figure, dpi=50)
    saved = np.asarray(Image.open(tmp_path / "figures" / "c.png").convert("RGB"))
    assert saved.shape == picture.shape and saved.std() > 0


def test_a_figure_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_figure(tmp_path / "figures" / "c.png", plotting.crop_grid([], []))
