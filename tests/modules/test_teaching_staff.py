"""Fits by an objective: the paper's default as it always was, several teachers, stored outputs, refusals."""

import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, data, student, teacher, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch._dynamo.utils import counters

from kd_convnext import DistillModule
from kd_convnext.checkpoints.format import KEY, read_checkpoint
from kd_convnext.errors import ConfigError
from kd_convnext.losses import (
    LDAM,
    CosineEmbedding,
    CrossEntropy,
    Decoupled,
    Ensemble,
    Eq5,
    FeatureMaps,
    Focal,
    Objective,
    PriorRemoved,
    Relational,
    SoftTargets,
    StageLogits,
    UnlikeMaps,
    WeightSchedule,
)
from kd_convnext.modules import compiled_step
from kd_convnext.modules.optim import OptimSpec

JOINT = [
    *(14.212788581848145, 14.131866455078125, 14.113607406616211, 14.121277809143066),
    *(14.12721061706543, 14.099421501159668, 14.09113597869873, 14.108133316040039),
    *(14.070263862609863, 14.095518112182617, 13.99563980102539, 14.00041675567627),
]
"""Losses of every step of three epochs before the objective was built of terms."""

SEQUENTIAL = [
    *(0.22993120551109314, 0.20864742994308472, 0.1615373194217682, 0.16609102487564087),
    *(12.884005546569824, 12.876194953918457, 12.878561019897461, 12.876214027404785),
    *(0.9698893427848816, 1.0349372625350952, 1.0766661167144775, 0.8889259696006775),
]
"""The same of the paper's three stages, one epoch each."""


class Steps(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, *rest):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


@pytest.fixture(scope="module")
def taught(source, tmp_path_factory):
    """Two teachers: a Swin and a ConvNeXt."""
    folder, found = tmp_path_factory.mktemp("teachers"), {}
    for name, options in {"swin": {}, "convnext": {"backbone": CONVNEXT_SPEC}}.items():
        fit = trainer(folder)
        module = teacher(source, **options)
        torch.manual_seed(3)
        fit.fit(module, datamodule=source)
        found[name] = str(folder / f"{name}.ckpt")
        fit.save_checkpoint(found[name])
    return found


def of_two() -> Objective:
    """Logits of one teacher; maps, logits and embeddings of another; the mean of both; labels."""
    return Objective(
        {
            "soft": Decoupled(teacher="swin"),
            "unbiased": PriorRemoved(teacher="convnext", weight=0.1, schedule=WeightSchedule(start=1)),
            "feature": FeatureMaps(0.5, teacher="convnext"),
            "embedding": CosineEmbedding(teacher="convnext"),
            "relations": Relational(weight=0.1, teacher="swin"),
            "mean": SoftTargets(teacher="both"),
            "labels": LDAM(reweight_from=1),
        },
        {"both": Ensemble(["swin", "convnext"])},
    )


@pytest.mark.parametrize(
    "options, golden",
    [({}, JOINT), ({"stages": "sequential", "stage_epochs": (1, 1)}, SEQUENTIAL)],
    ids=["joint", "sequential"],
)
def test_eq5_gives_the_same_losses_as_before_there_were_terms(source, taught, tmp_path, options, golden):
    steps = Steps()
    module = student(source, taught["swin"], objective=Eq5(**options))
    torch.manual_seed(3)
    trainer(tmp_path, 3, callbacks=[steps]).fit(module, datamodule=source)
    # Equal to the last bit where they were recorded; kernels of other processors round otherwise.
    assert steps.losses == pytest.approx(golden, rel=1e-3)


def test_a_prior_is_missed_where_the_teacher_never_learned_it(source, taught, tmp_path, recwarn):
    checkpoint = torch.load(taught["convnext"], weights_only=True)
    for changed in ({"loss": "cross_entropy"}, {"loss": "focal", "class_weights": None}):
        checkpoint["hyper_parameters"] |= changed
        torch.save(checkpoint, tmp_path / "plain.ckpt")
        plain = student(source, objective=of_two(), teachers={**taught, "convnext": str(tmp_path / "plain.ckpt")})
        plain.check_teachers(source).warn_of_removed_priors()
    assert not [one for one in recwarn if "PriorRemoved" in str(one.message)]
    module = student(source, objective=of_two(), teachers={**taught, "convnext": taught["swin"]})
    with pytest.warns(UserWarning, match="leave PriorRemoved out"):
        module.check_teachers(source).warn_of_removed_priors()


def test_a_fit_resumed_within_an_epoch_begins_it(source, tmp_path):
    """Lightning does not: weights would be those of epoch 0, margins unweighted, frozen parts would learn."""
    seen = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            weights, learns = module._weights.tolist(), [p.requires_grad for p in module.student.parameters()]
            margins = module.objective.named_terms()["labels"].class_weights.tolist()
            seen.append((trainer.current_epoch, batch_idx, weights, margins, learns, len(module._tally)))

    def fitted(ckpt=None):
        terms = {"labels": LDAM(reweight_from=1), "more": CrossEntropy(schedule=WeightSchedule(start=1))}
        module = student(source, objective=Objective(terms), optim=OptimSpec(unfreeze_epochs=1))
        kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        options = {"limit_train_batches": 3, "limit_val_batches": 1, "enable_checkpointing": True}
        fit = trainer(tmp_path, 3, callbacks=[Looks(), kept], **options)
        fit.fit(module, datamodule=source, ckpt_path=ckpt)
        found = [steps[:5] for steps in seen]
        tallied = [steps[5] for steps in seen]
        seen.clear()
        return found, tallied

    whole, _ = fitted()
    rest, tallied = fitted(tmp_path / "step=5.ckpt")
    assert rest == whole[5:] and [steps[:2] for steps in rest] == [(1, 2), (2, 0), (2, 1), (2, 2)]
    assert tallied == [1, 1, 2, 3]
    assert whole[0][2:] != rest[0][2:] != rest[1][2:]


def test_two_teachers_are_asked_for_what_their_terms_need(source, taught, tmp_path):
    module = student(source, objective=of_two(), teachers=taught)
    torch.manual_seed(3)
    fit = trainer(tmp_path, 2, limit_train_batches=2, limit_val_batches=1)
    with pytest.warns(UserWarning, match=r"convnext\.ckpt was trained with classes weighted.* the term unbiased"):
        fit.fit(module, datamodule=source)
    logged = {name for name in fit.callback_metrics if name.startswith("train/loss_")} - {"train/loss_step"}
    assert logged == {f"train/loss_{name}" for name in module.objective.names}
    fit.save_checkpoint(tmp_path / "student.ckpt")
    checkpoint = read_checkpoint(tmp_path / "student.ckpt")
    own = checkpoint[KEY]
    assert own["teachers"] == {"swin": "swin.ckpt", "convnext": "convnext.ckpt"}
    assert own["widths"]["teachers"] == {"swin": [5, [], 128], "convnext": [5, [8, 16, 16, 24], 24]}
    assert own["taps"]["teachers"]["swin"] == []
    described = checkpoint["hyper_parameters"]["objective"]["init_args"]["terms"]
    assert described["unbiased"]["init_args"]["schedule"]["start"] == 1
    # Without the teachers' files: tested, and resumed only with them.
    loaded = DistillModule.load_from_checkpoint(tmp_path / "student.ckpt")
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
    (metrics,) = trainer(tmp_path).test(loaded, datamodule=source, verbose=False)
    assert 0 <= metrics["test/f1_macro"] <= 1
    resumed = trainer(tmp_path, 3, limit_train_batches=2, limit_val_batches=1)
    resumed.fit(
        student(source, objective=of_two(), teachers=taught), datamodule=source, ckpt_path=tmp_path / "student.ckpt"
    )
    assert resumed.global_step == 6


@pytest.mark.parametrize(
    "objective",
    [
        Objective({"embedding": CosineEmbedding(teacher="swin")}),
        Objective({"relations": Relational(teacher="swin")}),
        Objective({"stages": StageLogits(teacher="swin")}),
        Objective({"maps": UnlikeMaps(teacher="swin")}),
        Eq5(drop=["soft", "focal"], teacher="swin"),
    ],
    ids=["embedding", "relations", "stage logits", "unlike maps", "maps"],
)
def test_every_parameter_has_a_gradient_whatever_the_terms_read(source, taught, tmp_path, objective):
    """Else several processes end at their second step."""
    without = []

    class Gradients(Callback):
        def on_after_backward(self, trainer, module):
            without.append([name for name, one in module.named_parameters() if one.grad is None])

    module = student(source, objective=objective, teachers={"swin": taught["swin"]})
    options = {"limit_train_batches": 1, "limit_val_batches": 1}
    trainer(tmp_path, callbacks=[Gradients()], **options).fit(module, datamodule=source)
    assert without == [[]]


@pytest.mark.slow
def test_two_teachers_and_a_schedule_are_one_compiled_graph(source, taught, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_step, "BACKEND", "aot_eager")
    torch.compiler.reset()
    counters.clear()
    runs = []
    for on in (False, True):
        steps = Steps()
        module = student(source, objective=of_two(), teachers=taught, compile=on)
        torch.manual_seed(3)
        options = {"callbacks": [steps], "limit_train_batches": 2, "limit_val_batches": 1}
        trainer(tmp_path, 3, **options).fit(module, datamodule=source)
        runs.append(steps.losses)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("stored", [True, "still"])
def test_outputs_of_two_teachers_are_stored(tiny_manifest, taught, tmp_path, stored):
    terms = {"soft": SoftTargets(teacher="swin"), "relations": Relational(teacher="convnext"), "labels": Focal()}
    losses = []
    for number in range(2):
        source = data(tiny_manifest, str(tmp_path / "cache"), views=2)
        again = {name: type(term)(**term._arguments) for name, term in terms.items()}
        module, steps = student(source, objective=Objective(again), teachers=taught, teacher_cache=stored), Steps()
        torch.manual_seed(3)
        trainer(tmp_path / str(number), 2, callbacks=[steps]).fit(module, datamodule=source)
        losses.append(steps.losses)
    assert losses[0] == losses[1] and all(loss == loss for loss in losses[0])


def test_still_outputs_have_no_maps(source, taught, tmp_path):
    module = student(source, taught["swin"], teacher_cache="still")
    with pytest.raises(ConfigError, match="needs maps of 'teacher'"):
        trainer(tmp_path).fit(module, datamodule=source)


def test_labels_alone_need_no_teacher(source, tmp_path):
    module = student(source, objective=Objective({"labels": CrossEntropy(smoothing=0.1)}))
    fit = trainer(tmp_path, fast_dev_run=1)
    fit.fit(module, datamodule=source)
    assert "train/loss_labels" in fit.callback_metrics


def test_teachers_and_terms_must_name_each_other(source, taught, tmp_path):
    module = student(source, objective=Objective({"soft": SoftTargets(teacher="vit")}), teachers=taught)
    with pytest.raises(ConfigError) as caught:
        trainer(tmp_path).fit(module, datamodule=source)
    wheres = {finding.where for finding in caught.value.findings}
    assert wheres == {"--model.teachers.vit", "--model.teachers.swin", "--model.teachers.convnext"}
    with pytest.raises(ConfigError, match="Give one of both"):
        student(source, taught["swin"], teachers={"teacher": taught["swin"]})
    with pytest.raises(ConfigError, match="cannot be a teacher's name"):
        student(source, teachers={"a b": taught["swin"]})


def test_old_arguments_are_understood_with_one_warning(source):
    with pytest.warns(UserWarning, match=r"alpha, soft .* objective\.alpha, objective\.drop: \[soft\]"):
        module = student(source, alpha=0.25, soft=False)
    assert module.objective.names == ("feature", "focal") and module.objective.terms["feature"].weight == 0.25
    with pytest.raises(ConfigError, match="no argument alfa"):
        student(source, alfa=0.25)
