"""Teachers that learn by low-rank updates, by the package peft."""

import sys
import warnings

import pytest
import torch
from helpers.command_line import SMALL_SWIN, TINY, convnext
from helpers.tiny import CONVNEXT, CONVNEXT_SPEC, SWIN, SWIN_SPEC, data, student, teacher, trainer

from kd_convnext import TeacherModule
from kd_convnext.checkpoints.network import load_network
from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.lora import LoraSpec, adapted_layers, add_adapters, plain_state
from kd_convnext.modules.optim import OptimSpec

pytest.importorskip("peft", reason="kd-convnext[lora] is not installed")

EFFICIENTNET_SPEC = BackboneSpec(name="tf_efficientnet_lite0", image_size=32)
VIT_SPEC = BackboneSpec(
    name="vit_tiny_patch16_224",
    image_size=32,
    token_blocks=2,
    args={"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
)
SCALED_SPEC = BackboneSpec(name="convnext_tiny", image_size=32, args=CONVNEXT | {"ls_init_value": 1.0})
V2_SPEC = BackboneSpec(name="swinv2_tiny_window8_256", image_size=64, args=SWIN)


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


@pytest.fixture
def without_peft(monkeypatch):
    def hide():
        monkeypatch.setitem(sys.modules, "peft", None)
        monkeypatch.setattr("kd_convnext.models.lora.find_spec", lambda name: None)

    return hide


def ends(spec, targets=None):
    backbone = build_backbone(spec, 5)
    return {".".join(name.split(".")[-2:]) for name in adapted_layers(backbone, targets)}


def test_every_architecture_has_layers_of_its_own():
    assert ends(SWIN_SPEC) == ends(VIT_SPEC) == {"attn.qkv", "attn.proj"}
    assert ends(CONVNEXT_SPEC) == {"mlp.fc1", "mlp.fc2"}
    assert {end.split(".")[-1] for end in ends(EFFICIENTNET_SPEC)} == {"conv_pw", "conv_pwl", "conv_head"}


def test_layers_that_are_not_called_as_they_are_get_no_updates():
    """Swin V2 takes the weight of `qkv` and computes itself: an update beside it would never be seen."""
    assert ends(V2_SPEC) == {"attn.proj"}
    with pytest.raises(ConfigError, match=r"'attn.qkv'.*attn.proj"):
        ends(V2_SPEC, ["attn.qkv"])


def test_targets_are_ends_of_names():
    assert ends(SWIN_SPEC, ["fc1", "attn.proj"]) == {"mlp.fc1", "attn.proj"}
    with pytest.raises(ConfigError, match=r"'attn.qvk'.*attn.qkv") as refused:
        ends(SWIN_SPEC, ["attn.qvk", "roj", "fc1"])
    assert "'roj'" in str(refused.value) and "'fc1'" not in str(refused.value)


def test_values_that_cannot_work_are_refused_together():
    with pytest.raises(ConfigError) as refused:
        LoraSpec(rank=0, alpha=0, dropout=1, targets=[])
    assert all(f"lora.{name}" in str(refused.value) for name in ("rank", "alpha", "dropout", "targets"))


@pytest.mark.parametrize(
    "spec, targets",
    [
        (SWIN_SPEC, None),
        (SCALED_SPEC, None),
        (EFFICIENTNET_SPEC, None),
        (VIT_SPEC, None),
        (SCALED_SPEC, ["stem.0", "downsample.1", "fc1"]),
    ],
)
def test_merged_weights_answer_as_the_updates_do(spec, targets):
    chosen = LoraSpec(rank=2, alpha=6.0, targets=targets)
    backbone = build_backbone(spec, 5).double().eval()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = backbone(images)
        add_adapters(backbone, chosen)
        torch.testing.assert_close(backbone(images), before, atol=0, rtol=0)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        adapted = backbone(images)
    assert (adapted - before).abs().max() > 1e-3
    plain, _ = plain_state(backbone.state_dict(), chosen)
    merged = build_backbone(spec, 5).double().eval()
    merged.load_state_dict(plain)
    with torch.no_grad():
        torch.testing.assert_close(merged(images), adapted, atol=1e-5, rtol=1e-5)


def test_only_updates_and_head_learn(source, tmp_path):
    module = teacher(source, finetune="lora")
    before = {name: value.clone() for name, value in module.backbone.network.state_dict().items()}
    fit = trainer(tmp_path, limit_train_batches=3)
    fit.fit(module, datamodule=source)
    after = module.backbone.network.state_dict()
    moved = {
        name
        for name, value in after.items()
        if not torch.equal(value, before.get(name.replace(".base_layer", ""), value))
    }
    assert moved == {"head.fc.weight", "head.fc.bias"}
    updates = {name: value for name, value in after.items() if ".lora_B." in name}
    assert len(updates) == 8 and all(value.abs().sum() > 0 for value in updates.values())
    fit.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    stored = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert set(stored["state_dict"]) == {f"backbone.network.{name}" for name in before} | {
        "backbone.mean",
        "backbone.std",
    }
    assert "adapters" not in stored["kd_convnext"]
    plain = TeacherModule.load_from_checkpoint(tmp_path / "best.ckpt").eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), module.eval()(images), atol=1e-5, rtol=1e-5)


def test_a_resume_goes_on_exactly(source, tmp_path):
    def fitted(epochs, ckpt=None):
        module = teacher(source, finetune="lora", lora=LoraSpec(rank=2, dropout=0.2))
        torch.manual_seed(5)
        fit = trainer(tmp_path, epochs=epochs, limit_train_batches=2)
        fit.fit(module, datamodule=source, ckpt_path=ckpt)
        return fit, module.state_dict()

    _, whole = fitted(3)
    fit, _ = fitted(2)
    fit.save_checkpoint(tmp_path / "two.ckpt")
    _, resumed = fitted(3, tmp_path / "two.ckpt")
    assert any("lora_A" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # After the fit the same module reads plain weights again.
    fit.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    fit.test(fit.lightning_module, datamodule=source, ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert not any("lora_A" in name for name in fit.lightning_module.state_dict())


def test_a_resume_with_other_updates_is_refused(source, tmp_path):
    fit = trainer(tmp_path, limit_train_batches=1)
    fit.fit(teacher(source, finetune="lora"), datamodule=source)
    fit.save_checkpoint(tmp_path / "one.ckpt")
    fit.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    others = {"finetune": "full"}, {"finetune": "lora", "lora": LoraSpec(alpha=3.0)}
    for options, file in ((others[0], "one"), (others[1], "one"), ({"finetune": "lora"}, "best")):
        with pytest.raises(ConfigError, match=r"--model.(lora|finetune)"):
            again = trainer(tmp_path, epochs=2)
            again.fit(teacher(source, **options), datamodule=source, ckpt_path=tmp_path / f"{file}.ckpt")


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(source, tmp_path, monkeypatch):
    monkeypatch.setattr("kd_convnext.modules.compiled_step.BACKEND", "aot_eager")

    def fitted(on):
        module = teacher(source, finetune="lora", compile=on, optim=OptimSpec(name="sgd", lr=1e-2))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "the training step cannot be compiled")
            trainer(tmp_path, limit_train_batches=2).fit(module, datamodule=source)
        return module.state_dict()

    plain, fast = fitted(False), fitted(True)
    assert all(torch.allclose(value, fast[name], atol=1e-6) for name, value in plain.items())


def test_a_student_learns_from_it_without_peft(source, tmp_path, without_peft):
    fit = trainer(tmp_path, limit_train_batches=2)
    fit.fit(teacher(source, finetune="lora"), datamodule=source)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    without_peft()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        expected = fit.lightning_module.eval()(images)
    torch.testing.assert_close(load_network(tmp_path / "last.ckpt")(images)[0], expected, atol=1e-5, rtol=1e-5)
    fit = trainer(tmp_path, limit_train_batches=2)
    fit.fit(student(source, tmp_path / "last.ckpt"), datamodule=source)
    assert torch.isfinite(fit.callback_metrics["train/loss_soft"])


class TestCommands:
    @pytest.fixture
    def fit(self, tiny_manifest, tiny_cache, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shared = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY]
        lora = ["--model=kd_convnext.TeacherModule", "--model.finetune=lora", "--model.lora.rank=2", *SMALL_SWIN]

        def fitted(folder, *words, model=lora):
            code = main(["fit", *model, *shared, *words, f"--trainer.default_root_dir={folder}"])
            return code, tmp_path / folder / "checkpoints"

        return fitted

    @pytest.mark.slow
    def test_a_resume_with_averaged_weights_goes_on_exactly(self, fit):
        words = ["--checkpoint.last_share=0", "--trainer.callbacks+=EMAWeightAveraging"]
        _, whole = fit("whole", *words, "--trainer.max_epochs=2")
        _, half = fit("half", *words)
        fit("half", *words, "--trainer.max_epochs=2", f"--ckpt_path={half / 'last.ckpt'}")
        first, second = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, half))
        for state in (lambda one: one["kd_convnext"]["adapters"], lambda one: one["current_model_state"]):
            assert any("lora_A" in name for name in state(first))
            assert all(torch.equal(value, state(second)[name]) for name, value in state(first).items())

    @pytest.mark.slow
    def test_commands_and_a_student_need_no_peft(self, fit, without_peft, tiny_manifest):
        _, run = fit("run")
        without_peft()
        assert main(["test", "--config=run/config.yaml", f"--ckpt_path={run / 'best.ckpt'}"]) == 0
        photograph = str(next(tiny_manifest.parent.glob("*.png")))
        assert main(["classify", photograph, f"--ckpt_path={run / 'last.ckpt'}", "--out=answers"]) == 0
        words = ["--model=kd_convnext.DistillModule", *convnext("student"), f"--model.teacher_ckpt={run / 'best.ckpt'}"]
        assert fit("student", model=words)[0] == 0

    def test_without_peft_a_fit_is_refused_at_once(self, fit, without_peft, capsys, tmp_path):
        without_peft()
        code, _ = fit("run")
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and "kd-convnext[lora]" in said
        assert not (tmp_path / "run").exists()
