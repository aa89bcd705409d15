"""Loads start weights from a file."""

import logging
import pickle
import sys
from collections.abc import Mapping
from typing import Any

from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from kd_convnext.common.files import mistaken_for_weights
from kd_convnext.common.reading import tensors_of
from kd_convnext.data.crops.upscaling.weights import start_file, weights_dir
from kd_convnext.errors import CheckpointError, Finding
from kd_convnext.models.transformers_layout import from_transformers

OWN_PREFIXES = ("student.network.", "backbone.network.")
"""Where the deployable network lies in checkpoints of this package that do not say it themselves."""

_log = logging.getLogger(__name__)


def load_weights(network: nn.Module, file: str, *, in_chans: int) -> dict[str, Tensor]:
    """Loads a file into a timm model; a head of another number of classes is left as initialised.

    Args:
        network: The timm model, changed in place.
        file: A state dict of timm or of the model's authors (.safetensors, .pth, .pt), or a checkpoint of
            this package (.ckpt).
        in_chans: Input channels of the network; a first convolution for other channels is adapted as timm
            does.

    Returns:
        ``mean`` and ``std`` [1, C, 1, 1] of the input that the weights were trained on, where the file is a checkpoint
        of this package; else nothing.

    Raises:
        CheckpointError: The file is missing or unreadable, or does not fit the network.
    """
    cfg: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})
    state, normalisation = _read(file, cfg.get("hf_hub_id"))
    own = network.state_dict()
    try:
        state = _to_timm_layout(from_transformers(state), network)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # timm's converters assume a file of their model: they index, reshape and compute before they look.
        raise _does_not_fit(file, f"is of another model ({_one_line(error)})") from error
    stem = f"{cfg.get('first_conv')}.weight"
    if stem in state and stem in own and state[stem].shape[1] != own[stem].shape[1]:
        state[stem] = adapt_input_conv(in_chans, state[stem])
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    head_names = [name for name in own if any(name.startswith(f"{head}.") for head in heads)]
    if any(name not in state or state[name].shape != own[name].shape for name in head_names):
        _log.info("%s: the head starts afresh, the file's has other classes", file)
        state |= {name: own[name] for name in head_names}
    if not head_names:  # built without a head of its own
        state = {
            name: value for name, value in state.items() if not name.startswith(tuple(f"{head}." for head in heads))
        }
    # torch itself takes files without these counters, which only batch norms without momentum read.
    state |= {name: own[name] for name in own if name.endswith(".num_batches_tracked") and name not in state}
    missing = [name for name in own if name not in state]
    foreign = [name for name in state if name not in own]
    unlike = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or foreign or unlike:
        matched = len(own) - len(missing) - len(unlike)
        groups = (("missing", missing), ("unknown", foreign), ("of another shape", unlike))
        details = "; ".join(f"{len(group)} {what}: {_first(group)}" for what, group in groups if group)
        raise _does_not_fit(file, f"fits {matched} of {len(own)} tensors of the model ({details})")
    network.load_state_dict(state)
    return normalisation


def _read(file: str, hub_id: str | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads a file: the network's weights, and mean and std of its input where it is a checkpoint of this package."""
    path = start_file(file)
    if not path.is_file():
        source = f" (the file of {hub_id} on the Hugging Face hub)" if hub_id else ""
        remedy = f"Check the path given as backbone.weights, or put the file{source} into {weights_dir()}."
        raise CheckpointError(Finding(file, "no such file", remedy))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = tensors_of(path)
    except pickle.UnpicklingError as error:
        what = mistaken_for_weights(path) or "holds more than weights (objects, which are never loaded), or is torn"
        remedy = "Save its state dict alone: torch.save(checkpoint['state_dict'], FILE), where you trust its source."
        raise CheckpointError(Finding(file, what, remedy)) from error
    except Exception as error:
        # A broken or foreign file ends in whatever its first bytes happen to trigger.
        raise CheckpointError(
            Finding(
                file,
                mistaken_for_weights(path) or f"is no readable weights file ({_one_line(error)})",
                "Give a .safetensors, .pth, .pt or .ckpt file.",
            )
        ) from error
    own = content.get("kd_convnext") if isinstance(content, dict) else None
    named = own.get("answers_with") if isinstance(own, dict) else None
    own_prefixes = (f"{named}.network.",) if named else OWN_PREFIXES
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _does_not_fit(file, "holds no state dict")
    state = {key.replace("_orig_mod.", ""): value for key, value in clean_state_dict(content).items()}
    for prefix in own_prefixes:
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            part = prefix.removesuffix("network.")
            return inner, {name: state[part + name] for name in ("mean", "std") if part + name in state}
    return state, {}


def _to_timm_layout(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return dict(convert(state, network)) if convert else state


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _does_not_fit(file: str, what: str) -> CheckpointError:
    return CheckpointError(
        Finding(file, what, "Give a file of the same model: check backbone.name, image_size and args.")
    )
