import itertools
import math

import numpy as np
import pandas as pd
import pytest
from helpers.fake_cells import PAPER, golden
from helpers.paper import CONFUSION
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from kd_convnext.data.manifest.grouping import lesion_names
from kd_convnext.evaluation.comparisons import Pair, compare_pairs, make_pair
from kd_convnext.evaluation.statistics import (
    GroupCounts,
    class_intervals,
    class_scores,
    count_groups,
    draw_weights,
    exchange_test,
    holm,
    intervals,
    percentile_interval,
    resampled,
    scores,
    sign_flip_test,
)
from kd_convnext.experiment.report.paper_values import PER_CLASS


def frame_of(labels, predictions, lesions, repeat=0):
    count = len(labels)
    frame = pd.DataFrame({"image": [f"{k}.jpg" for k in range(count)], "lesion": lesions, "label": labels})
    return frame.assign(prediction=predictions, repeat=repeat, x=-1, y=-1, width=-1, height=-1)


def two_class(right, lesions=None):
    """Answers about class a, right or wrong."""
    guesses = np.where(right, "a", "b")
    names = [f"L{k}" for k in range(len(right))] if lesions is None else lesions
    return frame_of(["a"] * len(right), guesses, names)


def test_the_papers_confusion_matrix_gives_its_numbers():
    found = scores(np.array(CONFUSION))
    expected = (0.8564593, 0.7988594, 0.7463889, 0.7509370, 0.7717333)
    names = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper")
    assert [float(found[name]) for name in names] == pytest.approx(expected, abs=1e-7)
    classes = class_scores(np.array(CONFUSION))
    for k, name in enumerate(PAPER):
        assert (classes["precision"][k], classes["recall"][k]) == pytest.approx(PER_CLASS[name], abs=5e-5)


def test_scores_are_sklearns_also_where_a_class_is_absent():
    labels, guesses = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 3, 0])
    counts = np.zeros((4, 4), dtype=int)
    np.add.at(counts, (labels, guesses), 1)
    found = scores(counts)
    options = {"labels": range(4), "average": "macro", "zero_division": 0}
    assert found["accuracy"] == accuracy_score(labels, guesses)
    assert found["precision_macro"] == pytest.approx(precision_score(labels, guesses, **options))
    assert found["recall_macro"] == pytest.approx(recall_score(labels, guesses, **options))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, guesses, **options))


def test_means_over_some_classes_leave_the_others_out_and_keep_their_errors():
    frame = frame_of(["a", "a", "b", "b"], ["a", "c", "b", "b"], ["L1", "L2", "L3", "L4"])
    lesions = count_groups(frame, ("a", "b", "c"))
    found, some = scores(lesions.total), scores(lesions.total, [0, 1])
    assert (found["recall_macro"], some["recall_macro"]) == pytest.approx((0.5, 0.75))
    assert some["f1_macro"] == pytest.approx((2 / 3 + 1) / 2) and some["accuracy"] == found["accuracy"]
    spans = intervals(lesions, 200, 0, among=[0, 1])
    assert spans["recall_macro"].high == 1 and spans["recall_macro"].low < 0.5
    assert intervals(lesions, 200, 0)["recall_macro"].high < 1


def test_lesions_are_counted_by_name_and_class():
    found = count_groups(frame_of(["a", "a", "b", "?"], ["a", "b", "b", "a"], ["L2", "L2", "L1", "L3"]), ("a", "b"))
    assert found.groups.tolist() == ["L1", "L2"]
    assert found.counts.tolist() == [[[0, 0], [0, 1]], [[1, 1], [0, 0]]]
    assert found.photographs == 3
    assert found.per_class().tolist() == [1, 1]


def test_a_resample_keeps_the_weight_of_each_class():
    strata = np.array([0, 1, 0, 0, 2, 1])
    weights = draw_weights(strata, 50, seed=0)
    for stratum in range(3):
        assert weights[:, strata == stratum].sum(axis=1) == pytest.approx((strata == stratum).sum())
    assert (weights[:, 4] == 1).all()
    assert (weights == draw_weights(strata, 50, seed=0)).all()
    assert (weights != draw_weights(strata, 50, seed=1)).any()


def test_few_lesions_do_not_make_intervals_too_narrow():
    """The variance of a mean is s^2 / n with s^2 over n - 1, also for a class of three lesions."""
    values = np.array([0.0, 1.0, 5.0])
    drawn = draw_weights(np.zeros(3, dtype=np.int64), 40000, seed=0) @ values / 3
    assert drawn.mean() == pytest.approx(values.mean(), rel=0.02)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.03)


def test_resamples_are_sums_of_whole_lesions():
    counts = np.random.default_rng(0).integers(0, 4, (5, 2, 2))
    weights = np.array([[1, 1, 1, 1, 1], [0, 3, 0, 0, 2]])
    assert (resampled(weights, counts) == [counts.sum(axis=0), 3 * counts[1] + 2 * counts[4]]).all()


def test_the_interval_of_a_share_is_the_binomials():
    right = np.arange(400) % 10 < 8
    found = intervals(count_groups(two_class(right), ("a", "b")), 4000, seed=0)["accuracy"]
    exact = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (found.low, found.high) == pytest.approx((0.8 - exact, 0.8 + exact), abs=0.005)


def test_the_interval_by_lesion_is_wider_where_photographs_of_a_lesion_are_answered_alike():
    """Eight photographs a lesion, all right or all wrong: one lesion says as much as one photograph."""
    right = np.repeat(np.arange(50) % 5 > 0, 8)
    by_lesion = count_groups(two_class(right, np.repeat([f"L{k}" for k in range(50)], 8)), ("a", "b"))
    by_image = count_groups(two_class(right), ("a", "b"))
    wide, narrow = (intervals(found, 4000, seed=0)["accuracy"] for found in (by_lesion, by_image))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(8), rel=0.1)


def test_the_interval_by_lesion_is_the_same_where_photographs_are_lesions():
    frame = golden().assign(repeat=0)
    frame["lesion"] = lesion_names(frame)
    found = count_groups(frame, PAPER)
    assert len(found.groups) == found.photographs == 209
    assert (found.total == CONFUSION).all()


def test_nothing_tested_has_no_interval():
    found = intervals(GroupCounts(np.array([], dtype=str), np.zeros((0, 2, 2), dtype=np.int64)), 100, seed=0)
    assert math.isnan(found["accuracy"].low)
    assert not found["accuracy"].excludes_zero


def test_three_lesions_that_are_all_wrong_are_in_doubt_by_every_metric():
    found = intervals(count_groups(two_class([False] * 3), ("a", "b")), 500, seed=0)
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((0, 0.7075982), abs=1e-6)
    for name in ("f1_macro", "precision_macro", "recall_macro"):
        assert found[name].low == 0
        assert found[name].high > 0.3
    assert found["f1_paper"].high > 0.3


def test_three_lesions_a_class_that_are_all_right_are_in_doubt():
    frame = pd.concat([two_class([True] * 3), frame_of(["b"] * 3, ["b"] * 3, ["M1", "M2", "M3"])])
    lesions = count_groups(frame, ("a", "b"))
    found = intervals(lesions, 500, seed=0)
    assert all(found[name].low < 0.65 and found[name].high == 1 for name in found)
    classes = class_intervals(lesions)
    assert classes["recall"][0].low == pytest.approx(0.2924018, abs=1e-6)


@pytest.mark.parametrize("lesions", [3, 5, 10, 30])
def test_the_interval_of_macro_f1_holds_its_value_in_19_of_20_draws(lesions):
    """Three classes of so many lesions with two photographs each, four in five lesions answered alike."""
    rng, chances = np.random.default_rng(lesions), np.array([0.9, 0.7, 0.5])
    truth = scores(np.array([[0.9, 0.05, 0.05], [0.15, 0.7, 0.15], [0.25, 0.25, 0.5]]))
    names = np.array([f"L{k}" for k in range(3 * lesions)])
    inside = dict.fromkeys(("accuracy", "f1_macro", "recall_macro"), 0)
    labels, trials = np.repeat(range(3), lesions), 150
    for _ in range(trials):
        always = rng.random((len(labels), 1)) < chances[labels][:, None]
        own = rng.random((len(labels), 2)) < chances[labels][:, None]
        right = np.where(rng.random((len(labels), 1)) < 0.8, always, own)
        wrong = (labels[:, None] + rng.integers(1, 3, right.shape)) % 3
        guesses = np.where(right, labels[:, None], wrong)
        counts = np.zeros((len(labels), 3, 3), dtype=np.int64)
        for view in range(2):
            np.add.at(counts, (np.arange(len(labels)), labels, guesses[:, view]), 1)
        found = intervals(GroupCounts(names, counts), 200, seed=0)
        for name in inside:
            inside[name] += found[name].low <= truth[name] <= found[name].high
    # 150 draws at 95 % fall below 0.90 once in 200 times.
    assert min(inside.values()) >= 0.90 * trials, inside


def test_percentiles():
    found = percentile_interval(np.arange(1001.0))
    assert (found.low, found.high) == pytest.approx((25, 975))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_with_one_photograph_a_lesion_the_test_is_mcnemars(gained, lost, alike):
    differences = np.array([1] * gained + [-1] * lost + [0] * alike)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_flip_test(differences) == pytest.approx(min(1, expected), abs=1e-12)


@pytest.mark.parametrize("differences", [[3, -1, 2, 2], [5, 1, 1, -2, 0, 1], [4, -4], [1, 1, 1, 1, 1, 1, 1]])
def test_the_test_counts_all_sign_assignments(differences):
    differences = np.array(differences)
    sums = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()))
    assert sign_flip_test(differences) == pytest.approx(expected)
    scipys = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(differences) == pytest.approx(scipys.pvalue)


def test_photographs_of_a_lesion_are_not_taken_as_independent():
    """One lesion with ten photographs is no evidence; McNemar's test on photographs would say p = .002."""
    assert binomtest(10, 10).pvalue < 0.01
    assert sign_flip_test(np.array([10])) == 1.0


def test_the_test_bears_thousands_of_lesions():
    assert sign_flip_test(np.tile([1, 1, -1], 1000)) < 1e-30
    assert sign_flip_test(np.tile([1, -1], 1500)) == 1.0


def test_exchanges_at_random_come_near_the_exact_test():
    ours, theirs = np.arange(40) < 30, np.arange(40) % 2 == 0
    first, second = (count_groups(two_class(right), ("a", "b")) for right in (ours, theirs))
    exact = sign_flip_test(ours.astype(int) - theirs.astype(int))
    found = exchange_test(first.counts, second.counts, 20000, seed=0)["accuracy"]
    assert found == pytest.approx(exact, abs=0.01)


def test_holm_against_known_values():
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.01, 0.02, 0.022, 0.09, 0.5]) == pytest.approx([0.05, 0.08, 0.08, 0.18, 0.5])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def pair_of(ours, theirs, title="ours"):
    return make_pair(title, two_class(ours), "theirs", two_class(theirs), ("a", "b"))


def test_no_difference_is_never_called_better():
    right = np.arange(60) % 3 > 0
    # As often right, but elsewhere: a difference of zero with discordant answers.
    moved = np.roll(right, 1)
    for other in (right, moved):
        (found,) = compare_pairs([pair_of(right, other)], 1000, seed=0)
        for difference in found.differences.values():
            assert difference.value == pytest.approx(0, abs=1e-12)
            assert difference.verdict == "no difference shown"


def test_a_clear_difference_is_called_better_and_the_other_way_round_worse():
    strong, weak = np.arange(200) % 10 > 0, np.arange(200) % 10 > 4
    (found,) = compare_pairs([pair_of(strong, weak)], 1000, seed=0)
    assert found.differences["accuracy"].verdict == found.differences["f1_macro"].verdict == "better"
    assert found.differences["accuracy"].value == pytest.approx(0.4)
    assert (found.groups, found.gained, found.lost) == (200, 80, 0)
    (found,) = compare_pairs([pair_of(weak, strong)], 1000, seed=0)
    assert found.differences["accuracy"].verdict == found.differences["f1_macro"].verdict == "worse"


def test_an_interval_of_few_lesions_says_no_more_than_their_test():
    """Two of six gained, p = 0.5: a bootstrap of them alone leaves no difference out."""
    ours, theirs = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 1, 0, 0, 0, 0], bool)
    (found,) = compare_pairs([pair_of(ours, theirs)], 1000, seed=0)
    assert found.differences["accuracy"].p_value == 0.5 and (found.gained, found.lost) == (2, 0)
    for difference in found.differences.values():
        assert difference.interval.low < 0 < difference.interval.high and difference.value >= 0


@pytest.mark.parametrize(("right", "least"), [(4, 0.324), (8, 0.324), (20, 0.088)])
def test_answers_alike_in_every_lesion_do_not_prove_equality(right, least):
    """Eight lesions without a difference, half right, had a difference of accuracy from 0 to 0."""
    ours = np.arange(8 if right <= 8 else 40) < right
    (found,) = compare_pairs([pair_of(ours, ours)], 1000, seed=0)
    for difference in found.differences.values():
        assert difference.value == 0
        assert difference.interval.high == -difference.interval.low >= least - 5e-4  # Tango's interval
        assert difference.corrected.high >= difference.interval.high


def test_equal_answers_of_a_rare_class_leave_macro_scores_open():
    """One other answer in the class of five lesions would move macro scores by more than accuracy can differ."""
    labels = np.repeat(list("abcde"), (120, 100, 60, 15, 5))
    frame = two_class(np.ones(300, bool)).assign(label=labels, prediction=labels)
    other = frame.assign(prediction=["a", *labels[1:-1], "a"])
    same, moved = (make_pair("x", frame, "y", each, tuple("abcde")) for each in (frame, other))
    equal, one = compare_pairs([same, moved], 500, seed=0)
    for metric in ("f1_macro", "recall_macro", "precision_macro"):
        assert equal.differences[metric].interval.high > abs(one.differences[metric].value)


def test_a_patient_of_most_photographs_is_worth_most_of_the_interval():
    names = ["crowded"] * 200 + [f"P{number}" for number in range(39)]
    frame = two_class(np.arange(239) % 2 == 0).assign(lesion=names)
    (found,) = compare_pairs([make_pair("x", frame, "y", frame, ("a", "b"))], 500, seed=0)
    assert found.differences["accuracy"].interval.high >= 0.72  # of 1.4 patients


def test_three_lesions_prove_nothing_and_their_interval_is_no_point():
    (found,) = compare_pairs([pair_of(np.ones(3, bool), np.zeros(3, bool))], 1000, seed=0)
    interval = found.differences["accuracy"].interval
    assert interval.high == 1
    assert interval.low == pytest.approx(0, abs=0.01)
    assert found.differences["accuracy"].p_value == 0.25
    assert {difference.verdict for difference in found.differences.values()} == {"no difference shown"}


def test_the_papers_best_row_is_not_shown_to_be_better_than_its_features_row():
    """85.64 against 84.21 % of 209: three discordant photographs at the least."""
    ours = np.arange(209) < 179
    (found,) = compare_pairs([pair_of(ours, np.arange(209) < 176)], 1000, seed=0)
    assert found.differences["accuracy"].p_value == 0.25
    assert found.differences["accuracy"].verdict == "no difference shown"


def test_many_comparisons_make_each_harder():
    ours, theirs = np.arange(100) < 80, np.arange(100) < 73
    (alone,) = compare_pairs([pair_of(ours, theirs)], 2000, seed=0)
    assert alone.differences["accuracy"].verdict == "better"
    many = compare_pairs([pair_of(ours, theirs), *(pair_of(theirs, theirs) for _ in range(6))], 2000, seed=0)
    difference = many[0].differences["accuracy"]
    assert difference.p_corrected == pytest.approx(7 * difference.p_value)
    assert difference.corrected.high - difference.corrected.low > difference.interval.high - difference.interval.low
    assert difference.verdict == "no difference shown"


def test_only_answers_to_the_same_question_are_compared():
    ours = pd.concat([two_class(np.ones(4, bool)), two_class(np.ones(4, bool)).assign(repeat=1)])
    theirs = two_class(np.array([True, True, False, False])).iloc[:3].sample(frac=1, random_state=0)
    pair = make_pair("ours", ours, "theirs", theirs, ("a", "b"))
    assert (pair.first.photographs, pair.second.photographs, pair.repeats) == (3, 3, 1)
    assert pair.first.groups.tolist() == pair.second.groups.tolist()
    assert make_pair("ours", ours, "theirs", theirs.assign(repeat=5), ("a", "b")) is None


def test_regions_of_one_photograph_are_one_lesion_and_known_lesions_join():
    frame = pd.DataFrame({"image": ["a", "a", "b", "c", "d"], "lesion_id": ["L1", "", "L1", "", ""]})
    names = lesion_names(frame)
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


def trial(rng, first, second, lesions=400, repeats=5):
    """Two methods with these chances on overlapping test parts: photographs of a lesion alike, repeats mostly."""
    shares = np.array([0.03, 0.09, 0.06, 0.25, 0.57])
    labels = rng.choice(5, lesions, p=shares)
    tested = rng.random((lesions, repeats)) < 0.1
    labels, tested = labels[tested.any(axis=1)], tested[tested.any(axis=1)]
    names = np.array([f"L{number}" for number in range(len(labels))])
    sides = []
    for chance in (first, second):
        always = rng.random((len(labels), 1)) < chance
        right = np.where(rng.random(tested.shape) < 0.8, always, rng.random(tested.shape) < chance)
        guesses = np.where(right, labels[:, None], rng.integers(0, 5, tested.shape))
        counts = np.zeros((len(labels), 5, 5), dtype=np.int64)
        lesion, repeat = np.nonzero(tested)
        np.add.at(counts, (lesion, labels[lesion], guesses[lesion, repeat]), 2)
        sides.append(GroupCounts(names, counts))
    (found,) = compare_pairs([Pair("first", "second", *sides, repeats)], 500, seed=0)
    return [found.differences[metric].verdict for metric in ("accuracy", "f1_macro")]


@pytest.mark.slow
def test_equal_methods_are_rarely_and_unequal_ones_often_told_apart():
    rng = np.random.default_rng(1)
    equal = np.array([trial(rng, 0.7, 0.7) for _ in range(300)])
    unequal = np.array([trial(rng, 0.85, 0.7) for _ in range(100)])
    assert ((equal != "no difference shown").mean(axis=0) < 0.075).all()
    assert ((unequal == "better").mean(axis=0) > 0.5).all()
    assert not (unequal == "worse").any()
