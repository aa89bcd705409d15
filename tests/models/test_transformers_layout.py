"""Weights in the layout of transformers serve networks of timm: the numbers are those of transformers.

The fixtures are random weights of two blocks, saved by transformers 5.24 (``save_pretrained``), and what its models
answered for a random image.
"""

from typing import Any

import pytest
import torch
from helpers.paths import REPOSITORY
from safetensors.torch import load_file, save_file

from kd_convnext.errors import CheckpointError
from kd_convnext.models import BackboneSpec, build_backbone

FIXTURES = REPOSITORY / "tests" / "fixtures" / "transformers"
SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_base_patch16_224", {}),
    "dinov2": ("vit_base_patch14_dinov2", {}),
    "registers_swiglu": ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 6.0}),
}


def built(kind: str, file: Any) -> torch.nn.Module:
    name, args = NETWORKS[kind]
    spec = BackboneSpec(name, weights=str(file), image_size=16, args={**SMALL, **args}, token_blocks=1)
    return build_backbone(spec, 5).eval().network.vit


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_the_numbers_are_those_of_transformers(kind, prefix, tmp_path):
    state, answer = load_file(FIXTURES / f"{kind}.safetensors"), load_file(FIXTURES / f"{kind}_answer.safetensors")
    more = {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)} if prefix else {}
    save_file({prefix + name: value for name, value in state.items()} | more, tmp_path / "model.safetensors")
    with torch.no_grad():
        found = built(kind, tmp_path / "model.safetensors").forward_features(answer["images"])
    torch.testing.assert_close(found, answer["tokens"], rtol=1e-4, atol=1e-4)


def test_a_file_without_its_keys_or_of_other_blocks_is_refused(tmp_path):
    state = load_file(FIXTURES / "vit.safetensors")
    torn = {name: value for name, value in state.items() if "attention.key" not in name}
    foreign = state | {"encoder.layer.0.attention.relative_bias.weight": torch.zeros(3)}
    for changed in (torn, foreign):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"fits \d+ of \d+ tensors of the model"):
            built("vit", tmp_path / "model.safetensors")
