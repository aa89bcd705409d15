import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, SWIN_SPEC, data, student, teacher, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from scipy.special import log_softmax

from kd_convnext import DistillModule, TeacherModule
from kd_convnext.checkpoints.format import KEY, read_checkpoint
from kd_convnext.errors import CheckpointError, ConfigError, LeakError
from kd_convnext.losses import BalancedSoftmax, CosineEmbedding, Eq5, Objective, SoftTargets
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules.teacher import build_task_loss


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


@pytest.fixture(scope="module")
def teacher_ckpt(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    fit = trainer(folder)
    fit.fit(teacher(source), datamodule=source)
    fit.save_checkpoint(folder / "teacher.ckpt")
    return folder / "teacher.ckpt"


@pytest.fixture(scope="module")
def student_ckpt(source, teacher_ckpt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    fit = trainer(folder)
    fit.fit(student(source, teacher_ckpt), datamodule=source)
    fit.save_checkpoint(folder / "student.ckpt")
    return folder / "student.ckpt"


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestTeacherOfAStudent:
    def test_gets_no_gradient_and_does_not_change_by_a_bit(self, source, teacher_ckpt, tmp_path):
        module = student(source, teacher_ckpt)
        before = {}

        class Watch(torch.nn.Module):
            pass

        fit = trainer(tmp_path)
        original = module.on_fit_start

        def on_fit_start():
            original()
            before.update(state_of(module.staff.live["teacher"].backbone))
            module.kept = [module.staff.live["teacher"].backbone]

        module.on_fit_start = on_fit_start
        fit.fit(module, datamodule=source)
        (after,) = module.kept
        assert same(before, state_of(after))
        assert not after.training
        assert all(not p.requires_grad and p.grad is None for p in after.parameters())
        trained = TeacherModule.load_from_checkpoint(teacher_ckpt).backbone
        assert same(state_of(trained), before)

    def test_is_not_in_the_checkpoint(self, student_ckpt):
        keys = read_checkpoint(student_ckpt)["state_dict"].keys()
        assert {key.split(".")[0] for key in keys} == {"student", "objective"}

    def test_may_be_gone_at_test(self, source, teacher_ckpt, tmp_path):
        lent = shutil.copy(teacher_ckpt, tmp_path / "lent.ckpt")
        fit = trainer(tmp_path)
        fit.fit(student(source, lent), datamodule=source)
        fit.save_checkpoint(tmp_path / "student.ckpt")
        (tmp_path / "lent.ckpt").unlink()
        loaded = DistillModule.load_from_checkpoint(tmp_path / "student.ckpt")
        (metrics,) = trainer(tmp_path).test(loaded, datamodule=source, verbose=False)
        assert 0 <= metrics["test/f1_macro"] <= 1

    @pytest.mark.parametrize(
        "make, said",
        [
            (lambda folder, ckpt: folder / "no.ckpt", "there is no file"),
            (lambda folder, ckpt: _text(folder / "config.yaml"), "not a checkpoint"),
            (lambda folder, ckpt: _pickle(folder / "evil.ckpt"), "loaded safely"),
            (lambda folder, ckpt: _foreign(folder / "foreign.ckpt"), "not written by kd-convnext"),
            (lambda folder, ckpt: _newer(folder / "new.ckpt", ckpt), "Update kd-convnext"),
        ],
    )
    def test_that_is_none_is_refused_in_one_line(self, source, teacher_ckpt, tmp_path, make, said):
        with pytest.raises(CheckpointError, match=said) as caught:
            trainer(tmp_path).fit(student(source, make(tmp_path, teacher_ckpt)), datamodule=source)
        assert "--model.teacher_ckpt" in str(caught.value)
        assert not (tmp_path / "owned").exists()

    def test_that_is_a_student_is_refused(self, source, student_ckpt, tmp_path):
        with pytest.raises(CheckpointError, match="holds a DistillModule, not a teacher"):
            trainer(tmp_path).fit(student(source, student_ckpt), datamodule=source)

    def test_that_is_missing_is_asked_for(self, source, tmp_path):
        with pytest.raises(ConfigError, match="distillation needs a teacher"):
            trainer(tmp_path).fit(student(source), datamodule=source)

    def test_of_other_classes_is_refused(self, source, teacher_ckpt, tiny_manifest, tiny_cache, tmp_path):
        turned = data(tiny_manifest, tiny_cache, classes=["MIA", "AIS", "Grade 1", "Grade 2", "Grade 3"])
        with pytest.raises(CheckpointError, match="the teacher knows Grade 1, Grade 2"):
            trainer(tmp_path).fit(student(turned, teacher_ckpt), datamodule=turned)

    def test_of_another_split_is_refused_unless_allowed(self, teacher_ckpt, tiny_manifest, tiny_cache, tmp_path):
        other = data(tiny_manifest, tiny_cache, split_index=1)
        with pytest.raises(LeakError, match="was trained on") as caught:
            trainer(tmp_path).fit(student(other, teacher_ckpt), datamodule=other)
        assert "give the same" not in str(caught.value)
        other = data(tiny_manifest, tiny_cache, group_by="image")
        with pytest.raises(LeakError, match=r"with --data\.split\.group_by known, here it is image: give the same"):
            trainer(tmp_path).fit(student(other, teacher_ckpt), datamodule=other)
        allowed = data(tiny_manifest, tiny_cache, split_index=1, allow_leak=True)
        module = student(allowed, teacher_ckpt)
        trainer(tmp_path, fast_dev_run=1, enable_checkpointing=False).fit(module, datamodule=allowed)
        assert module.card.leak_allowed

    def test_of_another_size_and_channel_count(self, source, tiny_manifest, tiny_cache, tmp_path, teacher_ckpt):
        bigger = student(
            data(tiny_manifest, tiny_cache, image_size=48),
            teacher_ckpt,
            student=BackboneSpec(name="convnext_tiny", image_size=48, args=CONVNEXT_SPEC.args),
        )
        trainer(tmp_path, fast_dev_run=1).fit(bigger, datamodule=data(tiny_manifest, tiny_cache, image_size=48))
        grey = data(tiny_manifest, tiny_cache, in_chans=1)
        spec = BackboneSpec(name="convnext_tiny", image_size=32, in_chans=1, args=CONVNEXT_SPEC.args)
        with pytest.raises(CheckpointError, match="takes 3 channels, the student 1"):
            trainer(tmp_path, fast_dev_run=1).fit(student(grey, teacher_ckpt, student=spec), datamodule=grey)


def _text(path):
    path.write_text("model: {}")
    return path


class _Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def _pickle(path):
    torch.save({KEY: _Evil(str(path.parent / "owned"))}, path)
    return path


def _foreign(path):
    torch.save({"state_dict": {}}, path)
    return path


def _newer(path, ckpt):
    checkpoint = read_checkpoint(ckpt)
    checkpoint[KEY]["format_version"] = 99
    torch.save(checkpoint, path)
    return path


class TestAblation:
    @pytest.mark.parametrize(
        "dropped", [("feature", "soft"), ("feature",), ("soft",), ()], ids=["alone", "logits", "features", "both"]
    )
    def test_rows_drop_their_terms_and_keep_the_others_weights(self, source, teacher_ckpt, tmp_path, dropped):
        taught = None if "soft" in dropped and "feature" in dropped else teacher_ckpt
        module = student(source, taught, objective=Eq5(drop=dropped))
        fit = trainer(tmp_path, limit_train_batches=2, limit_val_batches=1)
        fit.fit(module, datamodule=source)
        weights = {"feature": 0.5, "soft": 0.5, "focal": 1.0}
        start = "train/loss_"
        logged = {n.removeprefix(start): float(v) for n, v in fit.callback_metrics.items() if n.startswith(start)}
        logged.pop("step", None)
        assert ("soft_kl" in logged) == ("soft" not in dropped)  # beside the term's value, no term of its own
        logged.pop("soft_kl", None)
        assert logged.keys() == weights.keys() - set(dropped)  # what is dropped is not logged as 0
        total = sum(weights[name] * value for name, value in logged.items())
        assert float(fit.callback_metrics["train/loss"]) == pytest.approx(total, rel=1e-5)
        assert ("objective.terms.feature.projector.0.weight" in module.state_dict()) == ("feature" not in dropped)

    def test_alone_needs_no_teacher(self, source, tmp_path):
        module = student(source, objective=Eq5(drop=["feature", "soft"]))
        trainer(tmp_path, fast_dev_run=1).fit(module, datamodule=source)

    def test_stages_need_all_terms(self):
        with pytest.raises(ConfigError, match="joint"):
            Eq5(stages="sequential", drop=["soft"])

    def test_stages_one_after_the_other(self, source, teacher_ckpt, tmp_path):
        module = student(source, teacher_ckpt, objective=Eq5(stages="sequential", stage_epochs=(1, 1)))
        seen = []
        log = module.log_training

        def spy(loss, logits, labels, terms):
            seen.append((module.current_epoch, float(loss), {name: float(value) for name, value in terms.items()}))
            log(loss, logits, labels, terms)

        module.log_training = spy
        trainer(tmp_path, epochs=3, limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=source)
        weights = [("feature", 0.5), ("soft", 0.5), ("focal", 1.0)]
        for (epoch, loss, terms), (name, weight) in zip(seen, weights, strict=True):
            assert loss == pytest.approx(weight * terms[name]), epoch


class TestFineTuning:
    def test_head_first_then_all(self, source, tmp_path):
        module = teacher(source, finetune="head_first", head_epochs=1)
        body, head = module.backbone.body_parameters(), module.backbone.head_parameters()
        before = [p.clone() for p in body], [p.clone() for p in head]
        trainer(tmp_path, epochs=1).fit(module, datamodule=source)
        assert all(torch.equal(a, b) for a, b in zip(before[0], body, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(before[1], head, strict=True))
        module = teacher(source, finetune="head_first", head_epochs=1)
        body = module.backbone.body_parameters()
        trainer(tmp_path, epochs=2).fit(module, datamodule=source)
        assert not all(torch.equal(a, b) for a, b in zip(before[0], body, strict=True))

    def test_head_only(self, source, tmp_path):
        module = teacher(source, finetune="head_only")
        before = [p.clone() for p in module.backbone.body_parameters()]
        trainer(tmp_path, epochs=1).fit(module, datamodule=source)
        assert all(torch.equal(a, b) for a, b in zip(before, module.backbone.body_parameters(), strict=True))

    @pytest.mark.parametrize("loss", ["cross_entropy", "weighted_cross_entropy", "focal"])
    def test_losses_are_their_formulas(self, loss):
        weights, labels = [0.5, 1.0, 2.0, 0.25, 1.25], torch.tensor([0, 2, 2, 4, 3, 1])
        module = TeacherModule(5, class_weights=weights, backbone=SWIN_SPEC, loss=loss, gamma=1.5).eval()
        images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        value, logits = module.judged(images, labels)
        log_p = log_softmax(logits.detach().double().numpy(), axis=1)[np.arange(6), labels]
        alpha = np.array(weights)[labels]
        formulas = {
            "cross_entropy": -log_p.mean(),
            "weighted_cross_entropy": -(alpha * log_p).sum() / alpha.sum(),
            "focal": -(alpha * (1 - np.exp(log_p)) ** 1.5 * log_p).mean(),
        }
        assert float(value) == pytest.approx(formulas[loss], rel=1e-5)
        assert len({round(formula, 6) for formula in formulas.values()}) == 3
        assert not [name for name in module.state_dict() if "task_loss" in name]  # weights come from hyper-parameters
        # Rows without a label are left out, of labels and of probabilities as mixup gives.
        more, shares = images[[0, *range(6), 3]], torch.full((8, 5), -1.0)
        shares[1:7] = torch.eye(5)[labels]
        for told in (torch.tensor([-1, *labels, -1]), shares):
            assert float(module.judged(more, told)[0]) == pytest.approx(float(value), rel=1e-5)
        assert float(module.judged(images, torch.full((6,), -1))[0]) == 0

    @pytest.mark.parametrize("loss", ["weighted_cross_entropy", "focal"])
    def test_no_weights_weigh_all_alike(self, loss):
        logits, labels = torch.eye(5)[:3], torch.tensor([0, 2, 4])
        found = [float(build_task_loss(loss, weights, 2.0)(logits, labels)) for weights in ([], None, [1.0] * 5)]
        assert found == pytest.approx([found[2]] * 3)

    def test_a_body_that_rests_counts_in_no_clipping_and_fills_no_moments(self, source, tmp_path):
        """As under DDP, where the body keeps getting gradients while only the head is trained."""

        class AsUnderDdp(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                module.classifier.requires_grad_(True)

        states, heads = [], []
        for callbacks in ([], [AsUnderDdp()]):
            fit = trainer(tmp_path, gradient_clip_val=1e-3, callbacks=callbacks, limit_val_batches=0)
            module = teacher(source, finetune="head_first", head_epochs=1)
            fit.fit(module, datamodule=source)
            states.append([len(fit.optimizers[0].state.get(p, ())) for p in module.backbone.body_parameters()])
            heads.append(torch.cat([p.detach().flatten() for p in module.backbone.head_parameters()]))
        assert not any(states[0]) and not any(states[1])
        assert torch.equal(*heads)


class TestRepeatability:
    def test_same_seed_same_weights(self, source, teacher_ckpt, tmp_path):
        one, other = student(source, teacher_ckpt), student(source, teacher_ckpt)
        for module in (one, other):
            torch.manual_seed(3)
            trainer(tmp_path).fit(module, datamodule=source)
        assert same(state_of(one), state_of(other))

    def test_resumed_equals_uninterrupted(self, source, teacher_ckpt, tmp_path):
        spec = BackboneSpec(name="convnext_tiny", image_size=32, args=CONVNEXT_SPEC.args, drop_path_rate=0.3)
        whole = student(source, teacher_ckpt, student=spec)
        torch.manual_seed(5)
        trainer(tmp_path, epochs=3).fit(whole, datamodule=source)
        first = student(source, teacher_ckpt, student=spec)
        torch.manual_seed(5)
        half = trainer(tmp_path, epochs=2)
        half.fit(first, datamodule=source)
        half.save_checkpoint(tmp_path / "half.ckpt")
        second = student(source, teacher_ckpt, student=spec)
        torch.manual_seed(5)
        trainer(tmp_path, epochs=3).fit(second, datamodule=source, ckpt_path=tmp_path / "half.ckpt")
        assert same(state_of(whole), state_of(second))

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
    def test_reduced_precision_runs(self, source, teacher_ckpt, tmp_path, precision):
        fit = trainer(tmp_path, precision=precision, limit_train_batches=2, limit_val_batches=1)
        fit.fit(student(source, teacher_ckpt), datamodule=source)
        assert torch.isfinite(fit.callback_metrics["train/loss"])


class TestCheckpoint:
    def test_answers_for_everything(self, source, student_ckpt):
        module = DistillModule.load_from_checkpoint(student_ckpt)
        assert module.class_names == ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
        card = module.card
        assert (card.image_size, card.in_chans, card.split_hash) == (32, 3, source.split.hash)
        assert card.crop["upscaler"] == "bicubic" and card.crop["store_size"] == 40
        own = read_checkpoint(student_ckpt)[KEY]
        assert own["taps"]["teachers"] == {"teacher": [f"layers.{i}" for i in range(4)]}
        assert own["taps"]["student"] == [f"stages.{i}" for i in range(4)]
        assert own["widths"] == {"student": [5, [8, 16, 16, 24], 0], "teachers": {"teacher": [5, [16, 32, 64, 128], 0]}}
        assert own["kind"] == "DistillModule" and own["format_version"] == 2

    def test_logits_are_the_same_after_loading(self, source, teacher_ckpt, tmp_path):
        module = student(source, teacher_ckpt)
        fit = trainer(tmp_path)
        fit.fit(module, datamodule=source)
        fit.save_checkpoint(tmp_path / "a.ckpt")
        images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        loaded = DistillModule.load_from_checkpoint(tmp_path / "a.ckpt").eval()
        with torch.no_grad():
            assert torch.equal(module.eval()(images), loaded(images))

    def test_of_another_split_is_not_tested(self, student_ckpt, tiny_manifest, tiny_cache, tmp_path):
        module = DistillModule.load_from_checkpoint(student_ckpt)
        with pytest.raises(LeakError):
            trainer(tmp_path).test(module, datamodule=data(tiny_manifest, tiny_cache, split_index=1), verbose=False)

    @pytest.mark.parametrize("group_by", ["image", "lesion", "patient"])
    def test_its_own_split_is_no_leak(self, tiny_manifest, tiny_cache, tmp_path, group_by):
        lines = tiny_manifest.read_text().splitlines()
        manifest = tmp_path / "patients.csv"
        # Two lesions a patient: a split by lesion divides patients, one by image divides lesions.
        patients = [line.split(",")[2][:-1] + str(int(line.split(",")[2][-1]) // 2) for line in lines[1:]]
        rows = [f"{tiny_manifest.parent}/{line},{who}" for line, who in zip(lines[1:], patients, strict=True)]
        manifest.write_text("\n".join([lines[0] + ",patient_id", *rows]) + "\n")
        own = data(manifest, tiny_cache, group_by=group_by)
        fit = trainer(tmp_path, limit_train_batches=1)
        fit.fit(teacher(own), datamodule=own)
        fit.save_checkpoint(tmp_path / "own.ckpt")
        trainer(tmp_path).test(TeacherModule.load_from_checkpoint(tmp_path / "own.ckpt"), datamodule=own, verbose=False)
        resumed = trainer(tmp_path, epochs=2, limit_train_batches=1)
        resumed.fit(teacher(own), datamodule=own, ckpt_path=tmp_path / "own.ckpt")
        trainer(tmp_path, limit_train_batches=1).fit(student(own, tmp_path / "own.ckpt"), datamodule=own)

    @pytest.mark.parametrize(
        "other", [{"roi_margin": 0.2}, {"resize": "pad"}, {"image_size": 48}, {"upscaler": "none"}]
    )
    def test_is_not_judged_on_other_crops(self, student_ckpt, tiny_manifest, tiny_cache, tmp_path, other):
        module = DistillModule.load_from_checkpoint(student_ckpt)
        with pytest.raises(CheckpointError, match=r"config\.yaml"):
            trainer(tmp_path).test(module, datamodule=data(tiny_manifest, tiny_cache, **other), verbose=False)

    def test_is_judged_on_photographs_that_are_all_for_the_test(
        self, student_ckpt, tiny_manifest, tiny_cache, tmp_path
    ):
        lines = tiny_manifest.read_text().splitlines()
        manifest = tmp_path / "later.csv"
        rows = [f"{tiny_manifest.parent}/{line},test".replace(",L", ",later") for line in lines[1:]]
        manifest.write_text("\n".join([lines[0] + ",split", *rows]) + "\n")
        later = data(manifest, tiny_cache)
        assert later.class_weights == [1.0] * 5
        module = DistillModule.load_from_checkpoint(student_ckpt)
        (metrics,) = trainer(tmp_path).test(module, datamodule=later, verbose=False)
        assert metrics["test/support/MIA"] == 12

    def test_start_weights_count_as_seen(self, student_ckpt, tiny_manifest, tiny_cache, tmp_path):
        other = data(tiny_manifest, tiny_cache, split_index=1)
        spec = BackboneSpec(name="convnext_tiny", image_size=32, args=CONVNEXT_SPEC.args, weights=str(student_ckpt))
        with pytest.raises(LeakError):
            trainer(tmp_path).fit(teacher(other, backbone=spec), datamodule=other)

    def test_of_another_network_is_refused(self, source, teacher_ckpt, tmp_path):
        spec = BackboneSpec(name=SWIN_SPEC.name, image_size=32, args={**SWIN_SPEC.args, "embed_dim": 32})
        with pytest.raises(CheckpointError, match=r"config\.yaml"):
            trainer(tmp_path).fit(teacher(source, backbone=spec), datamodule=source, ckpt_path=teacher_ckpt)


def test_metrics_have_the_same_names_in_every_part(source, teacher_ckpt, tmp_path):
    fit = trainer(tmp_path)
    module = student(source, teacher_ckpt)
    fit.fit(module, datamodule=source)
    names = {"accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper", "auroc_macro", "ece", "loss"}
    logged = fit.callback_metrics
    (tested,) = trainer(tmp_path).test(module, datamodule=source, verbose=False)
    assert {f"train/{name}" for name in names} <= logged.keys()
    assert {f"val/{name}" for name in names} <= logged.keys()
    assert {f"val/lesion/{name}" for name in names - {"loss"}} <= logged.keys()
    assert {f"test/{name}" for name in names} <= tested.keys()
    assert {"test/recall/Grade 1", "test/precision/MIA", "test/lesion/f1_macro"} <= tested.keys()
    assert len(module.evaluation) == len(source.test_set)
    assert len(module.lesion_evaluation) == len(set(source.manifest.groups("lesion")[source.test_set.rows]))


def test_any_name_of_a_term_and_averaged_weights(source, teacher_ckpt, tmp_path):
    """Projectors exist only since the teacher was loaded, later than callbacks copy the module; "labels" is a name."""
    objective = Objective({"labels": BalancedSoftmax(), "loss": CosineEmbedding(), "logits": SoftTargets()})
    module = student(source, teacher_ckpt, objective=objective)
    fit = trainer(tmp_path, epochs=2, limit_train_batches=2, callbacks=[EMAWeightAveraging(decay=0.5)])
    fit.fit(module, datamodule=source)
    assert {"train/loss", "train/loss_labels", "train/loss_loss", "train/loss_logits"} <= set(fit.callback_metrics)
