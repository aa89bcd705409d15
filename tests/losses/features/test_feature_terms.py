"""Terms on maps and embeddings against their formulas, written out, and numbers of the authors' code."""

import math

import numpy as np
import pytest
import torch
from helpers.terms import LABELS, WIDTHS, logits, outputs, ready, value_of, wave

from kd_convnext.errors import ConfigError
from kd_convnext.losses import (
    AttentionTransfer,
    CosineEmbedding,
    FeatureMaps,
    MaskedGenerative,
    Outputs,
    Relational,
    StageLogits,
    UnlikeMaps,
    Widths,
)
from kd_convnext.losses.features.unlike import paired_depths


def huber(difference):
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def test_feature_maps_by_hand():
    term = ready(FeatureMaps())
    student, teacher = outputs()
    pooled = student.maps[0].numpy().reshape(6, 3, 6, 6)
    down = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(pooled), 4).numpy()
    stages = []
    for layer, own, other in zip(term.projector, (down, student.maps[1].numpy()), teacher.maps, strict=True):
        kernel, bias = layer.weight.detach().numpy()[:, :, 0, 0], layer.bias.detach().numpy()
        mapped = np.einsum("oc,bchw->bohw", kernel, own) + bias[None, :, None, None]
        stages.append(((mapped - other.numpy()) ** 2).mean())
    assert value_of(term) == pytest.approx(np.mean(stages), rel=1e-12)


def test_attention_transfer_by_hand_and_by_the_authors():
    own = Outputs(maps=(wave(2, 3, 4, 4, step=0.3), wave(2, 5, 4, 4, step=0.5)))
    other = Outputs(maps=(wave(2, 6, 4, 4, step=0.4), wave(2, 4, 2, 2, step=0.6)))
    found = AttentionTransfer()(own, other, LABELS[:2]).item()
    assert found == pytest.approx(0.02267425405983872, rel=1e-9)
    total = 0.0
    for mine, theirs in zip(own.maps, other.maps, strict=True):
        side = theirs.shape[2]
        step = mine.shape[2] // side
        small = mine.numpy().reshape(2, -1, side, step, side, step).mean((3, 5))
        vectors = [(values**2).mean(1).reshape(2, -1) for values in (small, theirs.numpy())]
        vectors = [values / np.sqrt((values**2).sum(1, keepdims=True)) for values in vectors]
        total += ((vectors[0] - vectors[1]) ** 2).mean()
    assert found == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("mask", "hidden", "reduction"),
    [("pixels", 0.5, "mean"), ("pixels", 0.5, "sum"), ("channels", 0.15, "sum")],
    ids=["mean", "sum", "the authors' for classification"],
)
def test_masked_generative_by_hand(mask, hidden, reduction):
    term = ready(MaskedGenerative(mask=mask, hidden=hidden, reduction=reduction))
    student, teacher = outputs()
    (generator,) = term.projector
    torch.manual_seed(1)
    places = (6, 1, 4, 4) if mask == "pixels" else (6, 4, 1, 1)
    kept = torch.where(torch.rand(places) < hidden, 0.0, 1.0).double()
    assert 0 < kept.mean() < 1
    aligned = generator.align(student.maps[1]) * kept
    first, _, second = generator.generation
    generated = torch.nn.functional.conv2d(aligned, first.weight, first.bias, padding=1).clamp_min(0)
    generated = torch.nn.functional.conv2d(generated, second.weight, second.bias, padding=1)
    squares = (generated - teacher.maps[1]) ** 2
    expected = squares.mean() if reduction == "mean" else squares.sum() / 6
    assert value_of(term) == pytest.approx(expected.item(), rel=1e-12)


def test_masked_generative_sees_nothing_of_hidden_pixels():
    term = ready(MaskedGenerative())
    (generator,) = term.projector
    kept = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    one, other = (generator(wave(1, 5, 4, 4, step=step), (4, 4), kept) for step in (0.1, 0.9))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("student", "teacher"), [(4, 7), (7, 4), (5, 5)])
def test_the_projector_stays_orthogonal_while_it_learns(student, teacher):
    term = CosineEmbedding()
    term.build(Widths(2, (), student), Widths(2, (), teacher))
    term.double()
    optimizer = torch.optim.SGD(term.parameters(), lr=2.0)
    own, other = wave(9, student, step=0.9), wave(9, teacher, step=1.1)
    values = []
    for _ in range(20):
        loss = term(Outputs(embedding=own), Outputs(embedding=other), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    matrix = term.projector.matrix()
    square = matrix @ matrix.T if teacher <= student else matrix.T @ matrix
    torch.testing.assert_close(square, torch.eye(min(student, teacher), dtype=torch.float64))
    assert values[-1] < values[0] - 0.01


@pytest.mark.parametrize("standardise", [False, True])
def test_cosine_embedding_by_hand(standardise):
    term = ready(CosineEmbedding(standardise=standardise))
    student, teacher = outputs()
    own = student.embedding.numpy() @ term.projector.matrix().detach().numpy().T
    other = teacher.embedding.numpy()
    if standardise:
        other = (other - other.mean(0)) / np.sqrt(other.var(0) + 1e-5)
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(own, other, strict=True)]
    assert value_of(term) == pytest.approx(1 - np.mean(cosines), rel=1e-9)


def test_relational_by_hand_and_by_the_authors():
    student, teacher = outputs()
    own, other = student.embedding.numpy(), teacher.embedding.numpy()
    distances = [np.array([[math.dist(a, b) for b in e] for a in e]) for e in (own, other)]
    distances = [d / d[d > 0].mean() for d in distances]
    pairs = np.mean([huber(a - b) for a, b in zip(*(d.ravel() for d in distances), strict=True)])
    triples = []
    for i in range(6):
        for j in range(6):
            for k in range(6):
                cosines = []
                for e in (own, other):
                    a, b = e[j] - e[i], e[k] - e[i]
                    size = math.sqrt((a @ a) * (b @ b))
                    cosines.append(a @ b / size if size else 0.0)
                triples.append(huber(cosines[0] - cosines[1]))
    expected = 25 * pairs + 50 * np.mean(triples)
    assert value_of(Relational()) == pytest.approx(expected, rel=1e-6)
    assert value_of(Relational()) == pytest.approx(11.112262200476701, rel=1e-6)
    rotated = Outputs(embedding=torch.tensor(other[:, ::-1] * -3 + 5))
    assert Relational()(rotated, teacher, LABELS).item() == pytest.approx(0, abs=1e-6)


def test_pictures_drawn_twice_count_in_the_mean_distance_as_the_authors_do():
    """Their ``d[d > 0].mean()`` comes after a floor of 1e-6, so that it leaves out the diagonal alone."""
    student, teacher = outputs()
    own, other = (side.embedding[[0, 1, 2, 2, 1]] for side in (student, teacher))

    def distances(values):  # as they stand in their metric/utils.py and metric/loss.py
        squares = values.pow(2).sum(1)
        found = (squares[:, None] + squares[None] - 2 * values @ values.T).clamp(min=1e-12).sqrt()
        found[range(5), range(5)] = 0
        return found / found[found > 0].mean()

    expected = 25 * torch.nn.functional.smooth_l1_loss(distances(own), distances(other)).item()
    found = Relational(angle=0.0)(Outputs(embedding=own), Outputs(embedding=other), LABELS[:5]).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_stage_logits_by_hand_and_by_the_authors():
    own, other = logits()
    term = StageLogits()
    term.build(Widths(5, (5,)), Widths(5))
    # A head that hands the averaged map on: the authors' loss on given logits.
    term.projector[0] = torch.nn.Identity()
    maps = own.reshape(6, 5, 1, 1).expand(6, 5, 2, 2)
    found = term(Outputs(maps=(maps,)), Outputs(other), LABELS).item()
    assert found == pytest.approx(1.6770978030228039, rel=1e-9)
    p, log_q = other.softmax(1).numpy(), own.log_softmax(1).numpy()
    expected = 0.0
    for row, label in enumerate(LABELS.tolist()):
        for k in range(5):
            y = float(k == label)
            expected -= ((p[row, k] + y) ** 1.5 - y) * log_q[row, k] / 6
    assert found == pytest.approx(expected, rel=1e-9)


def test_stage_logits_need_no_maps_of_the_teacher():
    student, teacher = outputs()
    term = ready(StageLogits())
    assert torch.isfinite(term(Outputs(maps=student.maps), Outputs(teacher.logits), LABELS))


def test_unlike_maps_by_hand():
    term = ready(UnlikeMaps())
    student, teacher = outputs()
    stages = []
    for layer, own, other in zip(term.projector, student.maps, teacher.maps, strict=True):
        mapped = layer(torch.nn.functional.adaptive_avg_pool2d(own, 4)).detach().numpy()
        cosines = (mapped * other.numpy()).sum(1) / np.sqrt((mapped**2).sum(1) * (other.numpy() ** 2).sum(1))
        stages.append(1 - cosines.mean())
    assert value_of(term) == pytest.approx(np.mean(stages), rel=1e-9)


def test_stages_pair_by_relative_depth():
    assert paired_depths(4, 4) == [0, 1, 2, 3]
    assert paired_depths(4, 12) == [2, 5, 8, 11]
    assert paired_depths(4, 1) == [0, 0, 0, 0]
    assert paired_depths(4, 2) == [0, 0, 1, 1]
    assert paired_depths(1, 4) == [3]
    term = UnlikeMaps()
    term.build(Widths(5, (3, 5), 0), Widths(5, (8,), 0))
    assert [layer.out_channels for layer in term.projector] == [8, 8]


@pytest.mark.parametrize(
    "build",
    [
        lambda: FeatureMaps(distance="cosine"),
        lambda: FeatureMaps().build(WIDTHS[0], Widths(5, (3,))),
        lambda: AttentionTransfer().build(WIDTHS[0], Widths(5)),
        lambda: MaskedGenerative(hidden=1.0),
        lambda: MaskedGenerative(mask="rows"),
        lambda: CosineEmbedding().build(WIDTHS[0], Widths(5, (3,), 0)),
        lambda: UnlikeMaps().build(WIDTHS[0], Widths(5)),
        lambda: StageLogits(gamma=0.5),
        lambda: Relational(angle=-1),
    ],
)
def test_values_that_cannot_work_are_refused(build):
    with pytest.raises(ConfigError):
        build()
