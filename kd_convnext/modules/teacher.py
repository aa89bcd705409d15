"""Fine-tunes a classifier on labels alone: the Swin teacher, and every baseline of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from kd_convnext.checkpoints.format import KEY
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.teacher_outputs import LINEAR
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.labels.cross_entropy import CrossEntropyLoss
from kd_convnext.losses.labels.focal import FocalLoss
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.layers import freeze_all_but_last
from kd_convnext.models.lora import (
    LoraSpec,
    adapted_layers,
    adapted_state,
    add_adapters,
    plain_state,
    remove_adapters,
)
from kd_convnext.modules.averaging import average_again
from kd_convnext.modules.batches import ForeignBatch
from kd_convnext.modules.class_shares import changed_shares
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.compiled_step import Compile
from kd_convnext.modules.frozen_features import (
    Looks,
    linear_head,
    require_fit_memory,
    still_features,
    training_embeddings,
)
from kd_convnext.modules.guard import leave_out_unlabelled
from kd_convnext.modules.linear_heads import fit_linear_head
from kd_convnext.modules.mixing import MixSpec
from kd_convnext.modules.optim import OptimSpec

TaskLoss = Literal["cross_entropy", "weighted_cross_entropy", "focal"]

_BESIDE = {"head_first": ("head_epochs",), "last_blocks": ("blocks",), "lora": ("lora",)}
"""What decides beside ``finetune`` which parameters learn."""


class TeacherModule(ClassifierModule):
    """Fine-tunes any timm classifier.

    Attributes:
        backbone: The network.

    Examples:
        >>> from kd_convnext.models import BackboneSpec
        >>> sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
        >>> module = TeacherModule(5, backbone=BackboneSpec("convnext_tiny", image_size=64, args=sizes))
        >>> module(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        backbone: BackboneSpec | None = None,
        loss: TaskLoss = "focal",
        gamma: float = 2.0,
        finetune: Literal["head_first", "full", "head_only", "last_blocks", "lora", "linear"] = "full",
        head_epochs: int = 5,
        linear_c: float = 0.01,
        optim: OptimSpec | None = None,
        compile: Compile = "auto",
        mixing: MixSpec | None = None,
        mirrored_validation: bool = False,
        blocks: int = 2,
        lora: LoraSpec | None = None,
        linear_looks: Looks = 2,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of classes; taken from the data on the command line.
            class_names: Their names in the order of the outputs; taken from the data.
            class_weights: One weight a class for ``focal`` and ``weighted_cross_entropy``; taken from the data.
            backbone: The network; by default Swin-T at 224 px from scratch.
            loss: ``focal`` (Eq. 4), ``cross_entropy``, or ``weighted_cross_entropy``.
            gamma: Focus of the focal loss.
            finetune: ``full``; ``head_first`` (the head alone for ``head_epochs``, then everything); ``head_only``;
                ``last_blocks`` (the head, the last norm and the last ``blocks`` blocks); ``lora`` (the head, and
                low-rank updates of frozen layers); or ``linear``: the head by logistic regression on features that are
                computed once and stored, minutes on a laptop; give the trainer one epoch.
            head_epochs: Epochs of the head alone.
            linear_c: Inverse strength of the regression's L2 regularisation, above 0, for ``linear``.
            optim: Optimiser and schedule; by default the paper's.
            compile: Whether a fit compiles its steps; ``auto`` on a GPU, where the fit is long enough to pay for it.
            mixing: Mixup and CutMix; by default none.
            mirrored_validation: Average over mirror images in validation, for a steadier choice of the best epoch.
            blocks: How many blocks learn beside the head with ``last_blocks``.
            lora: The updates of ``lora``.
            linear_looks: At how many copies of a crop ``linear`` looks: 2, itself and its mirror image; 4 or 8, turned
                by quarter turns too, for photographs in which up and down mean nothing.

        Raises:
            ConfigError: A value that cannot work.
            CheckpointError: The start weights cannot be used.
        """
        backbone, optim = spec_of(BackboneSpec, backbone), spec_of(OptimSpec, optim)
        super().__init__(num_classes, class_names, optim, compile)
        self.mixing, self.mirrored_validation = spec_of(MixSpec, mixing), mirrored_validation
        self.lora = spec_of(LoraSpec, lora)
        self.keep_hyperparameters(
            num_classes=num_classes,
            class_names=class_names,
            class_weights=class_weights,
            backbone=backbone,
            loss=loss,
            gamma=gamma,
            finetune=finetune,
            head_epochs=head_epochs,
            linear_c=linear_c,
            optim=optim,
            compile=compile,
            mixing=self.mixing,
            mirrored_validation=mirrored_validation,
            blocks=blocks,
            lora=self.lora,
            linear_looks=linear_looks,
        )
        self.backbone = build_backbone(backbone, num_classes)
        self.start_from(backbone)
        self.finetune, self.linear_c, self.linear_looks = finetune, linear_c, linear_looks
        self._adapted = False
        self.automatic_optimization = finetune != "linear"
        self._head_epochs = head_epochs if finetune == "head_first" else 0
        self._freeze(blocks)
        self.task_loss = build_task_loss(loss, class_weights, gamma)

    def _freeze(self, blocks: int) -> None:
        """Freezes what does not learn in the whole fit, refusing choices that the network does not have."""
        if self.finetune in ("head_only", "linear"):
            for parameter in self.backbone.body_parameters():
                parameter.requires_grad_(False)
        elif self.finetune == "last_blocks":
            freeze_all_but_last(self.backbone, blocks)
        elif self.finetune == "lora":
            adapted_layers(self.backbone, self.lora.targets)

    @property
    def head_epochs(self) -> int:
        """Number of initial epochs in which only the head is trained."""
        return self._head_epochs

    def training_step(self, batch: ForeignBatch, batch_idx: int) -> Tensor | None:
        """Returns the loss of a batch, a scalar; None where the head is fitted in one go."""
        if self.finetune == "linear":
            self.optimizers().step()  # type: ignore[union-attr]
            return None
        own = self.understood(batch)
        loss: Tensor
        loss, logits = self.run_step(self.judged, *self.mixed(own, batch_idx))
        self.log_training(loss, logits, own["label"])
        return loss

    def on_fit_start(self) -> None:
        """Prepares the fit; with ``finetune: linear`` computes the features and fits the head.

        Raises:
            ConfigError: The data is no :class:`SpecimenDataModule`, which the features are computed from.
        """
        super().on_fit_start()
        data = self.specimens
        if self.finetune != "linear":
            return
        if data is None:
            remedy = "Use a SpecimenDataModule, or finetune: head_only."
            raise ConfigError(Finding("--model.finetune", "linear needs crops to compute features of", remedy))
        if isinstance(self.trainer.precision_plugin, MixedPrecision):
            self.trainer.precision_plugin.scaler = None  # there are no gradients, and it refuses a step without them
        require_fit_memory(self.backbone, data, self.trainer, self.linear_looks, LINEAR)
        store = still_features(self.backbone, data, self.trainer, self.linear_looks)
        features = training_embeddings(store, data, self.linear_looks)
        weight, bias = fit_linear_head(features, data.train_set.labels, self.num_classes, self.linear_c)
        head = linear_head(self.backbone)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    def check_fit(self, data: SpecimenDataModule) -> bool:
        """Refuses what every classifier does, and to train on labels that the data ignores."""
        if data.ignores_labels and self.finetune != "linear":
            remedy = "Use finetune: linear, whose features a student can learn, or read the labels."
            raise ConfigError(Finding("--data.labels", "training on labels needs them", remedy))
        return super().check_fit(data)

    def setup(self, stage: str) -> None:
        """Weighs classes by what is used, and puts updates of ``finetune: lora`` beside the layers, for a fit alone.

        Args:
            stage: Only ``fit`` needs them.

        Raises:
            ConfigError: peft is not installed.
        """
        if stage == "fit":
            leave_out_unlabelled(self, self.specimens, first=self.trainer.is_global_zero)
        changed = changed_shares(self.hparams, self.specimens) if stage == "fit" else {}
        if changed:
            self.keep_hyperparameters(**changed)
            self.task_loss = build_task_loss(self.hparams["loss"], self.hparams["class_weights"], self.hparams["gamma"])
        if stage == "fit" and self.finetune == "lora" and not self._adapted:
            add_adapters(self.backbone, self.lora)
            self._adapted = True
            average_again(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds updates to the weights, so that whoever reads the file needs none; beside it what a resume needs."""
        super().on_save_checkpoint(checkpoint)
        if self._adapted:
            checkpoint["state_dict"], apart = plain_state(checkpoint["state_dict"], self.lora)
            if "optimizer_states" in checkpoint:
                checkpoint[KEY]["adapters"] = apart

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Parts weights and updates again where a fit goes on, and else removes those of an earlier fit."""
        super().on_load_checkpoint(checkpoint)
        apart = checkpoint.get(KEY, {}).get("adapters")
        if self._trainer is None or not self._trainer.training:
            if self._adapted:
                remove_adapters(self.backbone)
                self._adapted = False
            return
        self._check_resumed(checkpoint.get("hyper_parameters", {}))
        if self.finetune == "lora" and apart is None:
            what = "the checkpoint does not hold the low-rank updates"
            raise ConfigError(Finding("--model.lora", what, "Give the run's last.ckpt."))
        if apart is not None:
            checkpoint["state_dict"] = adapted_state(checkpoint["state_dict"], apart)

    def _check_resumed(self, stored: Mapping[str, Any]) -> None:
        """Refuses to go on where other parameters would learn: the optimiser's state is of those of the checkpoint."""
        remedy = "Leave it as it was, or begin anew from the weights of its best.ckpt (--model.backbone.weights)."
        findings = [
            Finding(f"--model.{name}", f"the checkpoint was trained with {was}, {now} cannot go on from there", remedy)
            for name in ("finetune", *_BESIDE.get(self.finetune, ()))
            if (was := stored.get(name, self.hparams[name])) != (now := self.hparams[name])
        ]
        if findings:
            raise ConfigError(findings)

    def judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies images and compares the answers with their labels.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.
            labels: int64 [B], or probabilities [B, K] of mixed images.

        Returns:
            The loss, a scalar, and the logits [B, K].
        """
        logits = self(images)
        return self.task_loss(logits.float(), labels), logits


def build_task_loss(kind: TaskLoss, class_weights: Sequence[float] | None, gamma: float) -> nn.Module:
    """Builds the loss on labels.

    Args:
        kind: Which.
        class_weights: One weight a class; not used by ``cross_entropy``. None or empty weighs all alike.
        gamma: Focus of the focal loss.

    Returns:
        A module from logits [B, K] and labels to a scalar: int64 [B], -1 where there is none, or probabilities [B, K].
    """
    class_weights = class_weights or None
    if kind == "focal":
        return FocalLoss(class_weights, gamma)
    return CrossEntropyLoss(class_weights if kind == "weighted_cross_entropy" else None)
