"""Published foundation models by their names on the hub: refused with options that build them, tensor by tensor."""

from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.command_line import TINY
from helpers.paths import REPOSITORY
from timm.layers import SwiGLUPacked

from kd_convnext.cli import main
from kd_convnext.models import BackboneSpec, build_backbone
from kd_convnext.models.hub_names import KNOWN

GATED = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
VIRCHOW = {"name": "vit_huge_patch14_224", "mlp_ratio": 5.3375, **GATED}
OPTIMUS = {"name": "vit_giant_patch14_reg4_dinov2"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "MahmoodLab/UNI": {"name": "vit_large_patch16_224", "patch_size": 16},
    "MahmoodLab/UNI2-h": {
        "name": "vit_giant_patch14_224",
        **{"patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2},
        **{"no_embed_class": True, "reg_tokens": 8, **GATED},
    },
    "paige-ai/Virchow": VIRCHOW,
    "paige-ai/Virchow2": {**VIRCHOW, "reg_tokens": 4},
    "bioptimus/H-optimus-0": OPTIMUS,
    "bioptimus/H-optimus-1": OPTIMUS,
}
"""What the models' cards and configurations build, all with the size 224 and scales of layers."""


def published(hub: str, **more: Any) -> torch.nn.Module:
    options = {**PUBLISHED[hub], "img_size": 224, "init_values": 1e-5, "num_classes": 0, **more}
    return timm.create_model(options.pop("name"), **options)


def ours(hub: str, **more: Any) -> torch.nn.Module:
    known = KNOWN[hub]
    spec = BackboneSpec(known.name, image_size=224, args={**known.args, **more}, token_blocks=2)
    return build_backbone(spec, 5).network.vit


@pytest.mark.parametrize("hub", KNOWN)
def test_the_options_build_the_published_network(hub: str):
    with torch.device("meta"):
        expected, found = published(hub).state_dict(), ours(hub).state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in expected.items()}


@pytest.mark.parametrize("hub", [hub for hub in KNOWN if not hub.endswith("optimus-1")])
def test_with_the_published_weights_the_numbers_are_the_same(hub: str, tmp_path):
    """Two blocks deep; the file is the state dict that the hub's files hold."""
    torch.manual_seed(0)
    expected = published(hub, depth=2).eval()
    expected.load_state_dict({name: torch.randn_like(v) * 0.05 for name, v in expected.state_dict().items()})
    torch.save(expected.state_dict(), tmp_path / "pytorch_model.bin")
    known = KNOWN[hub]
    spec = BackboneSpec(known.name, image_size=224, args={**known.args, "depth": 2}, token_blocks=2)
    spec = BackboneSpec(**{**vars(spec), "weights": str(tmp_path / "pytorch_model.bin")})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = build_backbone(spec, 5).eval().network.vit.forward_features(images)
        assert torch.equal(found, expected.forward_features(images))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf-hub:MahmoodLab/UNI", "name: vit_large_patch16_224, mean: [0.485, 0.456, 0.406], std"),
        ("hf_hub:mahmoodlab/uni", 'args: {"init_values": 1e-05}, image_size: 224, weights: FILE'),
        ("hf-hub:bioptimus/H-optimus-0", "mean: [0.707223, 0.578729, 0.703617]"),
        ("hf-hub:timm/vit_small_patch16_dinov3.lvd1689m", "{name: vit_small_patch16_dinov3.lvd1689m, image_size: 224,"),
        ("hf-hub:somebody/something", "`architecture` and `model_args` of its config.json"),
    ],
)
def test_a_name_of_the_hub_is_refused_with_the_options_that_serve(name, told, tiny_manifest, tmp_path, capsys):
    words = ["fit", "--model=TeacherModule", f"--model.backbone.name={name}", *TINY]
    words += [f"--data.manifest={tiny_manifest}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error
    if "{" in error:
        given = yaml.safe_load("{" + error.split("give {", 1)[1].rsplit("}", 1)[0] + "}")
        assert given["weights"] == "FILE" and timm.is_model(given["name"])


def test_the_table_of_the_documentation_names_them_all():
    page = (REPOSITORY / "docs" / "distil.md").read_text()
    for hub, known in KNOWN.items():
        (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{hub}`" in line]
        assert f"`{known.name}`" in row
        for name, value in known.args.items():
            assert f"{name}: {value:g}" in row
