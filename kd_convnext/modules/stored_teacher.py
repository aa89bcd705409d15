"""Computes a teacher's outputs for all views of a training part before the training, and stores them on disk."""

from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.limited_views import limited_views, view_names
from kd_convnext.data.loading.mixing import MixedSampler, training_sampler
from kd_convnext.data.loading.teacher_outputs import AnswerKind, TeacherAnswers
from kd_convnext.losses.term import logits_of
from kd_convnext.modules.frozen_teacher import FrozenTeacher
from kd_convnext.modules.output_store import Answer, Order, filled_stores, on_the_cpu


def stored_answers(teacher: FrozenTeacher, data: SpecimenDataModule, trainer: pl.Trainer) -> TeacherAnswers:
    """Makes sure that a teacher's answers for every view of the training part are on the disk.

    Under several processes each makes its share. What an earlier run has made is kept.

    Args:
        teacher: As it was loaded; moved to the trainer's device and type.
        data: Set up for a fit, with a number of ``loader.views``.
        trainer: Whose fit begins.

    Returns:
        The answers, complete.

    Raises:
        CacheError: They do not fit on the disk, or cannot be written.
    """
    fingerprint = teacher.fingerprint  # of the weights as they were stored
    with trainer.precision_plugin.module_init_context():
        teacher.to(trainer.strategy.root_device, torch.get_default_dtype())
    kind = _kind(teacher, fingerprint, data, trainer)
    replicas = trainer.world_size
    sampler, _ = training_sampler(data.train_set, data.loader, data.batch_size, drawn=False, num_replicas=replicas)
    drawn = sampler.unlabelled_an_epoch if isinstance(sampler, MixedSampler) else 0
    views = limited_views(data.train_set, data.loader, trainer.max_epochs, unlabelled_an_epoch=drawn)
    names = view_names(data.train_set, views)

    def asked(chosen: Sequence[View]) -> Iterator[Answer]:
        for batch in data.view_loader(chosen):
            with trainer.precision_plugin.forward_context():
                found = teacher(batch["image"].to(teacher.device, non_blocking=True))
            yield on_the_cpu(logits_of(found), found.maps or (), found.embedding)

    store = TeacherAnswers(kind.folder(data.crops.folder.parent), kind)
    return filled_stores([Order(store, views, names, asked)], trainer)[0]


def _kind(teacher: FrozenTeacher, fingerprint: str, data: SpecimenDataModule, trainer: pl.Trainer) -> AnswerKind:
    blank = torch.zeros(1, data.in_chans, data.image_size, data.image_size, dtype=torch.uint8)
    with trainer.precision_plugin.forward_context():
        found = teacher(blank.to(teacher.device))
    return AnswerKind(
        teacher=fingerprint,
        taps=teacher.probe.tap_names,
        views=data.train_set.views.identity(),
        precision=str(trainer.precision),
        num_classes=logits_of(found).shape[1],
        maps=tuple(tuple(values.shape[1:]) for values in found.maps or ()),
        embedding=0 if found.embedding is None else found.embedding.shape[1],
    )
