"""Distillation: a frozen teacher, a student, and Eq. 5 between them."""

from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from kd_convnext.checkpoints.format import KEY
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.data.loading.card import check_leak
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.losses.feature_maps import Distance, FeatureLoss, Reduction
from kd_convnext.losses.focal import FocalLoss
from kd_convnext.losses.objective import DistillationLoss, LossTerms
from kd_convnext.losses.soft_targets import SoftTargetLoss
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.regressors import Regressors
from kd_convnext.models.taps import FeatureTaps
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.compiled_step import Compile
from kd_convnext.modules.frozen_teacher import ARGUMENT, FrozenTeacher
from kd_convnext.modules.optim import OptimSpec
from kd_convnext.modules.stored_teacher import stored_answers

PAPER_STUDENT = BackboneSpec(name="convnext_tiny")


class DistillModule(ClassifierModule):
    """Trains a student by ``alpha * feature + (1 - alpha) * soft + beta * focal`` (Eq. 5).

    Attributes:
        student: The network that learns and is deployed.
        regressors: 1x1 convolutions from the student's stages to the teacher's; None until the teacher is known, or
            where the feature term is dropped.
        teacher: The frozen teacher, during fit only; never part of a checkpoint.
    """

    deployable = "student"
    distilled = True

    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        teacher_ckpt: str | None = None,
        teacher_cache: bool = False,
        student: BackboneSpec | None = None,
        feature: bool = True,
        soft: bool = True,
        focal: bool = True,
        alpha: float = 0.5,
        beta: float = 1.0,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        gamma: float = 2.0,
        feature_distance: Distance = "mse",
        feature_reduction: Reduction = "mean",
        stages: Literal["joint", "sequential"] = "joint",
        stage_epochs: tuple[int, int] = (10, 10),
        student_taps: list[str] | None = None,
        teacher_taps: list[str] | None = None,
        optim: OptimSpec | None = None,
        compile: Compile = "auto",
    ) -> None:
        """Builds the student; the teacher is loaded when fitting begins.

        Args:
            num_classes: Number of classes; taken from the data on the command line.
            class_names: Their names in the order of the outputs; taken from the data.
            class_weights: alpha_t of Eq. 4; taken from the data.
            teacher_ckpt: Checkpoint of a trained :class:`TeacherModule`; needed by ``feature`` and ``soft``.
            teacher_cache: Ask the teacher once for each of ``data.views`` views of each crop, before training, and keep
                its answers beside the crops for every run with the same teacher, views and taps.
            student: The student; by default ConvNeXt-T at 224 px from scratch.
            feature: Keep the feature term (Eq. 1).
            soft: Keep the soft-target term (Eq. 3).
            focal: Keep the focal term (Eq. 4).
            alpha: Weight of the feature term; the soft-target term has 1 - alpha.
            beta: Weight of the focal term.
            temperature: T of Eq. 2.
            scale_by_t2: Multiply the soft-target term by T² (``False`` is Eq. 3 to the letter).
            gamma: Focus of the focal term.
            feature_distance: Squared (``mse``, Eq. 1) or absolute (``l1``, Fig. 5) differences.
            feature_reduction: ``mean`` over elements and stages, or ``sum`` (Eq. 1 to the letter).
            stages: ``joint``, one loss throughout; ``sequential``, the paper's three stages one after the other.
            stage_epochs: Epochs of the first two stages where they are sequential (features, soft targets).
            student_taps: Modules of the student to tap; by default its four stages.
            teacher_taps: Modules of the teacher to tap; by default its four stages.
            optim: Optimiser and schedule; by default the paper's.
            compile: Whether a fit compiles its steps; ``auto`` on a GPU, where the fit is long enough to pay for it.

        Raises:
            ConfigError: A value that cannot work.
            CheckpointError: The start weights cannot be used.
        """
        student = PAPER_STUDENT if student is None else spec_of(BackboneSpec, student)
        optim = spec_of(OptimSpec, optim)
        super().__init__(num_classes, class_names, optim, compile)
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "arguments")}
        self.keep_hyperparameters(**arguments)
        self.teacher_ckpt, self.teacher_cache = teacher_ckpt, teacher_cache
        self.student = build_backbone(student, num_classes)
        self.start_from(student)
        self.stages, self.stage_epochs = stages, stage_epochs
        self.teacher_taps = teacher_taps
        self.loss = DistillationLoss(
            alpha,
            beta,
            FeatureLoss(feature_distance, feature_reduction) if feature else None,
            SoftTargetLoss(temperature, scale_by_t2) if soft else None,
            FocalLoss(class_weights, gamma) if focal else None,
        )
        if stages == "sequential" and not (feature and soft and focal and 0 < alpha < 1 and beta > 0):
            what = "three stages one after the other need all three terms, each with a weight above 0"
            raise ConfigError(Finding("--model.stages", what, "Use stages: joint to drop a term."))
        self.task_loss = FocalLoss(class_weights, gamma)
        # Registered here: hooks must be there before torch.compile sees the first batch.
        self._taps = FeatureTaps(self.student, student_taps, active=False) if feature else None
        self.regressors: Regressors | None = None
        self.teacher: FrozenTeacher | None = None
        self._teacher_tap_names: list[str] = []

    def fresh_parameters(self) -> list[nn.Parameter]:
        """Returns the regressors' parameters."""
        return [] if self.regressors is None else list(self.regressors.parameters())

    def setup(self, stage: str) -> None:
        """Loads the teacher for a fit, checks that it may teach here, and lets it answer if answers are stored.

        Args:
            stage: Only ``fit`` needs the teacher.

        Raises:
            CheckpointError: The teacher cannot be used.
            ConfigError: The teacher's checkpoint is not given.
            LeakError: The teacher was trained on lesions of the validation or test part.
        """
        if stage != "fit":
            return
        data = self.specimens
        if data is not None:
            data.train_set.answers = None  # perhaps another teacher's, of an earlier fit
        if not (self.loss.feature or self.loss.soft):
            return
        if self.teacher_ckpt is None:
            remedy = "Train a teacher first and give its best.ckpt, or set feature: false and soft: false."
            raise ConfigError(Finding(ARGUMENT, "distillation needs a teacher", remedy))
        tap = self.loss.feature is not None
        self.teacher = FrozenTeacher(self.teacher_ckpt, tap=tap, tap_names=self.teacher_taps)
        self._check_teacher(self.teacher)
        if self.teacher.taps:
            self._teacher_tap_names = list(self.teacher.taps.names)
        if self._taps and self.teacher.taps and self.regressors is None:
            self.regressors = Regressors(self._taps.channels, self.teacher.taps.channels)
        if self.teacher_cache:
            self._store_answers(self.teacher, data)

    def _check_teacher(self, teacher: FrozenTeacher) -> None:
        findings = []
        data = self.specimens
        names = tuple(data.class_names) if data is not None else self.class_names
        if teacher.backbone.num_classes != self.num_classes or (names and teacher.class_names != names):
            what = f"the teacher knows {', '.join(teacher.class_names)}, the data has {', '.join(names)}"
            findings.append(Finding(ARGUMENT, what, "Train a teacher on these classes."))
        if teacher.backbone.in_chans != self.student.in_chans:
            what = f"the teacher takes {teacher.backbone.in_chans} channels, the student {self.student.in_chans}"
            findings.append(Finding(ARGUMENT, what, "Use the same in_chans for both."))
        if findings:
            raise CheckpointError(findings)
        if data is None or teacher.card is None:
            return
        who = f"{ARGUMENT} {self.teacher_ckpt}"
        for part in ("val", "test"):
            check_leak(data.shared_with(teacher.card, part), who=who, part=part, allow=data.allow_leak)

    def _store_answers(self, teacher: FrozenTeacher, data: SpecimenDataModule | None) -> None:
        # Not later: before the fit's first hook Lightning starts the loader's workers, with the data as it is then.
        if data is None or data.views is None:
            what = "the views of the training must be limited, so that each can be answered beforehand"
            remedy = "Give --data.views a number (as many as there are epochs changes nothing else), or leave it off."
            raise ConfigError(Finding("--model.teacher_cache", what, remedy))
        data.train_set.answers = stored_answers(teacher, data, self.trainer)

    def on_fit_start(self) -> None:
        """Takes the card of the data and of the teacher, and moves the teacher to the student."""
        super().on_fit_start()
        if self.teacher is None:
            return
        self.teacher.to(self.device, self.student.mean.dtype)
        taught = self.teacher.card
        if self.card is not None and taught is not None:
            self.card = self.card.having_seen(taught, taught.leak_allowed or self._teacher_leaks())
        if self.teacher_cache:
            self.teacher = None  # it has answered

    def _teacher_leaks(self) -> bool:
        data, teacher = self.specimens, self.teacher
        assert data is not None and teacher is not None
        return self._leaks(ARGUMENT, teacher.card, data, ("val", "test"))

    def on_fit_end(self) -> None:
        """Lets the teacher go, and its answers."""
        self.teacher = None
        if self.specimens is not None:
            self.specimens.train_set.answers = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, a scalar."""
        inputs = batch["image"], batch["label"], batch.get("teacher_logits"), batch.get("teacher_maps")
        terms, logits = self.run_step(self.distil, *inputs)
        total = self._in_stage(terms)
        self.log_training(total, logits, batch["label"], feature=terms.feature, soft=terms.soft, focal=terms.focal)
        return total

    def distil(
        self,
        images: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        teacher_maps: list[Tensor] | None = None,
    ) -> tuple[LossTerms, Tensor]:
        """Runs the student, and the teacher where its answers are not given, and compares them.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.
            labels: int64 [B].
            teacher_logits: [B, K], where they are known.
            teacher_maps: [B, C, H, W] of each tapped stage, where they are known.

        Returns:
            The terms of Eq. 5, and the student's logits [B, K].
        """
        if self.teacher is not None:
            teacher_logits, teacher_maps = self.teacher(images)
        if self._taps is None or self.regressors is None or teacher_maps is None:
            logits = self(images)
            return self.loss(logits, labels, teacher_logits=teacher_logits), logits
        logits, maps = self._taps.run(self, images)
        mapped = self.regressors(maps, teacher_maps)
        terms = self.loss(
            logits,
            labels,
            teacher_logits=teacher_logits,
            student_features=mapped,
            teacher_features=teacher_maps,
        )
        return cast(LossTerms, terms), logits

    def _in_stage(self, terms: LossTerms) -> Tensor:
        if self.stages == "joint":
            return terms.total
        first, second = self.stage_epochs
        stage = 0 if self.current_epoch < first else 1 if self.current_epoch < first + second else 2
        weights = [self.loss.alpha, 1 - self.loss.alpha, self.loss.beta]
        # The other terms stay in the sum with weight 0: under DDP every parameter needs its gradient.
        weights = [weight if number == stage else 0.0 for number, weight in enumerate(weights)]
        return weights[0] * terms.feature + weights[1] * terms.soft + weights[2] * terms.focal

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the taps of both sides."""
        super().on_save_checkpoint(checkpoint)
        if self.regressors is not None and self._taps is not None:
            convolutions = cast(list[nn.Conv2d], list(self.regressors.convolutions))
            checkpoint[KEY]["student_taps"] = list(self._taps.names)
            checkpoint[KEY]["student_channels"] = [layer.in_channels for layer in convolutions]
            checkpoint[KEY]["teacher_channels"] = [layer.out_channels for layer in convolutions]
            checkpoint[KEY]["teacher_taps"] = self._teacher_tap_names
        if self.teacher_ckpt is not None:
            checkpoint[KEY]["teacher"] = Path(self.teacher_ckpt).name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the regressors that the checkpoint holds; the teacher's file is not needed."""
        super().on_load_checkpoint(checkpoint)
        own = checkpoint.get(KEY, {})
        if "teacher_channels" in own and self.regressors is None:
            self._teacher_tap_names = own["teacher_taps"]
            self.regressors = Regressors(own["student_channels"], own["teacher_channels"])
            self.regressors.to(self.device)
