import io
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers.figure_layout import assert_readable, collisions, cut_off
from matplotlib.figure import Figure
from PIL import Image

from kd_convnext.common.figures import PALETTE, as_picture, save_figure, save_for_print
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.evaluation.direction import Choice
from kd_convnext.evaluation.proportions import Interval
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
            "train/loss_soft_kl": [np.nan, np.nan, 0.3, np.nan, 0.1],
            "val/loss": [np.nan, np.nan, 3.5, np.nan, 2.5],
            "val/f1_macro": [np.nan, np.nan, 0.4, np.nan, 0.6],
        }
    )
    figure = plotting.training_curves(frame)
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    soft = "Soft-target loss (Eq. 3),\nwith the teacher's own entropy"
    divergence = "Soft targets without that entropy:\nKL divergence, 0 where both agree"
    assert list(panels) == ["What training minimises", soft, divergence, "Focal loss (Eq. 4)", "Macro F1"]
    # Like with like: validation's focal term never stands beside the sum that training minimises.
    shown = {name: {line.get_label(): line for line in panel.lines} for name, panel in panels.items()}
    assert list(shown["What training minimises"]) == ["training", "best val/f1_macro: epoch 1"]
    assert list(shown["What training minimises"]["training"].get_ydata()) == [3.0, 1.0]
    assert list(shown["Focal loss (Eq. 4)"]["validation"].get_ydata()) == [3.5, 2.5]
    assert list(shown[soft]["training"].get_ydata()) == [0.5, 0.25]
    assert list(shown[divergence]["training"].get_ydata()) == [0.3, 0.1]
    assert shown["Macro F1"]["best val/f1_macro: epoch 1"].get_xdata()[0] == 1
    # The epoch that was kept, whatever chose it.
    for choice, epoch in ((Choice("val/loss", "max"), 0), (Choice("val/loss", "min"), 1), (Choice("train/loss"), 0)):
        marked = plotting.training_curves(frame, choice=choice).axes[0].lines[-1]
        assert (marked.get_label(), marked.get_xdata()[0]) == (f"best {choice.monitor}: epoch {epoch}", epoch)
        rings = plotting.method_curves({"a": frame}, "val/f1_macro", choices={"a": choice}).axes[0]
        assert list(rings.lines[1].get_xdata()) == [epoch] and f"ring: best {choice.monitor}" in rings.get_xlabel()
    unmarked = plotting.training_curves(frame, choice=None)
    assert [line.get_label() for line in unmarked.axes[0].lines] == ["training"]
    # A soft-target term whose value is the divergence holds no entropy.
    alone = plotting.training_curves(frame.drop(columns="train/loss_soft_kl"))
    assert alone.axes[1].get_title() == "Soft-target loss"


def test_losses_of_training_without_terms_share_a_panel_with_validations():
    frame = pd.DataFrame({"epoch": [0, 1], "train/loss": [2.0, 1.0], "val/loss": [1.5, 1.4], "train/lr": [0.1, 0.05]})
    figure = plotting.training_curves(frame)
    panels = {panel.get_title(): [line.get_label() for line in panel.lines] for panel in figure.axes[:2]}
    assert panels == {"Loss": ["training", "validation"], "Learning rate": ["training"]}


def test_training_curves_of_an_empty_log_say_so():
    figure = plotting.training_curves(pd.DataFrame({"step": [0], "lr": [0.1]}))
    assert "no curves" in figure.axes[0].get_title()


def test_per_class_bars_show_the_metrics_and_the_support():
    figure = plotting.per_class_bars(evaluation_of(PAPER), groups=[3, 122, 14, 1, 30])
    axes = figure.axes[0]
    heights = [bar.get_height() for bar in axes.containers[1]]
    assert heights == pytest.approx([3 / 5, 1, 11 / 16, 10 / 12, 33 / 54])
    labels = axes.get_xticklabels()
    assert [labels[0].get_text(), labels[3].get_text()] == [
        "Grade 1\n(n = 5,\n3 lesions †)",
        "AIS\n(n = 12,\n1 lesion †)",
    ]
    # Short names are read without turning one's head.
    assert {label.get_rotation() for label in labels} == {0}


def test_a_bar_of_nothing_known_has_no_number():
    none, some = Interval(math.nan, math.nan), Interval(0.0, 0.7)
    spans = {"precision": [some, none], "recall": [some] * 2, "f1": [some] * 2}
    figure = plotting.per_class_bars(evaluation_of(np.array([[3, 0], [3, 0]])), spans)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50", "-", "1.00", "0.00", "0.67", "0.00"]


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


def test_reliability_diagram_of_few_answers_has_two_digits_and_a_legend_beside_its_bars():
    figure = plotting.reliability_diagram(evaluation_of(np.diag([3] * 5), confidence=0.3))
    assert figure.axes[0].get_title() == "expected calibration error 0.70"
    assert_readable(figure)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert not legend.overlaps(figure.axes[0].get_window_extent())


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


LONG = (*(f"Verruköse_Läsion_Nummer_{k:02d}" for k in range(8)), "Dermatofibrosarcoma prot.", "NV")


def ten_classes(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(range(10), 12)
    probabilities = rng.dirichlet(np.ones(10), len(labels)) + np.eye(10)[labels] * (rng.random((len(labels), 1)) < 0.7)
    return Evaluation("test", np.arange(120), labels, probabilities / probabilities.sum(axis=1, keepdims=True), LONG)


SUBJECT = plotting.Subject(
    "test", "photograph", 1120, 120, "convnext_tiny, altered (depths 1-1-1-1), 28.6 M parameters"
)


def test_the_caption_says_part_unit_numbers_and_model():
    found = SUBJECT.says("Confusion matrix")
    expected = "Confusion matrix. Test part, judged per photograph: 1,120 photographs of 120 lesions. convnext_tiny, "
    assert found == f"{expected}altered (depths 1-1-1-1), 28.6 M parameters."
    one = plotting.Subject("val", "lesion", 1, None, "x").says("A")
    assert one == "A. Validation part, judged per lesion: 1 photograph. x."


@pytest.mark.parametrize("names", [LONG, tuple("abcdefghij")])
def test_ten_classes_with_long_names_are_readable(names):
    assert max(map(len, LONG)) >= 25
    found = ten_classes()
    found = Evaluation("test", found.index, found.labels, found.probabilities, names)
    caption = SUBJECT.says("What is drawn here, in a sentence that is longer than the figure is wide")
    exact = {name: [Interval(0.2, 0.9)] * 10 for name in ("precision", "recall", "f1")}
    figures = [
        plotting.confusion_matrix(found.confusion_matrix() * 100, names, caption=caption),
        plotting.confusion_matrix(found.confusion_matrix() * 100, names, normalise=None, caption=caption),
        plotting.per_class_bars(found, exact, [4] * 10, caption),
        plotting.per_class_bars(found),
        plotting.reliability_diagram(found, caption=caption),
    ]
    for figure in figures:
        assert_readable(figure)
    assert figures[0].get_suptitle().replace("\n", " ") == caption


@pytest.mark.parametrize("count", [1, 2, 7, 36])
def test_a_grid_of_mistakes_is_readable(count):
    titles = [
        f"is {LONG[k % 8]} (12%)\nsaid {LONG[(k + 1) % 8]} (88%)\nIMG_20240501_{k}_a_long_name.jpg"
        for k in range(count)
    ]
    pictures = [np.zeros((96, 40 + 50 * (k % 3), 3), np.uint8) for k in range(count)]
    assert_readable(plotting.crop_grid(pictures, titles, caption=SUBJECT.says("Wrong answers, most confident first")))


def test_curves_are_readable():
    epochs = pd.DataFrame({"epoch": range(100), "train/lr": 1e-5, "val/f1_macro": np.linspace(0, 1, 100)})
    for name in (
        "train/loss",
        "train/loss_feature",
        "train/loss_soft",
        "train/loss_soft_kl",
        "train/loss_focal",
        "val/loss",
        "train/f1_macro",
    ):
        epochs[name] = np.linspace(12345, 0.001, 100)
    assert_readable(plotting.training_curves(epochs, SUBJECT.says("Curves")))
    many = {f"{name} from a large teacher": epochs for name in LONG}
    figure = plotting.method_curves(many, "val/f1_macro", SUBJECT.says("Curves"))
    assert_readable(figure)
    assert figure.axes[0].get_ylabel() == "Macro F1, validation"
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[::2]}
    assert len(looks) == len(many)


def test_the_reader_of_extents_sees_overlaps_and_cuts():
    figure = Figure(figsize=(2, 2))
    figure.text(0.1, 0.5, "one word over")
    figure.text(0.12, 0.5, "another")
    assert collisions(figure) == [("one word over", "another")]
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "a word that runs out")
    assert cut_off(figure) == ["a word that runs out"]


def test_colours_stay_apart_for_the_colour_blind():
    """Machado et al. (2009), severity 1: the first four colours under red- and green-blindness."""
    blind = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    linear = np.array([matplotlib.colors.to_rgb(colour) for colour in PALETTE]) ** 2.2
    for matrix in blind.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)[:4, :4] + np.eye(4)
        assert apart.min() > 0.2


def test_print_files_have_300_pixels_an_inch_and_drawn_lines(tmp_path, monkeypatch, print_dpi):
    monkeypatch.setattr("kd_convnext.common.figures.PRINT_DPI", print_dpi)
    figure = plotting.confusion_matrix(PAPER, CLASSES)
    save_for_print(tmp_path / "c.png", figure)
    with Image.open(tmp_path / "c.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF-")
