"""Names options of a model that have no effect beside others, or contradict those of the data."""

import inspect
from collections.abc import Iterator

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.sampling import sampling_power
from kd_convnext.losses.labels.cross_entropy import BalancedSoftmax
from kd_convnext.losses.term import Needs
from kd_convnext.models.lora import LoraSpec
from kd_convnext.models.taps import TapSpec
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.optim import OptimSpec
from kd_convnext.modules.student import DistillModule
from kd_convnext.modules.teacher import TeacherModule

_OF_FINETUNE = {"linear_c": "linear", "linear_looks": "linear", "head_epochs": "head_first", "blocks": "last_blocks"}
"""Options that one way of fine-tuning alone reads."""


def idle_model_options(model: ClassifierModule, data: SpecimenDataModule) -> list[str]:
    """Lists options of a model that were given and are not used, or that the sampling of the classes contradicts.

    Args:
        model: As configured.
        data: As configured.

    Returns:
        A sentence for each, without the place: ``gamma has no effect beside loss cross_entropy``.
    """
    if isinstance(model, TeacherModule):
        return list(_of_teacher(model))
    return list(_of_student(model, data)) if isinstance(model, DistillModule) else []


def _of_teacher(model: TeacherModule) -> Iterator[str]:
    usual, given = inspect.signature(TeacherModule).parameters, model.hparams
    beside = f"has no effect beside finetune {model.finetune}"
    for name, kind in _OF_FINETUNE.items():
        if given[name] != usual[name].default and model.finetune != kind:
            yield f"{name} {beside}"
    if model.lora != LoraSpec() and model.finetune != "lora":
        yield f"lora {beside}"
    if model.finetune == "linear":
        if model.mixing.on:
            yield f"mixing {beside}"
        if model.optim != OptimSpec():
            yield f"optim {beside}"
    if given["gamma"] != usual["gamma"].default and given["loss"] != "focal":
        yield f"gamma has no effect beside loss {given['loss']}"


def _of_student(model: DistillModule, data: SpecimenDataModule) -> Iterator[str]:
    objective = model.objective
    read = [objective.student_needs, *(objective.needs(name) for name in objective.teachers)]
    if model.taps != TapSpec() and not any(Needs.MAPS in needs for needs in read):
        yield "taps has no effect: no term of the objective reads maps"
    views = data.loader.views
    if views is not None and model.teacher_cache is not True:
        without = f"without it, it only shows each crop in {views} views"
        yield f"data.loader.views {views} serves teacher_cache true; {without}"
    power = sampling_power(data.loader.sampling)
    for name, term in objective.named_terms().items():
        # Drawn by the power p of its share, a class has the prior share**p, of which tau = p takes away all.
        if isinstance(term, BalancedSoftmax) and power is not None and term.tau != power:
            does = "takes away more than is left of" if term.tau > power else "leaves a part of"
            sampling = f"data.loader.sampling {data.loader.sampling}"
            yield f"tau {term.tau:g} of the term {name} {does} the classes' shares: beside {sampling} it is {power:g}"
