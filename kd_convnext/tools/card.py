"""Writes a run's model card: the command `card`."""

from typing import TYPE_CHECKING

from kd_convnext.inference.publishing.model_card import FILE, model_card

if TYPE_CHECKING:
    pass

from pathlib import Path


def card(
    ckpt_path: str, out: str | None = None, sr_weights: str | None = None, resamples: int = 2000, seed: int = 0
) -> Path:
    """Writes the model card of a checkpoint: data, results with intervals, calibration, limits, intended use.

    Args:
        ckpt_path: The checkpoint, in its run folder.
        out: The file; by default MODEL_CARD.md in the run's folder. An earlier one is replaced.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The file.

    Raises:
        KDConvNeXtError: The checkpoint or a file of its run cannot be used, or the card cannot be written.
    """
    from kd_convnext.common.files import write_text
    from kd_convnext.common.parsing import require_at_least
    from kd_convnext.inference.predictor import Predictor
    from kd_convnext.runs.folder import run_of_checkpoint

    require_at_least(resamples=(resamples, 1), seed=(seed, 0))
    run = run_of_checkpoint(ckpt_path)
    path = Path(out).expanduser() if out is not None else run.path / FILE
    predictor = Predictor.from_checkpoint(ckpt_path, sr_weights=sr_weights)
    write_text(path, str(model_card(predictor, run, resamples=resamples, seed=seed)) + "\n")
    print(f"Model card: {path}")
    return path
