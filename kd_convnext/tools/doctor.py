"""Diagnoses what this machine, a folder or a run lacks, with the remedy; fetches nothing: the command ``doctor``."""

import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from kd_convnext._version import __version__
from kd_convnext.common.counting import counted, percent
from kd_convnext.common.files import atomic_write, write_finding
from kd_convnext.common.machine import available_cores, best_precision
from kd_convnext.common.words import command_line
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError

Verdict = Literal["PASS", "WARN", "FAIL"]

OLDEST_PYTHON = (3, 11)
LITTLE_DISK, TOO_LITTLE_DISK = 5e9, 5e8
"""Bytes free in the cache's folder: less than the first is worth a warning, than the second a failure."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: What was looked at.
        verdict: ``WARN`` does not hinder; ``FAIL`` does.
        what: What was found.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    verdict: Verdict
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """Returns the check as one line."""
        return f"{self.verdict}  {self.name}: {self.what}" + (f". {self.remedy}" if self.remedy else "")


def doctor(
    ckpt_path: str | None = None,
    manifest: str | None = None,
    cache_dir: str | None = None,
    sr_weights: str | None = None,
    device: str | None = None,
    columns: str | None = None,
) -> list[Check]:
    """Checks this machine, and prints PASS, WARN or FAIL with the remedy for each point.

    Args:
        ckpt_path: A checkpoint that is to be used, with its calibration.
        manifest: Photographs that are to be used.
        cache_dir: Crop cache; $KD_CONVNEXT_CACHE or ~/.cache/kd-convnext by default.
        sr_weights: Super-resolution weights that are to be used.
        device: Where networks are to run; by default a GPU where there is one.
        columns: Other names of the manifest's columns: image=file,label=diagnosis.

    Returns:
        All checks.

    Raises:
        ConfigError: A check failed.
    """
    steps: list[Callable[[], Iterator[Check]]] = [
        _python,
        _packages,
        lambda: _torch(device),
        lambda: _weights(sr_weights),
        lambda: _cache(cache_dir),
        _wandb,
    ]
    if manifest is not None:
        steps.append(lambda: _manifest(manifest, columns))
    if ckpt_path is not None:
        steps.append(lambda: _checkpoint(ckpt_path, sr_weights))
    done = []
    for step in steps:
        for check in _guarded(step):
            print(check, flush=True)
            done.append(check)
    failed = [check.name for check in done if check.verdict == "FAIL"]
    if failed:
        what = f"{len(failed)} of {len(done)} checks failed ({', '.join(failed)})"
        raise ConfigError(Finding("doctor", what, "The remedies stand above."))
    return done


def _guarded(step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Runs a check; a package that is missing or broken becomes a finding."""
    try:
        yield from step()
    except ImportError as error:
        yield Check(error.name or "package", "FAIL", f"cannot be imported ({error})", "Install it again.")


def _python() -> Iterator[Check]:
    version, needed = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        yield Check("python", "FAIL", version, f"Use Python {needed} or newer.")
    else:
        yield Check("python", "PASS", f"{version} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    """Compares installed packages with the requirements in the package's metadata."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires("kd-convnext") or []]
    except metadata.PackageNotFoundError:
        yield Check("packages", "WARN", "kd-convnext runs from a folder and is not installed", "Run pip install .")
        return
    wrong = []
    needed = [item for item in asked if item.marker is None or item.marker.evaluate({"extra": ""})]
    for item in needed:
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{item.name} is missing")
            continue
        if not item.specifier.contains(version, prereleases=True):
            wrong.append(f"{item.name} {version} is not {item.specifier}")
    if wrong:
        yield Check("packages", "FAIL", "; ".join(wrong), "Run pip install --upgrade kd-convnext, or make install.")
    else:
        yield Check("packages", "PASS", f"kd-convnext {__version__} and its {len(needed)} requirements")


def _torch(device: str | None) -> Iterator[Check]:
    import torch

    cores = available_cores()
    yield Check(
        "torch",
        "PASS",
        f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')} on {counted(cores, 'core')}",
    )
    if not torch.cuda.is_available():
        verdict: Verdict = "FAIL" if device and device != "cpu" else "WARN"
        remedy = "Small networks train on a CPU (configs/small_cpu/); the paper's sizes want a GPU and its driver."
        yield Check("gpu", verdict, "none that torch can use", remedy)
        best = best_precision("cpu")
        hint = "; --crops.sr_precision bfloat16 speeds super-resolution up too" if best.value != "32-true" else ""
        yield Check("precision", "PASS", f"{best.value} on the CPU ({best.reason}){hint}")
        return
    place = device if device and device.startswith("cuda") else 0
    try:
        name = torch.cuda.get_device_name(place)
        memory = torch.cuda.get_device_properties(place).total_memory / 1e9
    except (AssertionError, RuntimeError, ValueError) as error:
        yield Check("gpu", "FAIL", f"{device} is no GPU here ({error})", "Name one that is there, such as cuda:0.")
        return
    yield Check("gpu", "PASS", f"{name}, {memory:.0f} GB")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("precision", "PASS", "bf16-mixed")
    else:
        yield Check("precision", "WARN", "this GPU has no bf16", "Use --trainer.precision 16-mixed or 32-true.")


def _weights(weights: str | None) -> Iterator[Check]:
    from kd_convnext.data.crops.spec import CropSpec

    if weights is None:
        remedy = "Give --sr_weights FILE to check it; without any, crops are enlarged bicubically."
        yield Check("sr_weights", "WARN", "none given", remedy)
        return
    try:
        identity = CropSpec(upscaler="spandrel", sr_weights=weights).build_upscaler().identity
    except KDConvNeXtError as error:
        yield from _failed("sr_weights", error)
        return
    what = f"{identity.architecture} x{identity.scale}, sha256 {identity.weights_sha256}"
    yield Check("sr_weights", "PASS", what)


def _cache(cache_dir: str | None) -> Iterator[Check]:
    from kd_convnext.common.files import default_cache_dir

    folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    probe = folder / f".doctor-{os.getpid()}"
    try:
        atomic_write(probe, lambda file: file.write(b"kd-convnext"))
        probe.unlink()
    except OSError as error:
        found = write_finding(folder, error)
        yield Check("cache", "FAIL", f"{found.where} {found.what}", f"{found.remedy} (--cache_dir)")
        return
    yield Check("cache", "PASS", f"{folder} can be written")
    free = shutil.disk_usage(folder).free
    verdict: Verdict = "FAIL" if free < TOO_LITTLE_DISK else "WARN" if free < LITTLE_DISK else "PASS"
    remedy = "" if verdict == "PASS" else "Free some space or name a folder on another disk (--cache_dir)."
    yield Check("disk", verdict, f"{free / 1e9:.1f} GB free", remedy)


def _wandb() -> Iterator[Check]:
    """Looks for a login as wandb does, in the environment and in its netrc file, without network."""
    import netrc

    if importlib.util.find_spec("wandb") is None:
        yield Check("wandb", "WARN", "not installed", "Run pip install wandb to log there.")
        return
    mode = os.environ.get("WANDB_MODE") or "online"
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    known = bool(os.environ.get("WANDB_API_KEY"))
    with suppress(OSError, netrc.NetrcParseError):
        known = known or netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    if mode != "online":
        yield Check("wandb", "PASS", f"WANDB_MODE={mode}: runs stay here until wandb sync")
    elif known:
        yield Check("wandb", "PASS", f"there is a login for {host} (not tried: nothing is asked over the network)")
    else:
        yield Check("wandb", "WARN", f"no login for {host}", "Run wandb login, or set WANDB_MODE=offline.")


def _manifest(path: str, columns: str | None) -> Iterator[Check]:
    from kd_convnext.data.manifest.manifest import read_manifest

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            manifest = read_manifest(path, columns=columns)
        except KDConvNeXtError as error:
            yield from _failed("manifest", error)
            return
    for warning in caught:
        yield Check("manifest", "WARN", str(warning.message))
    counts = ", ".join(f"{name} {count}" for name, count in manifest.class_counts().items())
    yield Check("manifest", "PASS", f"{counted(len(manifest), 'region')} of interest: {counts}")
    if not (manifest.table["lesion_id"] != "").any() and not (manifest.table["patient_id"] != "").any():
        remedy = "Fill in lesion_id or patient_id: photographs of one lesion in two parts make metrics too good."
        yield Check("lesions", "WARN", "no lesion_id and no patient_id", remedy)


def _checkpoint(path: str, sr_weights: str | None) -> Iterator[Check]:
    from kd_convnext.inference.predictor import Predictor

    try:
        predictor = Predictor.from_checkpoint(path, sr_weights=sr_weights)
    except KDConvNeXtError as error:
        yield from _failed("checkpoint", error)
        return
    info, card = predictor.network.info, predictor.network.card
    what = f"{info.name} ({info.kind}), {card.image_size} px, classes {', '.join(card.class_names)}"
    yield Check("checkpoint", "PASS", what)
    if info.leak_allowed:
        remedy = "Train again on a split that its teacher has not seen."
        yield Check("leak", "WARN", "it was judged on lesions that training had seen", remedy)
    if predictor.calibration is None:
        remedy = command_line(["calibrate"], ckpt_path=path)
        yield Check("calibration", "WARN", "none: every answer of classify abstains", remedy)
    else:
        promised = f"sets at {percent(predictor.calibration.coverage)}% coverage"
        yield Check("calibration", "PASS", promised)


def _failed(name: str, error: KDConvNeXtError) -> Iterator[Check]:
    for finding in error.findings:
        yield Check(name, "FAIL", f"{finding.where}: {finding.what}", finding.remedy)
