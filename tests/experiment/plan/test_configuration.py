"""The hash of a cell counts what it computes, wherever the option stands."""

import copy
import os

import pytest

from kd_convnext.experiment.plan.configuration import hash_of, merged, modern, with_absolute_paths

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
        ("data.loader", {"views_seed": 1}),
        ("data.loader", {"unlabelled_ratio": 2.0}),
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


@pytest.mark.parametrize(
    "old, new",
    [
        ({"store_size": 64, "ratios": [8, 1, 1]}, {"crops": {"store_size": 64}, "split": {"ratios": [8, 1, 1]}}),
        (
            {"split_seed": 1, "split_index": 2, "view_seed": 3},
            {"split": {"seed": 1, "index": 2}, "loader": {"seed": 3}},
        ),
        ({"upscaler": "none", "num_workers": 3}, {"crops": {"upscaler": "none"}, "loader": {"num_workers": 5}}),
    ],
)
def test_the_spelling_of_the_data_does_not_count(old, new):
    assert hash_of({**CELL, "data": old}, None) == hash_of({**CELL, "data": new}, None)
    assert hash_of(modern({**CELL, "data": old}), None) == hash_of({**CELL, "data": old}, None)


def test_the_hash_of_a_flat_configuration_is_that_of_earlier_versions():
    # Without a manifest: a file of its name in the working directory would count.
    assert hash_of({**CELL, "data": {"split_seed": 1, "packed": True}}, None) == "1412b84b910e2875"


def test_the_content_of_photographs_without_labels_counts(tmp_path):
    rows = tmp_path / "without_labels.csv"
    rows.write_text("image\n1.jpg\n")
    config = {**CELL, "data": {"unlabelled": str(rows)}}
    before = hash_of(config, None)
    rows.write_text("image\n2.jpg\n")
    os.utime(rows, (1, 1))
    assert hash_of(config, None) != before


def test_a_later_layer_holds_however_it_is_spelled():
    below = modern({"data": {"store_size": 64, "upscaler": "none", "views": 2}})
    above = {"data": {"crops": {"upscaler": "bicubic"}, "store_size": 32}}
    assert modern(merged(below, above))["data"] == {
        "upscaler": "bicubic",
        "loader": {"views": 2},
        "crops": {"store_size": 32},
    }


def test_its_teacher_counts():
    assert hash_of(CELL, "a") != hash_of(CELL, None)


def test_a_configuration_laid_over_another_appends_callbacks_as_fit_does():
    average, stop = {"class_path": "A"}, {"class_path": "B", "init_args": {"patience": 2}}
    above = {"trainer": {"callbacks+": [stop]}}
    below = {"trainer": {"callbacks": [average], "max_epochs": 3}}
    assert merged(below, above) == {"trainer": {"callbacks": [average, stop], "max_epochs": 3}}
    alone = {"trainer": {"callbacks": average}}  # one needs no list
    assert merged(alone, above) == {"trainer": {"callbacks": [average, stop]}}
    for empty in ({}, {"trainer": {}}, {"trainer": {"callbacks": None}}, {"trainer": None}):
        assert merged(empty, above) == {"trainer": {"callbacks": [stop]}}
    assert below["trainer"]["callbacks"] == [average]


@pytest.mark.parametrize("named", [{"teacher_ckpt": "t.ckpt"}, {"teachers": {"vit": "t.ckpt"}}])
def test_a_teacher_from_elsewhere_counts_by_its_content(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "t.ckpt"
    file.write_text("one")
    config = {**CELL, "model": {"class_path": "kd_convnext.DistillModule", "init_args": named}}
    before = hash_of(config, None)
    assert hash_of(with_absolute_paths(config), None) == before
    monkeypatch.chdir("/")
    absolute = {**CELL, "model": {**config["model"], "init_args": _inside(named, str(file))}}
    assert hash_of(absolute, None) == before
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert hash_of(absolute, None) != before


def _inside(named, path):
    return {name: {key: path for key in value} if isinstance(value, dict) else path for name, value in named.items()}


def test_a_teacher_that_the_fit_trains_counts_by_its_configuration(tmp_path):
    (tmp_path / "w.pth").write_text("one")
    file = tmp_path / "teacher.yaml"
    file.write_text(f"model: {{init_args: {{backbone: {{weights: {tmp_path / 'w.pth'}}}}}}}\n")
    config = {**CELL, "teacher_config": str(file)}
    before, taught = hash_of(config, None), hash_of(config, "f00")
    (tmp_path / "w.pth").write_text("two")
    os.utime(tmp_path / "w.pth", ns=(1, 1))
    after = hash_of(config, None)
    file.write_text(file.read_text() + "seed_everything: 1\n")
    assert len({before, after, hash_of(config, None)}) == 3
    # A method of the experiment teaches: the file is not used.
    assert hash_of(config, "f00") == taught
