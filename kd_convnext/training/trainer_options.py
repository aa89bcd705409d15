"""Checks the options of a trainer, the seeds and what is installed, before anything is built from them."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.lora import missing_peft

_LARGEST_SEED = 2**32 - 1

_LEAST: Mapping[str, tuple[float, str]] = {
    "accumulate_grad_batches": (1, "Use 1 or more."),
    "check_val_every_n_epoch": (1, "Use 1 or more."),
    "log_every_n_steps": (1, "Use 1 or more."),
    "limit_test_batches": (0, "Use a share from 0 to 1 or a number of batches."),
    "limit_predict_batches": (0, "Use a share from 0 to 1 or a number of batches."),
    "limit_val_batches": (0, "Use a share from 0 to 1 or a number of batches."),
    "num_nodes": (1, "Use 1 or more."),
    "reload_dataloaders_every_n_epochs": (0, "Use 0 or more."),
    "gradient_clip_val": (0, "Use a norm above 0, or leave it out."),
}
"""Smallest values that can work."""

_POSITIVE = ("limit_train_batches", "val_check_interval")
"""Options of which 0 leaves nothing to do."""


def require_possible(command: str, config: Mapping[str, Any]) -> None:
    """Refuses options that cannot work, all of them together.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The options of the command: ``trainer``, ``data``, ``model``, ``seed_everything``.

    Raises:
        ConfigError: Options cannot work.
    """
    trainer = config.get("trainer") or {}
    findings = [*_numbers(trainer, fitting=command == "fit"), *_seeds(config)]
    if command == "fit" and "StochasticWeightAveraging" in _callbacks(trainer):
        what = "averages when all is over: no epoch is judged by the average, and no checkpoint holds it"
        remedy = "Use kd_convnext.training.epoch_averaging.EpochAveraging, or EMAWeightAveraging."
        findings.append(Finding("--trainer.callbacks StochasticWeightAveraging", what, remedy))
    if trainer.get("barebones"):
        what = "leaves no record of a training, neither scores nor checkpoints"
        findings.append(Finding("--trainer.barebones", what, "Leave it out."))
    elif command == "fit" and trainer.get("enable_checkpointing") is False and not trainer.get("fast_dev_run"):
        what = "a training whose network is not kept has no result"
        remedy = "Leave it out; --trainer.fast_dev_run true tries a configuration and keeps nothing."
        findings.append(Finding("--trainer.enable_checkpointing", what, remedy))
    asked = ((config.get("model") or {}).get("init_args") or {}).get("finetune")
    if command == "fit" and asked == "lora" and (lacking := missing_peft()):
        findings.append(lacking)
    if findings:
        raise ConfigError(findings)


def _callbacks(trainer: Mapping[str, Any]) -> set[str]:
    """Returns the class names of the callbacks."""
    given = trainer.get("callbacks") or []
    named = [one.get("class_path", "") for one in (given if isinstance(given, list) else [given]) if one]
    return {str(name).rpartition(".")[2] for name in named}


def _numbers(trainer: Mapping[str, Any], *, fitting: bool) -> Iterator[Finding]:
    for name, (least, remedy) in _LEAST.items():
        value = trainer.get(name)
        if _is_number(value) and not value >= least:
            yield Finding(f"--trainer.{name}", f"{value} cannot work", remedy)
    for name in _POSITIVE if fitting else ():
        value = trainer.get(name)
        if _is_number(value) and not value > 0:
            yield Finding(f"--trainer.{name}", f"{value} leaves nothing to do", "Use a share up to 1.0 or a number.")
    for name in ("max_epochs", "max_steps") if fitting else ():
        value = trainer.get(name)
        if _is_number(value) and (value == 0 or value < -1):
            yield Finding(f"--trainer.{name}", f"{value} leaves nothing to train", "Use 1 or more, or -1 for no limit.")


def _seeds(config: Mapping[str, Any]) -> Iterator[Finding]:
    data = ungrouped(config.get("data") or {})
    for name, value in (
        ("--seed_everything", config.get("seed_everything")),
        ("--data.split.seed", data.get("split_seed")),
        ("--data.loader.seed", data.get("view_seed")),
    ):
        if _is_number(value) and not 0 <= value <= _LARGEST_SEED:
            yield Finding(name, f"{value} is no seed", f"Use a number from 0 to {_LARGEST_SEED}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
