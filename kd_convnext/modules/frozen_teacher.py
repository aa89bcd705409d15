"""Loads a teacher, frozen and outside the student's module tree, so that it is neither saved nor optimised."""

import hashlib
import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_convnext.checkpoints.format import KEY, deployable_part, is_distilled, read_checkpoint
from kd_convnext.checkpoints.network import load_backbone
from kd_convnext.data.loading.card import DataCard
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.errors import CheckpointError, Finding
from kd_convnext.losses.term import Needs, Outputs, Widths
from kd_convnext.models.probe import Probe
from kd_convnext.modules.frozen_features import Looks

ARGUMENT = "--model.teacher_ckpt"


class FrozenTeacher:
    """Runs a frozen classifier: returns the logits, feature maps and embedding that loss terms need.

    Not an ``nn.Module``: as a child of the student's module it would be saved into every checkpoint of the student,
    and the student could not be tested once the teacher's file has moved.

    Attributes:
        backbone: The network, in evaluation mode, no parameter with a gradient.
        class_names: Names in the order of its outputs.
        card: What it knows of its training data.
        looks: At how many copies of a crop it looks where its outputs are stored once a crop.
        probe: Hooks on its stages and its head, as far as they are needed.
        argument: Who named its file, for messages.
        path: Its file.
    """

    def __init__(
        self,
        ckpt_path: str,
        needs: Needs = Needs.LOGITS,
        tap_names: Sequence[str] | None = None,
        argument: str = ARGUMENT,
    ) -> None:
        """Loads the teacher.

        Args:
            ckpt_path: Checkpoint of a :class:`~kd_convnext.TeacherModule` or of a subclass of it.
            needs: What terms read of it.
            tap_names: Modules to tap where maps are needed; by default the four stages.
            argument: Who named the file, for messages.

        Raises:
            CheckpointError: The file cannot be used as a teacher.
            ConfigError: A tap's name is unknown.
        """
        checkpoint = read_checkpoint(ckpt_path, argument)
        own, part = checkpoint[KEY], deployable_part(checkpoint)
        if part is None or is_distilled(checkpoint):
            what = f"{ckpt_path} holds a {own['kind']}, not a teacher"
            raise CheckpointError(Finding(argument, what, "Give the best.ckpt of a TeacherModule's run."))
        self.argument, self.path = argument, ckpt_path
        self.backbone = load_backbone(checkpoint, part, ckpt_path).eval().requires_grad_(False)
        self.class_names = tuple(own["class_names"])
        self.card: DataCard | None = None if own.get("card") is None else DataCard.from_state(own["card"])
        self.probe = Probe(self.backbone, needs, tap_names)
        settings = checkpoint["hyper_parameters"]
        self.looks: Looks = settings.get("linear_looks", 2)
        self._linear_c = float(settings["linear_c"]) if settings.get("finetune") == "linear" else None
        weighted = settings.get("loss") in ("focal", "weighted_cross_entropy") and settings.get("class_weights")
        self.weighs_classes = self._linear_c is not None or bool(weighted)
        self._architecture = json.dumps(settings[part], sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """sha256 of architecture and weights, as they are now: a move to another type changes it."""
        digest = hashlib.sha256(self._architecture.encode())
        for name, value in self.backbone.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def held_out_c(self, split_hash: str) -> float | None:
        """Returns the regularisation of a linear head whose answers can be those of heads without the crop's lesion.

        Args:
            split_hash: Of the split.

        Returns:
            None where the teacher was trained otherwise or on other crops, or its maps are needed.
        """
        own = self.card is not None and self.card.split_hash == split_hash
        return self._linear_c if own and Needs.MAPS not in self.probe.needs else None

    def in_sample_answers(self, data: SpecimenDataModule, *, stored: bool) -> Finding | None:
        """Finds whether a linear head answers training crops that it was fitted on: it repeats their labels there.

        Args:
            data: Of the fit.
            stored: Whether it answers ahead of the training.

        Returns:
            What to do about it; None where other heads answer, it has not seen the crops, or no logits are needed.
        """
        if self._linear_c is None or self.card is None or Needs.LOGITS not in self.probe.needs:
            return None
        known = len(data.shared_with(self.card, "train"))
        if not known or (stored and self.held_out_c(data.split.hash) is not None):
            return None
        remedies = []
        if not stored:
            remedies.append("give --model.teacher_cache true or still, without --model.mixing")
        if Needs.MAPS in self.probe.needs:
            remedies.append("let terms on maps learn from another teacher")
        if self.card.split_hash != data.split.hash:
            remedies.append("train it on this split")
        what = f"its linear head was fitted on {known} lesions, patients or photographs of this training part"
        remedy = f"Its answers there are hardly more than labels; for held-out ones {' and '.join(remedies)}."
        return Finding(self.argument, what, remedy)

    @property
    def widths(self) -> Widths:
        """Sizes of its outputs."""
        return self.probe.widths

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.backbone.mean.device

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the network to where the student is, and to its type."""
        self.backbone.to(device=device, dtype=dtype)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Runs the network: returns logits, and feature maps and embedding where they are needed.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1, of any size.

        Returns:
            Logits [B, K]; maps [B, C, H, W] and embedding [B, D] where they are needed.
        """
        size = self.backbone.image_size
        if images.shape[-1] != size or images.shape[-2] != size:
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.probe.run(self.backbone, images)
