import math

import numpy as np
import pytest
from scipy.stats import norm

from kd_convnext.evaluation.discrimination import Ranking
from kd_convnext.evaluation.operating import operating_point, operating_points


def ranking(scores, positive, lesions=None):
    scores = np.asarray(scores, dtype=float)
    return Ranking(scores, np.asarray(positive, dtype=bool), np.arange(len(scores)) if lesions is None else lesions)


def test_a_threshold_gives_shares_with_exact_intervals():
    found = operating_point(ranking([0.9, 0.5, 0.1, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0]), 0.5)
    assert found.called == 3
    assert (found.sensitivity.value, found.specificity.value, found.precision.value) == pytest.approx((2 / 3,) * 3)
    # statsmodels 0.15.0, proportion_confint(2, 3, method="beta").
    assert (found.sensitivity.interval.low, found.sensitivity.interval.high) == pytest.approx((0.0942993, 0.9915962))
    nothing = operating_point(ranking([0.1, 0.2], [1, 0]), 0.5)
    assert nothing.called == 0 and math.isnan(nothing.precision.value)
    # None of one: nothing is known but that it is not sure.
    assert (nothing.sensitivity.interval.low, nothing.sensitivity.interval.high) == pytest.approx((0, 0.975))


def test_points_go_from_nothing_called_to_everything():
    rng = np.random.default_rng(0)
    points = operating_points(ranking(rng.random(200), rng.random(200) < 0.3), most=9)
    called = [point.called for point in points]
    assert called[:2] == [0, 1] and called[-1] == 200 and sorted(called) == called and len(points) == 10


@pytest.mark.parametrize("lesions", [3, 5, 10, 30])
def test_the_sensitivity_at_a_threshold_is_covered(lesions):
    """Two photographs a lesion, normal scores, a threshold that a share of .84 reaches."""
    truth, held, trials = norm.cdf(1), 0, 400
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        own = np.repeat(rng.normal(size=2 * lesions), 2) * 0.8 + 0.6 * rng.normal(size=4 * lesions)
        positive = np.repeat(np.arange(2 * lesions) < lesions, 2)
        point = operating_point(ranking(own, positive, np.repeat(np.arange(2 * lesions), 2)), -1.0)
        held += point.sensitivity.interval.low <= truth <= point.sensitivity.interval.high
    # 400 draws at 95 % fall below 0.92 once in 150 times.
    assert held / trials >= 0.92
