"""The hash of a cell counts what it computes, wherever the option stands."""

import copy

import pytest

from kd_convnext.experiment.plan.configuration import hash_of

CELL = {
    "model": {"class_path": "kd_convnext.TeacherModule", "init_args": {"gamma": 2.0}},
    "data": {"manifest": "m.csv", "cache_dir": "here", "num_workers": 1},
    "trainer": {"max_epochs": 3, "logger": False, "default_root_dir": "runs"},
    "header": {"small_config": None},
}


def changed(path, value):
    config = copy.deepcopy(CELL)
    *above, name = path.split(".")
    section = config
    for word in above:
        section = section[word]
    section[name] = value
    return config


@pytest.mark.parametrize(
    "path, value",
    [
        ("data.cache_dir", "there"),
        ("data.num_workers", 4),
        ("trainer.logger", True),
        ("trainer.default_root_dir", "elsewhere"),
        ("header.small_config", "x"),
        ("name", "other"),
    ],
)
def test_where_a_cell_runs_does_not_count(path, value):
    assert hash_of(changed(path, value), None) == hash_of(CELL, None)


@pytest.mark.parametrize(
    "path, value",
    [
        ("data.batch_size", 4),
        ("trainer.max_epochs", 4),
        ("model.init_args.gamma", 1.0),
        # Options of a model that are called as those that do not count.
        ("model.init_args.logger", 1),
        ("model.init_args.cache_dir", "x"),
        ("model.init_args.name", "x"),
    ],
)
def test_what_it_computes_counts(path, value):
    assert hash_of(changed(path, value), None) != hash_of(CELL, None)


def test_its_teacher_counts():
    assert hash_of(CELL, "a") != hash_of(CELL, None)
