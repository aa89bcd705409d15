"""Distils a student: frozen teachers, and an objective of loss terms between them and it."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from kd_convnext.checkpoints.flat_arguments import FLAT, modern_arguments, warn_of_flat
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.checkpoints.upgrade import KEY, upgraded
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.losses.described import built
from kd_convnext.losses.eq5 import Eq5
from kd_convnext.losses.labels.focal import Focal, FocalLoss
from kd_convnext.losses.objective import Losses, Objective
from kd_convnext.losses.term import Outputs, Widths
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.probe import Probe
from kd_convnext.models.taps import TapSpec
from kd_convnext.modules.averaging import average_again
from kd_convnext.modules.batches import ForeignBatch
from kd_convnext.modules.class_shares import changed_shares
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.compiled_step import Compile
from kd_convnext.modules.guard import leaks, leave_out_unlabelled
from kd_convnext.modules.mixing import MixSpec
from kd_convnext.modules.optim import OptimSpec
from kd_convnext.modules.teaching_staff import TeachingStaff, teacher_files, unnamed, unstorable

PAPER_STUDENT = BackboneSpec(name="convnext_tiny")

StoredOutputs = bool | Literal["still"]
"""Whether teachers run before the training: live (false), once a view (true), or once a crop without augmentation."""


class DistillModule(ClassifierModule):
    """Trains a student by an objective of terms, by default ``alpha * feature + (1 - alpha) * soft + beta * focal``.

    Attributes:
        student: The network that learns and is deployed.
        objective: The terms, with their projectors once the teachers' widths are known.
        staff: The frozen teachers, during fit only; never part of a checkpoint.

    Examples:
        >>> import torch
        >>> from kd_convnext.losses import Eq5
        >>> sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
        >>> student = BackboneSpec("convnext_tiny", image_size=64, args=sizes)
        >>> module = DistillModule(5, student, Eq5(alpha=0.5, drop=["feature"]), teacher_ckpt="best.ckpt")
        >>> module(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 5])
        >>> sorted(module.objective.names)
        ['focal', 'soft']
    """

    deployable = "student"
    distilled = True
    staff: TeachingStaff | None = None

    def __init__(
        self,
        num_classes: int,
        student: BackboneSpec | None = None,
        objective: Objective | None = None,
        teachers: dict[str, str] | None = None,
        teacher_ckpt: str | None = None,
        teacher_cache: StoredOutputs = False,
        taps: TapSpec | None = None,
        optim: OptimSpec | None = None,
        compile: Compile = "auto",
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        class_counts: list[int] | None = None,
        mixing: MixSpec | None = None,
        mirrored_validation: bool = False,
        **flat: Any,
    ) -> None:
        """Builds the student; teachers are loaded when fitting begins.

        Args:
            num_classes: Number of classes; taken from the data on the command line.
            student: The student; by default ConvNeXt-T at 224 px from scratch.
            objective: What is minimised; by default Eq. 5 with the paper's weights.
            teachers: Checkpoints of trained :class:`TeacherModule` by the names that terms call them.
            teacher_ckpt: The same for a single teacher, whom terms call ``teacher``.
            teacher_cache: Run teachers once for each of ``data.loader.views`` views of each crop before training, and
                keep their outputs beside the crops for every run with the same teacher, views and taps. A linear
                teacher (``finetune: linear``) of this training part, where no term needs maps, looks at the views
                at its own size and at crops without labels once, and answers by heads that lack the crop's lesion.
                ``still``: once a crop, without augmentation; logits and embedding only.
            taps: Modules to tap where terms need maps; by default the four stages of each network.
            optim: Optimiser and schedule; by default the paper's.
            compile: Whether a fit compiles its steps; ``auto`` on a GPU, where the fit is long enough to pay for it.
            class_names: Names of the classes in the order of the outputs; taken from the data.
            class_weights: Weights of the classes for label terms (alpha_t of Eq. 4); taken from the data on the command
                line, in Python ``data.class_weights``; without them such a term weighs all alike, and warns.
            class_counts: Training images of each class for terms that need them; taken from the data.
            mixing: Mixup and CutMix, seen alike by teachers and student; by default none.
            mirrored_validation: Average over mirror images in validation, for a steadier choice of the best epoch.
            **flat: Arguments in their spelling before there were terms, such as ``alpha``.

        Raises:
            ConfigError: A value that cannot work.
            CheckpointError: The start weights cannot be used, or the objective's class is unknown.
        """
        given = _translated(dict(objective=objective, taps=taps, **flat), flat)
        student = PAPER_STUDENT if student is None else spec_of(BackboneSpec, student)
        optim, taps = spec_of(OptimSpec, optim), spec_of(TapSpec, given["taps"])
        super().__init__(num_classes, class_names, optim, compile)
        self.mixing, self.mirrored_validation = spec_of(MixSpec, mixing), mirrored_validation
        self.objective: Objective = Eq5() if given["objective"] is None else built(given["objective"], Objective)
        self.keep_hyperparameters(
            num_classes=num_classes,
            student=student,
            objective=self.objective,
            teachers=teachers,
            teacher_ckpt=teacher_ckpt,
            teacher_cache=teacher_cache,
            taps=taps,
            optim=optim,
            compile=compile,
            class_names=class_names,
            class_weights=class_weights,
            class_counts=class_counts,
            mixing=self.mixing,
            mirrored_validation=mirrored_validation,
        )
        _refuse_stored(self.mixing, teacher_cache)
        self.teachers = teacher_files(teachers, teacher_ckpt)
        self.teacher_cache, self.taps = teacher_cache, taps
        self.learns_unlabelled = bool(self.objective.teachers)
        self.student = build_backbone(student, num_classes)
        self.start_from(student)
        self._tell_classes(class_weights, class_counts)
        # Registered here: hooks must be there before torch.compile sees the first batch.
        self.probe = Probe(self.student, self.objective.student_needs, taps.student)
        self._taught: dict[str, Any] = {}
        self._weights: Tensor | None = None

    def _tell_classes(self, weights: list[float] | None, counts: list[int] | None) -> None:
        """Gives the terms, and the loss of validation, the weights and counts of the classes that the data has told."""
        self.task_loss = _task_loss(self.objective, weights)
        if weights is not None:
            self.objective.weigh_classes(weights)
        if counts is not None:
            self.objective.count_classes(counts)

    def fresh_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the terms' projectors."""
        return list(self.objective.parameters())

    def setup(self, stage: str) -> None:
        """Loads the teachers for a fit, checks that they may teach here, and stores their outputs if asked.

        Args:
            stage: Only ``fit`` needs the teachers.

        Raises:
            CheckpointError: A teacher cannot be used.
            ConfigError: A teacher's checkpoint is missing, no term learns from it, or a term learns from labels that
                the data ignores.
            LeakError: A teacher was trained on lesions of the validation or test part.
        """
        if stage != "fit":
            return
        data = self.specimens
        if data is not None:
            leave_out_unlabelled(self, data, first=self.trainer.is_global_zero)
            data.teach(None)  # perhaps another teacher's, of an earlier fit
            self.check_fit(data)
        if changed := changed_shares(self.hparams, data):
            self.keep_hyperparameters(**changed)
            self._tell_classes(self.hparams["class_weights"], self.hparams["class_counts"])
        staff = self.check_teachers(data)
        if not self._taught:
            self._build(staff.widths)
            average_again(self)
        self._taught, self.staff = staff.description, staff
        if data is not None and self.trainer.is_global_zero:
            staff.warn_of_in_sample_answers(data, stored=bool(self.teacher_cache))
            staff.warn_of_removed_priors()
        if self.teacher_cache:
            self.staff.store(data, self.trainer, still=self.teacher_cache == "still")

    def check_teachers(self, data: SpecimenDataModule | None) -> TeachingStaff:
        """Loads the teachers and checks that they may teach here.

        Args:
            data: Of the fit; None where it is not ours.

        Returns:
            The teachers.

        Raises:
            KDConvNeXtError: See `setup`.
        """
        staff = TeachingStaff(self.teachers, self.objective, self.taps)
        names = tuple(data.class_names) if data is not None else self.class_names
        staff.check(self.student, names, data)
        return staff

    def check_fit(self, data: SpecimenDataModule) -> bool:
        """Refuses what every classifier does, and terms that lack labels, a teacher, or outputs that can be stored."""
        findings = unnamed(self.teachers, self.objective)
        if data.ignores_labels:
            findings += [
                Finding(f"objective.terms.{name}", "it learns from labels, which are ignored", "Leave the term out.")
                for name, term in self.objective.named_terms().items()
                if term.teacher is None
            ]
        if self.teacher_cache:
            findings += unstorable(self.objective, data, still=self.teacher_cache == "still")
        if findings:
            raise ConfigError(findings)
        return super().check_fit(data)

    def _build(self, teachers: Mapping[str, Widths]) -> None:
        self.objective.build(self.probe.widths, teachers)
        self.objective.to(self.device)

    def on_fit_start(self) -> None:
        """Takes the card of the data and of the teachers, and moves the teachers to the student."""
        if self.trainer.ckpt_path is None:  # a fit that goes on is not asked; `setup` cannot tell yet
            self.objective.check_start(self.num_classes)
        super().on_fit_start()
        if self.staff is None:
            return
        self.staff.to(self.device, self.student.mean.dtype)
        for teacher in self.staff.live.values():
            taught, data = teacher.card, self.specimens
            if self.card is not None and taught is not None and data is not None:
                leak = leaks(teacher.argument, taught, data, ("val", "test"))
                self.card = self.card.having_seen(taught, taught.leak_allowed or leak)
        if self.teacher_cache:
            self.staff = None  # all outputs are stored

    def on_train_epoch_start(self) -> None:
        """Takes the epoch's weights, once: they are data of the step, so that no schedule compiles it anew."""
        super().on_train_epoch_start()
        self.objective.begin_epoch(self.current_epoch)
        self._weights = self.objective.weights(self.current_epoch, self.device)

    def on_fit_end(self) -> None:
        """Releases the teachers and their stored outputs."""
        self.staff = None
        if self.specimens is not None:
            self.specimens.teach(None)

    def training_step(self, batch: ForeignBatch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, a scalar."""
        own = self.understood(batch)
        weights = self.objective.weights(0, self.device) if self._weights is None else self._weights
        inputs = *self.mixed(own, batch_idx), weights, self._stored(own)
        losses, logits = self.run_step(self.distil, *inputs)
        # The terms last: of values that are not finite the last is named.
        values = {f"{name}_kl": value for name, value in losses.divergences.items()}
        values |= dict(zip(self.objective.names, losses.values, strict=True))
        self.log_training(losses.total, logits, own["label"], values)
        return cast(Tensor, losses.total)

    def _stored(self, batch: Batch) -> dict[str, Outputs] | None:
        """Collects the stored outputs of a batch, by teacher; None where teachers run live."""
        held = cast(dict[str, Any], batch)
        found = {name: held.get(f"{name}_logits") for name in self.objective.teachers}
        if not found or any(logits is None for logits in found.values()):
            return None
        return {
            name: Outputs(logits, tuple(held[f"{name}_maps"]) or None, held.get(f"{name}_embedding"))
            for name, logits in found.items()
        }

    def distil(
        self, images: Tensor, labels: Tensor, weights: Tensor, stored: dict[str, Outputs] | None = None
    ) -> tuple[Losses, Tensor]:
        """Runs the student, and the teachers where their outputs are not stored, and compares them.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.
            labels: int64 [B], -1 for an image without a label; or probabilities [B, K].
            weights: Of the terms in this epoch, [T].
            stored: Outputs of each teacher, where they are known.

        Returns:
            The losses, and the student's logits [B, K].
        """
        taught = stored
        if taught is None:
            taught = {} if self.staff is None else {name: ask(images) for name, ask in self.staff.live.items()}
        seen = self.probe.run(self, images)
        losses, logits = cast(Losses, self.objective(seen, taught, labels, weights)), cast(Tensor, seen.logits)
        # Several processes need a gradient of every parameter: the head's is 0 where no term reads the logits.
        return losses._replace(total=losses.total + 0 * logits.float().sum()), logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what projectors are built from: widths of both sides, with the taps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] |= {
            "teachers": self._taught.get("files", {}),
            "widths": {"student": _plain(self.probe.widths), "teachers": self._taught.get("widths", {})},
            "taps": {"student": list(self.probe.tap_names), "teachers": self._taught.get("taps", {})},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the projectors that the checkpoint holds; the teachers' files are not needed."""
        if KEY in checkpoint:
            checkpoint.update(upgraded(checkpoint))
        super().on_load_checkpoint(checkpoint)
        own = checkpoint.get(KEY, {})
        if "widths" not in own or self._taught:
            return
        widths = own["widths"]["teachers"]
        if set(self.objective.teachers) <= set(widths):
            found = {name: Widths(sizes[0], tuple(sizes[1]), sizes[2]) for name, sizes in widths.items()}
            self._build(found)
            self._taught = {"files": own["teachers"], "widths": widths, "taps": own["taps"]["teachers"]}


def _refuse_stored(mixing: MixSpec, stored: StoredOutputs) -> None:
    if mixing.on and stored:
        what = "stored outputs of teachers know no mixed images"
        raise ConfigError(Finding("model.mixing", what, "Set teacher_cache: false, or leave mixing out."))


def _plain(widths: Widths) -> list[Any]:
    return [widths.classes, list(widths.channels), widths.embedding]


def _translated(given: dict[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    if not flat:
        return given
    names = [name for name in given if name in FLAT]
    unknown = [name for name in given if name not in (*FLAT, "objective", "taps")]
    if unknown:
        what = f"it has no argument {', '.join(unknown)}"
        raise ConfigError(Finding("DistillModule", what, "See its documentation."))
    warn_of_flat(names)
    if isinstance(given["objective"], Objective):
        given = {**given, "objective": given["objective"].description}
    return {"taps": None, **modern_arguments(given)}


def _task_loss(objective: Objective, class_weights: list[float] | None) -> FocalLoss:
    """Returns what validation is judged by: the objective's focal loss, or one of the paper."""
    focal = [term.loss.gamma for term in objective.named_terms().values() if isinstance(term, Focal)]
    return FocalLoss(class_weights, focal[0] if focal else 2.0)
