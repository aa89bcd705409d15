"""Serves the local page: the command ``page``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kd_convnext.common.machine import pillow_memory_kept
from kd_convnext.common.parsing import warn_of_idle
from kd_convnext.errors import ConfigError, Finding

if TYPE_CHECKING:
    from kd_convnext.page.app import Parts

TOKEN = "KD_CONVNEXT_PAGE_TOKEN"
"""The environment variable that sets the token, for a container; by default each start makes a new one."""


def page(
    ckpt_path: str | None = None,
    manifest: str | None = None,
    columns: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8734,
    open_browser: bool = True,
    sr_weights: str | None = None,
    calibration: str = "auto",
    tta: bool | None = None,
    cache_dir: str | None = None,
    device: str = "cpu",
) -> None:
    """Opens a local page: mark regions of photographs, ask a checkpoint, read its run. Needs the extra ``page``.

    The address holds a token, new at each start unless KD_CONVNEXT_PAGE_TOKEN sets it. Nothing is loaded from, or sent
    to, any other machine. For research; no answer may decide about a patient.

    Args:
        ckpt_path: The checkpoint to ask, in its run folder; without it there is the marking half alone.
        manifest: Folder of photographs to mark, or its manifest (.csv); without it there is the asking half alone.
        columns: Other names of the manifest's columns: image=file,label=diagnosis.
        host: Where to listen. Another one than 127.0.0.1 is reached by everybody who knows the token, unencrypted.
        port: Where to listen; 0 for any free one.
        open_browser: Open the page in the browser.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        calibration: auto takes calibration.json beside the checkpoint; none leaves it; else a file.
        tta: Average over the mirror images of each photograph; by default as calibrated.
        cache_dir: Where crops and thumbnails are kept.
        device: Where the network runs, as torch names it.

    Raises:
        ConfigError: Neither a checkpoint nor photographs are given, the port is taken, or the extra is missing.
        KDConvNeXtError: The checkpoint, the weights or the manifest cannot be used.
    """
    if ckpt_path is None and manifest is None:
        remedy = "Give --manifest FOLDER to mark photographs, --ckpt_path FILE to ask a checkpoint, or both."
        raise ConfigError(Finding("kd-convnext page", "there is nothing to show", remedy))
    warn_of_idle(columns=(columns is not None and manifest is None, "without --manifest"))
    asked = {"sr_weights": sr_weights, "calibration": calibration != "auto", "tta": tta is not None}
    warn_of_idle(**{name: (ckpt_path is None and bool(given), "without --ckpt_path") for name, given in asked.items()})
    try:
        from kd_convnext.page.app import Parts, create_app
        from kd_convnext.page.guard import Access, new_token
        from kd_convnext.page.server import LOOPBACK, bound_socket, serve
    except ModuleNotFoundError as error:
        what = f"the package {error.name} is missing"
        raise ConfigError(Finding("kd-convnext page", what, "pip install 'kd-convnext[page]'")) from error
    listening = bound_socket(host, port)
    with listening:
        parts = _parts(Parts, ckpt_path, manifest, columns, sr_weights, calibration, tta, cache_dir, device)
        number = listening.getsockname()[1]
        token = os.environ.get(TOKEN) or new_token()
        app = create_app(parts, Access(token, number, local=host in LOOPBACK))
        shown = "127.0.0.1" if host in (*LOOPBACK, "0.0.0.0", "::") else host
        address = f"http://{shown}:{number}/?token={token}"

        def ready() -> None:
            print(f"Page: {address}", flush=True)
            print("Stop with Ctrl-C.", flush=True)

        with pillow_memory_kept():
            serve(app, listening, address, open_browser=open_browser, ready=ready)


def _parts(
    parts: "type[Parts]",
    ckpt_path: str | None,
    manifest: str | None,
    columns: str | None,
    sr_weights: str | None,
    calibration: str,
    tta: bool | None,
    cache_dir: str | None,
    device: str,
) -> "Parts":
    from kd_convnext.common.files import default_cache_dir
    from kd_convnext.page.marking import Marking
    from kd_convnext.runs.folder import require_writable

    kept = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    if cache_dir:
        require_writable(kept)
    names: tuple[str, ...] = ()
    asking = reading = marking = None
    folder = Path(manifest).expanduser() if manifest is not None else None
    file = folder / "manifest.csv" if folder is not None and (folder / "manifest.csv").is_file() else folder
    if ckpt_path is not None:
        from kd_convnext.page.asking import Asking, AskingOptions
        from kd_convnext.page.reading import Reading

        named = str(file) if file is not None else None
        asking = Asking(AskingOptions(ckpt_path, sr_weights, calibration, tta, device, cache_dir, named, columns))
        reading, names = Reading(ckpt_path, file, columns), asking.predictor.network.card.class_names
    if folder is not None:
        marking = Marking(folder, kept / "page", names, columns)
    return parts(marking, asking, reading)
