"""Terms on logits against their published formulas, written out, and numbers of the authors' code on the same input."""

import math

import numpy as np
import pytest
import torch
from helpers.terms import COUNTS, LABELS, WIDTHS, logits, ready, value_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_convnext.errors import ConfigError
from kd_convnext.losses import (
    Balanced,
    Confident,
    Correlation,
    Decoupled,
    FeatureMaps,
    LogitStandardised,
    Objective,
    Outputs,
    PriorRemoved,
    SoftTargets,
    Widths,
)
from kd_convnext.losses.logits.balanced import thirds

STUDENT, TEACHER = (values.numpy() for values in logits())
GOLDEN_TEACHER = torch.tensor([[2.0, 5.0, 1.0, 0.0, 3.0]], dtype=torch.float64)
GOLDEN_STUDENT = torch.tensor([[1.0, 4.0, 0.0, 2.0, 3.0]], dtype=torch.float64)
rows = st.lists(st.lists(st.floats(-20, 20), min_size=5, max_size=5), min_size=2, max_size=5)


def softmax(values):
    exps = np.exp(values - values.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_kl(p, q):
    return np.mean([kl(a, b) for a, b in zip(p, q, strict=True)])


@pytest.mark.parametrize(("temperature", "divergence"), [(1.0, 0.132614), (2.0, 0.084845), (4.0, 0.031517)])
def test_soft_targets_have_the_golden_divergence(temperature, divergence):
    pair = Outputs(GOLDEN_STUDENT), Outputs(GOLDEN_TEACHER)
    term = SoftTargets(temperature=temperature, scale_by_t2=False)
    assert term(*pair, LABELS[:1]).item() == pytest.approx(divergence, abs=5e-7)
    scaled = SoftTargets(temperature=temperature)(*pair, LABELS[:1]).item()
    assert scaled == pytest.approx(temperature**2 * divergence, abs=temperature**2 * 5e-7)
    p = softmax(GOLDEN_TEACHER.numpy() / temperature)
    entropy = -(p * np.log(p)).sum()
    whole = SoftTargets(temperature=temperature, scale_by_t2=False, value="cross_entropy")(*pair, LABELS[:1]).item()
    assert whole == pytest.approx(divergence + entropy, abs=5e-7)


def test_divergence_and_cross_entropy_have_the_same_gradient():
    grads = []
    for value in ("kl", "cross_entropy"):
        student = GOLDEN_STUDENT.clone().requires_grad_()
        SoftTargets(value=value)(Outputs(student), Outputs(GOLDEN_TEACHER), LABELS[:1]).backward()
        grads.append(student.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-14)


def test_decoupled_by_hand_and_by_the_authors():
    p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
    target = others = 0.0
    for row, label in enumerate(LABELS.tolist()):
        rest = [k for k in range(5) if k != label]
        pair = [np.array([values[row, label], values[row, rest].sum()]) for values in (p, q)]
        target += kl(*pair) / 6
        others += kl(p[row, rest] / p[row, rest].sum(), q[row, rest] / q[row, rest].sum()) / 6
    assert value_of(Decoupled()) == pytest.approx(16 * (target + 8 * others), rel=1e-9)
    assert value_of(Decoupled()) == pytest.approx(8.006540608458172, rel=1e-9)


def test_decoupled_sums_to_hintons_divergence():
    """Eq. 5 of the paper: KD = TCKD + (1 - p_target) NCKD, for one row."""
    p = softmax(TEACHER / 4)
    parts = [Decoupled(target=t, others=o) for t, o in ((1, 0), (0, 1))]
    for row, label in enumerate(LABELS.tolist()):
        pair = Outputs(torch.tensor(STUDENT[row : row + 1])), Outputs(torch.tensor(TEACHER[row : row + 1]))
        first, second = (term(*pair, LABELS[row : row + 1]).item() for term in parts)
        whole = SoftTargets()(*pair, LABELS[row : row + 1]).item()
        assert whole == pytest.approx(first + (1 - p[row, label]) * second, rel=1e-9)


def test_decoupled_without_labels_takes_the_teachers_class():
    told = torch.tensor(TEACHER).argmax(1)
    assert value_of(Decoupled(), torch.full((6,), -1)) == pytest.approx(value_of(Decoupled(), told), rel=1e-12)


def test_correlation_by_hand_and_by_the_authors():
    p, q = softmax(TEACHER / 2), softmax(STUDENT / 2)
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    term = Correlation(inter=0.5, intra=3.0, temperature=2.0)
    assert value_of(term) == pytest.approx(4 * (0.5 * inter + 3 * intra), rel=1e-6)
    assert value_of(Correlation(inter=2.0, intra=2.0)) == pytest.approx(2.027090687085055, rel=1e-6)


@given(st.floats(0.1, 5), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_standardised_logits_ignore_shift_and_size(scale, shift):
    own, other = (torch.tensor(values) for values in (STUDENT, TEACHER))
    term = LogitStandardised()
    moved = term(Outputs(own * scale + shift), Outputs(other), LABELS).item()
    assert moved == pytest.approx(term(Outputs(own), Outputs(other), LABELS).item(), rel=1e-5)


def test_standardised_by_hand_and_by_the_authors():
    own, other = ((v - v.mean(1, keepdims=True)) / v.std(1, ddof=1, keepdims=True) for v in (STUDENT, TEACHER))
    expected = 4 * mean_kl(softmax(other / 2), softmax(own / 2))
    assert value_of(LogitStandardised()) == pytest.approx(expected, rel=1e-6)
    assert value_of(LogitStandardised()) == pytest.approx(0.6194735887364075, rel=1e-9)


def test_the_prior_is_removed_from_the_teacher_alone():
    prior = np.array(COUNTS) / sum(COUNTS)
    adjusted = TEACHER - 0.7 * np.log(prior)
    expected = 16 * mean_kl(softmax(adjusted / 4), softmax(STUDENT / 4))
    # float32 counts, as a model holds them
    assert value_of(ready(PriorRemoved(tau=0.7))) == pytest.approx(expected, rel=1e-6)
    assert value_of(ready(PriorRemoved(tau=0.0))) == pytest.approx(value_of(SoftTargets()), rel=1e-12)


@pytest.mark.parametrize("rows", ["unlabelled", "all"])
def test_confident_leaves_out_what_the_teacher_is_unsure_of(rows):
    p, q = softmax(TEACHER / 2), softmax(STUDENT / 2)
    sure = softmax(TEACHER).max(1)
    threshold = float(np.median(sure))
    labels = torch.full((6,), -1)
    labels[int(sure.argmin())] = 0
    counts = (sure >= threshold) | ((labels.numpy() >= 0) & (rows == "unlabelled"))
    assert 0 < counts.sum() < 6
    expected = 4 * sum(kl(p[row], q[row]) for row in np.flatnonzero(counts)) / 6
    term = Confident(threshold=threshold, rows=rows)
    student = torch.tensor(STUDENT).requires_grad_()
    loss = term(Outputs(student), Outputs(torch.tensor(TEACHER)), labels)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert (student.grad.abs().sum(1) > 0).tolist() == counts.tolist()


def test_confident_refuses_a_threshold_that_is_none():
    with pytest.raises(ConfigError, match="is outside 0"):
        Confident(threshold=1.5)


def test_balanced_by_hand():
    groups = thirds(COUNTS)
    assert groups == ((1, 4), (2, 3), (0,))
    p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
    theirs, own = (np.stack([v[:, list(g)].sum(1) for g in groups], 1) for v in (p, q))
    calibrated = theirs / theirs.mean(0)
    calibrated /= calibrated.sum(1, keepdims=True)
    across = mean_kl(calibrated, own)
    within = 0.0
    for group in map(list, groups):
        a, b = (v[:, group] / v[:, group].sum(1, keepdims=True) for v in (p, q))
        within += mean_kl(a, b)
    term = ready(Balanced(across=2.0, within=0.5))
    assert value_of(term) == pytest.approx(16 * (2 * across + 0.5 * within), rel=1e-9)


@pytest.mark.parametrize("never", [-15.0, -1e4])
def test_balanced_withstands_a_teacher_that_never_says_a_class(never):
    """The rarest class is a group alone; so may be that of a fold whose head knows no lesion of it."""
    own, other = logits()
    own = own.requires_grad_()
    term = ready(Balanced())
    loss = term(Outputs(own), Outputs(other.index_fill(1, torch.tensor([0]), never)), LABELS)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(own.grad).all()


def test_a_class_without_images_is_no_group_alone():
    assert thirds([0, 1054, 157, 97, 437]) == ((1,), (4, 2), (3, 0))
    assert thirds([0, 0, 5]) == ((2, 0, 1),)
    term = Balanced()
    term.count_classes([0, 1054, 157, 97, 437])
    assert term.groups == ((1,), (4, 2), (3, 0))


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(2, [1, 1]), (3, [1, 1, 1]), (4, [1, 2, 1]), (5, [2, 2, 1]), (7, [2, 3, 2]), (100, [33, 34, 33])],
)
def test_of_one_class_too_many_the_middle_group_has_it(classes, sizes):
    assert [len(group) for group in thirds(range(classes, 0, -1))] == sizes


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_too_small_to_tell_a_bias_is_left_as_it_is(count):
    own, other = (values[:count] for values in logits())
    term, groups = ready(Balanced(within=0.0)), thirds(COUNTS)
    p, q = (np.stack([softmax(v.numpy() / 4)[:, list(g)].sum(1) for g in groups], 1) for v in (other, own))
    value = term(Outputs(own), Outputs(other), LABELS[:count]).item()
    assert (value == pytest.approx(16 * mean_kl(p, q), rel=1e-9)) == (count < 4)


def test_what_has_no_gradient_with_two_classes():
    """What the documentation of the terms says; a term without any is refused."""
    own, other = (values[:, :2] for values in logits())

    def gradient(term):
        term.count_classes([30, 10])
        term.build(Widths(2), Widths(2))
        student = own.clone().requires_grad_()
        term.double()(Outputs(student), Outputs(other), LABELS % 2).backward()
        return student.grad.abs().max().item()

    for kind, part in ((Correlation, "inter"), (Decoupled, "others"), (Balanced, "within")):
        parts = {"inter": "intra", "others": "target", "within": "across"}
        assert gradient(kind(**{parts[part]: 0.0})) < 1e-6 < gradient(kind(**{part: 0.0}))
    for wrapped in (LogitStandardised(), Confident(LogitStandardised()), PriorRemoved(LogitStandardised())):
        objective = Objective({"soft": wrapped})
        with pytest.raises(ConfigError, match="2 classes have no gradient"):
            objective.check_start(2)
        objective.check_start(3)
        assert gradient(wrapped) < 1e-6


@pytest.mark.parametrize("wrap", [LogitStandardised, PriorRemoved, lambda inner: Confident(inner, threshold=0.6)])
def test_the_divergence_of_a_wrapped_term_is_logged(wrap):
    """It is what the same term with `value: kl` is."""
    terms = {value: ready(wrap(SoftTargets(value=value))) for value in ("cross_entropy", "kl")}
    objective = Objective(terms)
    pair = Outputs(torch.tensor(STUDENT)), {"teacher": Outputs(torch.tensor(TEACHER))}
    found = objective(*pair, torch.full((6,), -1), objective.weights(0))
    assert set(found.divergences) == {"cross_entropy"}
    assert found.divergences["cross_entropy"].item() == pytest.approx(found.values[1].item(), rel=1e-9)


@given(rows)
@settings(max_examples=30, deadline=None)
def test_without_calibration_the_groups_sum_to_hintons_divergence(values):
    """The decomposition that LTKD starts from, on one row: calibration divides by the batch's mean."""
    teacher = torch.tensor(values, dtype=torch.float64)
    student = teacher.flip(1) * 0.5
    groups = ((0, 3), (1, 4), (2,))
    p, q = softmax(teacher.numpy() / 4), softmax(student.numpy() / 4)
    total = 0.0
    for row in range(len(values)):
        theirs, own = ([v[row, list(g)].sum() for g in groups] for v in (p, q))
        total += kl(theirs, own)
        for weight, group in zip(theirs, map(list, groups), strict=True):
            total += weight * kl(p[row, group] / p[row, group].sum(), q[row, group] / q[row, group].sum())
    whole = SoftTargets(scale_by_t2=False)(Outputs(student), Outputs(teacher), LABELS).item()
    assert whole == pytest.approx(total / len(values), rel=1e-6, abs=1e-9)


def test_a_teacher_that_favours_one_group_is_calibrated():
    """Adding a constant to the frequent classes of every row must not change the part across groups."""
    own, other = logits()
    favoured = other + 3 * torch.tensor([0.0, 1, 0, 0, 1])
    term = ready(Balanced(within=0.0))
    plain, biased = (term(Outputs(own), Outputs(values), LABELS).item() for values in (other, favoured))
    hinton = [SoftTargets()(Outputs(own), Outputs(values), LABELS).item() for values in (other, favoured)]
    assert abs(biased - plain) < 0.25 * abs(hinton[1] - hinton[0])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Decoupled(others=-1),
        lambda: Decoupled(temperature=0),
        lambda: Correlation(temperature=float("nan")),
        lambda: LogitStandardised(FeatureMaps()),
        lambda: PriorRemoved(tau=-1),
        lambda: Balanced(groups=[[0, 1], [1, 2]]),
        lambda: ready(Balanced(groups=[[0, 1], [2]])),
        lambda: Balanced(class_counts=[0, 0]),
        lambda: Balanced().build(*WIDTHS),
        lambda: SoftTargets(weight=-1),
    ],
)
def test_values_that_cannot_work_are_refused(build):
    with pytest.raises(ConfigError):
        build()
