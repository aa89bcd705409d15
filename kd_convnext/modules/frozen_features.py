"""Computes what a frozen network's last layer sees, once for every crop, and fits or applies linear heads on it.

The network looks at each crop without augmentation, at its mirror image, or at turned ones too; what it sees is stored
on disk, for every run, split and head that shares the network's body.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

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

Looks = Literal[2, 4, 8]
"""At how many turned and mirrored copies of a crop a frozen network looks."""

_LOOKS: dict[Looks, tuple[tuple[int, bool], ...]] = {
    2: ((0, False), (0, True)),
    4: ((0, False), (1, True), (2, False), (3, True)),
    8: tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}
"""Quarter turns of each look, and whether it is mirrored after them."""

_FOLDS = 5


@dataclass
class HeadedFeatures:
    """Stored features with a linear head on them: the outputs of a teacher for crops without augmentation.

    Attributes:
        store: The features by crop, V looks at each.
        weight: float32 [K, D].
        bias: float32 [K].
        held_out: Logits [K] of crops that the head was fitted on, by crop, from heads that were not.
    """

    store: TeacherAnswers
    weight: Embeddings
    bias: Embeddings
    held_out: dict[str, Embeddings] = field(default_factory=dict)

    def load(self, crop_key: str, seed: int) -> StoredOutputs:
        """Reads the features of a crop, averages its looks and applies the head.

        Args:
            crop_key: Of the crop.
            seed: `STILL`.

        Returns:
            Logits [K] and embedding [D], in float16.

        Raises:
            CacheError: There are none, or they are damaged.
        """
        found = self.store.load(crop_key, seed).embedding
        assert found is not None
        embedding = found.astype(np.float32).reshape(-1, self.weight.shape[1]).mean(0)
        logits = self.held_out.get(crop_key)
        if logits is None:
            logits = self.weight @ embedding + self.bias
        return StoredOutputs(logits.astype(np.float16), [], embedding.astype(np.float16))


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


def still_features(
    backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer, looks: Looks = 2
) -> TeacherAnswers:
    """Makes sure that a network's features of every training crop, labelled or not, are on the disk.

    Args:
        backbone: The network; moved to the trainer's device and type. Its head does not matter.
        data: Set up for a fit.
        trainer: Whose fit begins.
        looks: V, at how many turned and mirrored copies of a crop the network looks.

    Returns:
        The store: the embeddings [V D] of a crop's looks, one after the other.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    head, part = linear_head(backbone), data.train_set
    still = Views(backbone.image_size, data.in_chans, resize=data.crop_spec.resize)
    kind = AnswerKind(
        teacher=body_fingerprint(backbone),
        taps=(),
        views=still.identity() | {"looks": looks},
        precision=str(trainer.precision),
        num_classes=0,
        maps=(),
        embedding=head.in_features * looks,
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
                    found = []
                    for turns, mirrored in _LOOKS[looks]:
                        turned = images.rot90(turns, (-2, -1))
                        backbone(turned.flip(-1) if mirrored else turned)
                        found.append(seen[0].flatten(1).float())
                yield on_the_cpu(images.new_zeros(len(images), 0), [], torch.cat(found, dim=1))
        finally:
            backbone.train(training)

    return filled_store(TeacherAnswers(kind.folder(data.crops.folder.parent), kind), views, names, asked, trainer)


def headed_features(
    backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer, c: float | None = None, looks: Looks = 2
) -> HeadedFeatures:
    """Computes a frozen teacher's outputs for every training crop without augmentation.

    A linear head on many features knows its own training crops by heart: there its answers say little more than the
    labels. Where ``c`` is given, labelled crops get the answers of heads that were fitted without their lesions.

    Args:
        backbone: The teacher.
        data: Set up for a fit.
        trainer: Whose fit begins.
        c: Regularisation of the head's fit, where it was fitted on this training part by :func:`fit_linear_head`.
        looks: V, at how many turned and mirrored copies of a crop the network looks.

    Returns:
        The outputs, by crop.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    store, head = still_features(backbone, data, trainer, looks), linear_head(backbone)
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach().float().cpu()
    found = HeadedFeatures(store, head.weight.detach().float().cpu().numpy(), bias.numpy())
    if c is not None:
        part = data.train_set
        groups = data.manifest.groups(data.split_spec.group_by)[part.rows]
        logits = held_out_logits(training_embeddings(store, data, looks), part.labels, groups, head.out_features, c)
        keys = [part.crops.key(row) for row in part.rows.tolist()]
        found.held_out = dict(zip(keys, logits, strict=True))
    return found


def held_out_logits(
    features: Embeddings, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], num_classes: int, c: float
) -> Embeddings:
    """Computes each crop's logits by a linear head that was fitted without its group (five folds).

    Args:
        features: float32 [N, V, D], V looks at each crop.
        labels: int64 [N].
        groups: str [N], such as lesions; a fold holds whole groups.
        num_classes: K.
        c: As of :func:`fit_linear_head`.

    Returns:
        float32 [N, K], the mean over a crop's looks.
    """
    names, members = np.unique(groups, return_inverse=True)
    # Rarest classes first, round after round, so that every fold has its share of each.
    frequency = np.bincount(labels, minlength=num_classes)
    label_of = np.zeros(len(names), np.int64)
    label_of[members] = labels
    order = np.lexsort((np.random.default_rng(0).random(len(names)), label_of, frequency[label_of]))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % _FOLDS
    logits = np.empty((len(labels), num_classes), np.float32)
    for number in range(_FOLDS):
        out = fold[members] == number
        if out.any():
            inside = features[~out] if (~out).any() else features
            known = labels[~out] if (~out).any() else labels
            weight, bias = fit_linear_head(inside, known, num_classes, c)
            logits[out] = features[out].mean(1) @ weight.numpy().T + bias.numpy()
    return logits


def fit_linear_head(
    features: Embeddings, labels: npt.NDArray[np.int64], num_classes: int, c: float
) -> tuple[Tensor, Tensor]:
    """Fits a linear classifier by logistic regression, every class weighing alike.

    Features are standardised for the fit; the scaling is folded into the layer. L2 regularisation as scikit-learn's
    ``LogisticRegression``: the sum of weighted losses times ``c``, plus half the squared weights. Each look at a crop
    is a sample of its own, which teaches the head what turning does not change; a crop's loss is the mean over them.

    Args:
        features: float32 [N, V, D], V looks at each crop.
        labels: int64 [N]; classes that do not occur get a bias that never wins.
        num_classes: K.
        c: Inverse strength of regularisation, above 0.

    Returns:
        Weight float32 [K, D] and bias float32 [K].
    """
    looks = features.shape[1]
    flat, labels = features.reshape(-1, features.shape[2]), labels.repeat(looks)
    mean, scale = flat.mean(0), flat.std(0) + 1e-6
    values = torch.from_numpy((flat - mean) / scale)
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
        total: Tensor = c / looks * (per_class[targets] * losses).sum() + weight.square().sum() / 2
        (total / len(labels)).backward()  # type: ignore[no-untyped-call]
        return total.detach() / len(labels)

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach() / torch.from_numpy(scale)
    shift = bias.detach() - found @ torch.from_numpy(mean)
    return found, torch.where(present, shift, torch.full((), -1e4))


def training_embeddings(store: TeacherAnswers, data: SpecimenDataModule, looks: Looks) -> Embeddings:
    """Loads the features of the labelled training crops.

    Args:
        store: From :func:`still_features`.
        data: Set up for a fit.
        looks: V, as they were computed.

    Returns:
        float32 [N, V, D], in the order of ``data.train_set.rows``.
    """
    part = data.train_set
    places = [part.place(position) for position in range(len(part.rows))]
    found = [store.load(place.crops.key(place.row), STILL).embedding for place in places]
    return np.stack(found).astype(np.float32).reshape(len(found), looks, -1)  # type: ignore[arg-type]


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
