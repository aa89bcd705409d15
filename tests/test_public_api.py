"""Public names: what they are, that nothing else is exported, that their examples run."""

import doctest
import inspect
import shutil
from importlib import import_module
from importlib.resources import files

import pytest
from helpers.paths import REPOSITORY

import kd_convnext

OLD = REPOSITORY / "tests" / "fixtures" / "run_before_rooms"

PUBLIC = {
    "kd_convnext": {
        "AugmentSpec",
        "CropSpec",
        "DistillModule",
        "Eq5",
        "LoaderSpec",
        "Objective",
        "Predictor",
        "SpecimenDataModule",
        "SplitSpec",
        "TeacherModule",
        "__version__",
        "quiet_libraries",
    },
    "kd_convnext.models": {"Backbone", "BackboneSpec", "FeatureTaps", "build_backbone"},
    "kd_convnext.losses": {
        "Eq5",
        "FeatureLoss",
        "FocalLoss",
        "Needs",
        "Objective",
        "Outputs",
        "SoftTargetLoss",
        "Term",
    },
    "kd_convnext.metrics": set(),
}
"""Names that must stay; a room may have more."""

WITH_EXAMPLES = (
    "kd_convnext.common.arrays",
    "kd_convnext.data.crops.spec",
    "kd_convnext.data.loading.augment",
    "kd_convnext.data.loading.class_weights",
    "kd_convnext.data.loading.datamodule",
    "kd_convnext.data.loading.flat_options",
    "kd_convnext.data.loading.spec",
    "kd_convnext.data.manifest.boxes",
    "kd_convnext.data.manifest.splits",
    "kd_convnext.errors",
    "kd_convnext.inference.predictor",
    "kd_convnext.losses.ensemble",
    "kd_convnext.models.backbones",
    "kd_convnext.models.taps",
    "kd_convnext.modules.optim",
    "kd_convnext.modules.student",
    "kd_convnext.modules.teacher",
)


@pytest.mark.parametrize("room", PUBLIC)
def test_names_stay_and_are_documented(room):
    module = import_module(room)
    assert PUBLIC[room] <= set(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_names_are_listed():
    assert set(dir(kd_convnext)) == PUBLIC["kd_convnext"]
    with pytest.raises(AttributeError, match="Nothing"):
        _ = kd_convnext.Nothing


def test_is_typed():
    assert files("kd_convnext").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What the examples of an answer find in their folder.
    shutil.copy(OLD / "student" / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    shutil.copy(OLD / "photographs" / "0_0.jpg", tmp_path / "photo.jpg")
    module = import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
