import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearns

from kd_convnext.evaluation.discrimination import (
    Ranking,
    average_precision,
    precision_recall_curve,
    roc_area,
    roc_curve,
)


def drawn(seed, cases=40, controls=60, shift=1.0, views=1):
    rng = np.random.default_rng(seed)
    positive = np.arange(cases + controls) < cases
    own = rng.normal(size=len(positive)) + shift * positive
    scores = np.repeat(own, views) + 0.3 * rng.normal(size=len(own) * views)
    return Ranking(scores.round(1), np.repeat(positive, views), np.repeat(np.arange(len(positive)), views))


def test_areas_and_curves_are_sklearns_also_with_ties():
    ranking = drawn(0)
    assert roc_area(ranking).value == pytest.approx(roc_auc_score(ranking.positive, ranking.scores))
    expected = average_precision_score(ranking.positive, ranking.scores)
    assert average_precision(ranking, 50).value == pytest.approx(expected)
    wrong, right, _ = sklearns(ranking.positive, ranking.scores, drop_intermediate=False)
    assert np.allclose(roc_curve(ranking), (wrong, right))
    recall, precision = precision_recall_curve(ranking)
    assert recall[-1] == 1
    assert precision[-1] == 0.4


def test_the_variance_is_delongs():
    """By the definition of DeLong et al. (1988), pair by pair."""
    ranking = drawn(1, 12, 15)
    cases, controls = ranking.scores[ranking.positive], ranking.scores[~ranking.positive]
    kernel = (cases[:, None] > controls) + 0.5 * (cases[:, None] == controls)
    value = kernel.mean()
    variance = kernel.mean(axis=1).var(ddof=1) / 12 + kernel.mean(axis=0).var(ddof=1) / 15
    reach = norm.ppf(0.975) * math.sqrt(variance) / (value * (1 - value))
    ends = 1 / (1 + np.exp(-(math.log(value / (1 - value)) + np.array([-reach, reach]))))
    found = roc_area(ranking).interval
    assert (found.low, found.high) == pytest.approx(tuple(ends))


def test_photographs_of_a_lesion_make_the_area_no_surer():
    ranking = drawn(2)
    three = Ranking(*(np.repeat(values, 3) for values in (ranking.scores, ranking.positive, ranking.groups)))
    one, other = roc_area(ranking).interval, roc_area(three).interval
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_three_lesions_above_all_others_are_no_proof():
    found = roc_area(Ranking(np.arange(8.0), np.arange(8) > 4, np.arange(8)))
    assert found.value == found.interval.high == 1
    assert 0.4 < found.interval.low < 0.8
    precision = average_precision(Ranking(np.arange(8.0), np.arange(8) > 4, np.arange(8)))
    assert precision.interval.low < 0.7


def test_twenty_lesions_without_a_mistake_are_no_certainty():
    """Every resample of a perfect ranking is perfect: the bootstrap knows no doubt, the formula does."""
    found = average_precision(Ranking(np.arange(40.0), np.arange(40) > 19, np.arange(40)))
    inner = 1 - 1 / 42  # Boyd et al. (2013): logit of the area nearest to 1 that 20 cases can tell
    logit, reach = math.log(inner / (1 - inner)), 1.959964 / math.sqrt(20 * inner * (1 - inner))
    assert found.value == found.interval.high == 1
    assert found.interval.low == pytest.approx(1 / (1 + math.exp(reach - logit)), abs=1e-6)
    assert 0.6 < found.interval.low < 0.95


def test_a_class_that_does_not_occur_has_no_area():
    found = roc_area(Ranking(np.arange(3.0), np.zeros(3, bool), np.arange(3)))
    assert math.isnan(found.value)
    assert math.isnan(found.interval.low)


@pytest.mark.parametrize(("lesions", "least"), [(3, 0.93), (5, 0.93), (10, 0.92), (30, 0.93)])
def test_the_area_is_covered(lesions, least):
    """Normal scores one and a half apart: the area is Phi(1.5 / sqrt 2.18)."""
    truth = norm.cdf(1.5 / math.sqrt(2 * (1 + 0.3**2)))
    found = [roc_area(drawn(seed, lesions, 2 * lesions, 1.5, views=2)).interval for seed in range(400)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= least
