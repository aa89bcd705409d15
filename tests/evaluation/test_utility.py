import numpy as np
import pytest

from kd_convnext.evaluation.proportions import Interval
from kd_convnext.evaluation.utility import decision_curve, net_benefit, predictive_intervals, predictive_values


def test_predictive_values_are_bayes():
    """Sensitivity 90 %, specificity 95 %, prevalence 1 %: 9 right of 58.5 alarms in a thousand."""
    positive, negative = predictive_values(0.9, 0.95, 0.01)
    assert (positive, negative) == pytest.approx((9 / 58.5, 940.5 / 941.5))
    assert np.isnan(predictive_values(0.0, 1.0, 0.2)[0])
    low, _ = predictive_intervals(Interval(0.5, 1.0), Interval(0.9, 1.0), 0.1)
    assert (low.low, low.high) == pytest.approx((0.05 / 0.14, 1.0))


def test_net_benefit_is_true_positives_less_weighed_false_ones():
    scores, positive = np.array([0.9, 0.6, 0.4, 0.1]), np.array([True, False, True, False])
    model, everyone = decision_curve(scores, positive, np.array([0.2, 0.5]))
    assert model == pytest.approx([2 / 4 - 1 / 4 * 0.25, 1 / 4 - 1 / 4])
    assert everyone == pytest.approx([0.5 - 0.5 * 0.25, 0.0])
    assert net_benefit(0.5, 0.5, 0.5, 0.5) == pytest.approx(model[1])
