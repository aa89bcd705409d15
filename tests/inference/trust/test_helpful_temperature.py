"""A temperature is kept only where it improves what it has not seen."""

import numpy as np

from kd_convnext.inference.trust.temperature import cross_fitted, fit_temperature, helpful_temperature


def drawn(seed, sharpness, count=60):
    """Labels drawn from the probabilities of logits, which are then made sharper; each row a lesion."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    return logits * sharpness, labels, np.array([f"L{number}" for number in range(count)])


def likelihood(probabilities, labels):
    return float(np.log(probabilities[np.arange(len(labels)), labels]).mean())


def test_a_network_too_sure_is_scaled():
    assert 3 < helpful_temperature(*drawn(0, 5.0, 400)) < 8


def test_it_never_makes_unseen_lesions_worse():
    dropped = 0
    for seed in range(30):
        logits, labels, groups = drawn(seed, 1.0, 24)
        plain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        better = likelihood(cross_fitted(logits, labels, groups), labels) > likelihood(plain, labels)
        assert (helpful_temperature(logits, labels, groups) != 1.0) == better
        dropped += not better
    assert dropped > 5


def test_the_end_of_the_range_is_no_temperature():
    logits, labels = np.eye(3)[[0, 1, 2] * 5] * 4, np.array([0, 1, 2] * 5)
    groups = np.array([str(number) for number in range(15)])
    assert fit_temperature(logits, labels, groups) < 0.2
    assert helpful_temperature(logits, labels, groups) == 1.0
