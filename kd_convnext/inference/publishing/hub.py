"""Saves and loads a model as a Hugging Face folder: weights, configuration, calibration and model card."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kd_convnext.checkpoints.format import deployable_part, read_checkpoint, require_finite, weights_sha256
from kd_convnext.checkpoints.network import ModelInfo, Network
from kd_convnext.checkpoints.specs import spec_of
from kd_convnext.common.files import atomic_write, read_bytes
from kd_convnext.common.reading import json_of
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, Finding
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.publishing.model_card import model_card
from kd_convnext.inference.trust.calibration import FILE, Calibration, read_calibration
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.runs.folder import run_of_checkpoint

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1
FILES = [CONFIG, WEIGHTS, FILE, Path(FILE).with_suffix(".safetensors").name, "README.md"]
"""What a published folder consists of."""


class PublishedModel(ModelHubMixin):
    """A model to push, or one that was pulled: ``save_pretrained``, ``from_pretrained``, ``push_to_hub``.

    Weights are safetensors, the rest JSON and Markdown: nothing is unpickled. What names the lesions of the training
    (their hashes, against leaks) stays in the checkpoint and is not published.

    Attributes:
        predictor: Answers for photographs.
    """

    def __init__(self, predictor: Predictor, spec: BackboneSpec, card: ModelCard) -> None:
        """Wraps a model; use `from_checkpoint` or `from_pretrained`.

        Args:
            predictor: The model.
            spec: What its network was built from.
            card: Its model card.
        """
        self.predictor = predictor
        self._spec = spec
        self._card = card

    @classmethod
    def from_checkpoint(
        cls, ckpt_path: str | Path, *, sr_weights: str | None = None, repo_id: str | None = None, **card: Any
    ) -> "PublishedModel":
        """Takes a checkpoint in its run folder, with its calibration where it has one.

        Args:
            ckpt_path: The checkpoint.
            sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
            repo_id: Where it is to be published, for the card.
            **card: Further options of `model_card`.

        Returns:
            The model.

        Raises:
            KDConvNeXtError: The checkpoint or a file of its run cannot be used.
        """
        predictor = Predictor.from_checkpoint(ckpt_path, sr_weights=sr_weights)
        checkpoint = read_checkpoint(ckpt_path)
        spec = spec_of(BackboneSpec, checkpoint["hyper_parameters"][str(deployable_part(checkpoint))])
        text = model_card(predictor, run_of_checkpoint(ckpt_path), repo_id=repo_id, **card)
        return cls(predictor, replace(spec, pretrained=False, weights=None), text)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Returns the card of the run; the mixin asks for it."""
        return self._card

    def _save_pretrained(self, save_directory: Path) -> None:
        network, calibration = self.predictor.network, self.predictor.calibration
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.backbone.state_dict().items()}
        # Not save_file: it leaves a file that no one else may read.
        atomic_write(save_directory / WEIGHTS, lambda file: file.write(save(state, metadata={"format": "pt"})))
        config = {
            "format_version": FORMAT_VERSION,
            "library_name": "kd-convnext",
            "backbone": asdict(self._spec),
            "data": _public(network.card),
            "info": asdict(network.info),
            "tta": self.predictor.tta,
            "weights_sha256": weights_sha256(state),
        }
        text = json.dumps({**config, _FACTS: _facts_sha256(config)}, indent=2, ensure_ascii=False)
        atomic_write(save_directory / CONFIG, lambda file: file.write(f"{text}\n".encode()))
        if calibration is not None:
            record = {name: value for name, value in calibration.record.items() if name not in _LOCAL}
            replace(calibration, record=record).write(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> "PublishedModel":
        """Reads a folder, or pulls one; ``sr_weights`` and ``device`` are those of `Predictor.from_checkpoint`."""
        sr_weights, device = model_kwargs.get("sr_weights"), model_kwargs.get("device", "cpu")
        folder = Path(model_id)
        if not folder.is_dir():
            pulled = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=FILES,
            )
            folder = Path(pulled)
        network, spec, tta = _read(folder)
        network.backbone.to(device)
        calibration = _calibration(folder, network)
        predictor = Predictor.from_network(network, calibration, sr_weights=sr_weights, tta=tta)
        readme = folder / "README.md"
        text = ModelCard.load(readme) if readme.is_file() else ModelCard("")
        return cls(predictor, spec, text)


_FACTS = "facts_sha256"
"""Of a configuration: the hash of all the rest of it."""

_PRIVATE = ("seen_groups", "seen_elsewhere", "salt")

_LOCAL = ("manifest", "extra_manifest", "also")
"""Of a calibration's record: the manifest's name, and paths that earlier versions wrote."""


def _public(card: DataCard) -> dict[str, Any]:
    """Returns what a new photograph needs; neither lesions' hashes nor where files lay."""
    state = {name: value for name, value in card.to_state().items() if name not in _PRIVATE}
    return {**state, "crop": card.public_crop()}


def _facts_sha256(config: dict[str, Any]) -> str:
    """Hashes what decides, beside the weights' bytes, what a model answers: classes, crop, network, views."""
    facts = {name: value for name, value in config.items() if name != _FACTS}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _require_unchanged(config: dict[str, Any], folder: Path) -> None:
    """Refuses a configuration that was edited; earlier versions wrote no hash of it."""
    published = config.get(_FACTS)
    if published is not None and published != _facts_sha256(config):
        what = "is not what was published: classes, crop or network were edited, or it was damaged"
        raise CheckpointError(Finding(str(folder / CONFIG), what, "Publish again, or fetch the folder again."))


def _read(folder: Path) -> tuple[Network, BackboneSpec, bool]:
    remedy = "Give a folder, or a repository, that kd-convnext publish has written."
    try:
        config = json_of(read_bytes(folder / CONFIG))
        if config["format_version"] > FORMAT_VERSION:
            what = f"has format {config['format_version']}, this version reads up to {FORMAT_VERSION}"
            raise CheckpointError(Finding(str(folder), what, "Update kd-convnext."))
        _require_unchanged(config, folder)
        spec = spec_of(BackboneSpec, config["backbone"])
        nothing = np.empty(0, dtype=np.int64)
        values = {**config["data"], "class_names": tuple(config["data"]["class_names"]), "seen_groups": nothing}
        card = DataCard(**values)
        backbone = build_backbone(replace(spec, pretrained=False, weights=None), len(card.class_names))
        backbone.load_state_dict(_weights(folder, config.get("weights_sha256")))
        return Network(backbone, card, ModelInfo(**config["info"])), spec, bool(config["tta"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = f"is not a published model that can be read ({type(error).__name__}: {reason})"
        raise CheckpointError(Finding(str(folder), what, remedy)) from error


def _weights(folder: Path, published: object) -> dict[str, Tensor]:
    """Reads the weights that belong to a folder's configuration; earlier versions did not name them."""
    file = folder / WEIGHTS
    state = load_file(file)
    if published is not None and published != weights_sha256(state):
        what = f"is not what was published with {CONFIG}: it was damaged, or only one of the two was replaced"
        raise CheckpointError(Finding(str(file), what, "Publish again, or fetch the folder again."))
    require_finite(state, file, str(folder))
    return state


def _calibration(folder: Path, network: Network) -> Calibration | None:
    path = folder / FILE
    if not path.is_file():
        return None
    return read_calibration(path, network.info.checkpoint_sha256, network.card.class_names, folder)
