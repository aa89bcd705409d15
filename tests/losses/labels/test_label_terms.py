"""Terms on labels against their published formulas, written out, and numbers of the authors' code."""

import numpy as np
import pytest
import torch
from helpers.terms import COUNTS, LABELS, WIDTHS, labels_of, logits, ready, value_of

from kd_convnext.errors import ConfigError
from kd_convnext.losses import LDAM, BalancedSoftmax, ClassBalanced, CrossEntropy, Focal, FocalLoss, Objective
from kd_convnext.losses.class_counts import effective_numbers

LOGITS = logits()[0].numpy()
ROWS = np.arange(6)
WEIGHTS = np.array([3.0171, 0.0945, 0.6342, 1.0264, 0.2278])


def log_softmax(values):
    return values - np.log(np.exp(values).sum(1, keepdims=True))


def test_cross_entropy_smoothed_and_weighted_by_hand():
    log_p = log_softmax(LOGITS)
    targets = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
    assert value_of(ready(CrossEntropy(smoothing=0.1))) == pytest.approx(-(targets * log_p).sum(1).mean(), rel=1e-12)
    weighted = -(targets * log_p * WEIGHTS).sum(1).mean()
    assert value_of(ready(CrossEntropy(smoothing=0.1, weighted=True))) == pytest.approx(weighted, rel=1e-6)
    reference = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(torch.tensor(LOGITS), LABELS).item()
    assert value_of(ready(CrossEntropy(smoothing=0.1))) == pytest.approx(reference, rel=1e-9)


def test_focal_of_mixed_labels_by_hand():
    soft = labels_of("soft").numpy()[:5]
    p = np.exp(log_softmax(LOGITS))[:5]
    expected = -(soft * WEIGHTS * (1 - p) ** 2 * np.log(p)).sum(1).mean()
    assert value_of(ready(Focal()), labels_of("soft")) == pytest.approx(expected, rel=1e-6)


def test_focal_takes_the_datas_weights_unless_told_otherwise():
    plain = FocalLoss(None)(torch.tensor(LOGITS), LABELS).item()
    assert value_of(ready(Focal(weighted=False))) == pytest.approx(plain, rel=1e-12)
    own = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert value_of(ready(Focal(class_weights=own))) == pytest.approx(
        FocalLoss(own)(torch.tensor(LOGITS), LABELS).item(), rel=1e-12
    )
    assert value_of(ready(Focal())) != pytest.approx(plain)


@pytest.mark.parametrize("kind", [Focal, CrossEntropy])
def test_weights_that_nobody_told_are_missed_once(kind, recwarn):
    Objective({"labels": kind(weighted=True)}).check_start(5)
    assert [str(warning.message) for warning in recwarn if "told no weights" in str(warning.message)][1:] == []
    assert recwarn.pop(UserWarning).message.args[0].startswith(f"{kind.__name__} weighs all classes alike")
    kind(weighted=True).build(WIDTHS[0], None)  # as where a checkpoint is loaded
    for term in (ready(kind(weighted=True)), kind(weighted=False)):
        assert term.start_findings(5) == []
    assert not recwarn


def test_class_balanced_by_hand():
    beta = 0.999
    weights = np.array([(1 - beta) / (1 - beta**count) for count in COUNTS])
    weights *= 5 / weights.sum()
    log_p = log_softmax(LOGITS)[ROWS, LABELS]
    expected = -(weights[LABELS] * (1 - np.exp(log_p)) ** 2 * log_p).mean()
    assert value_of(ready(ClassBalanced(beta=beta, gamma=2.0))) == pytest.approx(expected, rel=1e-6)


def test_effective_numbers_lie_between_one_and_the_counts():
    assert effective_numbers(COUNTS, 0.0).tolist() == [1.0] * 5
    assert effective_numbers([1, 1], 0.9).tolist() == [1.0, 1.0]
    assert effective_numbers(COUNTS, 1 - 1e-9).numpy() == pytest.approx(COUNTS, rel=1e-5)


def test_a_class_without_images_takes_no_weight_from_the_others():
    some, counts = np.array([1, 2, 3, 4]), [0, 1000, 500, 300, 800]
    weights = (1 - 0.999) / (1 - 0.999 ** np.array(counts)[some])
    weights *= 4 / weights.sum()
    labels = torch.tensor([-1, 1, 2, 3, 4, -1])
    log_p = log_softmax(LOGITS)[some, some]
    term = ClassBalanced(class_counts=counts)
    assert value_of(ready(term), labels) == pytest.approx(-(weights * log_p).mean(), rel=1e-6)
    assert term.loss.class_weights.tolist() == pytest.approx([0, *weights], rel=1e-6)

    margins = 0.5 * (300 / np.array([1000, 500, 300, 800])) ** 0.25
    moved = LOGITS[some].copy()
    moved[some - 1, some] -= margins
    losses = -log_softmax(moved)[some - 1, some]
    ldam = ready(LDAM(class_counts=counts, reweight_from=1, beta=0.999))
    assert value_of(ldam, labels) == pytest.approx(losses.mean(), rel=1e-6)
    ldam.begin_epoch(1)
    assert value_of(ldam, labels) == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-6)


def test_ldam_by_hand_and_by_the_authors():
    margins = 0.5 * (min(COUNTS) / np.array(COUNTS)) ** 0.25
    moved = LOGITS.copy()
    moved[ROWS, LABELS] -= margins[LABELS]
    losses = -log_softmax(30 * moved)[ROWS, LABELS]
    term = ready(LDAM(scale=30.0, reweight_from=1))
    assert value_of(term) == pytest.approx(losses.mean(), rel=1e-6)
    assert value_of(term) == pytest.approx(75.86357056240352, rel=1e-6)
    term.begin_epoch(0)
    assert value_of(term) == pytest.approx(75.86357056240352, rel=1e-6)
    before = term.class_weights.data_ptr()
    term.begin_epoch(1)
    assert value_of(term) == pytest.approx(89.85313272525103, rel=1e-6)
    assert term.class_weights.data_ptr() == before  # a compiled step reads the same memory
    term.begin_epoch(0)
    assert value_of(term) == pytest.approx(75.86357056240352, rel=1e-6)


def test_balanced_softmax_by_hand():
    weighted = np.exp(LOGITS) * np.array(COUNTS)
    p = weighted / weighted.sum(1, keepdims=True)
    expected = -np.log(p[ROWS, LABELS]).mean()
    assert value_of(ready(BalancedSoftmax())) == pytest.approx(expected, rel=1e-6)
    assert value_of(ready(BalancedSoftmax(tau=0.0))) == pytest.approx(value_of(CrossEntropy()), rel=1e-12)


def test_counts_are_asked_for_and_may_be_given():
    with pytest.raises(ConfigError, match="number of training images"):
        BalancedSoftmax().build(WIDTHS[0], None)
    with pytest.raises(ConfigError, match="3 counts for 5 classes"):
        LDAM(class_counts=[1, 2, 3]).build(WIDTHS[0], None)
    for kind in (BalancedSoftmax, LDAM, ClassBalanced):
        given = kind(class_counts=[1, 1, 1, 1, 1])
        assert value_of(ready(given)) != pytest.approx(value_of(ready(kind())), rel=1e-3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CrossEntropy(smoothing=1.0),
        lambda: BalancedSoftmax(tau=-1),
        lambda: ClassBalanced(beta=1.0, class_counts=COUNTS),
        lambda: ready(LDAM(beta=1.0)),
        lambda: LDAM(scale=0.0),
        lambda: Focal(gamma=-1),
        lambda: Focal(class_weights=[-1.0]),
    ],
)
def test_values_that_cannot_work_are_refused(build):
    with pytest.raises(ConfigError):
        build()
