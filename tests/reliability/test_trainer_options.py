"""Options of the trainer that cannot work are refused in words, with exit code 2 and without a traceback."""

import pytest
import torch
import wandb
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.training.trainer_options import require_possible

FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]

BUILT = [
    ("--trainer.strategy=fsdp", "GPU"),
    ("--trainer.strategy=deepspeed", "deepspeed"),
    ("--trainer.accelerator=gpu", "gpu"),
    ("--trainer.devices=0", "devices"),
    ("--trainer.gradient_clip_algorithm=scissors", "scissors"),
    ("--trainer.callbacks+=LearningRateFinder", "learning rate finder"),
]

NUMBERS = [
    ("accumulate_grad_batches", 0),
    ("limit_train_batches", 0),
    ("limit_train_batches", 0.0),
    ("limit_train_batches", -1),
    ("limit_val_batches", -1),
    ("val_check_interval", 0),
    ("check_val_every_n_epoch", 0),
    ("log_every_n_steps", 0),
    ("max_epochs", 0),
    ("max_epochs", -2),
    ("gradient_clip_val", -1.0),
    ("barebones", True),
    ("enable_checkpointing", False),
]


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tmp_path):
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    return lambda *words: main([*FIT, *data, f"--trainer.default_root_dir={tmp_path / 'run'}", *words])


@pytest.mark.parametrize(("word", "named"), BUILT)
def test_what_lightning_refuses_is_said_in_words(word, named, fit, capsys):
    if word == "--trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("has a GPU")
    assert fit(word) == 2
    error = capsys.readouterr().err
    assert "error: " in error and named.lower() in error.lower() and "Traceback" not in error


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_numbers_that_leave_nothing_to_do(name, value):
    with pytest.raises(ConfigError, match=f"--trainer.{name}"):
        require_possible("fit", {"trainer": {name: value}})


def test_ordinary_numbers_pass():
    ordinary = {"max_epochs": -1, "limit_train_batches": 1.0, "limit_val_batches": 0, "val_check_interval": None}
    data = {"split": {"seed": 0}, "loader": {"seed": 2**32 - 1}}
    require_possible("fit", {"trainer": ordinary | {"accumulate_grad_batches": 1}, "data": data, "seed_everything": 0})
    require_possible("test", {"trainer": {"enable_checkpointing": False, "limit_train_batches": 0}})


@pytest.mark.parametrize("number", [-1, 2**32])
def test_seeds_that_are_none(number):
    config = {"seed_everything": number, "data": {"split": {"seed": number}, "loader": {"seed": number}}}
    with pytest.raises(ConfigError) as caught:
        require_possible("fit", config)
    named = [finding.where for finding in caught.value.findings]
    assert named == ["--seed_everything", "--data.split.seed", "--data.loader.seed"]


def test_all_that_cannot_work_is_said_together(fit, capsys):
    assert fit("--seed_everything=-1", "--trainer.accumulate_grad_batches=0", "--trainer.barebones=true") == 2
    error = capsys.readouterr().err
    assert "3 problems found" in error and all(name in error for name in ("seed", "accumulate", "barebones"))


def test_without_a_key_of_weights_and_biases(fit, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # what an earlier run of this process has settled
    assert fit("--config", "configs/wandb.yaml") == 2
    error = capsys.readouterr().err
    assert "wandb login" in error and "WANDB_MODE=offline" in error
