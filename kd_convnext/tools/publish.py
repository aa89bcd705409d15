"""Publishes a checkpoint as a folder that ``from_pretrained`` reads, or on the hub: the command ``publish``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kd_convnext.common.parsing import warn_of_idle

if TYPE_CHECKING:
    from kd_convnext.inference.publishing.hub import PublishedModel


def publish(
    ckpt_path: str,
    out: str,
    repo_id: str | None = None,
    private: bool = True,
    license: str | None = None,
    sr_weights: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes weights (safetensors), configuration, calibration and model card of a checkpoint into a folder.

    With --repo_id the folder is also pushed to the Hugging Face hub (log in with `hf auth login`), into a private
    repository unless --private false; without it nothing leaves this machine. A calibration holds feature vectors of
    training photographs.

    Args:
        ckpt_path: The checkpoint, in its run folder.
        out: The folder; PublishedModel.from_pretrained(out) reads it.
        repo_id: USER/NAME on the hub.
        private: Whether a new repository is closed to others.
        license: Of the weights, as the hub names it, such as apache-2.0.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        overwrite: Write into a folder that is not empty.

    Returns:
        The folder.

    Raises:
        KDConvNeXtError: The checkpoint, a file of its run or the folder cannot be used, or the hub refuses.
    """
    from kd_convnext.inference.publishing.hub import PublishedModel
    from kd_convnext.runs.folder import require_empty

    warn_of_idle(private=(not private and repo_id is None, "without --repo_id"))
    folder = Path(out).expanduser()
    require_empty(folder, permitted=overwrite, option="--overwrite true")
    model = PublishedModel.from_checkpoint(ckpt_path, sr_weights=sr_weights, repo_id=repo_id, license=license)
    _replace(folder, model)
    print(f"Published into {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if repo_id is not None:
        print(f"Pushed: {_push(model, repo_id, private)}")
    return folder


def _replace(folder: Path, model: "PublishedModel") -> None:
    """Writes the files beside the folder, and moves them in when all are whole; till then an earlier model stays."""
    from safetensors import SafetensorError

    from kd_convnext.common.files import move_in, staged
    from kd_convnext.errors import ConfigError, Finding
    from kd_convnext.inference.publishing.hub import CONFIG, FILES

    try:
        with staged(folder) as place:
            model.save_pretrained(place)
            made = sorted(place.iterdir())
            for file in made:
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            move_in(made, folder, CONFIG, stale=set(FILES) - {file.name for file in made})
    except SafetensorError as error:
        what = f"cannot be written ({error})"
        raise ConfigError(
            Finding(str(folder), what, "Free some space; an earlier publication is untouched.")
        ) from error


def _push(model: "PublishedModel", repo_id: str, private: bool) -> str:
    from kd_convnext.errors import ConfigError, Finding

    try:
        return str(model.push_to_hub(repo_id, private=private))
    except Exception as error:  # the hub's own, requests' or httpx's errors, by the version of its client
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = f"{repo_id} cannot be pushed ({type(error).__name__}: {reason})"
        raise ConfigError(Finding("--repo_id", what, "Log in with `hf auth login`; the folder is complete.")) from error
