"""Feature taps on both families of layouts, and the regressors behind them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from kd_convnext.errors import ConfigError
from kd_convnext.models import Backbone, BackboneSpec, FeatureTaps, Regressors, build_backbone

SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def swin() -> Backbone:
    return build_backbone(BackboneSpec(SWIN, image_size=64, args=TINY_SWIN), 3)


def convnext() -> Backbone:
    return build_backbone(BackboneSpec("convnext_tiny", image_size=64, args=TINY_CONVNEXT), 3)


def images(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_taps_catch_what_the_network_computes():
    backbone = swin().eval()
    with torch.no_grad():
        with FeatureTaps(backbone) as taps:
            backbone(images())
        expected = backbone.network.forward_intermediates(
            backbone.normalise(images()), intermediates_only=True, output_fmt="NCHW"
        )
    for feature, reference in zip(taps.pop().values(), expected, strict=True):
        torch.testing.assert_close(feature, reference)


def test_the_order_of_names_and_hooks_does_not_matter():
    backbone = convnext().eval()
    names = [stage.name for stage in backbone.stages]
    forward, backward = FeatureTaps(backbone, names), FeatureTaps(backbone, names[::-1])
    backbone(images())
    one, other = forward.pop(), backward.pop()
    assert list(one) == names and list(other) == names[::-1]
    assert forward.channels == backward.channels[::-1]
    assert all(torch.equal(one[name], other[name]) for name in names)


def test_reading_empties_the_taps():
    backbone = convnext()
    taps = FeatureTaps(backbone)
    with pytest.raises(RuntimeError, match=r"no features of stages\.0"):
        taps.pop()
    backbone(images())
    features = taps.pop()
    assert all(feature.requires_grad for feature in features.values())
    remembered = [weakref.ref(feature) for feature in features.values()]
    del features
    gc.collect()
    assert not any(reference() is not None for reference in remembered)
    with pytest.raises(RuntimeError):
        taps.pop()


def test_inactive_taps_catch_only_inside_their_block():
    backbone = convnext()
    taps = FeatureTaps(backbone, active=False)
    backbone(images())
    with pytest.raises(RuntimeError, match="active taps"):
        taps.pop()
    with taps:
        backbone(images())
    backbone(images(4))
    assert all(len(feature) == 2 for feature in taps.pop().values())


def test_removed_taps_leave_no_trace():
    backbone = convnext()
    taps = FeatureTaps(backbone)
    backbone(images())
    taps.remove()
    assert not any(module._forward_hooks for module in backbone.modules())
    with pytest.raises(RuntimeError):
        taps.pop()


def test_taps_change_neither_answers_nor_state():
    backbone = convnext().eval()
    before, names = backbone(images()), list(backbone.state_dict())
    FeatureTaps(backbone)
    assert torch.equal(backbone(images()), before)
    assert list(backbone.state_dict()) == names


def test_copies_have_their_own_taps():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = convnext()
            self.taps = FeatureTaps(self.backbone)

    original = Pair()
    original.backbone(images())
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original.backbone))):
        backbone = copied.backbone if hasattr(copied, "backbone") else copied
        backbone(images(5))
    copied = copy.deepcopy(original)
    with pytest.raises(RuntimeError):
        copied.taps.pop()
    copied.backbone(images(5))
    assert {len(feature) for feature in copied.taps.pop().values()} == {5}
    assert {len(feature) for feature in original.taps.pop().values()} == {2}
    copied.taps.remove()
    original.backbone(images())
    assert len(original.taps.pop()) == 4


def test_any_module_with_a_map_can_be_tapped():
    backbone = swin()
    backbone.network.layers[0].eval()
    names = ["patch_embed.proj", "layers.1.blocks.0", "layers.3"]
    taps = FeatureTaps(backbone, names)
    assert backbone.training and not backbone.network.layers[0].training
    assert taps.channels == (12, 24, 96)
    backbone(images())
    assert [tuple(f.shape[1:]) for f in taps.pop().values()] == [(12, 16, 16), (24, 8, 8), (96, 2, 2)]


def test_bad_names_are_reported_together_with_the_valid_ones():
    with pytest.raises(ConfigError) as error:
        FeatureTaps(convnext(), ["stage.2", "stages.1", "stages.1", "nothing"])
    text = message(error)
    assert len(error.value.findings) == 3
    assert "no module 'stage.2'" in text and "Did you mean 'stages.2'?" in text
    assert "Valid are stages.0, stages.1, stages.2, stages.3, stem" in text
    assert "'stages.1' is named twice" in text
    with pytest.raises(ConfigError, match="the list of modules is empty"):
        FeatureTaps(convnext(), [])
    with pytest.raises(ConfigError, match=r"'head\.fc' returns shape \[1, 3\], no feature map"):
        FeatureTaps(convnext(), ["head.fc"])


def test_backbones_without_four_stages_need_names():
    vit = build_backbone(BackboneSpec("vit_tiny_patch16_224", image_size=64, args={"depth": 2}), 3)
    with pytest.raises(ConfigError, match="has stages at 1/16 of the image"):
        FeatureTaps(vit)


def test_taps_survive_compilation():
    backbone = swin().eval()
    taps = FeatureTaps(backbone, active=False)
    with taps:
        expected, features = backbone(images()), taps.pop()
        found, compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)(images()), taps.pop()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, feature in features.items():
        torch.testing.assert_close(compiled[name], feature, rtol=1e-4, atol=1e-5)
    assert all(feature.requires_grad for feature in compiled.values())


# --- regressors -------------------------------------------------------------------------------------------------------


def test_regressors_bring_the_student_to_the_teachers_shape():
    student = [torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (8, 3))]
    teacher = [torch.randn(2, c, s, s) for c, s in ((5, 8), (7, 2), (9, 7))]
    regressors = Regressors([4, 6, 8], [5, 7, 9])
    mapped = regressors(student, teacher)
    assert [m.shape for m in mapped] == [t.shape for t in teacher]
    first, second, third = regressors.convolutions
    torch.testing.assert_close(mapped[0], first(student[0]))
    # Resampling before or after a 1x1 convolution is the same; it is done where it is cheaper.
    torch.testing.assert_close(
        mapped[1], nn.functional.adaptive_avg_pool2d(second(student[1]), 2), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        mapped[2], third(nn.functional.interpolate(student[2], (7, 7), mode="bilinear")), rtol=1e-4, atol=1e-5
    )


def test_regressors_start_with_unit_gain_and_learn():
    torch.manual_seed(0)
    regressors = Regressors([64], [128])
    mapped = regressors([torch.randn(4, 64, 8, 8)], [torch.zeros(4, 128, 8, 8)])[0]
    assert mapped.std().item() == pytest.approx(1, abs=0.1)
    mapped.square().mean().backward()
    assert all(parameter.grad is not None for parameter in regressors.parameters())


def test_unequal_numbers_of_stages_are_refused():
    with pytest.raises(ConfigError, match="2 feature maps of the student, 1 of the teacher"):
        Regressors([4, 8], [4])
    with pytest.raises(ConfigError, match="at least one"):
        Regressors([], [])
    with pytest.raises(ValueError):
        Regressors([4], [4])([torch.zeros(1, 4, 2, 2)], [])
