"""Fills in the CLAIM and TRIPOD+AI reporting items as far as the files of an experiment allow.

CLAIM by Tejani et al. (2024 update), doi:10.1148/ryai.240300, items 1 to 44; TRIPOD+AI by Collins et al. (2024),
doi:10.1136/bmj-2023-078378, items 1 to 27. The topics are in our own words; the numbers find the items.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.grouping import kept_together
from kd_convnext.evaluation.proportions import digits
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.descriptions import describe, epoch_choice, look

OPEN = "to be filled in by the authors"
Answer = Callable[[Analysis], str | None]


@dataclass(frozen=True)
class Item:
    """A line of the checklist.

    Attributes:
        section: Of a paper.
        topic: What must be told.
        claim: Numbers in CLAIM 2024, or "".
        tripod: Number in TRIPOD+AI, or "".
        answer: Gives the answer, or None where only the authors know.
    """

    section: str
    topic: str
    claim: str
    tripod: str
    answer: Answer


def filled(analysis: Analysis) -> list[tuple[str, str, str, str, str, bool]]:
    """Fills the checklist.

    Args:
        analysis: The numbers.

    Returns:
        Section, topic, CLAIM number, TRIPOD+AI number, answer, and whether the answer is known.
    """
    rows = []
    for item in ITEMS:
        answer = item.answer(analysis)
        rows.append((item.section, item.topic, item.claim, item.tripod, answer or OPEN, answer is not None))
    return rows


def _authors(_: Analysis) -> None:
    return None


def _always(text: str) -> Answer:
    return lambda _: text


def _preparation(analysis: Analysis) -> str | None:
    crops = sorted({describe(arm)[4] for arm in analysis.methods} - {"not recorded"})
    return f"Regions of interest cut out and enlarged: {'; '.join(crops)}." if crops else None


def _left_out(analysis: Analysis) -> str | None:
    found = [f"Repeat {one.repeat}: {one.left_out}" for one in analysis.divisions if one.left_out]
    return (
        f"{' '.join(found)} Reasons: left_out.csv of each run; what else is missing, by the authors." if found else None
    )


def _sizes(analysis: Analysis) -> str | None:
    if not analysis.divisions:
        return None
    one = analysis.divisions[0]
    parts = (
        f"{part} {counted(one.photographs(part), 'photograph')} of {counted(one.lesions(part), 'lesion')}"
        for part in ("train", "val", "test")
    )
    return f"Repeat {one.repeat}: {'; '.join(parts)} (each region of interest counts). All repeats in section 2."


def _partition(analysis: Analysis) -> str | None:
    if not analysis.divisions:
        return None
    number = len({division.repeat for division in analysis.divisions})
    if any(division.divided.given for division in analysis.divisions):
        return "Training, validation and test as the manifest's split column gives them: how it came, by the authors."
    ratios = look(analysis.results[0].config, "data.ratios")
    asked = f" with shares {', '.join(f'{share:g}' for share in ratios)}" if ratios else ""
    many = counted(number, "division")
    return f"{many} into training, validation and test, drawn by seed and stratified by class{asked}; split files kept."


def _disjoint(analysis: Analysis) -> str | None:
    if not analysis.divisions:
        return None
    kinds = sorted({kept_together(one.group_by, one.divided.given) for one in analysis.divisions})
    leaks = sum(sum(division.leaks.values()) for division in analysis.divisions)
    checked = f"no {_compared(analysis)} is in two parts" if not leaks else "see the leak check in section 2"
    lacking = [
        name for name in ("lesion", "patient") if not any(division.names(name) for division in analysis.divisions)
    ]
    if lacking:
        names = " and ".join(f"{name}s" for name in lacking)
        checked += f"; {names} are not named, so that one is in two parts cannot be excluded"
    return f"Kept together {'; '.join(kinds)}; checked in the split files: {checked}."


def _compared(analysis: Analysis) -> str:
    named = [name for name in ("lesion", "patient") if any(division.names(name) for division in analysis.divisions)]
    return " or ".join(["named " + " or ".join(named)] * bool(named) + ["photograph file"])


def _imbalance(analysis: Analysis) -> str | None:
    if not analysis.divisions:
        return None
    one = analysis.divisions[0]
    counts = {name: one.photographs("train", name) for name in analysis.class_names}
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"Training, repeat {one.repeat}: {listed}. Reported per class and as macro averages; losses: section 3."


def _chosen_epoch(analysis: Analysis) -> str | None:
    return f"The epoch of {epoch_choice(analysis.arms)}; how often the test part was looked at, by the authors."


def _models(analysis: Analysis) -> str | None:
    rows = [describe(arm) for arm in analysis.methods]
    return "; ".join(f"{row[0]}: {row[1]} at {row[3]}, starts from {row[2]}" for row in rows) or None


def _performance(analysis: Analysis) -> str | None:
    best = analysis.best
    if best is None or best not in analysis.intervals:
        return None
    found = analysis.intervals[best]["f1_macro"]
    places = digits(len(best.counts))
    span = f"{found.low:.{places}f} to {found.high:.{places}f}"
    return f"{best.title}: macro F1 95 % interval {span} (unit: {best.counts.unit}); all methods in section 4."


def _flow(analysis: Analysis) -> str | None:
    return (
        None
        if analysis.best is None
        else f"{analysis.best.counts.unit.capitalize()}s that were tested: {len(analysis.best.counts)} (section 4)."
    )


def _external(analysis: Analysis) -> str | None:
    found = any(any(result.run.external.glob("*/predictions.csv")) for result in analysis.results)
    return 'Section "Tests on other data"; where they come from is to be told by the authors.' if found else None


def _internal(analysis: Analysis) -> str | None:
    return None if analysis.best is None else "The test part of the same collection (section 4), apart as told above."


def _groups(analysis: Analysis) -> str | None:
    by = ", ".join(analysis.settings.wishes.by)
    return f"Subgroups by {by} in section 4; others by the authors." if by else None


def _registered(analysis: Analysis) -> str | None:
    command = analysis.settings.command
    return None if command is None else f"Command: {'; '.join(command.splitlines())}"


def _resampling(analysis: Analysis) -> str:
    unit = analysis.unit
    return f"95 % intervals and paired tests with the {unit} as the unit, corrected for their number (section 5)."


_OUTPUT = "A probability for each class; the class with the highest is the answer. Calibration: reliability diagram."

ITEMS = (
    Item("Title and abstract", "Study named as one of AI; kind of model and outcome", "1", "1", _authors),
    Item("Title and abstract", "Structured summary", "2", "2", _authors),
    Item("Introduction", "Background, intended use, clinical role", "3", "3a, 3b", _authors),
    Item("Introduction", "Known inequalities between groups", "", "3c", _authors),
    Item("Introduction", "Objectives and hypotheses", "4, 6", "4", _authors),
    Item("Data", "Prospective or retrospective; sources and dates", "5, 7", "5a, 5b, 6a", _authors),
    Item("Data", "Who and what was included", "8", "6b, 6c", _authors),
    Item("Data", "Preparation of the images", "9", "7", _preparation),
    Item("Data", "Subsets, predictors", "10", "9a, 9b, 9c", _authors),
    Item("Data", "De-identification", "11", "", _authors),
    Item("Data", "Missing data", "12", "11", _left_out),
    Item("Data", "How the pictures were taken: camera, light, distance", "13", "", _authors),
    Item("Reference standard", "Definition, reason, annotators, tools, agreement", "14-18", "8a, 8b, 8c", _authors),
    Item("Data partitions", "How data were assigned to parts", "19", "12a", _partition),
    Item("Data partitions", "Level at which parts are disjoint", "20", "12a, 16", _disjoint),
    Item("Data partitions", "Size, and how it was determined", "21", "10", _authors),
    Item("Model", "Architecture, inputs, outputs", "22", "12c, 22", _models),
    Item("Model", "Output and how it becomes an answer", "22", "15", _always(_OUTPUT)),
    Item("Model", "Software and versions", "23", "18f", _always("Section 7.")),
    Item(
        "Training", "Start weights, augmentation, hyperparameters", "24, 25", "12c", _always("Section 3; config.yaml.")
    ),
    Item("Training", "Class imbalance", "19, 25", "13", _imbalance),
    Item("Training", "Choice of the final model", "26", "12c", _chosen_epoch),
    Item("Training", "Ensembles", "27", "", _always("None; each repeat is one network.")),
    Item("Evaluation", "Metrics", "28", "12e", _always("Accuracy, macro precision, recall and both readings of F1.")),
    Item("Evaluation", "Uncertainty and significance", "29", "12e", _resampling),
    Item("Evaluation", "Robustness, differences between groups or centres", "30", "12d, 14, 23b", _groups),
    Item("Evaluation", "Explanation of single answers", "31", "", _authors),
    Item("Evaluation", "Test within the collection", "32", "16", _internal),
    Item("Evaluation", "Test on data from elsewhere", "33", "16", _external),
    Item("Results", "Flow of participants", "35", "20a", _flow),
    Item("Results", "Demographic and clinical characteristics of each part", "36", "20b, 20c", _authors),
    Item("Results", "Numbers in each part", "36", "21", _sizes),
    Item("Results", "Performance with intervals", "37, 38", "23a", _performance),
    Item("Results", "Failures", "39", "", _always("Confusion matrix in section 4; mistakes in each run's figures.")),
    Item(
        "Discussion", "Limitations", "40", "26", _always("Section 6 has those the files show; others by the authors.")
    ),
    Item("Discussion", "Interpretation, implications, usability", "41", "25, 27a-27c", _authors),
    Item("Other", "Ethical approval; involvement of patients", "", "17, 19", _authors),
    Item("Other", "Registration and protocol", "34, 42", "18c, 18d", _authors),
    Item("Other", "Data and code available; how to repeat", "43", "18e, 18f", _registered),
    Item("Other", "Funding and conflicts of interest", "44", "18a, 18b", _authors),
)
