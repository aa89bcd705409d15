"""A teacher of another normalisation than its student gets the input that it was trained with, however it is asked."""

import json

import pandas as pd
import pytest
import torch
import yaml
from helpers.command_line import TINY, convnext
from helpers.tiny import SWIN
from torch.nn.modules.module import register_module_forward_pre_hook

from kd_convnext.cli import main
from kd_convnext.models.backbones import Backbone

MEAN, STD, IMAGENET = [0.5, 0.25, 0.75], [0.5, 0.25, 0.125], [0.485, 0.456, 0.406]
NORMALISED = [f"--model.backbone.mean={MEAN}", f"--model.backbone.std={STD}"]
VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
LOGITS = {
    "labels": {"class_path": "kd_convnext.losses.Focal"},
    "soft": {"class_path": "kd_convnext.losses.SoftTargets"},
}
MAPS = {**LOGITS, "maps": {"class_path": "kd_convnext.losses.FeatureMaps"}}
EMBEDDING = {**LOGITS, "embedding": {"class_path": "kd_convnext.losses.CosineEmbedding"}}


@pytest.fixture(scope="module")
def data(tiny_manifest, tiny_cache):
    return [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY, "--trainer.precision=32-true"]


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """Two teachers of a normalisation of their own: a fine-tuned Swin, and a linear head on a Vision Transformer."""
    folder = tmp_path_factory.mktemp("normalised")
    backbones = {
        "swin": ["swin_tiny_patch4_window7_224", SWIN, "--model.finetune=full"],
        "vit": ["vit_tiny_patch16_224", VIT, "--model.finetune=linear", "--model.backbone.token_blocks=2"],
    }
    for name, (network, args, *options) in backbones.items():
        words = ["fit", "--model=TeacherModule", f"--model.backbone.name={network}", "--model.backbone.image_size=32"]
        words += [f"--model.backbone.args={json.dumps(args)}", *options, *NORMALISED, *data]
        assert main([*words, f"--trainer.default_root_dir={folder / name}"]) == 0
    return folder


@pytest.fixture
def inputs():
    """Collects, of every backbone that runs, mean and deviation, and whether its network got what they say."""
    given, found = {}, []

    def look(module, args):
        if isinstance(module, Backbone):
            given[module.network] = (module, args[0])
        elif module in given:
            backbone, images = given.pop(module)
            shown = images / 255 if images.dtype == torch.uint8 else images
            mean, std = backbone.mean, backbone.std
            values = mean.flatten().tolist(), std.flatten().tolist()
            found.append((values, torch.equal(args[0], (shown - mean) / std)))

    hook = register_module_forward_pre_hook(look)
    yield found
    hook.remove()


@pytest.mark.parametrize(
    ("teacher", "cache", "terms"),
    [
        ("swin", "false", MAPS),
        ("swin", "true", MAPS),
        ("swin", "still", LOGITS),
        ("vit", "false", EMBEDDING),
        ("vit", "true", EMBEDDING),
        ("vit", "still", EMBEDDING),
    ],
)
def test_each_network_gets_the_input_of_its_own_training(
    data, teachers, tiny_manifest, tmp_path, monkeypatch, inputs, teacher, cache, terms
):
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(tiny_manifest, dtype=str)
    table["image"] = [f"{tiny_manifest.parent}/{name}" for name in table["image"]]
    without = table["lesion_id"].str.endswith("-0")
    table[~without].to_csv("labelled.csv", index=False)
    table[without].to_csv("others.csv", index=False)
    model = {"objective": {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}}
    config = {"model": {"class_path": "kd_convnext.DistillModule", "init_args": model}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config=student.yaml", *convnext("student"), *data, f"--data.cache_dir={tmp_path / 'cache'}"]
    words += ["--data.manifest=labelled.csv", "--data.unlabelled=others.csv", "--data.loader.views=1"]
    words += [f"--model.teacher_ckpt={teachers / teacher / 'checkpoints/best.ckpt'}", "--data.allow_leak=true"]
    assert main([*words, f"--model.teacher_cache={cache}", "--trainer.default_root_dir=run"]) == 0
    assert all(as_written for _, as_written in inputs)
    own = [values for values, _ in inputs if values == (MEAN, STD)]
    others = [values for values, _ in inputs if values != (MEAN, STD)]
    assert own and others and all(mean == pytest.approx(IMAGENET) for mean, _ in others)
