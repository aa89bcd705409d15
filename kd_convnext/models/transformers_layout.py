"""Renames weights of plain Vision Transformers from the layout of the library transformers (ViT, DINOv2)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
"""Names outside of the blocks, by those of DINOv2's authors, which timm reads."""

_INSIDE = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
"""Names within a block."""

_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a file of transformers' ``ViTModel`` or ``Dinov2Model``, with or without registers.

    Queries, keys and values are joined; pooler and classifier are left out.

    Args:
        state: Any state dict.

    Returns:
        The same in the layout that timm reads; any other state dict as it is.
    """
    plain = {re.sub(r"^(vit|dinov2|dinov2_with_registers)\.", "", name): value for name, value in state.items()}
    if not {"embeddings.cls_token", "embeddings.position_embeddings"} <= plain.keys():
        return dict(state)
    found = {}
    for name, value in plain.items():
        if (block := _BLOCK.fullmatch(name)) is None:
            base, dot, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
            if not name.startswith(("pooler.", "classifier.")):
                found[_OUTSIDE.get(base, base) + dot + end] = value
            continue
        number, inner, end = block.group(1), block.group(2), block.group(3) or ""
        if inner == "attention.attention.query":
            parts = [plain.get(name.replace(".query", f".{part}")) for part in ("query", "key", "value")]
            known = [part for part in parts if part is not None]
            found[f"blocks.{number}.attn.qkv{end}"] = torch.cat(known)
        elif inner not in ("attention.attention.key", "attention.attention.value"):
            found[f"blocks.{number}.{_INSIDE.get(inner, inner)}{end}"] = value
    return found
