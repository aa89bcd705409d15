"""Looks for start weights before a network is built, and fetches published ones from the hub without long waits."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache

from kd_convnext.data.crops.upscaling.weights import start_file, weights_dir
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.timm_import import timm

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; its client alone tries twelve times over 47 s."""


@dataclass(frozen=True)
class Published:
    """Locates the weights that timm publishes for a model.

    Attributes:
        address: Where they are fetched from.
        name: Of the file as which they may be put into the folder of weights.
        cache: The folder where a client of the hub, or torch, keeps them.
        cached: Whether they are there.
    """

    address: str
    name: str
    cache: Path
    cached: bool


def published(name: str) -> Published | None:
    """Looks for the published weights of a model in the local caches, without network.

    Args:
        name: The model, as timm names it.

    Returns:
        Where they are; None where there are none, or no such model.
    """
    try:
        found = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # a tag that the architecture does not have: building the network refuses it
        return None
    if found is None:
        return None
    if found.hf_hub_id:
        repository, _, revision = str(found.hf_hub_id).partition("@")
        files = (found.hf_hub_filename,) if found.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        address = f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{files[0]}"
        cache = Path(constants.HF_HUB_CACHE)
        paths = [try_to_load_from_cache(repository, file, cache, revision or None) for file in files]
        cached = any(isinstance(file, str) for file in paths)  # else None, or a mark that the hub has no such file
        return Published(address, repository.rpartition("/")[2] + Path(files[0]).suffix, cache, cached)
    if found.url:
        address, cache = str(found.url), Path(torch.hub.get_dir()) / "checkpoints"
        file = address.rpartition("/")[2]
        return Published(address, file, cache, (cache / file).is_file())
    return None


def start_findings(networks: Iterable[tuple[str, Any]]) -> list[Finding]:
    """Looks for the start weights of networks before they are built: their files, or published ones in their cache.

    Only where published weights are not in the cache, the hub is asked whether it is there, once, for at most five
    seconds.

    Args:
        networks: What names each in a message, and the options of its `BackboneSpec` as a configuration holds them;
            anything else is passed over.

    Returns:
        One finding for each whose weights are neither here nor to be fetched.
    """
    findings, wanted = [], []
    for where, network in networks:
        file = network.get("weights") if isinstance(network, Mapping) else None
        if isinstance(file, str) and not start_file(file).is_file():
            remedy = f"Make them first, correct the path, or put the file into {weights_dir()}."
            findings.append(Finding(where, f"its start weights {file} are not there", remedy))
        elif isinstance(network, Mapping) and file is None and network.get("pretrained"):
            name = str(network.get("name"))
            source = published(name)
            if source is not None and not source.cached:
                wanted.append((name, source, where))
    if wanted and (constants.HF_HUB_OFFLINE or not _hub_answers()):
        findings += [_unreachable(*one) for one in wanted]
    return findings


def _unreachable(name: str, wanted: Published, where: str) -> Finding:
    return Finding(
        where,
        f"the published weights of {name} are not in {wanted.cache}, and the hub is not reachable",
        f"Fetch {wanted.address} elsewhere, put it here as {weights_dir() / wanted.name}, and give "
        f"weights: {wanted.name} (--model.backbone.weights FILE; of a student --model.student.weights FILE); "
        "or set pretrained: false.",
    )


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Fetches published weights inside the block; when the hub does not answer, only its local cache is used.

    Args:
        name: The model, for the message.

    Raises:
        ConfigError: The weights are neither reachable nor in the cache.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline = before or not _hub_answers()
    try:
        yield
    except Exception as error:
        # The hub's client, its HTTP library and torch.hub raise a dozen unrelated types.
        wanted = published(name)
        if wanted is not None and offline and isinstance(error, OSError):
            raise ConfigError(_unreachable(name, wanted, "backbone.pretrained")) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            Finding(
                "backbone.pretrained",
                f"the published weights of {name} cannot be loaded ({reason})",
                "Give a local file with --model.backbone.weights FILE, or set pretrained: false.",
            )
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # requests', httpx's or httpx2's errors, by the version of the hub's client
        # No name, no route, a refused or a slow answer mean the same: do not wait for it twelve times.
        return False
    return True
