"""How many loader processes a fit takes."""

import pytest
import torch
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from helpers.paths import CONFIGS
from helpers.tiny import data, student, teacher, trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from kd_convnext.cli import main
from kd_convnext.data.loading import workers
from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.workers import MOST, Workers, choose_workers, default_workers
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules.teaching_staff import TeachingStaff
from kd_convnext.training import loader_tuning
from kd_convnext.training.loader_tuning import LoaderTuning


@pytest.mark.parametrize(
    "load, step, cores, on_cpu, count, starved",
    [
        (0.004, 0.2, 2, True, 0, False),  # the paper's networks on a CPU: a process would only take a core
        (0.004, 0.2, 16, True, 0, False),
        (0.004, 0.01, 2, True, 1, False),
        (0.004, 0.002, 2, True, 1, True),  # one core cannot feed two images a load
        (0.004, 0.002, 16, True, 3, False),
        (0.0004, 0.004, 16, False, 1, False),
        (0.004, 0.002, 16, False, 8, False),
        (0.004, 0.0005, 16, False, 15, False),
        (0.004, 0.0002, 64, False, MOST, True),
        (0.004, 0.0001, 1, False, 1, True),
    ],
)
def test_as_many_as_keep_up(load, step, cores, on_cpu, count, starved):
    found = choose_workers(load, step, cores, on_cpu=on_cpu)
    assert (found.count, found.starved) == (count, starved)


def test_said_in_words():
    assert str(Workers(0, "as given")) == "no loader worker (as given)"
    assert str(Workers(1, "as given")) == "1 loader worker (as given)"
    assert str(choose_workers(0.004, 0.01, 4, on_cpu=False)).startswith("2 loader workers (loading takes 40.0% of")


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    assert [default_workers(processes) for processes in (1, 4, 16)] == [8, 3, 1]


@pytest.mark.parametrize("seconds, count", [(0.001, 0), (0.05, 1)])
def test_a_fit_measures_and_takes_it_for_training_and_validation(
    tiny_manifest, tiny_cache, tmp_path, monkeypatch, seconds, count
):
    asked = []

    def loading(dataset, keys):
        asked.append(keys)
        return seconds

    monkeypatch.setattr(loader_tuning, "_loading", loading)
    monkeypatch.setattr(loader_tuning, "_stepping", lambda module, trainer, images: 0.1)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.setattr(loader_tuning, "available_cores", lambda: 2)
    source = data(tiny_manifest, tiny_cache, num_workers=None)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1, callbacks=[LoaderTuning()]).fit(
        teacher(source), datamodule=source
    )
    assert source.workers == Workers(count, f"loading takes {10 * seconds:.1%} of a step on one core, measured")
    (keys,) = asked  # once, by views that training asks for
    assert len(keys) == loader_tuning._SAMPLES and all(isinstance(key, View) for key in keys)
    assert source.train_dataloader().num_workers == source.val_dataloader().num_workers == count
    source.setup("test")
    assert source.test_dataloader().num_workers == 1  # by the cores


def test_what_is_measured(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    """A step is three passes of the network, one where its body is frozen, and one of a teacher that is asked live."""
    passed = []
    monkeypatch.setattr(loader_tuning, "_passing", lambda network, images: passed.append(network) or 0.3)
    source = data(tiny_manifest, tiny_cache, num_workers=0)
    fit = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
    for module, seconds in ((teacher(source), 0.9), (teacher(source, finetune="head_only"), 0.3)):
        fit.fit(module, datamodule=source)
        assert loader_tuning._stepping(module, fit, 1) == pytest.approx(seconds)
        assert passed[-1] is module.classifier
    fit.save_checkpoint(tmp_path / "teacher.ckpt")
    module = student(source, tmp_path / "teacher.ckpt")
    module.staff = TeachingStaff(module.teachers, module.objective, module.taps)
    assert loader_tuning._stepping(module, fit, 1) == pytest.approx(1.2)
    module.teacher_cache = True
    assert loader_tuning._stepping(module, fit, 1) == pytest.approx(0.9)


class Other(BoringModel):
    """Somebody else's module."""

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(3 * 32 * 32, 2)

    def training_step(self, batch, batch_idx):
        return self.classifier(batch["image"].float().flatten(1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.classifier.parameters(), 1e-6)


def test_modules_of_others_take_the_default(tiny_manifest, tiny_cache, tmp_path):
    source = data(tiny_manifest, tiny_cache, num_workers=None)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0, callbacks=[LoaderTuning()]).fit(
        Other(), datamodule=source
    )
    assert source.workers == Workers(default_workers(), "by the cores")


def test_measuring_leaves_no_trace(tiny_manifest, tiny_cache, tmp_path):
    """Neither in random numbers nor in running statistics, nor in the modes of a network's parts."""
    found = []
    for asked in (None, 0):
        source = data(tiny_manifest, tiny_cache, num_workers=asked)
        module = teacher(source, backbone=BackboneSpec(name="test_efficientnet", image_size=32))
        norm = next(part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d))
        norm.eval()
        trainer(tmp_path, callbacks=[LoaderTuning()]).fit(module, datamodule=source)
        assert not norm.training
        found.append((torch.rand(1), *module.state_dict().values()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_line_says_what_was_chosen_and_what_would_help(tiny_manifest, tiny_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader_tuning, "_passing", lambda network, images: 1e-6)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.setattr(loader_tuning, "available_cores", lambda: 2)
    words = [word for word in TINY if "num_workers" not in word]
    words = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *words, *SMALL_SWIN, *OFFLINE]
    assert main(["fit", "--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Machine:")]
    assert "1 loader worker (loading takes" in line and "measured" in line
    assert "steps will wait: --data.loader.packed true --data.augment.engine opencv" in line
