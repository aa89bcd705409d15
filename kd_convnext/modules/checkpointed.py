"""Writes and reads the entries that a checkpoint of ours has beside Lightning's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import lightning.pytorch as pl

from kd_convnext.checkpoints.format import FORMAT_VERSION, KEY, read_checkpoint
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, Finding
from kd_convnext.losses.described import plain_value
from kd_convnext.models.backbones import BackboneSpec


class CheckpointedModule(pl.LightningModule):
    """Saves a module so that its network can be loaded by files alone, without unpickling objects.

    Attributes:
        deployable: Name of the attribute, and of the constructor's argument, that holds the network to deploy.
        distilled: Whether the network learns from a teacher.
        learns_unlabelled: Whether the training learns from photographs without labels: a teacher answers for them.
        class_names: Names in the order of the outputs; empty until a data module or a checkpoint tells them.
        card: Summary of the training data; None before training.
    """

    deployable: ClassVar[str] = "backbone"
    distilled: ClassVar[bool] = False
    learns_unlabelled: bool = False
    class_names: tuple[str, ...] = ()
    card: DataCard | None = None

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
            plain[name] = plain_value(value, f"model.{name}")
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
        """Records the photographs behind start weights, where those come from a checkpoint of this package.

        Args:
            spec: What the network was built from.
        """
        if spec.weights is not None and spec.weights.endswith(".ckpt"):
            state = read_checkpoint(spec.weights, "backbone.weights")[KEY]["card"]
            self.card = None if state is None else DataCard.from_state(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `Predictor` needs: classes, data card, and where the network lies in the state dict."""
        checkpoint[KEY] = {
            "format_version": FORMAT_VERSION,
            "kind": type(self).__name__,
            "answers_with": self.deployable,
            "distilled": self.distilled,
            "class_names": list(self.class_names),
            "card": None if self.card is None else self.card.to_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores class names and data card from the checkpoint."""
        own: Mapping[str, Any] = checkpoint.get(KEY, {})
        self.class_names = tuple(own.get("class_names", self.class_names))
        if own.get("card") is not None:
            self.card = DataCard.from_state(own["card"])
