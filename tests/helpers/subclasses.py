"""Modules as a user writes them, outside the package: another network's name, another loss, another argument."""

from typing import Any

from torch import Tensor

from kd_convnext import DistillModule, TeacherModule
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.optim import OptimSpec


class SmoothTeacher(TeacherModule):
    """Has one argument more."""

    def __init__(self, num_classes: int, smoothing: float = 0.1, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.smoothing = smoothing
        self.keep_hyperparameters(smoothing=smoothing)

    def judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super().judged(images, labels)
        return (1 - self.smoothing) * loss - self.smoothing * logits.log_softmax(1).mean(), logits


class ScaledStudent(DistillModule):
    """Inherits all arguments."""


class Plain(ClassifierModule):
    """Derives from nothing that names its network."""

    deployable = "trunk"

    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        trunk: BackboneSpec | None = None,
    ) -> None:
        super().__init__(num_classes, class_names, OptimSpec(lr=1e-3), False)
        assert trunk is not None
        self.keep_hyperparameters(num_classes=num_classes, class_names=class_names, trunk=trunk)
        self.trunk: Backbone = build_backbone(trunk, num_classes)
        from torch import nn

        self.task_loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss: Tensor = self.task_loss(logits, batch["label"])
        self.log_training(loss, logits, batch["label"])
        return loss
