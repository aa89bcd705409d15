"""What every classifier here shares: evaluation, logging, leak checks, optimiser, and what its checkpoint says."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kd_convnext.checkpoints.format import FORMAT_VERSION, KEY, read_checkpoint
from kd_convnext.data.loading.card import DataCard, check_leak
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch
from kd_convnext.errors import CheckpointError, ConfigError, Finding
from kd_convnext.evaluation.answers import Evaluation, PredictionStore, Source
from kd_convnext.models.backbones import Backbone, BackboneSpec
from kd_convnext.modules.compiled_step import Compile, FastPath, plan_compile
from kd_convnext.modules.epoch_tally import EpochTally
from kd_convnext.modules.optim import OptimSpec, build_optimizer, build_schedule

LOWEST_PROBABILITY = 1e-12
"""Probabilities are kept in float32; below this a logarithm says nothing."""


class ClassifierModule(pl.LightningModule, ABC):
    """A network that classifies specimens, with everything around it but its training loss.

    Attributes:
        compile_asked: Whether a fit compiles its steps: True, False, or ``auto``.
        class_names: Names in the order of the outputs; empty until a data module or a checkpoint tells them.
        card: What the network knows of its data; None before training.
        evaluation: Answers of the last validation, test or prediction, per image.
        lesion_evaluation: The same per lesion (mean probability over its photographs); None without a manifest.
        latest_loss: Of the last training step, a scalar on the device; reading it waits for the step.
    """

    task_loss: nn.Module

    def __init__(
        self, num_classes: int, class_names: Sequence[str] | None, optim: OptimSpec, compile_asked: Compile = "auto"
    ) -> None:
        """Prepares the common parts.

        Args:
            num_classes: Number of classes, K.
            class_names: Their names in the order of the outputs.
            optim: Optimiser and schedule.
            compile_asked: Whether a fit compiles its steps; ``auto`` where it should pay.

        Raises:
            ConfigError: The number of names is not K.
        """
        super().__init__()
        if class_names and len(class_names) != num_classes:
            what = f"{len(class_names)} names for {num_classes} classes"
            raise ConfigError(Finding("model.class_names", what, "Leave both to the data."))
        self.class_names = tuple(class_names or ())
        self.num_classes = num_classes
        self.optim = optim
        self.compile_asked: Compile = compile_asked
        self.card: DataCard | None = None
        self.evaluation: Evaluation | None = None
        self.lesion_evaluation: Evaluation | None = None
        self.latest_loss: Tensor | None = None
        self._tally = EpochTally(num_classes)
        self._answers = PredictionStore(num_classes)
        self._seed = 0
        self._fast: FastPath | None = None

    @property
    @abstractmethod
    def classifier(self) -> Backbone:
        """The network that answers, and that is deployed."""

    @property
    def head_epochs(self) -> int:
        """For so many epochs only the head learns."""
        return 0

    def fresh_parameters(self) -> Iterable[nn.Parameter]:
        """Returns parameters beside the classifier that start afresh (regressors)."""
        return ()

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1.

        Returns:
            Logits [B, K].
        """
        return cast(Tensor, self.classifier(images))

    # ---- training

    def on_fit_start(self) -> None:
        """Takes the card of the data, refusing leaks and other classes; chooses how steps run."""
        self._seed = torch.initial_seed() % 2**31
        plan = plan_compile(self.compile_asked, self.trainer)
        self._fast = FastPath(self, cuda_graphs=plan.cuda_graphs) if plan.on else None
        data = self.specimens
        if data is None:
            return
        self._check_classes(data)
        if data.image_size != self.classifier.image_size:
            what = f"the data gives {data.image_size} px, the network takes {self.classifier.image_size}"
            raise ConfigError(Finding("--data.image_size", what, "Give both the same size."))
        seen = None if self.card is None else self.card.seen_groups
        leak = seen is not None and self._leaks("this checkpoint", self.card, data, ("val", "test"))
        earlier = self.card
        self.class_names = tuple(data.class_names)
        self.card = data.card()
        if earlier is not None:
            self.card = self.card.having_seen(earlier.seen_groups, leak or earlier.leak_allowed)

    def on_train_epoch_start(self) -> None:
        """Unfreezes the backbone after ``head_epochs`` epochs."""
        self._tally.clear()  # an interrupted fit may have left some
        # Under DDP every parameter must get a gradient; `on_before_optimizer_step` drops the body's there.
        if self.head_epochs and self.trainer.world_size == 1:
            learns = self.current_epoch >= self.head_epochs
            for parameter in self.classifier.body_parameters():
                parameter.requires_grad_(learns)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops the backbone's gradients while only the head is trained.

        So that under DDP, as on one device, they neither count when gradients are clipped nor fill the optimiser's
        moments: Lightning calls this before clipping, and optimisers skip parameters without a gradient.
        """
        if self.current_epoch < self.head_epochs:
            for parameter in self.classifier.body_parameters():
                parameter.grad = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds each epoch (stochastic depth), so that a resumed run draws what an uninterrupted one would."""
        if batch_idx == 0:
            torch.manual_seed((self._seed + 1_000_003 * self.current_epoch + self.global_rank) % 2**63)

    def run_step(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Runs what a training step computes, compiled where the fit was planned so.

        Args:
            function: From ``inputs`` to tensors, the objective first; see :class:`FastPath`.
            *inputs: Tensors, in tuples and lists.

        Returns:
            What the function returns.
        """
        return function(*inputs) if self._fast is None else self._fast(function, *inputs)

    def on_train_end(self) -> None:
        """Lets compiled graphs go."""
        if self._fast is not None:
            self._fast.close()
            self._fast = None

    def log_training(self, loss: Tensor, logits: Tensor, labels: Tensor, **terms: Tensor) -> None:
        """Logs a step.

        Args:
            loss: What is minimised.
            logits: [B, K].
            labels: int64 [B].
            **terms: Further terms, logged as ``train/loss_<name>``.
        """
        named = {"train/loss": loss} | {f"train/loss_{name}": value for name, value in terms.items()}
        self._tally.add(named, logits, labels)
        self.latest_loss = loss.detach()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self.log("train/loss_step", self.latest_loss, prog_bar=True, on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's losses and metrics."""
        if not len(self._tally):
            return  # resumed at the very end of an epoch
        self.log_dict(self._tally.means(), batch_size=self._tally.samples, sync_dist=True)
        self.log_dict(self._tally.metrics(), sync_dist=True)
        self._tally.clear()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimiser and schedule from ``optim``."""
        network = self.classifier
        head = [*network.head_parameters(), *self.fresh_parameters()]
        # Under mixed precision Lightning clips the gradients of no optimiser that could unscale them by itself.
        mixed = str(self.trainer.precision).endswith("-mixed")
        fused = not (mixed and self.trainer.gradient_clip_val)
        optimizer = build_optimizer(self.optim, network.body_parameters(), head, fused=fused)
        steps = float(self.trainer.estimated_stepping_batches)
        # With max_steps alone the line above does not count the batches of an epoch.
        self.trainer.fit_loop.setup_data()
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = build_schedule(
            self.optim, optimizer, steps=steps, steps_per_epoch=per_epoch, head_epochs=self.head_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation, test, prediction

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the answers of a batch."""
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the answers of a batch."""
        self._collect(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Collects the answers of a batch.

        Returns:
            Probabilities [B, K].
        """
        return self._collect(batch)

    def on_validation_start(self) -> None:
        """Refuses to validate on lesions of the training."""
        if self.trainer.state.fn == "validate":
            self._check_judged("val")

    def on_test_start(self) -> None:
        """Refuses to test on lesions of the training."""
        self._check_judged("test")

    def on_predict_start(self) -> None:
        """Refuses data of other classes, and other crops."""
        self._check_classes(self.specimens)
        self._check_crops(self.specimens)

    def on_validation_epoch_end(self) -> None:
        """Judges validation."""
        self._judge("val")

    def on_test_epoch_end(self) -> None:
        """Judges the test, class by class too."""
        self._judge("test")

    def on_predict_epoch_end(self) -> None:
        """Keeps the answers."""
        self._keep("predict")

    def _collect(self, batch: Batch) -> Tensor:
        probabilities = self(batch["image"]).float().softmax(dim=1)
        self._answers.update(batch["index"], batch["label"], probabilities)
        return cast(Tensor, probabilities)

    def _keep(self, part: Source) -> Evaluation:
        names = self.class_names or tuple(str(number) for number in range(self.num_classes))
        self.evaluation = self._answers.evaluation(part, names)
        self._answers.reset()
        data = self.specimens
        self.lesion_evaluation = None
        if data is not None:
            groups = data.manifest.groups("lesion")[self.evaluation.index]
            self.lesion_evaluation = self.evaluation.by_group(groups)
        return self.evaluation

    def _judge(self, part: Source) -> None:
        found = self._keep(part)
        per_class = part == "test"
        metrics = {f"{part}/{name}": value for name, value in found.metrics(per_class=per_class).items()}
        if self.lesion_evaluation is not None:
            of_lesions = self.lesion_evaluation.metrics(per_class=per_class)
            metrics |= {f"{part}/lesion/{name}": value for name, value in of_lesions.items()}
        # From the deduplicated answers, so that no image counts twice under DDP.
        log_probabilities = torch.from_numpy(found.probabilities).clamp_min(LOWEST_PROBABILITY).log().float()
        loss = self.task_loss(log_probabilities.to(self.device), torch.from_numpy(found.labels).to(self.device))
        metrics[f"{part}/loss"] = float(loss)
        self.log_dict(metrics, sync_dist=True, prog_bar=False)
        if part == "val":
            self.log("val_f1", metrics["val/f1_macro"], prog_bar=True, logger=False, sync_dist=True)

    # ---- data: classes and leaks

    @property
    def specimens(self) -> SpecimenDataModule | None:
        """The data module of the trainer, if it is one of ours."""
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, SpecimenDataModule) else None

    def _check_classes(self, data: SpecimenDataModule | None) -> None:
        if data is None:
            return
        if self.class_names and self.class_names != tuple(data.class_names):
            what = f"it knows the classes {', '.join(self.class_names)}, the data has {', '.join(data.class_names)}"
            raise CheckpointError(
                Finding("this model", what, "Use data of the same classes, or give --data.classes in this order.")
            )
        if self.num_classes != data.num_classes:
            what = f"it has {self.num_classes} outputs, the data has {data.num_classes} classes"
            raise CheckpointError(Finding("this model", what, "Use data of the same classes."))

    def _check_judged(self, part: Source) -> None:
        data = self.specimens
        self._check_classes(data)
        self._check_crops(data)
        if data is not None and self._leaks("this checkpoint", self.card, data, (part,)):
            assert self.card is not None
            self.card = self.card.having_seen(self.card.seen_groups, leak_allowed=True)

    def _check_crops(self, data: SpecimenDataModule | None) -> None:
        """Refuses other crops than those of the training: the answers would be worth nothing."""
        if data is None or self.card is None:
            return
        now, then = data.card(), self.card
        names = ("crop_identity", "image_size", "in_chans")
        findings = [
            Finding(
                "this checkpoint",
                f"its {name} was {getattr(then, name)}, the data's is {getattr(now, name)}",
                "Use the config.yaml of its run (and the same Real-ESRGAN weights).",
            )
            for name in names
            if getattr(now, name) != getattr(then, name)
        ]
        if findings:
            raise CheckpointError(findings)

    @staticmethod
    def _leaks(who: str, card: DataCard | None, data: SpecimenDataModule, parts: Sequence[Source]) -> bool:
        if card is None:
            return False
        found = False
        for part in parts:
            judged = data.judged_groups(part)  # type: ignore[arg-type]
            found |= check_leak(card.seen_groups, judged, who=who, part=part, allow=data.allow_leak)
        return found

    # ---- checkpoint

    def keep_hyperparameters(self, **values: Any) -> None:
        """Keeps the constructor's arguments as plain values, so that a checkpoint loads without unpickling.

        Args:
            **values: Arguments by name; specifications become dictionaries.
        """
        plain: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, BackboneSpec):
                # The weights will be in the checkpoint: loading it must not ask the hub or the start file again.
                value = replace(value, pretrained=False, weights=None)
            plain[name] = asdict(value) if isinstance(value, BackboneSpec | OptimSpec) else value
        self.save_hyperparameters(plain)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights.

        Raises:
            CheckpointError: They are those of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            remedy = "Use the configuration that the checkpoint was trained with (config.yaml in its run folder)."
            raise CheckpointError(Finding("checkpoint", what, remedy)) from error

    def start_from(self, spec: BackboneSpec) -> None:
        """Remembers what the start weights have seen, where they come from a checkpoint of ours.

        Args:
            spec: What the network was built from.
        """
        if spec.weights is not None and spec.weights.endswith(".ckpt"):
            state = read_checkpoint(spec.weights, "backbone.weights")[KEY]["card"]
            self.card = None if state is None else DataCard.from_state(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to answer for a new photograph."""
        checkpoint[KEY] = {
            "format_version": FORMAT_VERSION,
            "kind": type(self).__name__,
            "class_names": list(self.class_names),
            "card": None if self.card is None else self.card.to_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back."""
        own: Mapping[str, Any] = checkpoint.get(KEY, {})
        self.class_names = tuple(own.get("class_names", self.class_names))
        self._check_classes(self.specimens)
        if own.get("card") is not None:
            self.card = DataCard.from_state(own["card"])
