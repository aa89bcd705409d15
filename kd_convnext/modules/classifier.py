"""Trains, evaluates and logs a classifier: everything that teacher and student share but their training loss."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kd_convnext.checkpoints.format import KEY
from kd_convnext.common.counting import counted
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import Batch
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.evaluation.answers import EvaluatedPart, Evaluation, PredictionStore
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.layers import first_epochs, layer_scales, rest_frozen
from kd_convnext.modules.batches import ForeignBatch, check_foreign, understood
from kd_convnext.modules.checkpointed import CheckpointedModule
from kd_convnext.modules.choosing import SmoothedScore, mean_logits
from kd_convnext.modules.compiled_step import Compile, FastPath, plan_compile
from kd_convnext.modules.divergence import FINITE_EVERY, require_finite
from kd_convnext.modules.epoch_tally import EpochTally
from kd_convnext.modules.guard import check_classes, check_crops, check_labels, check_size, leaks, require_labels
from kd_convnext.modules.mixing import MixSpec, mixed
from kd_convnext.modules.optim import OptimSpec, build_optimizer, build_schedule, check_resumed

LOWEST_PROBABILITY = 1e-12
"""Probabilities are kept in float32; below this a logarithm says nothing."""


class ClassifierModule(CheckpointedModule, ABC):
    """Trains and evaluates a network that classifies specimens; subclasses add its training loss.

    Attributes:
        compile_asked: Whether a fit compiles its steps: True, False, or ``auto``.
        class_names: Names in the order of the outputs; empty until a data module or a checkpoint tells them.
        card: What the network knows of its data; None before training.
        evaluation: Answers of the last validation, test or prediction, per image.
        lesion_evaluation: The same per lesion (mean probability over its photographs); None without a manifest.
        latest_loss: Of the last training step, a scalar on the device; reading it waits for the step.
        mixing: How the images of a training batch are mixed.
        mirrored_validation: Whether validation within a fit averages logits over an image and its three mirror images:
            a steadier choice of the epoch at four times the cost of judging.
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
            what = f"{counted(len(class_names), 'name')} for {counted(num_classes, 'class')}"
            raise ConfigError(Finding("model.class_names", what, "Leave both to the data."))
        self.class_names = tuple(class_names or ())
        self.num_classes = num_classes
        self.optim = optim
        self.compile_asked: Compile = compile_asked
        self.evaluation: Evaluation | None = None
        self.lesion_evaluation: Evaluation | None = None
        self.latest_loss: Tensor | None = None
        self._tally = EpochTally(num_classes)
        self._answers = PredictionStore(num_classes)
        self._seed, self._judged = 0, 0
        self._begun: int | None = None
        self._fast: FastPath | None = None
        self.mixing = MixSpec()
        self.mirrored_validation = False
        self._smooth = SmoothedScore()
        self._first_epochs: dict[nn.Parameter, int] = {}
        self._resting: list[nn.Module] = []

    @property
    def classifier(self) -> Backbone:
        """The network that is trained and deployed, the attribute that ``deployable`` names."""
        return cast(Backbone, getattr(self, self.deployable))

    @abstractmethod
    def training_step(self, batch: ForeignBatch, batch_idx: int) -> Tensor | None:
        """Returns the loss of a batch, a scalar; None where nothing is learnt by steps."""

    @property
    def head_epochs(self) -> int:
        """Number of initial epochs in which only the head is trained."""
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
        """Stores the data card, refusing leaks and other classes; decides whether steps are compiled."""
        self._seed, self._begun = torch.initial_seed() % 2**31, None
        plan = plan_compile(self.compile_asked, self.trainer)
        self._fast = FastPath(self, cuda_graphs=plan.cuda_graphs) if plan.on else None
        data = self.specimens
        if data is None:
            return
        leak = self.check_fit(data)
        earlier = self.card
        self.class_names = tuple(data.class_names)
        self.card = data.card()
        if earlier is not None:
            self.card = self.card.having_seen(earlier, leak or earlier.leak_allowed)

    def on_train_epoch_start(self) -> None:
        """Unfreezes the parameters whose first epoch has come; what is frozen keeps its statistics."""
        self._begun = self.current_epoch
        self._tally.clear()  # an interrupted fit may have left some
        firsts, epoch = self._first_epochs, self.current_epoch
        # Under DDP every parameter must get a gradient; `on_before_optimizer_step` drops those there.
        if self.trainer.world_size == 1:
            for parameter, first in firsts.items():
                parameter.requires_grad_(epoch >= first)
        for module in self._resting:
            module.training = True
        self._resting = rest_frozen(self.classifier, lambda one: one.requires_grad and epoch >= firsts.get(one, 0))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops the gradients of parameters whose first epoch has not come.

        So that under DDP, as on one device, they neither count when gradients are clipped nor fill the optimiser's
        moments: Lightning calls this before clipping, and optimisers skip parameters without a gradient.
        """
        for parameter, first in self._first_epochs.items():
            if self.current_epoch < first:
                parameter.grad = None

    def on_train_batch_start(self, batch: ForeignBatch, batch_idx: int) -> None:
        """Seeds each epoch (stochastic depth), so that a resumed run draws what an uninterrupted one would."""
        if within := self._begun != self.current_epoch:  # resumed there, where Lightning begins no epoch
            self.on_train_epoch_start()
        self._tally.expect(self.understood(batch)["index"])
        if batch_idx == 0 or within:
            self._check_foreign(batch, labelled=True)
            torch.manual_seed((self._seed + 1_000_003 * self.current_epoch + self.global_rank) % 2**63)

    def on_train_batch_end(self, outputs: Any, batch: ForeignBatch, batch_idx: int) -> None:
        """Checks now and then that the losses are finite; at each step that would wait for a GPU."""
        if (batch_idx + 1) % FINITE_EVERY == 0:
            require_finite(self, self._tally)

    def mixed(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns images and labels of a training batch, mixed where ``mixing`` says so.

        Args:
            batch: As the loader gives it.
            batch_idx: Its number in the epoch; an epoch that is resumed or repeated mixes alike.

        Returns:
            Images [B, C, H, W]; labels int64 [B], or probabilities [B, K] where images are mixed.
        """
        if not self.mixing.on:
            return batch["image"], batch["label"]
        rng = np.random.default_rng((self._seed, self.current_epoch, batch_idx, self.global_rank))
        return mixed(batch["image"], batch["label"], self.mixing, self.num_classes, rng)

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
        """Releases compiled graphs and their memory."""
        if self._fast is not None:
            self._fast.close()
            self._fast = None

    def log_training(
        self, loss: Tensor, logits: Tensor, labels: Tensor, terms: Mapping[str, Tensor] | None = None
    ) -> None:
        """Logs a step.

        Args:
            loss: What is minimised.
            logits: [B, K].
            labels: int64 [B].
            terms: Further terms by name, logged as ``train/loss_<name>``.
        """
        named = {"train/loss": loss} | {f"train/loss_{name}": value for name, value in (terms or {}).items()}
        self._tally.add(named, logits, labels)
        self.latest_loss = loss.detach()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self.log("train/loss_step", self.latest_loss, prog_bar=True, on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's losses and metrics."""
        if not len(self._tally):
            return  # resumed at the very end of an epoch
        require_finite(self, self._tally, weights=True)
        self.log_dict(self._tally.means(), batch_size=self._tally.samples, sync_dist=True)
        if self.specimens is None or not self.specimens.ignores_labels:
            self.log_dict(self._tally.metrics(), sync_dist=True)
        self.log("train/lr", float(self.trainer.optimizers[0].param_groups[-1]["lr"]))
        self._tally.clear()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimiser and schedule from ``optim``."""
        network = self.classifier
        head = [*network.head_parameters(), *self.fresh_parameters()]
        # Under mixed precision Lightning clips the gradients of no optimiser that could unscale them by itself.
        mixed = str(self.trainer.precision).endswith("-mixed")
        fused = not (mixed and self.trainer.gradient_clip_val)
        scales = layer_scales(network, self.optim.layer_decay) if self.optim.layer_decay < 1 else None
        self._first_epochs = firsts = first_epochs(network, self.head_epochs, self.optim.unfreeze_epochs)
        optimizer = build_optimizer(
            self.optim, network.body_parameters(), head, scales=scales, first_epochs=firsts, fused=fused
        )
        steps = float(self.trainer.estimated_stepping_batches)
        # With max_steps alone the line above does not count the batches of an epoch.
        self.trainer.fit_loop.setup_data()
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = build_schedule(self.optim, optimizer, steps=steps, steps_per_epoch=per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation, test, prediction

    def validation_step(self, batch: ForeignBatch, batch_idx: int) -> None:
        """Collects the predictions of a batch."""
        self._collect(batch)

    def test_step(self, batch: ForeignBatch, batch_idx: int) -> None:
        """Collects the predictions of a batch."""
        self._collect(batch)

    def predict_step(self, batch: ForeignBatch, batch_idx: int) -> Tensor:
        """Collects the predictions of a batch.

        Returns:
            Probabilities [B, K].
        """
        return self._collect(batch)

    def on_validation_start(self) -> None:
        """Refuses to validate on lesions of the training, and within a fit weights that are not finite."""
        if self.trainer.state.fn == "fit" and len(self._tally):
            require_finite(self, self._tally, weights=True)
        if self.trainer.state.fn == "validate":
            self._check_judged("val")

    def on_test_start(self) -> None:
        """Refuses to test on lesions of the training."""
        self._check_judged("test")

    def on_predict_start(self) -> None:
        """Refuses data of other classes, and other crops."""
        check_classes(self.class_names, self.num_classes, self.specimens)
        check_crops(self.card, self.specimens)

    def on_validation_epoch_end(self) -> None:
        """Computes and logs the validation metrics."""
        self._judge("val")

    def on_test_epoch_end(self) -> None:
        """Computes and logs the test metrics, per class too."""
        self._judge("test")

    def on_predict_epoch_end(self) -> None:
        """Stores the predictions in ``evaluation``."""
        self._keep("predict")

    def _collect(self, given: ForeignBatch) -> Tensor:
        if not self._judged:
            self._check_foreign(given, labelled=False)
        batch = self.understood(given)
        self._judged += len(batch["image"])
        mirrored = self.mirrored_validation and self.trainer.state.fn == "fit"
        probabilities = mean_logits(self, batch["image"], mirrored=mirrored).softmax(dim=1)
        self._answers.update(batch["index"], batch["label"], probabilities)
        return probabilities

    def _keep(self, part: EvaluatedPart) -> Evaluation:
        names = self.class_names or tuple(str(number) for number in range(self.num_classes))
        self.evaluation = self._answers.evaluation(part, names)
        self._answers.reset()
        self._judged = 0
        data = self.specimens
        self.lesion_evaluation = None
        if data is not None:
            groups = data.manifest.groups("lesion")[self.evaluation.index]
            self.lesion_evaluation = self.evaluation.by_group(groups)
        return self.evaluation

    def _judge(self, part: EvaluatedPart) -> None:
        found = self._keep(part)
        per_class = part == "test"
        metrics = {f"{part}/{name}": value for name, value in found.metrics(per_class=per_class).items()}
        if not metrics:
            require_labels(part, fitting=self.trainer.state.fn == "fit")
            return
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
        if part == "val" and self.trainer.state.fn == "fit":
            # Of lesions where there are any; a trial before the training is no epoch.
            score = metrics.get("val/lesion/f1_macro", metrics["val/f1_macro"])
            smooth = score if self.trainer.sanity_checking else self._smooth.add(score)
            self.log("val/f1_macro_smooth", smooth, sync_dist=True)

    # ---- data

    def understood(self, batch: ForeignBatch) -> Batch:
        """Returns a batch of any loader as image, label and index; see :mod:`kd_convnext.modules.batches`.

        Args:
            batch: Of a :class:`SpecimenDataModule`, of another data module, or of plain loaders.

        Raises:
            ConfigError: It is of no kind that is understood.
        """
        world, rank = self.trainer.world_size, self.global_rank
        return understood(batch, self._judged * world + rank, world)

    def _check_foreign(self, batch: ForeignBatch, *, labelled: bool) -> None:
        if self.specimens is None:
            network = self.classifier
            shape = network.in_chans, network.image_size, self.num_classes
            check_foreign(self.understood(batch), *shape, labelled=labelled)

    @property
    def specimens(self) -> SpecimenDataModule | None:
        """The data module of the trainer, if it is one of ours."""
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, SpecimenDataModule) else None

    def check_fit(self, data: SpecimenDataModule) -> bool:
        """Refuses data of other classes or size, or that start weights have seen; returns whether allowed ones have."""
        check_classes(self.class_names, self.num_classes, data)
        check_size(self.classifier.image_size, data)
        return leaks("this checkpoint", self.card, data, ("val", "test"))

    def _check_judged(self, part: EvaluatedPart) -> None:
        data = self.specimens
        check_labels(data)
        check_classes(self.class_names, self.num_classes, data)
        check_crops(self.card, data)
        if data is not None and leaks("this checkpoint", self.card, data, (part,)):
            assert self.card is not None
            self.card = replace(self.card, leak_allowed=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the scores of the last epochs, which a resumed fit goes on averaging."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["recent_scores"] = self._smooth.recent

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores class names and data card, refusing other classes, and to go on with other data or optimiser."""
        super().on_load_checkpoint(checkpoint)
        self._smooth = SmoothedScore(checkpoint.get(KEY, {}).get("recent_scores", []))
        data = self.specimens
        check_classes(self.class_names, self.num_classes, data)
        if self._trainer is None or not self._trainer.training:
            return
        check_resumed(self.optim, checkpoint.get("hyper_parameters", {}).get("optim") or {})
        if data is not None and not data.allow_leak:
            self.check_fit(data)  # here nothing is written yet
