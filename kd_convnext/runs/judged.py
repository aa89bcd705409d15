"""Records which checkpoint a folder's results are of and on which photographs, so that no others replace them."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kd_convnext.common.files import read_bytes, write_text
from kd_convnext.common.reading import json_of
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.folder import RunFolder

_FIELDS = ("checkpoint", "checkpoint_sha256", "split_hash", "data")


@dataclass(frozen=True)
class Judged:
    """Identifies the checkpoint and the photographs of results.

    Attributes:
        checkpoint: File name of the checkpoint.
        checkpoint_sha256: Hash of its bytes; empty where results were not written to their end.
        split_hash: Names the photographs and their parts.
        data: Name of the photographs, as their file or folder is called.
    """

    checkpoint: str
    checkpoint_sha256: str
    split_hash: str
    data: str


def data_name(path: str) -> str:
    """Names photographs after their manifest, or after its folder where it is called just manifest.

    Args:
        path: CSV file, or folder of class folders.

    Returns:
        A plain folder name.
    """
    file = Path(path).expanduser().absolute()
    named = file.parent if file.stem in ("manifest", "labels", "metadata", "index") and file.suffix else file
    name = named.name if named.is_dir() else named.stem
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "photographs"


def external_folder(run: RunFolder, path: str, split_hash: str) -> RunFolder:
    """Finds the folder for results on other photographs than those that a run was divided into.

    Args:
        run: The run.
        path: Of the photographs.
        split_hash: Of them and their parts.

    Returns:
        ``external/<name>``; where that holds the results of others of the same name, ``external/<name>-<hash>``.
    """
    folder = RunFolder(run.external / data_name(path))
    earlier = read_judged(folder)
    if any(found.split_hash != split_hash for found in earlier.values()):
        return RunFolder(folder.path.with_name(f"{folder.path.name}-{split_hash[:8]}"))
    return folder


def external_folders(run: RunFolder) -> Sequence[RunFolder]:
    """Lists a run's folders of results on other photographs, by name."""
    if not run.external.is_dir():
        return []
    return [RunFolder(path) for path in sorted(run.external.iterdir()) if path.is_dir()]


def read_judged(folder: RunFolder) -> dict[str, Judged]:
    """Reads what the results of a folder are of.

    Args:
        folder: A run's folder, or one of its external ones.

    Returns:
        By part (``test``, ``val``, ``predict_all``); empty where nothing was judged, or by an earlier version.

    Raises:
        ConfigError: The file is not ours.
    """
    if not folder.judged.is_file():
        return {}
    try:
        found = json_of(read_bytes(folder.judged))
        return {str(part): Judged(*(str(values[name]) for name in _FIELDS)) for part, values in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"does not say what was judged ({type(error).__name__}: {error})"
        raise ConfigError(Finding(str(folder.judged), what, "Move the file away and test again.")) from error


def require_free(folder: RunFolder, part: str, judged: Judged, *, own: bool) -> None:
    """Refuses to replace results of another checkpoint.

    Args:
        folder: Where results are about to be written.
        part: Such as ``test``.
        judged: What they are of.
        own: The folder is the run's own: its newest ``best.ckpt`` may replace an older one's results.

    Raises:
        ConfigError: The folder holds results of another checkpoint.
    """
    earlier = read_judged(folder).get(part)
    if earlier is None or not earlier.checkpoint_sha256:
        return
    same = earlier.checkpoint == judged.checkpoint if own else earlier.checkpoint_sha256 == judged.checkpoint_sha256
    if not same:
        what = f"holds the {part} results of {earlier.checkpoint} ({earlier.checkpoint_sha256[:8]})"
        remedy = f"Add --overwrite true to replace them by those of {judged.checkpoint}, or move them away."
        raise ConfigError(Finding(str(folder.path), what, remedy))


@contextmanager
def results_recorded(folder: RunFolder, part: str, judged: Judged | None) -> Iterator[None]:
    """Records what results are of, around their writing: those that were begun and not ended are of no checkpoint.

    Args:
        folder: Where the block writes them.
        part: Such as ``test``.
        judged: What they are of; None records nothing.

    Raises:
        ConfigError: The record cannot be written.
    """
    changed = judged is not None and read_judged(folder).get(part) != judged
    if judged is not None and changed:
        write_judged(folder, part, replace(judged, checkpoint_sha256=""))
    yield
    if judged is not None and changed:
        write_judged(folder, part, judged)


def write_judged(folder: RunFolder, part: str, judged: Judged) -> None:
    """Records what the results of a part are of.

    Args:
        folder: Where they are written.
        part: Such as ``test``.
        judged: What they are of.

    Raises:
        ConfigError: The file cannot be written.
    """
    found = {name: asdict(value) for name, value in read_judged(folder).items()} | {part: asdict(judged)}
    write_text(folder.judged, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
