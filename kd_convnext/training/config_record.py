"""Keeps a run's resolved configuration for its record and its loggers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from kd_convnext.training.outputs import HoldsFiles


class ConfigRecord(Callback, HoldsFiles):
    """Gives the resolved configuration to the run's record and to the loggers.

    Attributes:
        begins: The configuration's text, by the path of its file; `RunRecord` writes it where a fit begins.
    """

    def __init__(self, path: Path, text: str, values: dict[str, Any]) -> None:
        """Keeps the configuration.

        Args:
            path: Its file.
            text: As YAML.
            values: As plain values.
        """
        super().__init__()
        self.begins, self.values = {path: text.encode()}, values

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives it to the loggers that keep no files here."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams({"config": self.values})
