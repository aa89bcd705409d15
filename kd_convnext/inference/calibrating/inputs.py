"""Opens what a checkpoint is calibrated on, and checks all of it before a network answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_convnext.checkpoints.format import require_file
from kd_convnext.data.manifest.grouping import Part
from kd_convnext.errors import Checks
from kd_convnext.inference.calibrating.cross_conformal import HeldOut, held_out_by
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import (
    CalibrationData,
    LabelledAnswers,
    RunSource,
    further_data,
    own_data,
    refuse_leak,
)
from kd_convnext.runs.folder import RunFolder


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """Holds what a checkpoint is calibrated on.

    Attributes:
        data: The photographs of its run.
        further: Further labelled photographs; None for none.
        others: Lesions that other networks have held out.
    """

    data: CalibrationData
    further: CalibrationData | None
    others: Sequence[HeldOut]

    def answers(self) -> LabelledAnswers:
        """Answers for the validation part of the run and for all further photographs."""
        asked = [self.data] if self.further is None else [self.data, self.further]
        return LabelledAnswers.of([data.answers(data.rows("val")) for data in asked])

    def record(self) -> dict[str, object]:
        """Describes what there is beside the run by numbers and hashes.

        Not by paths: names of folders may be those of patients, and the record is handed on.
        """
        further = 0 if self.further is None else len(self.further.labelled(self.further.rows("val")))
        networks = [other.data.predictor.network for other in self.others]
        return {"extra_photographs": further, "also_sha256": [one.info.checkpoint_sha256 for one in networks]}


def open_inputs(
    predictor: Predictor,
    source: RunSource,
    run: RunFolder,
    also: str | None,
    extra_manifest: str | None,
    extra_columns: str | None,
    *,
    test: bool,
) -> CalibrationInputs:
    """Opens and checks all that a checkpoint is calibrated on.

    Args:
        predictor: Its network.
        source: The photographs of its run.
        run: Its run.
        also: Checkpoints of other repeats, with commas; None for none.
        extra_manifest: Further photographs; None for none.
        extra_columns: Other names of their columns.
        test: Whether the test part is to be judged.

    Raises:
        KDConvNeXtError: Photographs or checkpoints cannot be used, or were seen in training: all of them.
    """
    checks, paths = Checks(), [path.strip() for path in also.split(",")] if also else []
    with checks.going_on():
        data = own_data(predictor, source, run)
    if checks.failed:  # without them the others can only be looked for
        for path in paths:
            with checks.going_on():
                require_file(path)
        checks.refuse()
    parts: tuple[Part, ...] = ("val", "test") if test else ("val",)
    for part in parts:
        with checks.going_on():
            data.labelled(data.rows(part))
            refuse_leak(data, part)
    further: CalibrationData | None = None
    with checks.going_on():
        if extra_manifest is not None:
            further = further_data(predictor, extra_manifest, extra_columns, source, data)
            further.labelled(further.rows("val"))
    others: list[HeldOut] = []
    with checks.going_on():
        others = held_out_by(paths, data, source) if paths else []
    checks.refuse()
    return CalibrationInputs(data, further, others)
