"""The losses of the paper: feature maps (Eq. 1), soft targets (Eq. 3), focal (Eq. 4), and their sum (Eq. 5).

Every loss works in at least float32, also under autocast, and never looks at a tensor's values, so nothing
here waits for the device.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding

Distance = Literal["mse", "l1"]
Reduction = Literal["mean", "sum"]


def inverse_frequency(counts: Sequence[int]) -> list[float]:
    """Weighs classes by the inverse of their number of training images (the alpha_t of Eq. 4).

    Args:
        counts: Training images of each class, in the order of the model's outputs.

    Returns:
        One weight per class; the weights of the classes that occur have mean 1. A class without a training
        image gets 0: no image of it can ever ask for its weight. Python floats, so that they fit into any
        checkpoint.

    Raises:
        ConfigError: A count is negative or all are 0.
    """
    if any(count < 0 for count in counts) or not any(counts):
        raise ConfigError(
            Finding(
                "class counts",
                f"cannot weigh classes by {list(counts)}",
                "Counts must be 0 or more, and at least one class needs an image.",
            )
        )
    inverse = [1.0 / float(count) if count else 0.0 for count in counts]
    mean = math.fsum(inverse) / sum(1 for count in counts if count)
    return [value / mean for value in inverse]


class FeatureLoss(nn.Module):
    """Distance between the feature maps of student and teacher (Eq. 1).

    Eq. 1 prints the squared L2 norm, the paper's Figure 5 speaks of absolute values, and the reduction is not
    printed. ``mean`` makes every stage count alike, whatever its size; ``sum`` is the equation to the letter.
    """

    def __init__(self, distance: Distance = "mse", reduction: Reduction = "mean") -> None:
        """Chooses the reading of Eq. 1.

        Args:
            distance: ``mse``, squared differences; ``l1``, absolute differences.
            reduction: ``mean``: mean over the elements of a stage, then over the stages. ``sum``: sum over
                the elements of an image and over the stages, then mean over the batch.

        Raises:
            ConfigError: An option is none of the above.
        """
        super().__init__()
        if distance not in ("mse", "l1") or reduction not in ("mean", "sum"):
            raise ConfigError(
                Finding(
                    "feature loss",
                    f"distance {distance!r} with reduction {reduction!r} is unknown",
                    "Use distance mse or l1, and reduction mean or sum.",
                )
            )
        self.distance = distance
        self.reduction = reduction

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Compares the stages pair by pair.

        Args:
            student_features: One map [B, C, H, W] per stage, after the regressors.
            teacher_features: As many maps of the same shapes.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: No stage, different numbers of stages, or maps of different shapes.
        """
        shapes = [tuple(feature.shape) for feature in student_features]
        if not shapes or shapes != [tuple(feature.shape) for feature in teacher_features]:
            teacher_shapes = [tuple(feature.shape) for feature in teacher_features]
            raise ValueError(f"feature maps {shapes} of the student do not pair with {teacher_shapes}")
        distance = F.mse_loss if self.distance == "mse" else F.l1_loss
        stages = torch.stack(
            [
                distance(_at_least_float32(student), _at_least_float32(teacher), reduction=self.reduction)
                for student, teacher in zip(student_features, teacher_features, strict=True)
            ]
        )
        return stages.mean() if self.reduction == "mean" else stages.sum() / shapes[0][0]

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"distance={self.distance!r}, reduction={self.reduction!r}"


class SoftTargetLoss(nn.Module):
    """Cross-entropy of the student's softened probabilities to the teacher's (Eq. 2 and 3).

    The paper's Eq. 3 has no T²; Hinton et al. (2015) multiply by it so that the gradient keeps its size when
    T changes. Eq. 2 calls z the output of the softmax layer; softening needs logits, and logits are used.
    """

    def __init__(self, temperature: float = 4.0, scale_by_t2: bool = True) -> None:
        """Sets the softness.

        Args:
            temperature: T > 0 of Eq. 2 (never printed in the paper).
            scale_by_t2: Multiply by T²; ``False`` is Eq. 3 to the letter.

        Raises:
            ConfigError: The temperature is not a positive number.
        """
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(Finding("temperature", f"{temperature} is not a positive number", "Use for example 4."))
        self.temperature = float(temperature)
        self.scale_by_t2 = scale_by_t2

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compares two sets of logits.

        Args:
            student_logits: [B, K].
            teacher_logits: [B, K].

        Returns:
            The loss in nats (times T² by default), mean over the batch, a scalar.
        """
        targets = torch.softmax(_at_least_float32(teacher_logits) / self.temperature, dim=1)
        loss = F.cross_entropy(_at_least_float32(student_logits) / self.temperature, targets)
        return loss * self.temperature**2 if self.scale_by_t2 else loss

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}"


class FocalLoss(nn.Module):
    """Focal loss on the labelled class (Eq. 4; Lin et al., 2017).

    Read literally, Eq. 4 sums over all classes and never uses the label; its minimum is the uniform
    prediction. This is the loss it stands for: ``-alpha_y (1 - p_y)^gamma log p_y``, mean over the batch.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0) -> None:
        """Sets the weights.

        Args:
            class_weights: One weight >= 0 per class (alpha_t of Eq. 4, see :func:`inverse_frequency`);
                ``None`` weighs all alike.
            gamma: Focus >= 0; 0 is the (weighted) cross-entropy, not divided by the weights' sum.

        Raises:
            ConfigError: A weight or gamma is negative or not finite.
        """
        super().__init__()
        numbers = [float(gamma), *(float(weight) for weight in class_weights or ())]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ConfigError(
                Finding(
                    "focal loss",
                    f"a number of [gamma, *class_weights] = {numbers} is negative or not finite",
                    "All must be 0 or more.",
                )
            )
        self.gamma = float(gamma)
        weights = None if class_weights is None else torch.tensor(numbers[1:])
        # Not persistent: the weights come from the hyperparameters, and a student's checkpoint stays a
        # student's.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Judges logits by their labels.

        Args:
            logits: [B, K].
            labels: int64 [B], positions 0..K-1.

        Returns:
            The loss in nats, mean over the batch, a scalar.

        Raises:
            ValueError: The number of class weights is not K.
        """
        log_probabilities = torch.log_softmax(_at_least_float32(logits), dim=1)
        log_p = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        # 1 - p without cancellation near p = 1; the floor keeps the gradient finite there for gamma below 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(rest**self.gamma) * log_p
        if self.class_weights is not None:
            if self.class_weights.numel() != logits.shape[1]:
                raise ValueError(f"{self.class_weights.numel()} class weights for {logits.shape[1]} classes")
            loss = loss * self.class_weights.to(loss.dtype)[labels]
        return loss.mean()

    def extra_repr(self) -> str:
        """Shows the options in the printed model."""
        return f"gamma={self.gamma}, class_weights={self.class_weights}"


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


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _at_least_float32(values: Tensor) -> Tensor:
    # Half precision cannot hold sums of squares over a stage; float64 stays, for checks in double precision.
    return values.to(_wide(values.dtype))
