"""Fills the crop cache from a manifest, or estimates its cost: the command ``prepare``."""

import json
import shlex
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from kd_convnext.common.configs import data_options
from kd_convnext.common.console import complain, duration, megabytes, tell
from kd_convnext.common.counting import counted
from kd_convnext.common.files import default_cache_dir
from kd_convnext.common.parsing import warn_of_idle
from kd_convnext.data.crops.cache.cache import CropCache, OnError
from kd_convnext.data.crops.cache.index import compact
from kd_convnext.data.crops.cache.packed import discard_damaged
from kd_convnext.data.crops.cache.prepared import PreparedCrops, PrepareSummary
from kd_convnext.data.crops.preparing.estimate import estimate
from kd_convnext.data.crops.preparing.faithful import fidelity_lines, least_faithful
from kd_convnext.data.crops.preparing.preview import write_preview
from kd_convnext.data.crops.preparing.prune import find_unused, remove
from kd_convnext.data.crops.spec import CropSpec, UpscalerChoice
from kd_convnext.data.crops.upscaling.weights import download as download_weights
from kd_convnext.data.loading.flat_options import ungrouped
from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.data.manifest.pixels import refuse_undecodable
from kd_convnext.data.manifest.summary import describe
from kd_convnext.errors import Finding

_CROPS = CropSpec()
_LISTED = 20  # files that pruning names


def prepare(
    manifest: str,
    cache_dir: str | None = None,
    upscaler: UpscalerChoice | None = None,
    sr_weights: str | None = None,
    crops: CropSpec = _CROPS,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    device: str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    verify: bool = False,
    preview: int = 0,
    download: bool = False,
    prune: bool = False,
    also: Sequence[str] = (),
    yes: bool = False,
    dry_run: bool = False,
    columns: str | None = None,
    fit_config: str | None = None,
) -> PrepareSummary:
    """Crops, super-resolves and stores the regions of interest of a manifest: those that are missing.

    Args:
        manifest: CSV file, or a folder with one folder per class.
        cache_dir: Where crops are kept; $KD_CONVNEXT_CACHE or ~/.cache/kd-convnext by default.
        upscaler: auto is ncnn or spandrel where weights are given, else bicubic; holds over crops.upscaler.
        sr_weights: Official Real-ESRGAN weights: a file (.pth or .safetensors) or a name (general-x4v3, x4plus, ...).
        crops: How a region of interest becomes a stored picture: margin, largest side, stored size, denoising.
        classes: Class names in the order of the model's outputs, where the default order is not wanted.
        on_error: raise reports unreadable photographs as an error; skip leaves them out and lists them.
        device: Where a network runs, as torch names it.
        devices: Processes or GPUs on each host that share the work (Lightning's distributed engine where more than 1).
        num_nodes: Hosts that share the work, each started by torchrun or SLURM.
        verify: Reads all photographs and entries again instead of trusting the index, and makes bad entries anew.
        preview: Draws so many crops beside their bicubic and super-resolved form, into the cache's folder; a quarter
            of them are those that super-resolution changed most.
        download: Fetches the official weights that are named and not there yet.
        prune: Afterwards lists the entries of this configuration that belong to no manifest given.
        also: Further manifests whose entries `prune` keeps.
        yes: Removes what `prune` lists.
        columns: Other names of the manifest's columns: image=file,label=diagnosis.
        fit_config: Configuration of the fit to come, for the command that is printed last; by default --config.
        dry_run: Only says how many crops there are to make, and about what time and disk they take.

    Returns:
        What was done; in a dry run nothing is made, `bytes` and `seconds` are estimates for what is missing.

    Raises:
        KDConvNeXtError: Manifest, weights, photographs or folder are not usable: all findings.
    """
    spec = crops.with_upscaler(upscaler, sr_weights)
    _name_idle(spec, dry_run, preview=preview > 0, verify=verify, prune=prune, also=bool(also), yes=yes)
    if download:
        download_weights(spec.weights())
    table = read_manifest(manifest, classes=classes, on_error=on_error, columns=columns)
    root = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    tell("\n".join(describe(table)))
    if dry_run:
        refuse_undecodable(table)
        return estimate(_opened(root, spec, device, table), table)
    alone, made = devices == num_nodes == 1, 0
    if not alone:
        from kd_convnext.data.crops.preparing.distributed import fill_over_ranks

        shared = fill_over_ranks(table, root, spec, device=device, devices=devices, num_nodes=num_nodes, verify=verify)
        if shared is None:
            return PrepareSummary(0, 0, 0, 0, 0.0)
        made = shared
    cache = _opened(root, spec, device, table)
    prepared = cache.fill(table, on_error=on_error, verify=verify and alone)  # other ranks have verified already
    done = _report(prepared, made, table)
    if verify:
        _discard_damaged(prepared)
    if preview:
        print(f"preview: {write_preview(cache, table, preview, least_faithful(prepared))}")
    if prune:
        _prune(cache, [table, *(read_manifest(path, columns=columns) for path in also)], yes)
    _print_fit(spec, fit_config, classes, on_error, manifest=manifest, columns=columns, cache_dir=cache_dir)
    return done


def _name_idle(spec: CropSpec, dry_run: bool, **given: bool) -> None:
    """Warns of options that were given and have no effect."""
    for told in spec.idle():
        warnings.warn(told, stacklevel=3)
    dry = {name: (dry_run and given[name], "with --dry_run") for name in ("preview", "verify", "prune")}
    kept = {name: (given[name] and not given["prune"], "without --prune") for name in ("also", "yes")}
    warn_of_idle(**dry, **kept)


def _print_fit(
    spec: CropSpec, config: str | None, classes: Sequence[str] | None, on_error: OnError, **options: str | None
) -> None:
    """Prints the fit that finds these crops: its file or a recipe for the machine, and all that decides their keys."""
    # A look for the driver's program costs nothing; torch would take seconds to ask.
    recipe = "teacher_swin_tiny" if shutil.which("nvidia-smi") else "small_cpu/teacher"
    file = f"configs/{recipe}.yaml" if config is None else shlex.quote(config)
    short = {"sr_weights": spec.sr_weights} | ({} if spec.upscaler == "auto" else {"upscaler": spec.upscaler})
    short |= {
        "classes": json.dumps(list(classes)) if classes else None,
        "on_error": "skip" if on_error == "skip" else None,
    }
    given = {name: value for name, value in {**options, **short}.items() if value is not None}
    for field in fields(spec):
        value = getattr(spec, field.name)
        # Recipes have a stored size of their own.
        if field.name not in ("sr_weights", "upscaler") and (value != field.default or field.name == "store_size"):
            given[f"crops.{field.name}"] = _typed(value)
    held = {} if config is None else ungrouped(data_options(config) or {})
    said = {name: _typed(value) for name, value in held.items()}
    # What the file says itself need not be typed.
    wanted = {name: value for name, value in given.items() if said.get(name.rpartition(".")[2]) != value}
    words = [f"--data.{name} {shlex.quote(value)}" for name, value in wanted.items()]
    print(f"Next:\n  {' '.join(['kd-convnext fit --config', file, *words])}")


def _typed(value: object) -> str:
    """Writes an option's value as it is typed."""
    if isinstance(value, list):
        return json.dumps(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _opened(root: Path, spec: CropSpec, device: str, manifest: Manifest) -> CropCache:
    """Opens the cache and prints crops, upscaler and folder."""
    cache = CropCache(root, spec, device)
    name = cache.upscaler.identity
    print(
        f"{counted(len(manifest), 'crop')}, upscaler {name.name} ({name.architecture}, x{name.scale}), {cache.folder}"
    )
    _list_left_out("photograph", manifest.skipped)
    return cache


def _report(prepared: PreparedCrops, made: int, manifest: Manifest) -> PrepareSummary:
    """Sums up, and says how faithful the crops are; ``made`` counts what other ranks have made before."""
    _list_left_out("crop", tuple(prepared.failed.values()))
    before = prepared.summary
    done = replace(before, made=before.made + made, found=before.found - made)
    print(
        f"{done.made} made, {done.found} found, {done.failed} failed; "
        f"{megabytes(done.bytes)} in {duration(done.seconds)}"
    )
    for line in fidelity_lines(prepared, manifest):
        tell(line)
    return done


def _discard_damaged(prepared: PreparedCrops) -> None:
    damaged = discard_damaged(prepared)
    if damaged:
        print(f"{damaged} was damaged and is removed; a fit with packed crops makes it again")


def _prune(cache: CropCache, manifests: Sequence[Manifest], yes: bool) -> None:
    unused = find_unused(cache, manifests)
    for path in unused.files[:_LISTED]:
        print(f"  {path.relative_to(cache.folder.parent)}")
    if len(unused.files) > _LISTED:
        print(f"  ... and {len(unused.files) - _LISTED} more")
    number = counted(len(unused.files), "file")
    print(f"prune: {number} of no manifest given, {megabytes(unused.bytes)} in {cache.folder.parent}")
    if unused.files and not yes:
        print("nothing is removed without --yes true; --also MANIFEST keeps another manifest's entries")
    elif unused.files:
        print(f"{remove(unused)} removed")
    if yes and (joined := compact(cache.folder / "index")):
        print(f"{counted(joined, 'old file')} of the index joined")


def _list_left_out(what: str, findings: Sequence[Finding]) -> None:
    if findings:
        complain(f"{counted(len(findings), what)} left out:")
        for finding in findings:
            complain(f"  - {finding}")
