import numpy as np
import pytest
from scipy import special

from kd_convnext.common.arrays import softmax


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_softmax_equals_scipys(temperature):
    logits = np.random.default_rng(0).normal(scale=20, size=(7, 3, 5))
    np.testing.assert_allclose(softmax(logits, temperature), special.softmax(logits / temperature, axis=-1), rtol=1e-14)


def test_softmax_stands_large_logits_and_reads_single_precision_as_double():
    assert softmax(np.array([1e4, 0.0, -1e4], np.float32)).tolist() == [1.0, 0.0, 0.0]
    assert softmax(np.array([0.1, 0.2], np.float32)).dtype == np.float64
