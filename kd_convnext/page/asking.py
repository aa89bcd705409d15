"""Classifies photographs on the page as ``classify`` does, with heat maps and the nearest training cases."""

import io
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_convnext.common.configs import data_options
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import KDConvNeXtError, ManifestError
from kd_convnext.inference.answer_files import answers_content, write_answers
from kd_convnext.inference.explaining.explainer import Explainer, Explanation
from kd_convnext.inference.explaining.neighbours import TrainingCases
from kd_convnext.inference.prediction import Failure, Photograph, Prediction
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import own_data, source_of
from kd_convnext.models.heatmaps import spread_over
from kd_convnext.page.pictures import data_address, fitted
from kd_convnext.runs.folder import run_of_checkpoint

KEPT_ANSWERS = 256
"""Answers kept, so that a photograph already answered for is not worked out again for a lesion or a file."""

_SHOWN_SIDE = 1024  # pixels of a crop or heat map on the page
_HOT = 0.5  # share of the strongest evidence that a suggested region holds


@dataclass(frozen=True)
class AskingOptions:
    """Options by which a checkpoint is opened; see ``classify``.

    Attributes:
        ckpt_path: The checkpoint.
        sr_weights: Real-ESRGAN weights of the training, where they are not where they were.
        calibration: ``auto``, ``none`` or a file.
        tta: Average over the mirror images; None as calibrated.
        device: Where the network runs.
        cache_dir: Crop cache of the training cases; None as the run says.
        manifest: Of the training photographs, where the run does not say it.
        columns: Other names of the manifest's columns, likewise.
    """

    ckpt_path: str
    sr_weights: str | None = None
    calibration: str = "auto"
    tta: bool | None = None
    device: str = "cpu"
    cache_dir: str | None = None
    manifest: str | None = None
    columns: str | None = None


class Asking:
    """A checkpoint that answers on the page.

    Attributes:
        settings: How it was opened.
        predictor: The network.
        cases: The training photographs; None until they are read, or where they are not at hand.
        cases_problem: Why there are no training photographs; empty where there are, or while they are read.
    """

    def __init__(self, settings: AskingOptions) -> None:
        """Loads the checkpoint.

        Raises:
            KDConvNeXtError: The checkpoint, its calibration or the weights cannot be used.
        """
        self.settings = settings
        self.predictor = Predictor.from_checkpoint(
            settings.ckpt_path,
            sr_weights=settings.sr_weights,
            device=settings.device,
            calibration=settings.calibration,
            tta=settings.tta,
        )
        self.cases: TrainingCases | None = None
        self.cases_problem = ""
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, Box | None, str, str], Prediction] = OrderedDict()

    def start(self) -> None:
        """Starts reading the training photographs, in the background."""
        threading.Thread(target=self._read_cases, name="training cases", daemon=True).start()

    def answers(self, photographs: Sequence[Photograph]) -> list[Prediction | Failure]:
        """Classifies photographs as ``classify`` does; one request at a time.

        Args:
            photographs: Files with their boxes.

        Returns:
            For each its answer, or why there is none.
        """
        with self._lock:
            found: list[Prediction | Failure] = []
            for photograph in photographs:
                key = (Path(str(photograph.image)), photograph.box, photograph.name, photograph.lesion_id)
                answer: Prediction | Failure | None = self._kept.get(key)
                if answer is None:
                    (answer,) = self.predictor.predict_many([photograph])
                    if isinstance(answer, Prediction):
                        self._kept[key] = answer
                        while len(self._kept) > KEPT_ANSWERS:
                            self._kept.popitem(last=False)
                found.append(answer)
            return found

    def content(self, photographs: Sequence[Photograph]) -> dict[str, Any]:
        """Returns what ``classify`` writes into ``answers.json``.

        Args:
            photographs: Files with their boxes; those of one lesion_id are also combined.
        """
        answers, lesions, failures = self._judged(photographs)
        return answers_content(answers, lesions, failures, self.predictor.network.info, self.predictor.calibration)

    def files(self, photographs: Sequence[Photograph]) -> bytes:
        """Returns the files that ``classify`` writes, in one ZIP.

        Args:
            photographs: Files with their boxes.
        """
        answers, lesions, failures = self._judged(photographs)
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            folder = Path(name)
            write_answers(folder, answers, lesions, failures, self.predictor.network.info, self.predictor.calibration)
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        return packed.getvalue()

    def explanation(self, photograph: Photograph) -> dict[str, Any]:
        """Returns what speaks for an answer: crop and heat map as pictures, and the training cases most like it.

        Args:
            photograph: A file with its box.

        Raises:
            ManifestError: The photograph cannot be read, or the box does not lie in it.
        """
        found = self._explained(photograph, self.cases)
        entry = found.to_dict(self.predictor.network.card.class_names)
        view = found.views[0]
        for neighbour, shown in zip(entry["neighbours"], found.neighbours, strict=True):
            neighbour["picture"] = data_address(shown.crop)
        return {
            "target": found.target,
            "peak": entry["networks"][0]["peak"],
            "region": entry["region"],
            "crop": data_address(fitted(np.ascontiguousarray(found.crop), _SHOWN_SIDE)),
            "heat": data_address(fitted(view.picture, _SHOWN_SIDE)),
            "evidence": bool(view.heat.max() > 0),
            "neighbours": entry["neighbours"],
            "cases_problem": self.cases_problem or ("" if self.cases else "the training photographs are being read"),
        }

    def suggestion(self, photograph: Photograph) -> Box | None:
        """Suggests a region: where, in the whole photograph, the network's evidence lies.

        Args:
            photograph: A file.

        Returns:
            The box around the largest patch of at least half the strongest evidence; None where there is none. It is
            no finding: the network was trained to name lesions, not to find them.

        Raises:
            ManifestError: The photograph cannot be read.
        """
        found = self._explained(Photograph(photograph.image, name=photograph.name), None)
        heat = found.views[0].heat
        height, width = found.crop.shape[:2]
        scale = min(1.0, 512 / max(height, width))
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        spread = spread_over(heat, rows, columns, padded=self.predictor.spec.resize == "pad")
        if not float(spread.max()) > 0:
            return None
        hot = np.asarray(spread >= _HOT * spread.max(), dtype=np.uint8)
        count, _, facts, _ = cv2.connectedComponentsWithStats(hot)
        largest = 1 + int(facts[1:count, cv2.CC_STAT_AREA].argmax())
        left, top, wide, high = (int(value) for value in facts[largest][:4])
        x, y = int(left / columns * width), int(top / rows * height)
        return Box(
            x, y, min(int(wide / columns * width) + 1, width - x), min(int(high / rows * height) + 1, height - y)
        )

    def _explained(self, photograph: Photograph, cases: TrainingCases | None) -> Explanation:
        with self._lock:
            (found,) = Explainer(self.predictor, cases=cases)([photograph])
        if isinstance(found, Failure):
            raise ManifestError(found.finding)
        return found

    def _judged(self, photographs: Sequence[Photograph]) -> tuple[list[Prediction], list[Prediction], list[Failure]]:
        found = self.answers(photographs)
        answers = [answer for answer in found if isinstance(answer, Prediction)]
        failures = [answer for answer in found if isinstance(answer, Failure)]
        members: dict[str, list[Prediction]] = {}
        for answer in answers:
            if answer.lesion_id:
                members.setdefault(answer.lesion_id, []).append(answer)
        lesions = [self.predictor.combine(shown, lesion_id) for lesion_id, shown in members.items()]
        return answers, lesions, failures

    def _read_cases(self) -> None:
        ckpt = Path(self.settings.ckpt_path).expanduser()
        run = run_of_checkpoint(ckpt)
        try:
            said = run.config.is_file() and (data_options(str(run.config)) or {}).get("manifest")
            named = (None, None) if said else (self.settings.manifest, self.settings.columns)
            source = source_of(run, named[0], self.settings.cache_dir, self.settings.sr_weights, named[1])
            data = own_data(self.predictor, source, run)
            self.cases = TrainingCases(data, ckpt.with_name(f"{ckpt.stem}.features.safetensors"))
        except KDConvNeXtError as error:
            self.cases_problem = error.findings[0].what
        except OSError as error:  # the folder of the checkpoint may be read-only
            self.cases_problem = f"{error.filename}: {error.strerror}"
