"""Differences of two methods: resamples block by block, and as many as a family of comparisons needs."""

import numpy as np
import pandas as pd
import pytest

from kd_convnext.evaluation import comparisons
from kd_convnext.evaluation.comparisons import compare_pairs, make_pair


def answers(seed, right):
    """Of 200 lesions of two classes, a share of them right."""
    rng = np.random.default_rng(seed)
    label = np.arange(200) % 2
    prediction = np.where(rng.random(200) < right, label, 1 - label)
    named = {"lesion": [f"L{number}" for number in range(200)], "patient": "", "repeat": 0}
    place = {"image": [f"{number}.jpg" for number in range(200)], "x": 0, "y": 0, "width": 0, "height": 0}
    text = {"label": np.array(["a", "b"])[label], "prediction": np.array(["a", "b"])[prediction]}
    probabilities = {"prob_a": 1.0 - prediction, "prob_b": prediction.astype(float)}
    return pd.DataFrame({**named, **place, **text, **probabilities})


@pytest.fixture
def pair():
    found = make_pair("ours", answers(0, 0.8), "theirs", answers(1, 0.7), ["a", "b"])
    assert found is not None
    return found


def test_blocks_are_other_draws(pair, monkeypatch):
    whole = comparisons._resampled_differences(pair, 40, 0)["f1_macro"]
    monkeypatch.setattr(comparisons, "_BLOCK", 40)
    longer = comparisons._resampled_differences(pair, 100, 0)["f1_macro"]
    assert longer.shape == (100,) and (longer[:40] == whole).all()
    assert (longer[:40] != longer[40:80]).any() and (longer[:20] != longer[80:]).any()


def test_corrected_intervals_are_as_steady_as_the_others(pair):
    """Of a family of eight the end is the 0.3 % quantile: of 500 resamples between the first and the second, noise."""
    ends = []
    for seed in range(4):
        found = compare_pairs([pair] * 8, 500, seed)[0].differences["f1_macro"]
        ends.append((found.interval.low, found.corrected.low))
    usual, corrected = np.ptp(np.array(ends), axis=0)
    assert corrected < 2.5 * usual + 1e-3
    assert ends[0][1] < ends[0][0]
