"""Metrics and evaluation against the paper's figures, scikit-learn and plain numpy."""

import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_convnext.evaluation.answers import UNKNOWN, Evaluation, PredictionStore
from kd_convnext.metrics import METRIC_NAMES, classification_metrics

CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
PAPER_MATRIX = np.array([[3, 0, 0, 0, 2], [0, 122, 0, 0, 0], [0, 3, 11, 1, 1], [0, 0, 2, 10, 0], [0, 9, 6, 6, 33]])


def answers(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that give a confusion matrix."""
    truth, predicted = np.nonzero(matrix)
    labels = np.repeat(truth, matrix[truth, predicted])
    chosen = np.repeat(predicted, matrix[truth, predicted])
    probabilities = np.full((len(labels), len(matrix)), 0.1 / (len(matrix) - 1))
    probabilities[np.arange(len(labels)), chosen] = 0.9
    return labels, probabilities


def evaluation(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...] = CLASSES) -> Evaluation:
    return Evaluation("test", np.arange(len(labels)), np.asarray(labels), np.asarray(probabilities), names)


def computed(labels: np.ndarray, probabilities: np.ndarray, prefix: str = "") -> dict[str, float]:
    collection = classification_metrics(probabilities.shape[1], prefix)
    collection.update(torch.from_numpy(probabilities), torch.from_numpy(labels))
    return {name: float(value) for name, value in collection.compute().items()}


def expected_from_sklearn(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    classes = list(range(probabilities.shape[1]))
    predicted = probabilities.argmax(1)
    macro = dict(labels=classes, average="macro", zero_division=0)
    precision = sk.precision_score(labels, predicted, **macro)
    recall = sk.recall_score(labels, predicted, **macro)
    present = [k for k in classes if 0 < (labels == k).sum() < len(labels)]
    areas = [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
    confidence, right = probabilities.max(1), predicted == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision_macro": precision,
        "recall_macro": recall,
        "f1_macro": sk.f1_score(labels, predicted, **macro),
        "f1_paper": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "auroc_macro": np.mean(areas) if areas else np.nan,
        "ece": sum(gaps),
    }


# --- the paper ----------------------------------------------------------------------------------------------------


def test_one_confusion_matrix_gives_every_figure_of_the_paper():
    found = computed(*answers(PAPER_MATRIX))
    assert found["accuracy"] == pytest.approx(0.8564593, abs=5e-8)
    assert found["precision_macro"] == pytest.approx(0.7988594, abs=1.2e-7)
    assert found["recall_macro"] == pytest.approx(0.7463889, abs=1.2e-7)
    assert found["f1_macro"] == pytest.approx(0.7509370, abs=1.2e-7)
    assert found["f1_paper"] == pytest.approx(0.7717333, abs=1.2e-7)


def test_evaluation_gives_table_3():
    result = evaluation(*answers(PAPER_MATRIX))
    assert (result.confusion_matrix() == PAPER_MATRIX).all()
    found = result.metrics()
    predicted, right, support = (134, 19, 17, 36), (122, 11, 10, 33), (5, 122, 16, 12, 54)
    assert found["precision/Grade 1"] == 1
    assert [found[f"precision/{name}"] for name in CLASSES[1:]] == pytest.approx(np.divide(right, predicted))
    assert [found[f"recall/{name}"] for name in CLASSES] == pytest.approx(np.diag(PAPER_MATRIX) / support)
    assert [found[f"support/{name}"] for name in CLASSES] == list(support)
    assert np.mean([found[f"f1/{name}"] for name in CLASSES]) == pytest.approx(0.7509370, abs=5e-8)
    labels, predictions = result.labels, result.predictions
    assert sk.cohen_kappa_score(labels, predictions) == pytest.approx(0.747848, abs=5e-7)
    assert sk.matthews_corrcoef(labels, predictions) == pytest.approx(0.755979, abs=5e-7)


# --- scikit-learn ---------------------------------------------------------------------------------------------------


@st.composite
def answered_parts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    classes = draw(st.integers(2, 6))
    count = draw(st.integers(1, 40))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.normal(size=(count, classes)) * draw(st.floats(0.1, 5))
    # float32, as models answer; ties and exact bin edges are then as good as excluded
    probabilities = torch.from_numpy(scores).float().softmax(1).double().numpy()
    return generator.choice(present, count), probabilities


@given(answered_parts())
@settings(max_examples=60, deadline=None)
def test_every_metric_is_scikit_learns(part: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = part
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = computed(labels, probabilities)
    assert found == pytest.approx(expected_from_sklearn(labels, probabilities), abs=1e-5, nan_ok=True)
    per_class = evaluation(labels, probabilities, tuple("abcdef"[: probabilities.shape[1]])).metrics()
    for name in METRIC_NAMES:
        assert per_class[name] == pytest.approx(found[name], nan_ok=True)


def test_absent_classes_count_as_zero():
    # torchmetrics' own macro F1 says 1.0 here.
    labels, probabilities = np.array([0, 1, 2]), np.eye(5)[[0, 1, 2]]
    found = computed(labels, probabilities)
    assert found["f1_macro"] == pytest.approx(0.6)
    assert found["f1_paper"] == pytest.approx(0.6)
    assert found["accuracy"] == found["auroc_macro"] == 1


def test_names_and_prefix_are_the_same_for_every_part():
    labels, probabilities = answers(PAPER_MATRIX)
    for prefix in ("train/", "val/", "test/"):
        assert set(computed(labels, probabilities, prefix)) == {prefix + name for name in METRIC_NAMES}
    assert tuple(evaluation(labels, probabilities).metrics())[: len(METRIC_NAMES)] == METRIC_NAMES


def test_batches_and_resets_change_nothing():
    labels, probabilities = answers(PAPER_MATRIX)
    collection = classification_metrics(5, "")
    for _ in range(2):
        for rows in np.array_split(np.random.default_rng(0).permutation(len(labels)), 7):
            collection.update(torch.from_numpy(probabilities[rows]), torch.from_numpy(labels[rows]))
        found = {name: float(value) for name, value in collection.compute().items()}
        assert found == pytest.approx(computed(labels, probabilities), abs=1e-6)
        collection.reset()


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_unlabelled_images_count_in_no_metric():
    labels, probabilities = answers(PAPER_MATRIX)
    known = evaluation(labels, probabilities)
    labels, probabilities = np.append(labels, UNKNOWN), np.vstack([probabilities, np.full(5, 0.2)])
    mixed = evaluation(labels, probabilities)
    assert mixed.metrics() == known.metrics()
    assert (mixed.confusion_matrix() == PAPER_MATRIX).all()
    unknown = evaluation(np.full(3, UNKNOWN), np.full((3, 5), 0.2))
    assert unknown.metrics() == {} and unknown.confusion_matrix().sum() == 0
    nothing = evaluation(np.zeros(0, dtype=np.int64), np.zeros((0, 5)))
    assert nothing.metrics() == {} and len(nothing.by_group(np.zeros(0, dtype=str))) == 0


def test_a_lesion_is_the_mean_of_its_photographs():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    images = Evaluation("val", np.array([2, 5, 7, 9]), np.array([1, 0, 1, 1]), probabilities, ("a", "b"))
    lesions = images.by_group(np.array(["z", "a", "z", "m"]))
    assert lesions.index.tolist() == [2, 5, 9]
    assert lesions.labels.tolist() == [1, 0, 1]
    assert lesions.probabilities == pytest.approx(np.array([[0.4, 0.6], [0.9, 0.1], [0.3, 0.7]]))
    assert lesions.metrics()["accuracy"] == 1 > images.metrics()["accuracy"]


def test_a_lesion_with_two_labels_has_no_right_answer():
    images = evaluation(np.array([0, 0, 1, 2]), np.eye(5)[[0, 0, 0, 2]])
    lesions = images.by_group(np.array(["a", "a", "a", "b"]))
    assert lesions.labels.tolist() == [UNKNOWN, 2]
    assert lesions.metrics()["support/Grade 1"] == 0


def test_groups_of_one_change_nothing():
    images = evaluation(*answers(PAPER_MATRIX))
    same = images.by_group(np.array([f"{row:03}" for row in images.index[::-1]]))
    assert same.metrics() == images.metrics()


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="do not fit 2 images of 5 classes"):
        evaluation(np.zeros(2, dtype=np.int64), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="ascend"):
        Evaluation("val", np.array([1, 1]), np.array([0, 0]), np.full((2, 2), 0.5), ("a", "b"))
    with pytest.raises(ValueError, match="1 group names for 209 images"):
        evaluation(*answers(PAPER_MATRIX)).by_group(np.array(["a"]))


# --- the store ------------------------------------------------------------------------------------------------------


def fill(store: PredictionStore, rows: list[int]) -> None:
    for row in rows:
        store.update(
            torch.tensor([row]), torch.tensor([row % 3]), torch.nn.functional.one_hot(torch.tensor([row % 2]), 3)
        )


def test_the_store_sorts_and_counts_repeats_once():
    store = PredictionStore(3)
    fill(store, [4, 0, 9, 4, 2, 0])
    result = store.evaluation("val", ["a", "b", "c"])
    assert result.index.tolist() == [0, 2, 4, 9]
    assert result.labels.tolist() == [0, 2, 1, 0]
    assert result.predictions.tolist() == [0, 0, 0, 1]
    assert result.class_names == ("a", "b", "c") and result.probabilities.dtype == np.float64
    store.reset()
    fill(store, [7])
    assert store.evaluation("val", ["a", "b", "c"]).index.tolist() == [7]
    store.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(store.evaluation("val", ["a", "b", "c"])) == 0


# Padded by a sampler; unequal; one process without a batch.
PLANS = [[[0, 2, 4], [1, 3, 0]], [[5, 1, 3], [4]], [[6, 8], []]]


@pytest.mark.parametrize("plan", PLANS)
def test_ranks_agree_whatever_each_of_them_saw(plan: list[list[int]]):
    meeting, brought = threading.Barrier(2), [[], []]

    def join(rank: int) -> Evaluation:
        def gather(values: torch.Tensor, group: object) -> list[torch.Tensor]:
            brought[rank].append(values)
            turn = len(brought[rank]) - 1
            meeting.wait(timeout=60)
            both = [brought[0][turn], brought[1][turn]]
            # What the collective operations between processes insist on.
            assert both[0].dtype == both[1].dtype and both[0].ndim == both[1].ndim
            return both

        store = PredictionStore(3)
        store.dist_sync_fn, store.distributed_available_fn = gather, lambda: True
        fill(store, plan[rank])
        return store.evaluation("val", ["a", "b", "c"])

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(join, range(2)):
            assert result.index.tolist() == sorted({*plan[0], *plan[1]})
            assert (result.labels == result.index % 3).all()


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, plan in enumerate(PLANS):
        store = PredictionStore(3)
        fill(store, plan[rank])
        result = store.evaluation("val", ["a", "b", "c"])
        np.savez(f"{folder}/{number}-{rank}.npz", index=result.index, labels=result.labels)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_agree_whatever_each_of_them_saw(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    for number, plan in enumerate(PLANS):
        for rank in range(2):
            found = np.load(tmp_path / f"{number}-{rank}.npz")
            assert found["index"].tolist() == sorted({*plan[0], *plan[1]})
            assert (found["labels"] == found["index"] % 3).all()


def test_metrics_of_a_test_do_not_spoil_those_of_a_fit():
    """A test is judged under inference mode, a fit's validation in the same process is not."""
    labels = np.array([0, 1, 0, 1])
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9]])
    found = Evaluation("test", np.arange(4), labels, probabilities, ("one", "other"))
    with torch.inference_mode():
        tested = found.metrics()
    assert found.metrics() == tested
