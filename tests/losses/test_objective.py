"""Losses against the design's golden numbers, independent float64 computations and numeric gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from torch import Tensor

from kd_convnext.data.loading.class_weights import inverse_frequency
from kd_convnext.errors import CheckpointError, ConfigError
from kd_convnext.losses import (
    Eq5,
    FeatureLoss,
    FeatureMaps,
    Focal,
    FocalLoss,
    Needs,
    Objective,
    Outputs,
    SoftTargetLoss,
    SoftTargets,
    StageLogits,
    Term,
    WeightSchedule,
    Widths,
)
from kd_convnext.losses.described import built

TEACHER = torch.tensor([[2.0, 5.0, 1.0, 0.0, 3.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 4.0, 0.0, 2.0, 3.0]], dtype=torch.float64)
LABEL = torch.tensor([4])
TRAIN_COUNTS = [33, 1054, 157, 97, 437]

logit_rows = st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=5)


def literal_focal(logits: Tensor, gamma: float = 2.0) -> Tensor:
    """Eq. 4 as printed: a sum over the classes that never looks at a label."""
    probabilities = logits.softmax(dim=1)
    return -((1 - probabilities) ** gamma * probabilities.log()).sum(dim=1).mean()


@pytest.fixture
def maps() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 5, 5), (3, 8, 2, 3)]
    draws = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(2)]
    return draws[0], draws[1]


# --- golden numbers of the design -----------------------------------------------------------------------------


def test_golden_cross_entropy_and_focal():
    assert FocalLoss(gamma=0.0)(STUDENT, LABEL).item() == pytest.approx(1.451914, abs=5e-7)
    assert FocalLoss(gamma=2.0)(STUDENT, LABEL).item() == pytest.approx(0.851649, abs=5e-7)


@pytest.mark.parametrize(
    ("temperature", "cross_entropy", "divergence"),
    [(1.0, 0.758841, 0.132614), (2.0, 1.328951, 0.084845), (4.0, 1.543207, 0.031517)],
)
def test_golden_soft_targets(temperature: float, cross_entropy: float, divergence: float):
    literal = SoftTargetLoss(temperature, scale_by_t2=False)
    assert literal(STUDENT, TEACHER).item() == pytest.approx(cross_entropy, abs=5e-7)
    # The Kullback-Leibler divergence is what remains above the teacher's own entropy.
    assert (literal(STUDENT, TEACHER) - literal(TEACHER, TEACHER)).item() == pytest.approx(divergence, abs=5e-7)
    scaled = SoftTargetLoss(temperature)(STUDENT, TEACHER).item()
    assert scaled == pytest.approx(temperature**2 * cross_entropy, abs=temperature**2 * 5e-7)


def test_golden_class_weights():
    weights = inverse_frequency(TRAIN_COUNTS)
    assert weights == pytest.approx([3.0171, 0.0945, 0.6342, 1.0264, 0.2278], abs=5e-5)
    assert all(type(weight) is float for weight in weights)


def test_literal_focal_is_smallest_where_the_student_knows_nothing():
    uniform = literal_focal(torch.zeros(1, 5, dtype=torch.float64)).item()
    assert uniform == pytest.approx(5.150201, abs=5e-7)
    for seed in range(20):
        logits = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert literal_focal(logits).item() > uniform
    confident = torch.tensor([[20.0, 0, 0, 0, 0]], dtype=torch.float64)
    assert FocalLoss()(confident, torch.tensor([0])) < FocalLoss()(confident * 0, torch.tensor([0]))


# --- independent computations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_feature_loss_against_numpy(maps: tuple[list[Tensor], list[Tensor]], distance: str):
    differences = [(s - t).numpy() for s, t in zip(*maps, strict=True)]
    differences = [d**2 if distance == "mse" else np.abs(d) for d in differences]
    mean = np.mean([d.mean() for d in differences])
    total = np.mean([sum(d[image].sum() for d in differences) for image in range(3)])
    assert FeatureLoss(distance)(*maps).item() == pytest.approx(mean, rel=1e-12)
    assert FeatureLoss(distance, "sum")(*maps).item() == pytest.approx(total, rel=1e-12)


def test_feature_sum_counts_the_elements_of_swin_tiny():
    ones = [torch.ones(2, c, s, s) for c, s in ((96, 56), (192, 28), (384, 14), (768, 7))]
    zeros = [torch.zeros_like(feature) for feature in ones]
    assert FeatureLoss(reduction="sum")(ones, zeros).item() == 301_056 + 150_528 + 75_264 + 37_632
    assert FeatureLoss()(ones, zeros).item() == 1


@given(logit_rows, st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_soft_targets_against_scipy(rows: list[list[float]], temperature: float):
    teacher, student = np.array(rows), np.array(rows)[::-1] * 0.7 + 1
    expected = -(softmax(teacher / temperature, axis=1) * log_softmax(student / temperature, axis=1)).sum(1)
    loss = SoftTargetLoss(temperature, scale_by_t2=False)(torch.tensor(student.copy()), torch.tensor(teacher))
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-9)


@given(logit_rows, st.floats(0, 5), st.lists(st.floats(0, 4), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_focal_against_scipy(rows: list[list[float]], gamma: float, weights: list[float]):
    logits = np.array(rows)
    labels = np.arange(len(rows)) % 4
    log_p = log_softmax(logits, axis=1)[np.arange(len(rows)), labels]
    others = np.where(np.arange(4) == labels[:, None], 0.0, softmax(logits, axis=1)).sum(1)
    # float32 weights, as a model would hold them
    alpha = np.array(weights, dtype=np.float32).astype(np.float64)[labels]
    expected = (-alpha * others**gamma * log_p).mean()
    loss = FocalLoss(weights, gamma)(torch.tensor(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_focal_without_focus_is_torch_cross_entropy():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7) % 5
    weights = inverse_frequency(TRAIN_COUNTS)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=torch.tensor(weights), reduction="none")
    torch.testing.assert_close(FocalLoss(weights, gamma=0.0)(logits, labels), expected.mean())


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_feature_gradient(maps: tuple[list[Tensor], list[Tensor]], distance: str, reduction: str):
    student, teacher = maps
    loss = FeatureLoss(distance, reduction)
    inputs = [feature.requires_grad_() for feature in student]
    assert torch.autograd.gradcheck(lambda *features: loss(features, teacher), inputs)


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_soft_target_gradient(scale_by_t2: bool):
    loss = SoftTargetLoss(3.0, scale_by_t2)
    student = STUDENT.repeat(3, 1).requires_grad_()
    teacher = torch.cat([TEACHER, -TEACHER, TEACHER.flip(1)])
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher), [student])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient(gamma: float):
    loss = FocalLoss(inverse_frequency(TRAIN_COUNTS), gamma)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda values: loss(values, torch.tensor([0, 1, 4, 3])), [logits.requires_grad_()])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_stays_finite_at_certainty(gamma: float):
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = FocalLoss(gamma=gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_t_squared_keeps_the_gradient_when_the_temperature_changes():
    norms = []
    for temperature in (20.0, 40.0):
        student = STUDENT.clone().requires_grad_()
        SoftTargetLoss(temperature)(student, TEACHER).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


# --- properties ---------------------------------------------------------------------------------------------------


@given(logit_rows, st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_losses_ignore_a_shift_of_all_logits(rows: list[list[float]], shift: float):
    logits = torch.tensor(rows, dtype=torch.float64)
    labels = torch.arange(len(rows)) % 4
    for loss, target in ((FocalLoss(), labels), (SoftTargetLoss(), logits.flip(1))):
        torch.testing.assert_close(loss(logits + shift, target), loss(logits, target))


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=8).filter(any))
def test_class_weights_have_mean_one(counts: list[int]):
    weights = inverse_frequency(counts)
    kept = [weight for weight, count in zip(weights, counts, strict=True) if count]
    assert np.mean(kept) == pytest.approx(1)
    assert all((weight == 0) == (count == 0) for weight, count in zip(weights, counts, strict=True))
    shares = [weight * count for weight, count in zip(weights, counts, strict=True) if count]
    assert shares == pytest.approx([shares[0]] * len(shares))


@given(logit_rows)
@settings(max_examples=30, deadline=None)
def test_no_student_beats_the_teacher_on_its_own_targets(rows: list[list[float]]):
    teacher = torch.tensor(rows, dtype=torch.float64)
    loss = SoftTargetLoss()
    assert loss(teacher, teacher) <= loss(teacher.roll(1, dims=1), teacher) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype):
    student, teacher = [torch.full((2, 96, 56, 56), 2.0, dtype=dtype)], [torch.zeros(2, 96, 56, 56, dtype=dtype)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = FeatureLoss(reduction="sum")(student, teacher)
        soft = SoftTargetLoss()(STUDENT.to(dtype), TEACHER.to(dtype))
        focal = FocalLoss()(STUDENT.to(dtype), LABEL)
    assert loss.item() == 4 * 301_056
    assert {loss.dtype, soft.dtype, focal.dtype} == {torch.float32}
    assert focal.item() == pytest.approx(0.851649, abs=1e-5)


def test_student_checkpoints_hold_no_class_weights():
    objective = Eq5(drop=["feature"])
    objective.weigh_classes([1.0, 2.0])
    assert objective.state_dict() == {}
    assert objective.terms["focal"].loss.class_weights.tolist() == [1, 2]


# --- the combination ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("drop", ["", "focal", "soft", "feature", "soft focal", "feature focal", "feature soft"])
def test_eq5_and_its_ablation(maps: tuple[list[Tensor], list[Tensor]], drop: str, alpha: float):
    objective = Eq5(alpha, 0.7, drop=drop.split())
    widths = Widths(5, tuple(feature.shape[1] for feature in maps[0]))
    objective.build(widths, {"teacher": widths})
    objective.double()
    student, teacher = (Outputs(z.repeat(3, 1), tuple(m)) for z, m in zip((STUDENT, TEACHER), maps, strict=True))
    labels = LABEL.repeat(3)
    losses = objective(student, {"teacher": teacher}, labels, objective.weights(0).double())
    expected = {"soft": SoftTargetLoss()(STUDENT, TEACHER).item(), "focal": FocalLoss()(STUDENT, LABEL).item()}
    if "feature" not in drop:
        mapped = objective.terms["feature"].projector(maps[0], maps[1])
        expected["feature"] = FeatureLoss()(mapped, maps[1]).item()
    kept = [name for name in ("feature", "soft", "focal") if name not in drop.split()]
    weights = {"feature": alpha, "soft": 1 - alpha, "focal": 0.7}
    assert objective.names == tuple(kept)
    assert losses.values.tolist() == pytest.approx([expected[name] for name in kept])
    assert losses.total.item() == pytest.approx(sum(weights[name] * expected[name] for name in kept), rel=1e-6)
    assert losses.total.shape == () and losses.values.shape == (len(kept),)
    divergence = (
        16
        * torch.nn.functional.kl_div(
            (STUDENT / 4).log_softmax(1), (TEACHER / 4).softmax(1), reduction="batchmean"
        ).item()
    )
    assert {name: value.item() for name, value in losses.divergences.items()} == (
        {"soft": pytest.approx(divergence, rel=1e-5)} if "soft" in kept else {}
    )


def test_every_bad_option_is_reported():
    with pytest.raises(ConfigError) as caught:
        Eq5(alpha=1.5, beta=-1, drop=["feature", "soft", "focal", "spice"])
    assert [finding.where for finding in caught.value.findings] == ["alpha", "beta", "drop", "loss"]


def test_the_three_stages_come_one_after_the_other():
    objective = Eq5(0.25, 2.0, stages="sequential", stage_epochs=(2, 1))
    found = [objective.weights(epoch).tolist() for epoch in range(5)]
    assert found == [[0.25, 0, 0], [0.25, 0, 0], [0, 0.75, 0], [0, 0, 2], [0, 0, 2]]


class Constant(Term):
    """A term of a fixed value."""

    needs = Needs.EMBEDDING

    def __init__(self, value: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.value = value

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        return torch.tensor(self.value)


def test_an_objective_of_terms_from_two_teachers():
    terms = {
        "one": Constant(2.0, weight=0.5, teacher="swin"),
        "two": SoftTargets(teacher="vit"),
        "three": FeatureMaps(teacher="swin"),
        "four": StageLogits(teacher="vit"),
        "five": Focal(),
    }
    objective = Objective(terms)
    assert objective.teachers == ("swin", "vit")
    assert objective.needs("swin") == Needs.EMBEDDING | Needs.MAPS
    assert objective.needs("vit") == Needs.LOGITS
    assert objective.student_needs == Needs.EMBEDDING | Needs.MAPS | Needs.LOGITS
    assert Objective({"five": Focal()}).teachers == ()
    again = built(objective.description, Objective)
    assert again.names == objective.names and again.description == objective.description
    assert again.terms["one"].value == 2.0 and again.terms["one"].teacher == "swin"


def test_a_term_of_ones_own_needs_no_more_than_forward():
    objective = Objective({"mine": Constant(3.0, weight=2.0, schedule=WeightSchedule(start=1, rise=2))})
    totals = [objective(Outputs(), {"teacher": Outputs()}, LABEL, objective.weights(e)).total.item() for e in range(5)]
    assert totals == [0, 0, 3, 6, 6]


@pytest.mark.parametrize("names", [["step"], ["total"], ["a b"], ["keys"], []])
def test_names_that_cannot_be_logged_are_refused(names: list[str]):
    with pytest.raises(ConfigError):
        Objective({name: Focal() for name in names})


@pytest.mark.parametrize("path", ["os.system", "no_such_module.Term", "kd_convnext.losses.Widths", "torch.nn.Linear"])
def test_descriptions_build_nothing_but_known_terms(path: str):
    with pytest.raises(CheckpointError, match="not among the imported subclasses"):
        built({"class_path": path, "init_args": {}}, Term)


def test_arguments_that_no_checkpoint_can_hold_are_refused():
    with pytest.raises(ConfigError, match="cannot be kept in a checkpoint"):
        _ = Constant(torch.ones(3)).description


def test_schedules_climb_and_fall():
    schedule = WeightSchedule(start=2, rise=2, stop=8, fall=2, end=0.5)
    assert [schedule.factor(epoch) for epoch in range(10)] == [0, 0, 0, 0.5, 1, 1, 1, 0.75, 0.5, 0.5]
    for wrong in ({"start": -1}, {"start": 3, "stop": 2}, {"end": float("nan")}):
        with pytest.raises(ConfigError):
            WeightSchedule(**wrong)


@pytest.mark.parametrize(
    "build",
    [
        lambda: FeatureLoss("cosine"),
        lambda: FeatureLoss(reduction="none"),
        lambda: SoftTargetLoss(0),
        lambda: SoftTargetLoss(float("nan")),
        lambda: FocalLoss(gamma=-1),
        lambda: FocalLoss([1.0, -2.0]),
        lambda: inverse_frequency([0, 0]),
        lambda: inverse_frequency([3, -1]),
    ],
)
def test_values_that_cannot_work_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_inputs_that_do_not_pair_are_refused(maps: tuple[list[Tensor], list[Tensor]]):
    with pytest.raises(ValueError, match="do not pair"):
        FeatureLoss()(maps[0], maps[1][:1])
    with pytest.raises(ValueError, match="do not pair"):
        FeatureLoss()([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 1, 1)])
    with pytest.raises(ValueError, match="do not pair"):
        FeatureLoss()([], [])
    with pytest.raises(ValueError, match="needs logits"):
        SoftTargets()(Outputs(STUDENT), Outputs(), LABEL)
    with pytest.raises(ValueError, match="needs feature maps"):
        FeatureMaps()(Outputs(STUDENT), Outputs(TEACHER), LABEL)
    with pytest.raises(ValueError, match="2 class weights for 5 classes"):
        FocalLoss([1.0, 2.0])(STUDENT, LABEL)
