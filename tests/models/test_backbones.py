"""Backbones of every family and their start weights."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from kd_convnext.errors import CheckpointError, ConfigError
from kd_convnext.models import Backbone, BackboneSpec, FeatureTaps, build_backbone, published
from kd_convnext.models.backbones import STAGE_REDUCTIONS

SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def swin(**options: Any) -> Backbone:
    return build_backbone(BackboneSpec(SWIN, image_size=64, args=TINY_SWIN, **options), 3)


def convnext(classes: int = 3, **options: Any) -> Backbone:
    return build_backbone(BackboneSpec("convnext_tiny", image_size=64, args=TINY_CONVNEXT, **options), classes)


def images(count: int = 2, channels: int = 3, size: int = 64) -> torch.Tensor:
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


# --- backbones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        (SWIN, 96, {"embed_dim": 48, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "window_size": 3}),
        (SWIN, 64, {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}),
        ("convnext_atto", 64, None),
        ("convnext_tiny", 96, TINY_CONVNEXT),
        ("efficientnetv2_rw_t", 64, None),
        ("davit_tiny", 64, {"embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1]}),
        ("coatnet_nano_rw_224", 64, None),
    ],
)
def test_the_stages_of_every_family_are_what_they_say(name: str, size: int, args: dict[str, Any] | None):
    backbone = build_backbone(BackboneSpec(name, image_size=size, args=args), 5).eval()
    taps = FeatureTaps(backbone)
    with torch.no_grad():
        logits = backbone(images(1, size=size))
    features = taps.pop()
    assert logits.shape == (1, 5) and logits.isfinite().all()
    assert tuple(stage.reduction for stage in backbone.stages) == STAGE_REDUCTIONS
    assert list(features) == [stage.name for stage in backbone.stages]
    assert taps.channels == tuple(stage.channels for stage in backbone.stages)
    for stage, feature in zip(backbone.stages, features.values(), strict=True):
        side = size // stage.reduction
        assert feature.shape == (1, stage.channels, side, side)


def test_the_papers_pair_has_matching_stages():
    student = build_backbone(BackboneSpec("convnext_tiny"), 5)
    teacher = build_backbone(BackboneSpec(), 5)
    for backbone in (student, teacher):
        assert [stage.channels for stage in backbone.stages] == [96, 192, 384, 768]
    assert all(stage.channels_last for stage in teacher.stages)
    assert not any(stage.channels_last for stage in student.stages)


def test_images_are_normalised_inside():
    backbone = convnext().eval()
    pixels = images()
    expected = (pixels.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(backbone.normalise(pixels).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backbone(pixels), backbone(pixels.float() / 255))
    # Its own normalisation for each: EfficientNetV2's is another.
    other = build_backbone(BackboneSpec("tf_efficientnetv2_b0", image_size=64), 3)
    assert other.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg("tf_efficientnetv2_b0").mean)
    assert {"mean", "std"} <= set(backbone.state_dict())


def test_grey_images():
    backbone = convnext(in_chans=1).eval()
    assert backbone(images(channels=1)).shape == (2, 3)
    assert backbone.mean.flatten().tolist() == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_follow_the_parameters_type(dtype: torch.dtype):
    assert convnext().to(dtype)(images()).dtype == dtype


def test_head_and_body_are_all_parameters():
    for backbone in (convnext(), swin()):
        head, body = backbone.head_parameters(), backbone.body_parameters()
        assert [parameter.shape[0] for parameter in head] == [3, 3]
        assert {id(p) for p in head} | {id(p) for p in body} == {id(p) for p in backbone.parameters()}
        assert len(head) + len(body) == len(list(backbone.parameters()))


def test_stochastic_depth_is_what_was_asked_for():
    def rates(backbone: Backbone) -> set[float]:
        return {m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"}

    assert rates(swin()) <= {0.0}  # timm's own default is 0.1
    assert max(rates(swin(drop_path_rate=0.2))) == pytest.approx(0.2)
    assert build_backbone(BackboneSpec("vgg11", image_size=64), 3).num_classes == 3


def test_bad_specs_name_every_problem():
    with pytest.raises(ConfigError) as error:
        build_backbone(BackboneSpec("convnext_tinny", in_chans=2, drop_path_rate=1.5, image_size=0), 0)
    where = [finding.where for finding in error.value.findings]
    assert where == [f"backbone.{n}" for n in ("name", "in_chans", "image_size", "drop_path_rate")] + ["num_classes"]
    assert "convnext_tiny" in message(error)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("convnext_atto", 64, {"window": 7}),
        (SWIN, 64, {"depths": [2, 2], "num_heads": [2]}),
        ("coatnet_nano_rw_224", 50, None),
    ],
)
def test_arguments_that_do_not_suit_the_model(name: str, size: int, args: dict[str, Any] | None):
    with pytest.raises(ConfigError, match=f"timm cannot build {name} with image_size {size}"):
        build_backbone(BackboneSpec(name, image_size=size, args=args), 3)


# --- start weights --------------------------------------------------------------------------------------------------


def same(one: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if not name.startswith(but))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_files_load_whole(tmp_path: Path, suffix: str):
    source, path = swin(), tmp_path / f"weights{suffix}"
    state = source.network.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    assert same(swin(weights=str(path)), source)


def test_a_file_without_the_counters_of_batch_norms_loads(tmp_path: Path):
    """Those of EfficientNets' authors lack them, and torch itself takes them; what normalises is still asked for."""
    spec = BackboneSpec("efficientnet_lite0", image_size=32)
    theirs = build_backbone(spec, 3)
    for name, value in theirs.network.named_buffers():
        value.fill_(7 if name.endswith("num_batches_tracked") else 0.5)
    state = {name: value for name, value in theirs.network.state_dict().items() if "num_batches" not in name}
    assert len(state) < len(theirs.network.state_dict())
    torch.save(state, tmp_path / "weights.pth")
    found = build_backbone(replace(spec, weights=str(tmp_path / "weights.pth")), 3)
    loaded = found.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert all(loaded[name] == 0 for name in loaded if name not in state)
    del state["bn1.running_mean"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: bn1\.running_mean"):
        build_backbone(replace(spec, weights=str(tmp_path / "weights.pth")), 3)


@pytest.mark.parametrize("prefix", ["backbone.network.", "student.network.", "student._orig_mod.network."])
def test_own_checkpoints_load(tmp_path: Path, prefix: str):
    source, path = convnext(), tmp_path / "best.ckpt"
    state = {prefix + name: value for name, value in source.network.state_dict().items()}
    part = prefix.split(".")[0]
    others = {
        "regressors.convolutions.0.weight": torch.zeros(1),
        f"{part}.mean": source.mean,
        f"{part}.std": source.std,
    }
    torch.save({"state_dict": state | others, "hyper_parameters": {"alpha": 0.5}}, path)
    assert same(convnext(weights=str(path)), source)


def test_the_normalisation_is_what_is_given_else_of_the_start_checkpoint_else_of_timm(tmp_path: Path):
    source, path = convnext(mean=[0.5, 0.25, 0.75], std=[0.5, 0.5, 0.125]), str(tmp_path / "best.ckpt")
    pixels = images(1)
    expected = (pixels[:, 2] / 255 - 0.75) / 0.125
    torch.testing.assert_close(source.normalise(pixels)[:, 2], expected)
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in source.state_dict().items()}}, path)
    assert same(convnext(weights=path), source)
    grey = convnext(weights=path, in_chans=1)
    assert (grey.mean.item(), grey.std.item()) == (0.5, 0.375)
    given = convnext(weights=path, mean=[0.0, 0.0, 0.0])
    assert given.mean.flatten().tolist() == [0.0] * 3 and torch.equal(given.std, source.std)
    torch.testing.assert_close(convnext().mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_a_normalisation_that_cannot_be_is_refused():
    with pytest.raises(ConfigError) as caught:
        convnext(mean=[123.7, 116.3, 103.5], std=[0.5, 0.5, 0.0])
    assert [finding.where for finding in caught.value.findings] == ["backbone.mean", "backbone.std"]
    assert "divide numbers of 0..255 by 255" in message(caught)
    with pytest.raises(ConfigError, match="each of 1 channels"):
        convnext(in_chans=1, mean=[0.5, 0.5, 0.5])


def test_a_head_of_other_classes_starts_afresh(tmp_path: Path):
    source, path = convnext(classes=7), tmp_path / "w.pth"
    torch.save(source.network.state_dict(), path)
    loaded = convnext(classes=3, weights=str(path))
    assert same(loaded, source, but=("network.head.fc",))
    headless = {n: v for n, v in source.network.state_dict().items() if not n.startswith("head.fc")}
    torch.save(headless, path)
    assert same(convnext(classes=3, weights=str(path)), source, but=("network.head.fc",))


def test_the_authors_own_layout_of_swin_loads(tmp_path: Path):
    source, path = swin(), tmp_path / "swin_tiny.pth"
    original = {}
    for name, value in source.network.state_dict().items():
        if ".downsample." in name:  # theirs downsamples at the end of a stage
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        original[name.replace("head.fc.", "head.")] = value
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    torch.save({"model": original}, path)
    assert same(swin(weights=str(path)), source)


def test_colour_weights_serve_a_grey_network(tmp_path: Path):
    source, path = convnext(), tmp_path / "w.pth"
    torch.save(source.network.state_dict(), path)
    grey = convnext(in_chans=1, weights=str(path))
    torch.testing.assert_close(
        grey.network.stem[0].weight, source.network.stem[0].weight.sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )


def test_files_of_another_model_are_refused_with_a_count(tmp_path: Path):
    path = tmp_path / "w.pth"
    state = convnext().network.state_dict()
    state["stages.0.blocks.0.extra"] = state.pop("stages.0.blocks.0.gamma")
    state["stem.0.bias"] = torch.zeros(9)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        convnext(weights=str(path))
    count = len(state)
    assert f"fits {count - 2} of {count} tensors" in message(error)
    assert "1 missing: stages.0.blocks.0.gamma" in message(error)
    assert "1 unknown: stages.0.blocks.0.extra" in message(error)
    assert "1 of another shape: stem.0.bias [9] for [8]" in message(error)
    torch.save(swin().network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        convnext(weights=str(path))


def test_unusable_files_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        convnext(weights=str(tmp_path / "absent.pth"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a weights file")
    with pytest.raises(CheckpointError, match="no readable weights file"):
        convnext(weights=str(broken))
    foreign = tmp_path / "foreign.pt"
    torch.save({"answer": 42}, foreign)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        convnext(weights=str(foreign))
    dangerous = tmp_path / "code.pth"
    torch.save(Path, dangerous)  # anything but tensors and plain values could run code when read
    with pytest.raises(CheckpointError, match="holds more than weights"):
        convnext(weights=str(dangerous))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(published, "_hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def test_without_the_hub_both_remedies_are_named(no_hub: Path):
    with pytest.raises(ConfigError) as error:
        build_backbone(BackboneSpec("convnext_atto", pretrained=True), 3)
    assert "the hub is not reachable" in message(error) and "\n" not in message(error)
    assert "--model.backbone.weights FILE" in message(error) and "pretrained: false" in message(error)
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_does_not_answer_costs_no_retries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    start = time.monotonic()
    assert published._hub_answers() is False
    assert time.monotonic() - start < published.HUB_TIMEOUT + 5


def test_without_the_hub_its_cache_serves(no_hub: Path):
    source = timm.create_model("convnext_atto")
    folder = no_hub / "models--timm--convnext_atto.d2_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(source.state_dict(), snapshot / "model.safetensors")
    loaded = build_backbone(BackboneSpec("convnext_atto.d2_in1k", pretrained=True, image_size=64), 3)
    assert same(loaded.network, source, but=("head.fc",))


def test_a_weights_file_wins_over_the_hub(no_hub: Path):
    source, path = convnext(), no_hub / "w.pth"
    torch.save(source.network.state_dict(), path)
    assert same(convnext(pretrained=True, weights=str(path)), source)


def test_building_a_network_loads_no_wandb() -> None:
    code = (
        "import sys; from kd_convnext.models import BackboneSpec, build_backbone; "
        "build_backbone(BackboneSpec(name='convnext_atto'), 2); "
        "loaded = 'wandb' in sys.modules; import wandb; print(loaded, callable(wandb.init))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
