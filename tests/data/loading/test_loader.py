"""Whole batches, and the memory that loader processes write them into."""

import copy
import multiprocessing
import os

import numpy as np
import pytest
import torch
from helpers.tiny import data
from torch.utils.data import default_collate

from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.loader import Places, specimen_loader
from kd_convnext.data.loading.teacher_outputs import AnswerKind, StoredTeacher, TeacherAnswers, view_name

SEED = 7


def part(manifest, cache, **options):
    source = data(manifest, cache, **options)
    source.setup("fit")
    return source.train_set


def answers(dataset, folder):
    """Made up answers, different for every crop."""
    kind = AnswerKind("teacher", ("stage",), {}, "32-true", 5, ((2, 3, 3),))
    made = TeacherAnswers(folder, kind)
    names = [view_name(dataset.crops.key(row), SEED) for row in dataset.rows.tolist()]
    values = np.random.default_rng(0).normal(size=(len(names), 5 + 18))
    made.add(names, values[:, :5], [values[:, 5:].reshape(-1, 2, 3, 3)])
    return made


def check_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "teacher_maps":
            assert len(value) == len(other[name])
            assert all(torch.equal(*pair) for pair in zip(value, other[name], strict=True))
        else:
            assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


@pytest.mark.parametrize("engine", ["albumentations", "opencv"])
@pytest.mark.parametrize("options", [{}, {"in_chans": 1}, {"packed": True}, {"store_size": None}])
def test_a_batch_is_its_samples(tiny_manifest, tiny_cache, engine, options):
    dataset = part(tiny_manifest, tiny_cache, augment=AugmentSpec(engine=engine), **options)
    keys = [View(position, SEED + position) for position in (4, 0, 9)]
    check_same(dataset.batch(keys), default_collate([dataset[key] for key in keys]))


def test_stored_answers_come_with_views(tiny_manifest, tiny_cache, tmp_path):
    dataset = part(tiny_manifest, tiny_cache)
    dataset.answers = {"teacher": StoredTeacher(answers(dataset, tmp_path))}
    keys = [View(position, SEED) for position in (4, 0, 9)]
    batch = dataset.batch(keys)
    assert batch["teacher_logits"].shape == (3, 5)
    check_same(batch, default_collate([dataset[key] for key in keys]))
    assert "teacher_logits" not in dataset.batch([4, 0, 9])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("stored", [False, True])
def test_processes_give_the_same_batches_however_long_they_are_kept(
    tiny_manifest, tiny_cache, tmp_path, monkeypatch, start, stored
):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: start)  # as the memory is chosen
    dataset = part(tiny_manifest, tiny_cache)
    if stored:
        dataset.answers = {"teacher": StoredTeacher(answers(dataset, tmp_path))}
    order = [View(position, SEED) for position in np.random.default_rng(0).permutation(len(dataset)).tolist()]
    alone, quick = (specimen_loader(dataset, 2, workers, sampler=order) for workers in (0, 1))
    assert (quick.dataset.places is None) == (start == "spawn")
    kept = list(quick)  # more than there are places
    assert quick.dataset.places is None or len(kept) > len(quick.dataset.places.free) + 4
    again = [batch["image"].sum() for batch in quick]
    for one, other, total in zip(alone, kept, again, strict=True):
        assert type(other) is dict
        check_same(one, other)
        assert total == one["image"].sum()


def test_a_last_batch_may_be_shorter(tiny_manifest, tiny_cache):
    dataset = part(tiny_manifest, tiny_cache)
    loader = specimen_loader(dataset, 8, 1)
    assert [len(batch["image"]) for batch in loader] == [8, 8, 8, 6]
    check_same(list(loader)[-1], dataset.batch(range(24, 30)))


def test_a_place_is_free_when_its_last_tensor_is_gone():
    places = Places(2, (3, 1, 2, 2))
    assert [places.take() for _ in range(3)] == [0, 1, None]
    places.pictures[1] = 5
    batch = places.receive(1, 2)
    assert batch.shape == (2, 1, 2, 2) and (batch == 5).all()
    one = batch[1]
    del batch
    assert places.take() is None
    del one
    assert places.take() == 1 and places.take() is None


def test_a_batch_that_fails_gives_its_place_back(tiny_manifest, tiny_cache):
    dataset = part(tiny_manifest, tiny_cache)
    loader = specimen_loader(dataset, 2, 1, sampler=[0, len(dataset)])  # there is no such crop
    places = len(loader.dataset.places.free)
    for _ in range(places + 1):
        with pytest.raises(IndexError):
            list(loader)
    taken = [loader.dataset.places.take() for _ in range(places)]
    assert None not in taken


def test_a_loader_can_be_copied(tiny_manifest, tiny_cache):
    loader = specimen_loader(part(tiny_manifest, tiny_cache), 8, 1)
    other = copy.deepcopy(loader)
    for one, same in zip(loader, other, strict=True):
        check_same(one, same)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_forked_process_that_forgets_a_batch_leaves_it_to_the_trainer():
    places = Places(1, (3, 1, 2, 2))
    places.take()
    held = [places.receive(0, 3)]
    process = multiprocessing.get_context("fork").Process(target=held.clear)
    process.start()
    process.join()
    assert process.exitcode == 0 and places.take() is None
    held.clear()
    assert places.take() == 0
