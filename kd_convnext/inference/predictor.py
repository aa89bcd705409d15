"""Classifies new photographs with a checkpoint alone."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kd_convnext.checkpoints.network import Network, load_network
from kd_convnext.common.arrays import Pixels, Values, softmax
from kd_convnext.common.machine import available_cores
from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.spec import CropSpec, comparable
from kd_convnext.data.crops.upscaling.ncnn import ncnn_installed
from kd_convnext.data.crops.upscaling.upscaler import Upscaler
from kd_convnext.data.loading.views import still_view
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import CheckpointError, ConfigError, Finding, KDConvNeXtError, ManifestError, UpscalerError
from kd_convnext.inference.prediction import Failure, Photograph, Prediction, mean_rows
from kd_convnext.inference.trust.appearance import appearance_of
from kd_convnext.inference.trust.calibration import FILE, UNDECIDED, Calibration, read_calibration
from kd_convnext.inference.trust.gate import Distances, Features
from kd_convnext.models.mirrored import MIRRORED

_READ_AHEAD = 8  # photographs decoded while the network is busy


class Predictor:
    """Classifies photographs with a trained network: crops, super-resolves and normalises as its training did.

    The network always sees the same number of pictures at once (missing ones are black), so that an answer does not
    depend on what else was asked: to the last bit where that number is 1, as on a CPU, else to rounding.

    Attributes:
        network: The network.
        spec: How regions are cropped and enlarged.
        calibration: Temperature, prediction sets and gate; None where the checkpoint was not calibrated.
        tta: Whether each photograph is seen with its mirror images.

    Examples:
        >>> predictor = Predictor.from_checkpoint("best.ckpt")
        >>> answer = predictor("photo.jpg", Box(x=2, y=1, width=36, height=34))
        >>> answer.predicted in answer.class_names, answer.abstain  # without calibration it always abstains
        (True, True)
    """

    def __init__(
        self,
        network: Network,
        spec: CropSpec,
        upscaler: Upscaler,
        calibration: Calibration | None = None,
        *,
        tta: bool = False,
        per_pass: int | None = None,
    ) -> None:
        """Combines the parts; use `from_checkpoint` or `from_network`.

        Args:
            network: The network.
            spec: How regions are cropped.
            upscaler: The upscaler that ``spec`` names.
            calibration: Of this network.
            tta: See above.
            per_pass: Photographs that the network sees at once; by default 1 on a CPU (more do not pay), 32 on a GPU.
        """
        self.network, self.spec, self.calibration, self.tta = network, spec, calibration, tta
        self._upscaler = upscaler
        self._per_pass = per_pass or (1 if network.device.type == "cpu" else 32)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        sr_weights: str | None = None,
        device: str = "cpu",
        calibration: str | Path | Literal["auto", "none"] = "auto",
        tta: bool | None = None,
        per_pass: int | None = None,
    ) -> "Predictor":
        """Loads a teacher, a baseline or a distilled student.

        Args:
            path: The checkpoint.
            sr_weights: The Real-ESRGAN weights of its training, where it needs any and they are not where they were.
            device: Where to answer, as torch names it.
            calibration: ``auto`` takes ``calibration.json`` beside the checkpoint where there is one; ``none`` takes
                none; else its path.
            tta: Average over the mirror images of each photograph; by default as calibrated, else no.
            per_pass: Photographs that the network sees at once.

        Returns:
            The predictor.

        Raises:
            CheckpointError: The checkpoint or the calibration cannot be used.
            UpscalerError: The weights are missing, or are not those of the training.
            ConfigError: The device is not there, or ``tta`` is not as calibrated.
        """
        network = load_network(path, device)
        found = _calibration(Path(path).expanduser(), calibration, network)
        if found is not None and tta not in (None, found.tta):
            what = f"the calibration stands on answers with tta {str(found.tta).lower()}"
            remedy = "Leave --tta out, calibrate again with it, or give --calibration none."
            raise ConfigError(Finding("--tta", what, remedy))
        views = found.tta if found is not None else bool(tta)
        return cls.from_network(network, found, sr_weights=sr_weights, tta=views, per_pass=per_pass)

    @classmethod
    def from_network(
        cls,
        network: Network,
        calibration: Calibration | None = None,
        *,
        sr_weights: str | None = None,
        tta: bool = False,
        per_pass: int | None = None,
    ) -> "Predictor":
        """Finds the upscaler of a network's training.

        Args:
            network: The network, where it is to answer.
            calibration: Of this network.
            sr_weights: See `from_checkpoint`.
            tta: Average over the mirror images of each photograph.
            per_pass: Photographs that the network sees at once.

        Returns:
            The predictor.

        Raises:
            UpscalerError: The weights are missing, or are not those of the training.
        """
        spec, upscaler = _cropping(network, sr_weights, str(network.device))
        return cls(network, spec, upscaler, calibration, tta=tta, per_pass=per_pass)

    def __call__(self, image: str | Path | Pixels, box: Box | None = None, lesion_id: str = "") -> Prediction:
        """Classifies one photograph.

        Args:
            image: Its file, or its pixels: uint8 RGB [H, W, 3].
            box: The region of interest in its pixels; None for all of it.
            lesion_id: The lesion it shows.

        Returns:
            The answer.

        Raises:
            ManifestError: The photograph cannot be read, or the box does not lie in it.
        """
        image = Path(image) if isinstance(image, str) else image
        (answer,) = self.predict_many([Photograph(image, box, lesion_id=lesion_id)])
        if isinstance(answer, Failure):
            raise ManifestError(answer.finding)
        return answer

    def predict_many(self, photographs: Iterable[Photograph]) -> Iterator[Prediction | Failure]:
        """Classifies any number of photographs, in their order, as they come.

        Args:
            photographs: The photographs; several boxes of one file are best given one after the other.

        Yields:
            For each its answer, or why there is none: no photograph stops the others.
        """
        waiting: list[tuple[Photograph, Pixels | Failure]] = []
        pictures = 0
        for photograph, picture in self.pictures(photographs):
            waiting.append((photograph, picture))
            pictures += not isinstance(picture, Failure)
            if pictures == self._per_pass:
                yield from self._answers(waiting)
                waiting, pictures = [], 0
        yield from self._answers(waiting)

    def outputs(self, pictures: Sequence[Pixels]) -> tuple[Values, Features]:
        """Runs the network, always on the same number of pictures at once.

        Args:
            pictures: N times uint8 [S, S, C], as `picture` makes them.

        Returns:
            Logits float64 [N, K] and features float32 [N, D], means over the mirror images where ``tta`` asks for them.
        """
        logits, features = [], []
        for start in range(0, len(pictures), self._per_pass):
            found = self._pass(pictures[start : start + self._per_pass])
            logits.append(found[0])
            features.append(found[1])
        return np.concatenate(logits), np.concatenate(features)

    def picture(self, crop: Pixels) -> Pixels:
        """Returns a prepared crop as the network sees it, uint8 [S, S, C]."""
        card = self.network.card
        return still_view(crop, card.image_size, card.in_chans, self.spec.resize)

    def combine(self, predictions: Sequence[Prediction], lesion_id: str) -> Prediction:
        """Combines the answers for the photographs of one lesion into one.

        Args:
            predictions: Of single photographs, at least one, in any order.
            lesion_id: The lesion.

        Returns:
            Mean probabilities, with a prediction set and a gate of their own, calibrated on lesions.
        """
        raw = mean_rows([softmax(answer.logits) for answer in predictions])
        probabilities = mean_rows([answer.probabilities for answer in predictions])
        decision, distances = UNDECIDED, None
        if self.calibration is not None:
            distances = Distances(*mean_rows([np.array(answer.distances) for answer in predictions]).tolist())
            decision = self.calibration.decide(self.calibration.lesion, raw, distances)
        return Prediction(
            name=lesion_id,
            class_names=predictions[0].class_names,
            probabilities=probabilities,
            logits=np.log(np.maximum(raw, np.finfo(np.float64).tiny)),
            features=mean_rows([answer.features for answer in predictions]).astype(np.float32),
            lesion_id=lesion_id,
            photographs=len(predictions),
            distances=distances,
            **vars(decision),
        )

    def pictures(self, photographs: Iterable[Photograph]) -> Iterator[tuple[Photograph, Pixels | Failure]]:
        """Reads, crops and enlarges ahead of need; each file is decoded once for all its boxes.

        Args:
            photographs: See `predict_many`.

        Yields:
            Each photograph, in order, with what the network sees of it, uint8 [S, S, C], or why it sees nothing.
        """
        jobs: deque[Future[list[tuple[Photograph, Pixels | Failure]]]] = deque()
        workers = min(4, available_cores())
        pool = ThreadPoolExecutor(workers, thread_name_prefix="photographs")
        try:
            for _, group in groupby(photographs, key=_source):
                jobs.append(pool.submit(self._prepare, list(group)))
                if len(jobs) > _READ_AHEAD:
                    yield from jobs.popleft().result()
            while jobs:
                yield from jobs.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, photographs: list[Photograph]) -> list[tuple[Photograph, Pixels | Failure]]:
        done: list[tuple[Photograph, Pixels | Failure]] = []
        image: Pixels | None = None
        for photograph in photographs:
            try:
                if image is None:
                    given = photograph.image
                    image = read_image(given) if isinstance(given, Path) else _checked(given)
                crop = crop_roi(image, photograph.box, self.spec.roi_margin)
                done.append((photograph, self.picture(enlarge(crop, self.spec, self._upscaler))))
            except KDConvNeXtError as error:  # what is wrong with one photograph stops no other
                finding = replace(error.findings[0], where=str(photograph))
                done.append((photograph, Failure(photograph, finding)))
        return done

    def _pass(self, pictures: Sequence[Pixels]) -> tuple[Values, Features]:
        card, views = self.network.card, MIRRORED if self.tta else MIRRORED[:1]
        shape = (self._per_pass, len(views), card.image_size, card.image_size, card.in_chans)
        batch = np.zeros(shape, np.uint8)
        for place, picture in enumerate(pictures):
            for view, axes in enumerate(views):
                batch[place, view] = np.flip(picture, axes)
        images = torch.from_numpy(batch.reshape(-1, *shape[2:])).permute(0, 3, 1, 2).contiguous()
        logits, features = (values.reshape(*shape[:2], -1).double().mean(dim=1) for values in self.network(images))
        return logits.numpy()[: len(pictures)], features.float().numpy()[: len(pictures)]

    def _answers(self, waiting: Sequence[tuple[Photograph, Pixels | Failure]]) -> Iterator[Prediction | Failure]:
        pictures = [picture for _, picture in waiting if not isinstance(picture, Failure)]
        rows = iter(zip(*self.outputs(pictures), strict=True)) if pictures else iter(())
        for photograph, picture in waiting:
            if isinstance(picture, Failure):
                yield picture
            else:
                yield self._answer(photograph, picture, *next(rows))

    def _answer(self, photograph: Photograph, picture: Pixels, logits: Values, features: Features) -> Prediction:
        calibration, decision, distances = self.calibration, UNDECIDED, None
        if calibration is not None:
            distances = calibration.gate.distances(appearance_of(picture), features)
            decision = calibration.decide(calibration.photograph, softmax(logits), distances)
        return Prediction(
            name=str(photograph),
            class_names=self.network.card.class_names,
            probabilities=softmax(logits, calibration.temperature if calibration else 1.0),
            logits=logits,
            features=features,
            box=photograph.box,
            lesion_id=photograph.lesion_id,
            distances=distances,
            **vars(decision),
        )


def _source(photograph: Photograph) -> object:
    return photograph.image if isinstance(photograph.image, Path) else id(photograph)


def _checked(pixels: Pixels) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        what = f"an array {pixels.dtype} {list(pixels.shape)} is not a photograph"
        raise ConfigError(Finding("image", what, "Give uint8 RGB [height, width, 3], or a file."))
    return pixels


def _cropping(network: Network, sr_weights: str | None, device: str) -> tuple[CropSpec, Upscaler]:
    """Finds the upscaler of the training: its identity, with the weights' sha256, must be the very same."""
    card = network.card
    spec = CropSpec.from_dict(dict(card.crop))
    try:
        wanted = card.crop_identity["upscaler"]
        digest, known_as = wanted["weights_sha256"], wanted["name"]
    except (KeyError, TypeError) as error:
        what = f"does not say how crops were enlarged ({error})"
        raise CheckpointError(Finding("checkpoint", what, "It was changed since it was written.")) from error
    if digest is None:
        spec = replace(spec, sr_weights=None, upscaler=known_as)
    elif sr_weights is not None:
        spec = replace(spec, sr_weights=sr_weights, sr_wdn_weights=_beside(sr_weights, spec.sr_wdn_weights))
    if spec.upscaler == "ncnn" and not (device == "cpu" and ncnn_installed()):
        spec = replace(spec, upscaler="spandrel")  # the same network, elsewhere
    remedy = f"Give the very weights of its training: --sr_weights FILE with sha256 {digest}."
    try:
        upscaler = spec.build_upscaler(device)
    except UpscalerError as error:
        found = error.findings[0]
        raise UpscalerError(replace(found, remedy=f"{remedy} {found.remedy}")) from error
    now = comparable(spec.identity())
    for name, then in comparable(card.crop_identity).items():
        if not _agrees(then, now.get(name)):
            what = f"crops would not be those of the training: {name} was {then}, is {now.get(name)}"
            raise UpscalerError(Finding("--sr_weights", what, remedy if digest else "Update kd-convnext."))
    return spec, upscaler


def _beside(weights: str, other: str | None) -> str | None:
    """Finds weights to blend with beside those that are given: a published model knows their file's name alone."""
    if other is None or Path(other).expanduser().is_file():
        return other
    moved = Path(weights).expanduser().with_name(Path(other).name)
    return str(moved) if moved.is_file() else other


def _agrees(then: object, now: object) -> bool:
    """Compares what a checkpoint says; it may be older than some of what is said today."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return all(_agrees(value, now.get(name)) for name, value in then.items())
    return then == now


def _calibration(path: Path, asked: str | Path, network: Network) -> Calibration | None:
    beside = path.with_name(FILE)
    if asked == "none" or (asked == "auto" and not beside.exists()):
        return None
    file = beside if asked == "auto" else Path(asked).expanduser()
    return read_calibration(file, network.info.checkpoint_sha256, network.card.class_names, path)
