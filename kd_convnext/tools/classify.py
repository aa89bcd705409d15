"""Classifies new photographs with a checkpoint alone: the command ``classify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_convnext.common.console import complain, tell
from kd_convnext.common.counting import counted
from kd_convnext.common.words import command_line

if TYPE_CHECKING:
    from kd_convnext.inference.prediction import Failure, Prediction
    from kd_convnext.inference.predictor import Predictor

LISTED = 20
"""So many answers are printed; all are in the files."""


def classify(
    photos: list[str],
    ckpt_path: str,
    out: str,
    sr_weights: str | None = None,
    box: str | None = None,
    lesion_by: Literal["manifest", "folder", "all"] = "manifest",
    calibration: str = "auto",
    tta: bool | None = None,
    columns: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    device: str = "cpu",
) -> Path:
    """Classifies new photographs, cropped, super-resolved and normalised as in the checkpoint's training.

    Writes answers.csv and answers.json, lesions.csv where lesions are known, and failures.csv where photographs have no
    answer. For research; no answer may decide about a patient.

    Args:
        photos: Image files, folders, or a manifest (.csv) with boxes and lesion_id; labels are not needed.
        ckpt_path: The checkpoint: a teacher, a baseline or a distilled student.
        out: Folder of the answers.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        box: Region of interest of a single photograph: x,y,width,height in pixels.
        lesion_by: Which photographs show one lesion; those of one lesion_id of the manifest, of one folder, or all.
        calibration: auto takes calibration.json beside the checkpoint; none leaves it; else a file.
        tta: Average over the mirror images of each photograph; by default as calibrated.
        columns: Other names of a manifest's columns: image=file,lesion_id=case.
        on_error: raise ends with exit code 2 where photographs have no answer; skip does not. The others are answered.
        overwrite: Write into a folder that is not empty, in place of earlier answers.
        device: Where the network runs, as torch names it.

    Returns:
        The folder.

    Raises:
        ManifestError: Photographs have no answer, all of them named, after everything else is done.
        KDConvNeXtError: The checkpoint, the weights, a manifest or an option cannot be used.
    """
    from kd_convnext.common.console import progress_bar
    from kd_convnext.common.machine import memory_kept, pillow_memory_kept
    from kd_convnext.inference.answer_files import require_replaceable, write_answers
    from kd_convnext.inference.inputs import opened, refuse_failures, region_warnings
    from kd_convnext.inference.prediction import Failure, Prediction

    folder, photographs, failures = opened(
        photos, out, overwrite=overwrite, box=box, lesion_by=lesion_by, columns=columns
    )
    require_replaceable(folder, photos)
    predictor = _predictor(ckpt_path, sr_weights, calibration, tta, device)
    for warning in region_warnings(predictor.network.card, photographs):
        complain(f"warning: {warning}")
    answers: list[Prediction] = []
    # A large photograph's memory would come from the system anew each time: a fifth of the time at 12 megapixels.
    bar = progress_bar(len(photographs), True, "classifying", "photographs")
    with memory_kept(), pillow_memory_kept(), bar as advance:
        for answer in predictor.predict_many(photographs):
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                answers.append(answer)
            advance(1)
    lesions = _lesions(predictor, answers)
    write_answers(folder, answers, lesions, failures, predictor.network.info, predictor.calibration)
    _summarise(folder, answers, lesions, failures)
    refuse_failures(failures, on_error)
    return folder


def _predictor(ckpt_path: str, sr_weights: str | None, calibration: str, tta: bool | None, device: str) -> "Predictor":
    from kd_convnext.inference.predictor import Predictor

    predictor = Predictor.from_checkpoint(
        ckpt_path, sr_weights=sr_weights, device=device, calibration=calibration, tta=tta
    )
    if predictor.calibration is None:
        lacking = (
            "warning: this checkpoint is not calibrated: no prediction sets, no gate, every answer abstains. Next:"
        )
        complain(lacking)
        complain(f"  {command_line(['calibrate'], ckpt_path=ckpt_path)}")
    if predictor.network.info.leak_allowed:
        complain("warning: this network has seen lesions that it was judged on")
    return predictor


def _lesions(predictor: "Predictor", answers: "list[Prediction]") -> "list[Prediction]":
    members: dict[str, list[Prediction]] = {}
    for answer in answers:
        if answer.lesion_id:
            members.setdefault(answer.lesion_id, []).append(answer)
    return [predictor.combine(shown, lesion_id) for lesion_id, shown in members.items()]


def _line(answer: "Prediction") -> str:
    verdict = f"abstains: {'; '.join(answer.reasons)}" if answer.abstain else "answers"
    return f"{answer.name}: {answer.predicted} {answer.probabilities.max():.3f} ({verdict})"


def _summarise(
    folder: Path, answers: "list[Prediction]", lesions: "list[Prediction]", failures: "list[Failure]"
) -> None:
    for answer in answers[:LISTED]:
        tell(_line(answer))
    if len(answers) > LISTED:
        print(f"... and {len(answers) - LISTED} more")
    abstained = sum(answer.abstain for answer in answers)
    whole = f", {counted(len(lesions), 'lesion')}" if lesions else ""
    lacking = f", {len(failures)} without an answer (failures.csv)" if failures else ""
    answered = counted(len(answers), "photograph")
    tell(f"{answered} answered ({abstained} abstained){whole}{lacking}; {folder}")
