"""Computes what a frozen network's last layer sees, once for every crop, and fits or applies linear heads on it.

The network is asked about each crop without augmentation and about its mirror image; the mean is stored on disk, for
every run, split and head that shares the network's body.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.teacher_outputs import STILL, AnswerKind, StoredOutputs, TeacherAnswers, view_name
from kd_convnext.data.loading.views import Views
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.taps import watched_features
from kd_convnext.modules.output_store import Answer, filled_store, on_the_cpu

Embeddings = npt.NDArray[np.float32]


@dataclass
class HeadedFeatures:
    """Stored features with a linear head on them: the outputs of a teacher for crops without augmentation.

    Attributes:
        store: The features by crop.
        weight: float32 [K, D].
        bias: float32 [K].
    """

    store: TeacherAnswers
    weight: Embeddings
    bias: Embeddings

    def load(self, crop_key: str, seed: int) -> StoredOutputs:
        """Reads the features of a crop and applies the head.

        Args:
            crop_key: Of the crop.
            seed: `STILL`.

        Returns:
            Logits [K] and embedding [D], in float16.

        Raises:
            CacheError: There are none, or they are damaged.
        """
        found = self.store.load(crop_key, seed)
        assert found.embedding is not None
        logits = self.weight @ found.embedding.astype(np.float32) + self.bias
        return StoredOutputs(logits.astype(np.float16), [], found.embedding)


def linear_head(backbone: Backbone) -> nn.Linear:
    """Returns the last layer of a backbone.

    Args:
        backbone: The network.

    Raises:
        ConfigError: It is no single linear layer.
    """
    head = cast(Any, backbone.network).get_classifier()
    if not isinstance(head, nn.Linear):
        what = f"the head of {backbone.name} is no linear layer"
        raise ConfigError(Finding("backbone.name", what, "Use another network, or finetune: full."))
    return head


def still_features(backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer) -> TeacherAnswers:
    """Makes sure that a network's features of every training crop, labelled or not, are on the disk.

    Args:
        backbone: The network; moved to the trainer's device and type. Its head does not matter.
        data: Set up for a fit.
        trainer: Whose fit begins.

    Returns:
        The store: one embedding [D] a crop, the mean over the crop and its mirror image.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    head, part = linear_head(backbone), data.train_set
    still = Views(backbone.image_size, data.in_chans, resize=data.crop_spec.resize)
    kind = AnswerKind(
        teacher=body_fingerprint(backbone),
        taps=(),
        views=still.identity() | {"mirrored": True},
        precision=str(trainer.precision),
        num_classes=0,
        maps=(),
        embedding=head.in_features,
    )
    places = [part.place(position) for position in range(len(part))]
    names = [view_name(place.crops.key(place.row), STILL) for place in places]
    views = [View(position, STILL) for position in range(len(places))]
    with trainer.precision_plugin.module_init_context():
        backbone.to(trainer.strategy.root_device, torch.get_default_dtype())

    def asked(chosen: Sequence[View]) -> Iterator[Answer]:
        seen = watched_features(backbone)
        training = backbone.training
        backbone.eval()
        try:
            for batch in data.still_loader(backbone.image_size, chosen):
                images = batch["image"].to(backbone.mean.device, non_blocking=True)
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    both = []
                    for pictures in (images, images.flip(-1)):
                        backbone(pictures)
                        both.append(seen[0].flatten(1).float())
                yield on_the_cpu(images.new_zeros(len(images), 0), [], (both[0] + both[1]) / 2)
        finally:
            backbone.train(training)

    return filled_store(TeacherAnswers(kind.folder(data.crops.folder.parent), kind), views, names, asked, trainer)


def headed_features(backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer) -> HeadedFeatures:
    """Computes a frozen teacher's outputs for every training crop without augmentation.

    Args:
        backbone: The teacher.
        data: Set up for a fit.
        trainer: Whose fit begins.

    Returns:
        The outputs, by crop.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    store, head = still_features(backbone, data, trainer), linear_head(backbone)
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach().float().cpu()
    return HeadedFeatures(store, head.weight.detach().float().cpu().numpy(), bias.numpy())


def fit_linear_head(
    features: Embeddings, labels: npt.NDArray[np.int64], num_classes: int, c: float
) -> tuple[Tensor, Tensor]:
    """Fits a linear classifier by logistic regression, every class weighing alike.

    Features are standardised for the fit; the scaling is folded into the layer. L2 regularisation as scikit-learn's
    ``LogisticRegression``: the sum of weighted losses times ``c``, plus half the squared weights.

    Args:
        features: float32 [N, D].
        labels: int64 [N]; classes that do not occur get a bias that never wins.
        num_classes: K.
        c: Inverse strength of regularisation, above 0.

    Returns:
        Weight float32 [K, D] and bias float32 [K].
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    values = torch.from_numpy((features - mean) / scale)
    targets = torch.from_numpy(labels)
    counts = torch.bincount(targets, minlength=num_classes).float()
    present = counts > 0
    per_class = torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), torch.zeros(()))
    weight = torch.zeros(num_classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        losses = F.cross_entropy(
            F.linear(values, weight, bias)[:, present], _compact(present)[targets], reduction="none"
        )
        total = c * (per_class[targets] * losses).sum() + weight.square().sum() / 2
        (total / len(labels)).backward()  # type: ignore[no-untyped-call]
        return total.detach() / len(labels)

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach() / torch.from_numpy(scale)
    shift = bias.detach() - found @ torch.from_numpy(mean)
    return found, torch.where(present, shift, torch.full((), -1e4))


def training_embeddings(store: TeacherAnswers, data: SpecimenDataModule) -> Embeddings:
    """Loads the features of the labelled training crops.

    Args:
        store: From :func:`still_features`.
        data: Set up for a fit.

    Returns:
        float32 [N, D], in the order of ``data.train_set.rows``.
    """
    part = data.train_set
    places = [part.place(position) for position in range(len(part.rows))]
    found = [store.load(place.crops.key(place.row), STILL).embedding for place in places]
    return np.stack(found).astype(np.float32)  # type: ignore[arg-type]


def body_fingerprint(backbone: Backbone) -> str:
    """Returns the sha256 of a backbone's weights without its last layer, and of its normalisation."""
    head = {id(parameter) for parameter in backbone.head_parameters()}
    digest = hashlib.sha256(f"{backbone.name} {backbone.image_size}".encode())
    names = {name for name, parameter in backbone.named_parameters(remove_duplicate=False) if id(parameter) in head}
    for name, value in backbone.state_dict().items():
        if name not in names:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compact(present: Tensor) -> Tensor:
    """Numbers the classes that occur, 0 .. K'-1."""
    return present.long().cumsum(0) - 1
