"""Checkpoints and arguments of the first format in the present one."""

import copy

import pytest
import torch

from kd_convnext.checkpoints.flat_arguments import modern_arguments
from kd_convnext.checkpoints.upgrade import FORMAT_VERSION, KEY, upgraded
from kd_convnext.errors import ConfigError

EQ5 = "kd_convnext.losses.Eq5"


def first_format() -> dict:
    """A student's checkpoint of format 1, as far as it changed."""
    return {
        "state_dict": {"student.a": torch.zeros(1), "regressors.convolutions.3.weight": torch.ones(2)},
        "hyper_parameters": {
            "num_classes": 5,
            "student": {"name": "convnext_tiny"},
            "feature": True,
            "soft": False,
            "focal": True,
            "alpha": 0.25,
            "stage_epochs": (10, 10),
            "student_taps": None,
            "teacher_taps": ["layers.3"],
            "teacher_ckpt": "best.ckpt",
        },
        KEY: {
            "format_version": 1,
            "kind": "DistillModule",
            "teacher": "best.ckpt",
            "student_taps": ["stages.3"],
            "student_channels": [24],
            "teacher_channels": [128],
            "teacher_taps": ["layers.3"],
        },
    }


def test_a_students_checkpoint_is_brought_up():
    before = first_format()
    kept = copy.deepcopy(before)
    after = upgraded(before)
    assert before.keys() == kept.keys() and before[KEY] == kept[KEY]
    assert before["hyper_parameters"] == kept["hyper_parameters"]
    assert set(after["state_dict"]) == {"student.a", "objective.terms.feature.projector.3.weight"}
    assert after["hyper_parameters"] == {
        "num_classes": 5,
        "student": {"name": "convnext_tiny"},
        "teacher_ckpt": "best.ckpt",
        "objective": {
            "class_path": EQ5,
            "init_args": {"alpha": 0.25, "stage_epochs": (10, 10), "drop": ["soft"]},
        },
        "taps": {"student": None, "teacher": ["layers.3"]},
    }
    assert after[KEY]["format_version"] == FORMAT_VERSION
    assert after[KEY]["widths"] == {"student": [5, [24], 0], "teachers": {"teacher": [5, [128], 0]}}
    assert after[KEY]["taps"] == {"student": ["stages.3"], "teachers": {"teacher": ["layers.3"]}}
    again = upgraded(after)
    assert again[KEY] == after[KEY] and again["hyper_parameters"] == after["hyper_parameters"]


def test_a_teachers_checkpoint_keeps_its_own_gamma():
    checkpoint = {
        "state_dict": {},
        "hyper_parameters": {"backbone": {}, "gamma": 2.0},
        KEY: {"format_version": 1, "kind": "TeacherModule"},
    }
    assert upgraded(checkpoint)["hyper_parameters"] == checkpoint["hyper_parameters"]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"n": 1}, {"n": 1}),
        ({"feature": True}, {"objective": {"class_path": EQ5, "init_args": {}}}),
        (
            {
                "focal": False,
                "objective": {"class_path": EQ5, "init_args": {"drop": ["soft"], "beta": 2}},
            },
            {"objective": {"class_path": EQ5, "init_args": {"drop": ["soft", "focal"], "beta": 2}}},
        ),
        (
            {"soft": True, "objective": {"class_path": EQ5, "init_args": {"drop": ["soft"]}}},
            {"objective": {"class_path": EQ5, "init_args": {"drop": []}}},
        ),
        (
            {"student_taps": ["stages.3"], "taps": {"teacher": ["layers.3"]}},
            {"taps": {"teacher": ["layers.3"], "student": ["stages.3"]}},
        ),
    ],
)
def test_flat_arguments_are_laid_over_the_objective(given, expected):
    assert modern_arguments(given) == expected


def test_flat_arguments_beside_another_objective_are_refused():
    with pytest.raises(ConfigError, match="alpha belong to Eq5"):
        modern_arguments({"alpha": 0.5, "objective": {"class_path": "kd_convnext.Objective", "init_args": {}}})
