import numpy as np
from helpers.fake_cells import PAPER
from helpers.paper import CONFUSION

from kd_convnext.evaluation.statistics import GroupCounts
from kd_convnext.training.summary import best_epoch_line, score_lines


def counts_of(matrix):
    pairs = [(row, column) for row, column in np.ndindex(*matrix.shape) for _ in range(matrix[row, column])]
    counts = np.zeros((len(pairs), *matrix.shape), dtype=np.int64)
    counts[range(len(pairs)), [row for row, _ in pairs], [column for _, column in pairs]] = 1
    return GroupCounts(np.array([f"L{k}" for k in range(len(pairs))]), counts)


def test_a_test_prints_a_dozen_lines_with_three_digits():
    paper = counts_of(np.array(CONFUSION))
    lines = score_lines("test", paper, paper, PAPER)
    assert lines[0] == "Test part: 209 photographs of 209 lesions, 95 % intervals by lesion"
    # Clopper-Pearson for 179 of 209, statsmodels 0.15.0: 0.80147 to 0.90101.
    assert lines[2].split() == ["accuracy", *["0.856", "[0.801,", "0.901]"] * 2]
    assert lines[7].split() == ["Grade", "1", "5†", "1.00", "0.60", "[0.15,", "0.95]", "0.75"]
    assert lines[8].split() == ["Grade", "2", "122", "0.910", "1.000", "[0.970,", "1.000]", "0.953"]
    assert lines[-1].endswith("fewer than 10 lesions: these figures say little")
    assert len(lines) == 13
    assert max(map(len, lines)) <= 80


def test_none_of_three_may_be_up_to_seven_in_ten():
    lines = score_lines("test", counts_of(np.array([[5, 0], [3, 0]])), None, ("a", "b"))
    # Clopper-Pearson for 0 of 3: 1 - 0.025 ** (1 / 3).
    assert lines[-2].split() == ["b", "3†", "-", "0.00", "[0.00,", "0.71]", "0.00"]
    # Of what was never labelled or predicted nothing is known.
    lines = score_lines("test", counts_of(np.array([[5, 0], [0, 0]])), None, ("a", "b"))
    assert lines[-2].split() == ["b", "0†", "-", "-", "-"]


def test_long_names_stay_within_the_terminal():
    lines = score_lines("test", counts_of(np.eye(2, dtype=int)), None, ("a" * 60, "b"))
    assert max(map(len, lines)) <= 80


def test_the_end_of_a_fit_says_epoch_score_interval_and_time():
    line = best_epoch_line((7, counts_of(np.array([[2, 0], [1, 1]]))), 754)
    assert line.startswith("Best epoch 7: macro F1 0.73 [0.")
    assert line.endswith("95 % by lesion, 4 validation lesions. The fit took 13 min.")
