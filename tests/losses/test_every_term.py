"""What every term must withstand: numeric gradients, autocast, missing and soft labels, one compiled graph, a copy."""

import pytest
import torch
from helpers.terms import EVERY, LABELS, WIDTHS, labels_of, outputs, ready, value_of
from torch.utils._python_dispatch import TorchDispatchMode

from kd_convnext import losses
from kd_convnext.losses import LDAM, Objective, Outputs, Term
from kd_convnext.losses.described import built

TERMS = {
    "SoftTargets": lambda: losses.SoftTargets(),
    "Decoupled": lambda: losses.Decoupled(),
    "Correlation": lambda: losses.Correlation(),
    "LogitStandardised": lambda: losses.LogitStandardised(),
    "LogitStandardised of Decoupled": lambda: losses.LogitStandardised(losses.Decoupled()),
    "PriorRemoved": lambda: losses.PriorRemoved(),
    "PriorRemoved of Balanced": lambda: losses.PriorRemoved(losses.Balanced()),
    "Confident": lambda: losses.Confident(threshold=0.1),
    "Confident of Correlation": lambda: losses.Confident(losses.Correlation(), threshold=0.1),
    "Balanced": lambda: losses.Balanced(),
    "FeatureMaps": lambda: losses.FeatureMaps(),
    "AttentionTransfer": lambda: losses.AttentionTransfer(),
    "MaskedGenerative": lambda: losses.MaskedGenerative(last_only=False),
    "MaskedGenerative of channels": lambda: losses.MaskedGenerative(mask="channels"),
    "StageLogits": lambda: losses.StageLogits(),
    "UnlikeMaps": lambda: losses.UnlikeMaps(),
    "CosineEmbedding": lambda: losses.CosineEmbedding(),
    "Relational": lambda: losses.Relational(),
    "Focal": lambda: losses.Focal(),
    "CrossEntropy": lambda: losses.CrossEntropy(smoothing=0.1, weighted=True),
    "ClassBalanced": lambda: losses.ClassBalanced(gamma=1.0),
    "LDAM": lambda: LDAM(reweight_from=0),
    "BalancedSoftmax": lambda: losses.BalancedSoftmax(),
}

every_term = pytest.mark.parametrize("make", TERMS.values(), ids=list(TERMS))


def test_no_term_is_left_out():
    public = {name for name in losses.__all__ if isinstance(getattr(losses, name), type)}
    terms = {name for name in public if issubclass(getattr(losses, name), Term)} - {"Term", "CountedTerm"}
    assert terms == {type(make()).__name__ for make in TERMS.values()}


@every_term
@pytest.mark.parametrize("kind", EVERY)
def test_numeric_gradients(make, kind):
    term, (student, teacher) = ready(make()), outputs()
    labels = labels_of(kind)

    def loss(logits, first, second, embedding):
        torch.manual_seed(1)
        return term(Outputs(logits, (first, second), embedding), None if term.teacher is None else teacher, labels)

    inputs = [student.logits, *student.maps, student.embedding]
    parameters = list(term.parameters())
    assert loss(*inputs).dtype == torch.float64
    inputs = [value.detach().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)
    if parameters:
        grads = torch.autograd.grad(loss(*inputs), parameters)
        assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads)


@every_term
def test_float32_under_autocast(make):
    term, (student, teacher) = ready(make()).float(), outputs(torch.bfloat16)
    exact = ready(make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        loss = term(student, None if term.teacher is None else teacher, LABELS)
    wide, other = (Outputs(o[0].double(), tuple(m.double() for m in o[1]), o[2].double()) for o in (student, teacher))
    torch.manual_seed(1)
    expected = exact(wide, None if term.teacher is None else other, LABELS).item()
    assert loss.dtype == torch.float32
    # Projectors (convolutions) run in half precision, what is summed does not.
    assert loss.item() == pytest.approx(expected, rel=0.03 if list(term.parameters()) else 2e-5)


@every_term
def test_rows_without_a_label(make):
    term, (student, teacher) = ready(make()), outputs()
    nothing = torch.full((6,), -1)
    if term.teacher is None:
        assert value_of(term, nothing) == 0
        half = labels_of("unlabelled")
        kept = half >= 0
        rows = Outputs(student.logits[kept])
        assert value_of(term, half) == pytest.approx(term(rows, None, half[kept]).item(), rel=1e-12)
        changed = student.logits.clone()
        changed[~kept] += 7
        assert term(Outputs(changed), None, half).item() == pytest.approx(value_of(term, half), rel=1e-12)
    else:
        torch.manual_seed(1)
        assert torch.isfinite(term(student, teacher, nothing)) and value_of(term, nothing) > 0


@every_term
def test_soft_labels_of_certainty_are_labels(make):
    term = ready(make())
    assert value_of(term, torch.eye(5, dtype=torch.float64)[LABELS]) == pytest.approx(value_of(term), rel=1e-9)


@every_term
def test_equal_networks_lose_least(make):
    """Terms that compare alike outputs are least, and mostly 0, where the student equals the teacher."""
    term = make()
    if term.teacher is None or isinstance(term, losses.MaskedGenerative | losses.StageLogits):
        pytest.skip("judges by labels, or by a generator or a head that must learn first")
    if isinstance(term, losses.PriorRemoved | losses.Balanced):
        pytest.skip("corrects the teacher")
    student, _ = outputs()
    term.count_classes([1] * 5)
    torch.manual_seed(0)
    term.build(WIDTHS[0], WIDTHS[0])
    term.double()
    with torch.no_grad():
        for name, parameter in term.named_parameters():
            identity = torch.eye(*parameter.shape[:2]).reshape(parameter.shape) if "weight" in name else 0
            parameter.copy_(identity * torch.ones_like(parameter))
        if isinstance(term, losses.CosineEmbedding):
            term.projector.weight.zero_()
    assert term(student, student, LABELS).item() == pytest.approx(0, abs=1e-6)


def test_one_compiled_graph_of_all_terms_over_changing_weights():
    torch._dynamo.reset()
    made = {name.replace(" ", "_"): ready(make()).float() for name, make in TERMS.items()}
    objective = Objective(made)
    student, teacher = outputs(torch.float32)
    student = Outputs(student.logits.requires_grad_(), student.maps, student.embedding)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(objective, backend=backend, fullgraph=True, dynamic=False)
    for epoch in range(3):
        objective.begin_epoch(epoch)
        weights = objective.weights(0) * (epoch + 1)
        torch.manual_seed(2)
        plain = objective(student, {"teacher": teacher}, labels_of("unlabelled"), weights)
        torch.manual_seed(2)
        quick = compiled(student, {"teacher": teacher}, labels_of("unlabelled"), weights)
        torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)
        quick.total.backward()
    assert len(graphs) == 1


@every_term
def test_nothing_is_copied_to_the_device_in_a_step(make):
    """Numbers that Python holds would be copied at every step, and the step would wait for them."""
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            copied.extend([str(function)] if "lift_fresh" in str(function) else [])
            return function(*args, **(kwargs or {}))

    term, (student, teacher) = ready(make()), outputs()
    with Copies():
        term(student, None if term.teacher is None else teacher, LABELS)
    assert not copied


@every_term
def test_a_description_makes_an_equal_term(make):
    term = make()
    again = built(term.description, Term)
    assert type(again) is type(term) and again.description == term.description
    assert value_of(ready(again)) == pytest.approx(value_of(ready(make())), rel=1e-12)
