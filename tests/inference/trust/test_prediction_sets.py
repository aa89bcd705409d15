import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from kd_convnext.errors import ConfigError
from kd_convnext.inference.trust.prediction_sets import (
    fit_thresholds,
    lesions_needed,
    observed_coverage,
    weighted_threshold,
)

NAMES = ("A", "B", "C", "D")


def drawn(rng, lesions, shares):
    """A fallible model's answers for lesions of uneven classes, with 1 to 6 photographs that resemble each other."""
    labels = rng.choice(len(shares), lesions, p=shares)
    sizes = rng.integers(1, 7, lesions)
    member = np.repeat(np.arange(lesions), sizes)
    hard = rng.normal(0, 1.5, (lesions, len(shares)))[member]
    logits = hard + rng.normal(0, 0.7, hard.shape)
    logits[np.arange(len(member)), labels[member]] += 2.0
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels[member], member.astype(str)


def one_each(rng, groups):
    """One random photograph of each lesion."""
    order = rng.permutation(len(groups))
    return order[np.unique(groups[order], return_index=True)[1]]


def interval(values, comparisons):
    """95 % interval of a mean, corrected for the number of comparisons."""
    values = np.array(values)
    half = t.ppf(1 - 0.025 / comparisons, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_of_every_class_on_new_lesions(coverage):
    """Over 200 calibrations each class is covered as promised, and not by more than few lesions cost."""
    shares, rng = (0.55, 0.25, 0.12, 0.08), np.random.default_rng(7)
    held: list[list[float]] = [[], [], [], []]
    for _ in range(200):
        thresholds = fit_thresholds(*drawn(rng, 300, shares), NAMES, coverage=coverage)
        assert all(thresholds.guaranteed)
        probabilities, labels, groups = drawn(rng, 400, shares)
        chosen = one_each(rng, groups)
        sets = thresholds.sets(probabilities[chosen])
        for number in range(4):
            held[number].append(sets[labels[chosen] == number, number].mean())
    for number, values in enumerate(held):
        low, high = interval(values, 4)
        assert high >= coverage and low <= coverage + 1 / (300 * shares[number])


def test_photographs_must_not_count_as_lesions():
    """Counting photographs as if they were independent promises more lesions than there are."""
    scores, groups = np.linspace(0, 1, 40), np.repeat([str(i) for i in range(4)], 10)
    assert weighted_threshold(scores, groups, 0.9) == np.inf
    assert weighted_threshold(scores, np.arange(40).astype(str), 0.9) < 1


def test_split_conformal_where_each_lesion_has_one_photograph():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))
    for coverage in (0.5, 0.8, 0.9, 0.95):
        rank = int(np.ceil((19 + 1) * coverage - 1e-9))
        expected = np.sort(scores)[rank - 1] if rank <= 19 else np.inf
        assert weighted_threshold(scores, np.arange(19).astype(str), coverage) == expected


def test_nine_lesions_for_ninety_percent():
    assert lesions_needed(0.9) == 9 and lesions_needed(0.8) == 4 and lesions_needed(0.95) == 19
    for coverage in (0.5, 0.8, 0.9, 0.95):
        needed = lesions_needed(coverage)
        for count in (needed - 1, needed):
            found = weighted_threshold(np.arange(float(count)), np.arange(count).astype(str), coverage)
            assert np.isfinite(found) == (count == needed)
    assert weighted_threshold(np.zeros(0), np.zeros(0, str), 0.5) == np.inf


@pytest.fixture
def uneven():
    """20 lesions of A, 12 of B, 6 of C and 4 of D, one photograph each."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), (20, 12, 6, 4))
    return rng.dirichlet((1, 1, 1, 1), len(labels)), labels, np.arange(len(labels)).astype(str)


class TestTooFewLesions:
    def test_in_every_set(self, uneven):
        found = fit_thresholds(*uneven, NAMES)
        assert found.guaranteed == (True, True, False, False) and found.lesions == (20, 12, 6, 4)
        assert found.sets(np.array([[1.0, 0, 0, 0]])).tolist()[0][2:] == [True, True]

    def test_pooled_threshold_without_a_guarantee(self, uneven):
        probabilities, labels, groups = uneven
        found = fit_thresholds(*uneven, NAMES, few="pooled")
        assert found.guaranteed == (True, True, False, False)
        pooled = weighted_threshold(1 - probabilities[np.arange(42), labels], groups, 0.9)
        assert found.values[2:] == (pooled, pooled)

    def test_merged_classes_are_promised_together(self):
        """C and D have too few lesions each; merged they keep the promise for the two together."""
        rng, shares = np.random.default_rng(11), (0.5, 0.4, 0.05, 0.05)
        held = []
        for _ in range(150):
            found = fit_thresholds(*drawn(rng, 130, shares), NAMES, merged=[("C", "D")])
            if not found.guaranteed[2]:
                continue
            assert found.values[2] == found.values[3] and found.guaranteed[3]
            probabilities, labels, groups = drawn(rng, 200, shares)
            chosen = one_each(rng, groups)
            chosen = chosen[labels[chosen] >= 2]
            held.append(found.sets(probabilities[chosen])[np.arange(len(chosen)), labels[chosen]].mean())
        assert len(held) > 100 and interval(held, 1)[1] >= 0.9

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"coverage": 1.0}, "--coverage"),
            ({"coverage": 0.0}, "--coverage"),
            ({"merged": [("A", "X")]}, "'X'"),
            ({"merged": [("A", "B"), ("B", "C")]}, "twice"),
            ({"merged": [("A",)]}, "fewer than two"),
        ],
    )
    def test_options_that_cannot_work(self, uneven, options, word):
        with pytest.raises(ConfigError, match=word):
            fit_thresholds(*uneven, NAMES, **options)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), coverage=st.floats(0.3, 0.97))
def test_the_order_of_photographs_does_not_matter(seed, coverage):
    rng = np.random.default_rng(seed)
    probabilities, labels, groups = drawn(rng, 40, (0.4, 0.3, 0.2, 0.1))
    order = rng.permutation(len(labels))
    first = fit_thresholds(probabilities, labels, groups, NAMES, coverage=coverage)
    again = fit_thresholds(probabilities[order], labels[order], groups[order], NAMES, coverage=coverage)
    assert first.values == again.values
    assert (first.sets(probabilities)[order] == again.sets(probabilities[order])).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_more_coverage_never_makes_a_set_smaller(seed):
    answers = drawn(np.random.default_rng(seed), 60, (0.4, 0.3, 0.2, 0.1))
    narrow, wide = (fit_thresholds(*answers, NAMES, coverage=coverage).sets(answers[0]) for coverage in (0.6, 0.9))
    assert (wide >= narrow).all()


def test_observed_coverage_is_counted_by_class():
    sets = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [1, 0]], bool)
    first, second = observed_coverage(sets, np.array([0, 0, 0, 1, -1]), ("A", "B"), np.array([*"abcde"]))
    assert (first.class_name, first.lesions, first.covered) == ("A", 3, 2)
    assert (second.lesions, second.covered, second.high) == (1, 1, 1.0)
    # Clopper-Pearson at 97.5 % for one of one: the lower end p solves p = 0.0125.
    assert second.low == pytest.approx(0.0125)
