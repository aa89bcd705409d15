"""Writes the model card of a run from its own files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_convnext.common.counting import counted, percent
from kd_convnext.common.reading import read_json
from kd_convnext.common.tables import markdown_text
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.tables import read_metrics

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from kd_convnext.data.loading.card import DataCard
    from kd_convnext.evaluation.proportions import Interval
    from kd_convnext.evaluation.statistics import GroupCounts
    from kd_convnext.inference.predictor import Predictor
    from kd_convnext.inference.trust.calibration import Calibration
    from kd_convnext.runs.folder import RunFolder

FILE = "MODEL_CARD.md"

_OF_A_SPLIT = ("image", "label", "lesion_id", "patient_id", "split")

_MOVE = "Move the file away: the card says then that nothing is known of it."


def model_card(
    predictor: "Predictor",
    run: "RunFolder",
    *,
    repo_id: str | None = None,
    license: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> "ModelCard":
    """Describes a model.

    Args:
        predictor: The model, calibrated where it is.
        run: Its run; what is missing there is said to be unknown.
        repo_id: Where it is published.
        license: Of the weights, as the hub names it (``apache-2.0``); left out where nothing is said.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The card, with the hub's front matter.

    Raises:
        ConfigError: A file of the run is not ours.
    """
    from huggingface_hub import ModelCard, ModelCardData

    info, data = predictor.network.info, predictor.network.card
    own = judged_by(run, "test", info.checkpoint_sha256)
    answers = _tested(run, data.class_names) if own is not False else None
    results = _results(run, answers, data.class_names, resamples, seed) if answers is not None else {}
    elsewhere = _external(run, info.checkpoint_sha256, data.class_names, resamples, seed)
    name = repo_id.split("/")[-1] if repo_id else f"{info.name} for {len(data.class_names)} classes"
    leaked = answers is not None and (info.leak_allowed or bool(read_metrics(run).get("test/leak_allowed")))
    untouched = [found for found in elsewhere if not found["leak_allowed"]]
    # The hub shows scores of the front matter as results, without what the card says of them.
    ranked = [
        *([] if leaked else _eval_results(results, "test part of the training's own photographs")),
        *(row for found in untouched for row in _eval_results(found, f"other photographs: {found['name']}")),
    ]
    front = ModelCardData(
        license=license,
        library_name="kd-convnext",
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "research-only"],
        model_name=name if results or elsewhere else None,
        eval_results=ranked or None,
    )
    counts = _counts(run, data.class_names)
    words = _words(predictor, run, counts) | results | {"external": elsewhere, "leak_allowed": leaked}
    words["limits"] = _limits(predictor, answers, elsewhere=bool(untouched), leaked=leaked)
    if own is False:
        what = (
            "The run's test results are of another checkpoint or were not written to their end, and are left out here."
        )
        words["limits"].append(what)
    words = {name: _as_read(value) for name, value in words.items()}
    template = Path(__file__).with_name("model_card.md.j2")
    made: ModelCard = ModelCard.from_template(
        front, template_path=str(template), name=_as_read(name), repo_id=repo_id, resamples=resamples, **words
    )
    return made


class _Markup(str):
    """Our own sentence, whose markup is meant: no name of a stranger's table is in it."""


def _as_read(value: Any) -> Any:
    """Returns plain values whose texts Markdown shows as they are: names of classes come from a stranger's table."""
    if isinstance(value, _Markup):
        return value
    if isinstance(value, Mapping):
        return {name: _as_read(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_read(inner) for inner in value]
    return markdown_text(value) if isinstance(value, str) else value


def _words(predictor: "Predictor", run: "RunFolder", counts: list[dict[str, str]]) -> dict[str, Any]:
    from kd_convnext.data.manifest.grouping import kept_together
    from kd_convnext.runs.division import read_divided
    from kd_convnext.runs.left_out import left_out_words

    info, data = predictor.network.info, predictor.network.card
    needs_weights = data.crop_identity["upscaler"]["weights_sha256"] is not None
    environment = read_json(run.environment, _MOVE) if run.environment.is_file() else {}
    versions = environment.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    parameters = sum(parameter.numel() for parameter in predictor.network.backbone.parameters())
    return {
        "version": info.kd_convnext,
        "model": info.name,
        "image_size": data.image_size,
        "parameters": f"{parameters:,}",
        "origin": "distilled from a teacher" if info.distilled else "trained on labels alone",
        "class_names": data.class_names,
        "counts": counts,
        "kept_together": kept_together(data.group_by, read_divided(run).given),
        "leak_words": _leak_words(run),
        "left_out": left_out_words(run),
        "split_hash": data.split_hash,
        "crop": _crop_words(data),
        "calibration": _calibration_words(predictor.calibration),
        "weights_argument": ', sr_weights="FILE"' if needs_weights else "",
        "checkpoint_sha256": info.checkpoint_sha256,
        "started": str(environment.get("started", ""))[:10],
        "device": environment.get("device", ""),
        "versions": ", ".join(f"{package} {number}" for package, number in versions.items()),
    }


def _tested(run: "RunFolder", class_names: tuple[str, ...]) -> "GroupCounts | None":
    """Reads the test part's answers; None where the run was not tested."""
    from kd_convnext.common.tables import read_table
    from kd_convnext.data.manifest.units import with_units
    from kd_convnext.evaluation.statistics import count_groups

    if not run.predictions.is_file():
        return None
    frame = read_table(run.predictions, ("image", "lesion_id", "label", "prediction"))
    probabilities = [str(name) for name in frame if str(name).startswith("prob_")]
    strange = sorted({*frame["label"], *frame["prediction"]} - {*class_names, ""})
    if strange:
        what = f"names classes that the checkpoint does not know: {', '.join(strange[:5])}"
        raise ConfigError(Finding(str(run.predictions), what, _MOVE))
    try:
        frame[probabilities] = frame[probabilities].astype(float)
    except ValueError as error:
        raise ConfigError(Finding(str(run.predictions), f"holds no numbers ({error})", _MOVE)) from error
    found = count_groups(with_units(frame), class_names)
    return found if found.photographs else None


def _external(
    run: "RunFolder", checkpoint_sha256: str, class_names: tuple[str, ...], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Reads the results of this checkpoint on other photographs than the run's own."""
    from kd_convnext.runs.judged import external_folders

    found = []
    for folder in external_folders(run):
        if not judged_by(folder, "test", checkpoint_sha256):
            continue
        answers = _tested(folder, class_names)
        if answers is not None:
            results = _results(folder, answers, class_names, resamples, seed, answers.occurring)
            leaked = bool(read_metrics(folder).get("test/leak_allowed"))
            found.append({"name": folder.path.name, "leak_allowed": leaked, **results})
    return found


def judged_by(folder: "RunFolder", part: str, checkpoint_sha256: str) -> bool | None:
    """Tells whether results are of a checkpoint.

    Args:
        folder: Of a run, or an external one.
        part: Which results.
        checkpoint_sha256: Of the checkpoint's bytes.

    Returns:
        None where nothing says what they are of.
    """
    from kd_convnext.runs.judged import read_judged

    found = read_judged(folder).get(part)
    return None if found is None else found.checkpoint_sha256 == checkpoint_sha256


def _results(
    run: "RunFolder",
    answers: "GroupCounts",
    class_names: tuple[str, ...],
    resamples: int,
    seed: int,
    among: list[int] | None = None,
) -> dict[str, Any]:
    """Judges answers; macro means are over the classes at ``among``, by default over all."""
    from kd_convnext.common.tables import read_table
    from kd_convnext.data.manifest.units import GROUP, NO_GROUPS
    from kd_convnext.evaluation.proportions import FEW, digits
    from kd_convnext.evaluation.statistics import METRICS, class_scores, intervals, scores
    from kd_convnext.evaluation.statistics import class_intervals as per_class

    point, around = scores(answers.total, among), intervals(answers, resamples, seed, among=among)
    lacking = answers.lacking(class_names)
    if among is not None and lacking:
        lacking = f"Macro means are over the {counted(len(among), 'class')} that occur, of {len(class_names)}."
    behind = answers.per_class()
    classes, spans = class_scores(answers.total), per_class(answers)
    return {
        "tested": f"{counted(answers.photographs, 'photograph')} of {counted(len(answers), answers.unit)}",
        "unit": answers.unit,
        "lacking": lacking,
        "ungrouped": "" if GROUP in read_table(run.predictions) else NO_GROUPS,
        "places": digits(len(answers)),
        "metrics": [
            {"name": name, "value": float(point[name]), "low": around[name].low, "high": around[name].high}
            for name in METRICS
        ],
        "classes": [
            {
                "name": name,
                "support": int(answers.total[place].sum()),
                "behind": int(behind[place]),
                "few": bool(behind[place] < FEW),
                **{
                    score: _span_words(float(values[place]), spans[score][place], digits(int(behind[place])))
                    for score, values in classes.items()
                },
            }
            for place, name in enumerate(class_names)
        ],
    }


def _span_words(value: float, span: "Interval", places: int) -> str:
    """Writes a score with its interval; nothing is known of a class that was neither labelled nor predicted."""
    known = f"{value:.{places}f} ({span.low:.{places}f} to {span.high:.{places}f})"
    return "-" if math.isnan(span.low) else known


def _eval_results(results: Mapping[str, Any], photographs: str) -> list[Any]:
    from huggingface_hub import EvalResult

    # The hub asks for a data set by name; the photographs are not public.
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="private",
            dataset_name=photographs,
            metric_type="f1" if row["name"].startswith("f1") else row["name"].removesuffix("_macro"),
            metric_name=row["name"],
            metric_value=round(row["value"], 4),
        )
        for row in results.get("metrics", ())
    ]


def _counts(run: "RunFolder", class_names: tuple[str, ...]) -> list[dict[str, str]]:
    from kd_convnext.data.manifest.grouping import lesion_names
    from kd_convnext.runs.left_out import read_used

    if not run.split.is_file():
        return []
    frame = read_used(run, _OF_A_SPLIT)
    frame["lesion"] = lesion_names(frame)
    found = []
    for name in class_names:
        row = {"name": name}
        for part in ("train", "val", "test"):
            mine = frame[(frame["label"] == name) & (frame["split"] == part)]
            row[part] = f"{len(mine)} ({mine['lesion'].nunique()})"
        found.append(row)
    return found


def _leak_words(run: "RunFolder") -> str:
    """Says what of leaks between the parts can be known from the split, "" where all rows name lesion or patient."""
    from kd_convnext.runs.division import read_divided
    from kd_convnext.runs.left_out import read_used

    if not run.split.is_file():
        return ""
    frame = read_used(run, _OF_A_SPLIT)
    unnamed = (frame["lesion_id"] == "") & (frame["patient_id"] == "")
    found = []
    for column, word in (("lesion_id", "lesion"), ("patient_id", "patient")):
        divided = int((frame[frame[column] != ""].groupby(column)["split"].nunique() > 1).sum())
        if divided:
            found.append(f"**{counted(divided, word)} in more than one part**: the results are too good.")
    alike = read_divided(run).alike
    if alike:
        what = f"{counted(alike, 'set')} of near-identical photographs"
        found.append(f"**{what} in more than one part**: the results may be too good.")
    if unnamed.all():
        found.append(
            "No photograph names its lesion or patient: that one lesion or patient is in training and test **cannot be "
            "excluded**, and the results may be too good."
        )
        return _Markup(" ".join(found))
    if unnamed.any():
        number = counted(int(unnamed.sum()), "photograph")
        found.append(f"{number} without the name of a lesion or patient: leaks there cannot be seen.")
    if (frame["patient_id"] == "").all():
        found.append("Patients are not named: that one patient is in training and test cannot be excluded.")
    return _Markup(" ".join(found))


def _crop_words(data: "DataCard") -> str:
    upscaler = data.crop_identity["upscaler"]
    weights = upscaler["weights_sha256"]
    made = f"enlarged by {upscaler['name']} x{upscaler['scale']}"
    if weights:
        network = markdown_text(str(upscaler["architecture"]))
        made = f"super-resolved x{upscaler['scale']} ({network}, weights sha256 `{weights[:16]}`)"
    return _Markup(f"{made}, {data.crop['resize']} to a square of {data.crop['store_size']} px")


def _calibration_words(calibration: "Calibration | None") -> dict[str, Any] | None:
    if calibration is None:
        return None
    classes = calibration.lesion.classes
    crossed = [name for name, count in zip(classes.class_names, classes.crossed, strict=False) if count]
    pairs = list(zip(classes.class_names, classes.guaranteed, strict=True))
    return {
        "temperature": calibration.temperature,
        "unit": calibration.unit,
        "coverage": percent(calibration.coverage),
        "gate_false_alarms": percent(calibration.gate_false_alarms),
        "gate_stops": [
            f"{found['kind']} {found['stopped']} of {found['photographs']}"
            for found in calibration.record.get("gate_stops", [])
        ],
        "promised": list(
            dict.fromkeys(
                f"{' or '.join(classes.together(name))} (as one)" if classes.together(name) else name
                for name, promised in pairs
                if promised
            )
        ),
        "crossed": crossed,
        "without": [name for name, promised in pairs if not promised and name not in crossed],
    }


_WITHIN = "Tested on lesions of the collection it was trained on; nothing is known of photographs from elsewhere."
_BOTH = "Tested on lesions of the collection it was trained on and on other photographs"
_OTHERS = "Not tested on the collection it was trained on, only on other photographs"
_UNTESTED = "Tested neither on the collection it was trained on nor on photographs from elsewhere."


def _tested_on(own: bool, elsewhere: bool) -> str:
    if not elsewhere:
        return _WITHIN if own else _UNTESTED
    return f"{_BOTH if own else _OTHERS}; where these come from only the authors know."


def _limits(predictor: "Predictor", answers: "GroupCounts | None", *, elsewhere: bool, leaked: bool) -> list[str]:
    from kd_convnext.evaluation.proportions import FEW

    found = [_tested_on(answers is not None, elsewhere)]
    if leaked or predictor.network.info.leak_allowed:
        what = "**Lesions it was judged on were in its training**, or in its teacher's: the results are no test."
        found.append(_Markup(what))
    if answers is not None:
        counts = zip(predictor.network.card.class_names, answers.per_class().tolist(), strict=True)
        few = [f"{name} ({count})" for name, count in counts if count < FEW]
        if few:
            found.append(f"Fewer than {FEW} tested {answers.unit}s: {', '.join(few)}; their scores say little.")
    found.append("One split and one seed; another division of the photographs would give other numbers.")
    found.append("Heat maps and similar cases show what the network used. They are no findings.")
    return found
