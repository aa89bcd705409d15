"""The losses of the paper: feature maps (Eq. 1), soft targets (Eq. 3), focal (Eq. 4), and their sum (Eq. 5).

Every loss works in at least float32, also under autocast, and never looks at a tensor's values, so nothing
here waits for the device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.feature_maps import FeatureLoss
from kd_convnext.losses.focal import FocalLoss
from kd_convnext.losses.soft_targets import SoftTargetLoss
from kd_convnext.losses.term import _wide


class LossTerms(NamedTuple):
    """Eq. 5 and its terms, all scalars.

    Attributes:
        total: The weighted sum, the one to minimise.
        feature: Eq. 1, unweighted; 0 when dropped.
        soft: Eq. 3, unweighted; 0 when dropped.
        focal: Eq. 4, unweighted; 0 when dropped.
    """

    total: Tensor
    feature: Tensor
    soft: Tensor
    focal: Tensor


class DistillationLoss(nn.Module):
    """``alpha * feature + (1 - alpha) * soft + beta * focal`` (Eq. 5).

    A term that is ``None`` is dropped and the others keep their weight: the rows of the paper's ablation.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 1.0,
        feature: FeatureLoss | None = None,
        soft: SoftTargetLoss | None = None,
        focal: FocalLoss | None = None,
    ) -> None:
        """Combines the terms.

        Args:
            alpha: Weight of the feature term in 0..1; the soft-target term has 1 - alpha.
            beta: Weight >= 0 of the focal term.
            feature: Eq. 1, or ``None`` to drop it.
            soft: Eq. 3, or ``None`` to drop it.
            focal: Eq. 4, or ``None`` to drop it.

        Raises:
            ConfigError: A weight is out of range, or no term is left.
        """
        super().__init__()
        findings = []
        if not 0 <= alpha <= 1:
            findings.append(Finding("alpha", f"{alpha} is outside 0..1", "The paper uses 0.5."))
        if not (math.isfinite(beta) and beta >= 0):
            findings.append(Finding("beta", f"{beta} is not 0 or more", "The paper uses 1."))
        if feature is None and soft is None and focal is None:
            findings.append(Finding("loss", "all three terms are dropped", "Keep at least one."))
        if findings:
            raise ConfigError(findings)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.feature = feature
        self.soft = soft
        self.focal = focal

    def forward(
        self,
        student_logits: Tensor,
        labels: Tensor,
        *,
        teacher_logits: Tensor | None = None,
        student_features: Sequence[Tensor] | None = None,
        teacher_features: Sequence[Tensor] | None = None,
    ) -> LossTerms:
        """Computes every kept term.

        Args:
            student_logits: [B, K].
            labels: int64 [B], positions 0..K-1.
            teacher_logits: [B, K]; needed by the soft-target term.
            student_features: One map [B, C, H, W] per stage, after the regressors; needed by the feature
                term.
            teacher_features: As many maps of the same shapes; needed by the feature term.

        Returns:
            The total and the unweighted terms.

        Raises:
            ValueError: An input of a kept term is missing.
        """
        zero = torch.zeros((), dtype=_wide(student_logits.dtype), device=student_logits.device)
        total, feature, soft, focal = zero, zero, zero, zero
        if self.feature is not None:
            if student_features is None or teacher_features is None:
                raise ValueError("the feature term needs student_features and teacher_features")
            feature = self.feature(student_features, teacher_features)
            total = total + self.alpha * feature
        if self.soft is not None:
            if teacher_logits is None:
                raise ValueError("the soft-target term needs teacher_logits")
            soft = self.soft(student_logits, teacher_logits)
            total = total + (1.0 - self.alpha) * soft
        if self.focal is not None:
            focal = self.focal(student_logits, labels)
            total = total + self.beta * focal
        return LossTerms(total, feature, soft, focal)

    def extra_repr(self) -> str:
        """Shows the weights in the printed model."""
        return f"alpha={self.alpha}, beta={self.beta}"
