"""Explains predictions by heat maps and similar training cases: the command ``explain``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_convnext.common.console import complain, tell
from kd_convnext.common.counting import counted
from kd_convnext.common.files import atomic_write, move_in, staged, text_writer
from kd_convnext.common.parsing import require_at_least, warn_of_idle
from kd_convnext.common.reading import json_text
from kd_convnext.errors import KDConvNeXtError

if TYPE_CHECKING:
    from kd_convnext.inference.explaining.explainer import Explanation
    from kd_convnext.inference.explaining.neighbours import TrainingCases
    from kd_convnext.inference.predictor import Predictor

_KEY = "explanations.json"
"""File that names the others."""

_STEM = 120
"""Bytes of a photograph's name in that of its figure: a name may have 255 in all, while it is written too."""

NEIGHBOURS = 3
"""Training cases that are shown where nothing else is asked for."""


def explain(
    photos: list[str],
    ckpt_path: str,
    out: str,
    teacher_ckpt: str | None = None,
    target: str | None = None,
    neighbours: int | None = None,
    manifest: str | None = None,
    manifest_columns: str | None = None,
    cache_dir: str | None = None,
    sr_weights: str | None = None,
    reduction: Literal[4, 8, 16, 32] | None = None,
    box: str | None = None,
    columns: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    device: str = "cpu",
) -> Path:
    """Draws heat maps of the evidence for predictions, and the most similar training cases.

    Writes one figure a photograph (crop, heat map of the network and of its teacher, training cases) and
    explanations.json. A heat map shows what the network used, not what is there: it is no finding.

    Args:
        photos: Image files, folders, or a manifest (.csv) with boxes; labels are not needed.
        ckpt_path: The checkpoint: a distilled student, a teacher or a baseline.
        out: Folder of the figures.
        teacher_ckpt: A second network for the same class, beside the first: the student's teacher.
        target: The class whose evidence is sought; by default the one that the network predicts for each photograph.
        neighbours: Training cases to show, one a lesion; by default 3 where the run's photographs are at hand. 0: none.
        manifest: The photographs of the training; by default as the run's config.yaml says.
        manifest_columns: Other names of its columns; by default as the run's config.yaml says.
        cache_dir: Their crop cache; by default as the run's config.yaml says.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        reduction: Stage whose map is shown, at 1/4 to 1/32 of the input; by default the deepest of 7 cells a side.
        box: Region of interest of a single photograph: x,y,width,height in pixels.
        columns: Other names of the columns where photos are a manifest: image=file.
        on_error: raise ends with exit code 2 where photographs cannot be explained; skip does not.
        overwrite: Write into a folder that is not empty.
        device: Where the networks run, as torch names it.

    Returns:
        The folder.

    Raises:
        ManifestError: Photographs cannot be explained, all of them named, after the others are done.
        KDConvNeXtError: A checkpoint, the weights, a manifest or an option cannot be used.
    """
    from kd_convnext.checkpoints.network import load_network
    from kd_convnext.inference.explaining.explainer import Explainer, require_together
    from kd_convnext.inference.inputs import opened, refuse_failures
    from kd_convnext.inference.prediction import Failure
    from kd_convnext.inference.predictor import Predictor

    require_at_least(neighbours=(neighbours, 0))
    of_cases = {"manifest": manifest, "manifest_columns": manifest_columns, "cache_dir": cache_dir}
    warn_of_idle(**{name: (neighbours == 0 and bool(given), "with --neighbours 0") for name, given in of_cases.items()})
    folder, photographs, failures = opened(photos, out, overwrite=overwrite, box=box, columns=columns)
    predictor = Predictor.from_checkpoint(ckpt_path, sr_weights=sr_weights, device=device)
    teacher = load_network(teacher_ckpt, device) if teacher_ckpt is not None else None
    source = {"manifest": manifest, "columns": manifest_columns, "cache_dir": cache_dir, "sr_weights": sr_weights}
    require_together(predictor.network, teacher, target, reduction)
    cases = _cases(predictor, ckpt_path, neighbours, source)
    explainer = Explainer(
        predictor, teacher, target, reduction, cases, NEIGHBOURS if neighbours is None else neighbours
    )
    entries: list[dict[str, object]] = []
    with staged(folder) as place:
        for number, found in enumerate(explainer(photographs)):
            if isinstance(found, Failure):
                failures.append(found)
                continue
            figure = _draw(place, number, found)
            entries.append({**found.to_dict(predictor.network.card.class_names), "figure": figure})
            tell(f"{found.photograph}: {_line(found)} ({figure})")
        _write(place, predictor, entries)
        move_in(sorted(place.iterdir()), folder, _KEY)
    lacking = f", {len(failures)} not" if failures else ""
    tell(f"{counted(len(entries), 'photograph')} explained{lacking}; {folder}")
    refuse_failures(failures, on_error)
    return folder


def _cases(
    predictor: "Predictor", ckpt_path: str, neighbours: int | None, given: Mapping[str, str | None]
) -> "TrainingCases | None":
    """Opens the training photographs; where they were not asked for and are missing, it warns and returns None."""
    from kd_convnext.data.manifest.columns import columns_given_by
    from kd_convnext.inference.explaining.neighbours import TrainingCases
    from kd_convnext.inference.run_data import own_data, source_of
    from kd_convnext.runs.folder import run_of_checkpoint

    if neighbours == 0:
        return None
    run, ckpt = run_of_checkpoint(ckpt_path), Path(ckpt_path).expanduser()
    try:
        with columns_given_by("--manifest_columns"):
            data = own_data(predictor, source_of(run, **given), run)
        return TrainingCases(data, ckpt.with_name(f"{ckpt.stem}.features.safetensors"))
    except KDConvNeXtError as error:
        if neighbours is not None or given["manifest"] is not None or given["columns"] is not None:
            raise
        complain(f"warning: no training cases are shown: {error.findings[0].what}")
        return None


def _draw(folder: Path, number: int, found: "Explanation") -> str:
    from kd_convnext.common.figures import figure_writer
    from kd_convnext.inference.explaining.figure import explanation_figure

    stem = Path(str(found.photograph)).stem.encode()[:_STEM].decode(errors="ignore")
    name = f"{number:04d}_{stem}.png"
    atomic_write(folder / name, figure_writer(".png", explanation_figure(found)))
    return name


def _line(found: "Explanation") -> str:
    peaks = []
    for who, view in zip(("the network", "its teacher"), found.views, strict=False):
        place = "no evidence" if view.peak is None else f"strongest at {view.peak[0]},{view.peak[1]}"
        peaks.append(f"{who} says {view.predicted}, {place}")
    return f"evidence for {found.target}: {'; '.join(peaks)}"


def _write(folder: Path, predictor: "Predictor", entries: list[dict[str, object]]) -> None:
    content = {"class_names": list(predictor.network.card.class_names), "explanations": entries}
    atomic_write(folder / _KEY, text_writer(json_text(content)))
