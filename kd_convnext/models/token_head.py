"""Classifies by the tokens of a plain Vision Transformer, which has no pyramid of feature maps."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding


class TokenHead(nn.Module):
    """A linear classifier on class tokens of the last blocks and the mean patch token of a frozen or trained ViT.

    This is how DINOv2 is judged by linear classification (Oquab et al., 2023, appendix B.3): class tokens of the last
    four blocks and the mean of the patch tokens, each after the final normalisation, one beside the other.

    Attributes:
        vit: The timm network, without a head of its own.
        head: The linear layer, from ``(blocks + 1) * width`` features to the classes.
        blocks: How many class tokens are read.
    """

    def __init__(self, vit: nn.Module, blocks: int, num_classes: int) -> None:
        """Puts the head on.

        Args:
            vit: A timm Vision Transformer with class token, built with ``num_classes=0``.
            blocks: Class tokens of so many last blocks, at least 1.
            num_classes: Width of the output.

        Raises:
            ConfigError: The network is no such transformer, or has fewer blocks.
        """
        super().__init__()
        network = cast(Any, vit)
        if not hasattr(vit, "forward_intermediates") or not getattr(network, "num_prefix_tokens", 0):
            what = "token_blocks needs a Vision Transformer with a class token"
            raise ConfigError(
                Finding("backbone.token_blocks", what, "Use 0, or a model such as vit_small_patch14_dinov2.")
            )
        if not 1 <= blocks <= len(network.blocks):
            what = f"{blocks} of {len(network.blocks)} blocks"
            raise ConfigError(Finding("backbone.token_blocks", what, "Use for example 4."))
        self.vit = vit
        self.blocks = blocks
        self.head = nn.Linear(network.embed_dim * (blocks + 1), num_classes)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The transformer's normalisation and input size, as timm keeps them."""
        return cast(Mapping[str, Any], self.vit.pretrained_cfg)

    def get_classifier(self) -> nn.Module:
        """Returns the last layer, under timm's name for it."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: [B, C, H, W], normalised.

        Returns:
            Logits [B, K].
        """
        return cast(Tensor, self.head(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Joins class tokens and the mean patch token.

        Args:
            images: [B, C, H, W], normalised.

        Returns:
            [B, (blocks + 1) * width].
        """
        # (patches [B, N, D], prefix tokens [B, P, D]) of each block, normalised.
        found = cast(Any, self.vit).forward_intermediates(
            images,
            indices=self.blocks,
            norm=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.cat([*(prefix[:, 0] for _, prefix in found), found[-1][0].mean(dim=1)], dim=1)
