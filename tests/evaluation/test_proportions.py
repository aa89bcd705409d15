import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kd_convnext.evaluation.proportions import (
    Interval,
    clustered_interval,
    difference_interval,
    digits,
    effective_trials,
    exact_interval,
    f1_interval,
    mean_interval,
)

# statsmodels 0.15.0: proportion_confint(right, trials, method="beta").
STATSMODELS = {
    (0, 3): (0.0, 0.7075982261787134),
    (3, 3): (0.2924017738212866, 1.0),
    (1, 5): (0.0050507633794680575, 0.7164179361180896),
    (2, 10): (0.02521072632683336, 0.5560954623076415),
    (179, 209): (0.8014697763310159, 0.9010116957756484),
    (27, 30): (0.7347115495257919, 0.9788828629702774),
}


@pytest.mark.parametrize(("right", "trials"), STATSMODELS)
def test_exact_intervals_are_those_of_statsmodels_and_scipy(right, trials):
    found = exact_interval(right, trials)
    assert (found.low, found.high) == pytest.approx(STATSMODELS[right, trials], abs=1e-9)
    scipys = binomtest(right, trials).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), abs=1e-9)
    answers = np.arange(trials) < right
    assert clustered_interval(answers, np.ones(trials)) == found


def test_nothing_asked_is_nothing_known():
    assert exact_interval(0, 0) == Interval(0.0, 1.0)
    assert math.isnan(clustered_interval([0], [0]).low)
    assert math.isnan(f1_interval([0], [0]).low)


@pytest.mark.parametrize("lesions", [3, 5, 10, 30])
def test_every_share_is_covered_with_95_percent_at_least(lesions):
    """All outcomes are weighed, nothing is drawn."""
    found = [exact_interval(right, lesions) for right in range(lesions + 1)]
    for share in np.linspace(0.02, 0.98, 49):
        held = [one.low <= share <= one.high for one in found]
        assert binom.pmf(range(lesions + 1), lesions, share) @ held >= 0.95


@pytest.mark.parametrize("lesions", [3, 5, 10, 30])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_photographs_of_a_lesion_are_covered_too(lesions, alike):
    """One to five photographs a lesion; with this chance all of a lesion's are answered like its first."""
    rng, share, trials = np.random.default_rng(lesions), 0.8, 1000
    held = 0
    for _ in range(trials):
        sizes = rng.integers(1, 6, lesions)
        together = rng.random(lesions) < alike
        right = np.where(together, sizes * (rng.random(lesions) < share), rng.binomial(sizes, share))
        found = clustered_interval(right, sizes)
        held += found.low <= share <= found.high
    # A thousand draws at 95 % fall below 0.93 once in 400 times.
    assert held / trials >= 0.93


def test_photographs_answered_alike_count_as_one():
    sizes = np.full(10, 4)
    assert effective_trials(np.where(np.arange(10) < 7, 4, 0), sizes) == pytest.approx(10)
    assert clustered_interval(np.zeros(3), np.full(3, 8)).high == pytest.approx(0.7075982, abs=1e-6)
    assert 10 < effective_trials(np.array([4, 3, 2, 4, 3, 3, 1, 3, 4, 2]), sizes) <= 40
    assert effective_trials([1, 0, 1, 0], [1, 1, 1, 0]) == 3


def test_f1_of_a_share_grows_with_it():
    found = f1_interval(np.zeros(3), np.ones(3))
    top = 0.7075982261787134
    assert (found.low, found.high) == pytest.approx((0, 2 * top / (1 + top)))


def test_a_mean_of_classes_is_surer_than_each_and_never_a_point():
    one = exact_interval(3, 3)
    found = mean_interval([1.0, 1.0, 1.0, 1.0], [one] * 4)
    assert (found.low, found.high) == pytest.approx((1 - (1 - one.low) / 2, 1.0))


def test_the_difference_of_independent_shares_is_newcombes():
    """Newcombe 1998 (Statistics in Medicine 17:873), table II, method 10, 56/70 - 48/80: 0.0524 to 0.3339."""
    from scipy.stats import binomtest

    sides = [binomtest(right, of).proportion_ci(method="wilson") for right, of in ((56, 70), (48, 80))]
    found = difference_interval((56 / 70, 48 / 80), (Interval(*sides[0]), Interval(*sides[1])))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_digits_follow_the_number_of_lesions():
    assert [digits(number) for number in (3, 99, 100, 2000)] == [2, 2, 3, 3]
