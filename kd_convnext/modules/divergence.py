"""Stops a fit whose loss or weights are NaN or infinite, naming epoch, batch, term and photographs."""

import torch
from lightning.pytorch import LightningModule

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.errors import Finding, TrainingError
from kd_convnext.modules.epoch_tally import EpochTally

FINITE_EVERY = 50
"""Steps between two looks at the losses within an epoch."""

_NAMED = 5
"""Photographs named in the message at most."""


def require_finite(module: LightningModule, tally: EpochTally, *, weights: bool = False) -> None:
    """Refuses to go on with a loss, or with weights, that are not finite.

    Args:
        module: In a fit.
        tally: The steps of the epoch so far.
        weights: Look at the weights too: a gradient that is not finite shows in them at once.

    Raises:
        TrainingError: Something is not finite in this process or in another one.
    """
    trainer = module.trainer
    what = _of_losses(module, tally) or (_of_weights(module) if weights else None)
    anywhere = what is not None
    if trainer.world_size > 1:
        # All processes end together; one that is left alone would wait for the others.
        anywhere = trainer.strategy.reduce_boolean_decision(anywhere, all=False)
    if not anywhere:
        return
    rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else float("nan")
    remedy = (
        f"Lower --model.optim.lr (the rate is {rate:.3g} here) or limit gradients by --trainer.gradient_clip_val 1, "
        "and look at the photographs. Checkpoints of earlier epochs are untouched."
    )
    found = what or "the loss or the weights of another process are not finite"
    raise TrainingError(Finding(f"the fit in epoch {trainer.current_epoch}", found, remedy))


def _of_losses(module: LightningModule, tally: EpochTally) -> str | None:
    found = tally.first_not_finite()
    if found is None:
        return None
    step, name, images = found
    return f"{name} is not finite in step {step} of the epoch{_photographs(module, images)}"


def _photographs(module: LightningModule, images: list[int]) -> str:
    data = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, SpecimenDataModule) or not images:
        return ""
    names = [str(data.manifest.table["image"].iloc[image]) for image in images if image >= 0]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" ({', '.join(names[:_NAMED])}{more})"


def _of_weights(module: LightningModule) -> str | None:
    values = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    if not values:
        return None
    finite = torch.stack([value.isfinite().all() for value in values.values()]).cpu()
    if finite.all():
        return None
    names = [name for name, good in zip(values, finite.tolist(), strict=True) if not good]
    return (
        f"{len(names)} of {len(values)} tensors of weights are not finite, {names[0]} first (step {module.global_step})"
    )
