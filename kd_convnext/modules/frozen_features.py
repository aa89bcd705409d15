"""Computes what a frozen network's last layer sees of every crop, once, and applies linear heads on it.

The network looks at each crop without augmentation, at its mirror image, or at turned ones too, or at the augmented
views that a student sees; what it sees is stored on disk, for every run, split and head that shares the network's body.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from kd_convnext.common.console import say
from kd_convnext.common.counting import counted
from kd_convnext.common.machine import require_memory
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.limited_views import limited_views, view_names
from kd_convnext.data.loading.mixing import MixedDataset
from kd_convnext.data.loading.teacher_outputs import (
    LINEAR,
    STILL,
    STUDENT,
    AnswerKind,
    Asker,
    StoredOutputs,
    TeacherAnswers,
    view_name,
)
from kd_convnext.data.loading.views import Views
from kd_convnext.data.manifest.grouping import NO_GROUP, row_hashes
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.taps import watched_features
from kd_convnext.modules.linear_heads import Embeddings, Head, held_out_heads
from kd_convnext.modules.output_store import Answer, Order, filled_stores, on_the_cpu

Looks = Literal[2, 4, 8]
"""At how many turned and mirrored copies of a crop a frozen network looks."""

_LOOKS: dict[Looks, tuple[tuple[int, bool], ...]] = {
    2: ((0, False), (0, True)),
    4: ((0, False), (1, True), (2, False), (3, True)),
    8: tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}
"""Quarter turns of each look, and whether it is mirrored after them."""


@dataclass
class HeadedFeatures:
    """Stored features with linear heads on them: the outputs of a frozen teacher.

    Attributes:
        still: Features of crops without augmentation, V looks at each.
        head: The teacher's own.
        held_out: Heads that have not seen the lesion of a crop, where the teacher's own was fitted on it, by crop.
        views: Features of augmented views; None where all views of a crop have the outputs of the crop itself.
        viewed: Names of the views that are among `views`; others have the outputs of the crop itself.
    """

    still: TeacherAnswers
    head: Head
    held_out: dict[str, Head] = field(default_factory=dict)
    views: TeacherAnswers | None = None
    viewed: frozenset[int] = frozenset()

    def load(self, crop_key: str, seed: int) -> StoredOutputs:
        """Reads the features of a view, or averages the looks at its crop, and applies a head.

        Args:
            crop_key: Of the crop.
            seed: Of the view.

        Returns:
            Logits [K] and embedding [D], in float16.

        Raises:
            CacheError: There are none, or they are damaged.
        """
        if self.views is not None and view_name(crop_key, seed) in self.viewed:
            found = self.views.load(crop_key, seed)
        else:
            found = self.still.load(crop_key, STILL)
        assert found.embedding is not None
        embedding = found.embedding.astype(np.float32).reshape(-1, self.head.weight.shape[1]).mean(0)
        logits = self.held_out.get(crop_key, self.head).logits(embedding)
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
    backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer, looks: Looks = 2, asker: Asker = LINEAR
) -> TeacherAnswers:
    """Makes sure that a network's features of every training crop, labelled or not, are on the disk.

    Args:
        backbone: The network; moved to the trainer's device and type. Its head does not matter.
        data: Set up for a fit.
        trainer: Whose fit begins.
        looks: V, at how many turned and mirrored copies of a crop the network looks.
        asker: Who is told.

    Returns:
        The store: the embeddings [V D] of a crop's looks, one after the other.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    return filled_stores([_still_order(backbone, data, trainer, looks)], trainer, asker)[0]


def _still_order(backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer, looks: Looks) -> Order:
    """Describes the features of every training crop without augmentation: the embeddings [V D] of its looks."""
    still = Views(backbone.image_size, data.in_chans, resize=data.crop_spec.resize)
    wanted = [View(position, STILL) for position in range(len(data.train_set))]
    return _order(backbone, data, trainer, still, wanted, still.identity() | {"looks": looks}, _LOOKS[looks])


def _view_order(backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer) -> Order:
    """Describes the features of the limited views of labelled crops: the embedding [D] of each.

    The network sees the same views as a student, each drawn at the network's own size.
    """
    moving = data.train_set.views.at(backbone.image_size)
    wanted = limited_views(data.train_set, data.loader, trainer.max_epochs)
    return _order(backbone, data, trainer, moving, wanted, moving.identity(), ((0, False),))


def _order(
    backbone: Backbone,
    data: SpecimenDataModule,
    trainer: pl.Trainer,
    drawn: Views,
    wanted: Sequence[View],
    identity: dict[str, Any],
    looks: Sequence[tuple[int, bool]],
) -> Order:
    """Describes a network's features of some views, and moves it to where they are computed."""
    head, part = linear_head(backbone), data.train_set
    kind = AnswerKind(
        teacher=body_fingerprint(backbone),
        taps=(),
        views=identity,
        precision=str(trainer.precision),
        num_classes=0,
        maps=(),
        embedding=head.in_features * len(looks),
    )
    with trainer.precision_plugin.module_init_context():
        backbone.to(trainer.strategy.root_device, torch.get_default_dtype())

    def asked(chosen: Sequence[View]) -> Iterator[Answer]:
        seen = watched_features(backbone)
        training = backbone.training
        backbone.eval()
        try:
            for batch in data.view_loader(chosen, drawn):
                images = batch["image"].to(backbone.mean.device, non_blocking=True)
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    found = []
                    for turns, mirrored in looks:
                        turned = images.rot90(turns, (-2, -1))
                        backbone(turned.flip(-1) if mirrored else turned)
                        found.append(seen[0].flatten(1).float())
                yield on_the_cpu(images.new_zeros(len(images), 0), [], torch.cat(found, dim=1))
        finally:
            backbone.train(training)

    store = TeacherAnswers(kind.folder(data.crops.folder.parent), kind)
    return Order(store, wanted, view_names(part, wanted), asked, len(looks))


def headed_features(
    backbone: Backbone,
    data: SpecimenDataModule,
    trainer: pl.Trainer,
    c: float | None = None,
    looks: Looks = 2,
    *,
    views: bool = False,
    asker: Asker = STUDENT,
) -> HeadedFeatures:
    """Computes a frozen teacher's outputs for every training crop, labelled or not, ahead of the training.

    A linear head on many features fits its own training crops closely: there its answers say little more than the
    labels. Where ``c`` is given, labelled crops, and others of their lesions and patients, get the answers of heads
    that were fitted without these; but for those whose class has no other lesion.

    Args:
        backbone: The teacher.
        data: Set up for a fit.
        trainer: Whose fit begins.
        c: Regularisation of the head's fit, where it was fitted on this training part by `fit_linear_head`.
        looks: V, at how many turned and mirrored copies of a crop the network looks.
        views: Also look at each of the limited views of labelled crops; those of others have the crop's outputs.
        asker: Who is told.

    Returns:
        The outputs, by crop and view.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    head, part = linear_head(backbone), data.train_set
    if c is not None:
        require_fit_memory(backbone, data, trainer, looks, asker, copies=2)  # all, and those outside a fold
    orders = [_still_order(backbone, data, trainer, looks)]
    if views:
        orders.append(_view_order(backbone, data, trainer))
    store, *moving = filled_stores(orders, trainer, asker)
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach().float().cpu()
    found = HeadedFeatures(store, Head(head.weight.detach().float().cpu().numpy(), bias.numpy()))
    if views:
        found.views, found.viewed = moving[0], frozenset(orders[1].names)
    if c is not None:
        groups = data.manifest.groups("known")[part.rows]
        heads = held_out_heads(training_embeddings(store, data, looks), part.labels, groups, head.out_features, c)
        found.held_out = _by_crop(heads, data)
        if alone := [data.class_names[label] for label in np.unique(part.labels[[head is None for head in heads]])]:
            why = "no other lesion or patient has the class, so that its answers are hardly more than labels"
            say(trainer, f"The teacher's own head answers for crops of {', '.join(alone)}: {why}")
    return found


def _by_crop(heads: Sequence[Head | None], data: SpecimenDataModule) -> dict[str, Head]:
    """Maps crops to heads: labelled ones to their own, others to that of a labelled one of their lesion or patient."""
    part, found = data.train_set, dict[str, Head | None]()
    if isinstance(part, MixedDataset) and data.unlabelled is not None:
        ids = row_hashes(data.manifest.table, part.rows).tolist()
        without = {
            value: head
            for values, head in zip(ids, heads, strict=True)
            for value in values
            if value != NO_GROUP and head is not None
        }
        others = part.unlabelled
        ids = data.unlabelled.hashes(data.manifest).tolist()
        for row, values in zip(others.rows.tolist(), ids, strict=True):
            if shared := [without[value] for value in values if value in without]:
                found[others.crops.key(row)] = shared[0]
    found |= {part.crops.key(row): head for row, head in zip(part.rows.tolist(), heads, strict=True)}
    return {key: head for key, head in found.items() if head is not None}


def require_fit_memory(
    backbone: Backbone, data: SpecimenDataModule, trainer: pl.Trainer, looks: Looks, asker: Asker, *, copies: int = 1
) -> None:
    """Refuses a linear head's fit that does not fit into memory, before the network looks at a crop.

    Args:
        backbone: The network.
        data: Set up for a fit.
        trainer: Whose fit begins; each of its processes fits for itself.
        looks: V, at how many copies of a crop the network looks.
        asker: Who is told.
        copies: How many copies of the features are held at a time.

    Raises:
        ConfigError: It does not fit.
    """
    crops = len(data.train_set.rows)
    size = crops * looks * linear_head(backbone).in_features * 4 * copies * trainer.num_devices
    what = f"a linear head's fit on {counted(crops, 'crop')} at {looks} looks"
    require_memory(size, what, asker.place, asker.no_memory)


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
    found = np.empty((len(part.rows), looks, store.kind.embedding // looks), np.float32)
    for position, values in enumerate(found):
        place = part.place(position)
        embedding = store.load(place.crops.key(place.row), STILL).embedding
        assert embedding is not None
        values[:] = embedding.reshape(values.shape)
    return found


def body_fingerprint(backbone: Backbone) -> str:
    """Returns the sha256 of a backbone's weights without its last layer, of its arguments and its normalisation."""
    head = {id(parameter) for parameter in backbone.head_parameters()}
    # Arguments such as a kind of pooling change what a network sees and none of its weights.
    args = json.dumps(backbone.args, sort_keys=True, default=str) if backbone.args else ""
    digest = hashlib.sha256(f"{backbone.name} {backbone.image_size}{args}".encode())
    names = {name for name, parameter in backbone.named_parameters(remove_duplicate=False) if id(parameter) in head}
    for name, value in backbone.state_dict().items():
        if name not in names:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
