"""Options of the trainer that cannot work are refused in words, with exit code 2 and without a traceback."""

import fcntl
import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import pytest
import torch
import wandb
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.training.one_fit import LOCK
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

OBJECTS = [
    ("strategy", "strategies.FSDPStrategy", {}, "GPU"),
    pytest.param(
        "strategy",
        "strategies.DeepSpeedStrategy",
        {},
        "pip install -U deepspeed",
        marks=pytest.mark.skipif(find_spec("deepspeed") is not None, reason="has DeepSpeed"),
    ),
    ("callbacks", "callbacks.EarlyStopping", {"monitor": "val/loss", "mode": "best"}, "EarlyStopping: `mode` can be"),
    ("callbacks", "callbacks.StochasticWeightAveraging", {"swa_lrs": 1.0}, "EpochAveraging"),
    ("callbacks", "callbacks.BackboneFinetuning", {}, "unfreeze_epochs"),
    ("logger", "loggers.WandbLogger", {"offline": True, "log_model": True}, "log_model=True"),
]
"""Objects that a file names by their class, two processes for a strategy, and what of their refusal is to be read."""

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


@pytest.mark.parametrize(("option", "made", "arguments", "named"), OBJECTS)
def test_what_its_class_refuses_is_said_in_words(option, made, arguments, named, fit, tmp_path, capsys):
    path = f"lightning.pytorch.{made}"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps({"trainer": {option: [{"class_path": path, "init_args": arguments}]}}))
    if option == "strategy":
        overlay.write_text(json.dumps({"trainer": {option: {"class_path": path}, "devices": 2}}))
    assert fit("--config", str(overlay)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and "Traceback" not in error and error.count("\n") == 1


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


@pytest.mark.parametrize("place", ["a file", "below a file", "a name too long"])
def test_places_that_are_no_folder(place, fit, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("kept")
    folder = {"a file": file, "below a file": file / "run", "a name too long": tmp_path / ("x" * 300)}[place]
    assert fit(f"--trainer.default_root_dir={folder}", "--trainer.fast_dev_run=true") == 2
    error = capsys.readouterr().err
    assert str(folder)[:200] in error and "cannot be written" in error and file.read_text() == "kept"


def test_more_loader_processes_than_memory(fit, capsys):
    assert fit("--data.loader.num_workers=100000") == 2
    assert "--data.loader.num_workers: 100000 processes are too many" in capsys.readouterr().err


def test_crops_larger_than_memory(fit, capsys):
    assert fit("--data.crops.store_size=1000000000") == 2
    assert "crops.store_size: 1000000000 cannot work" in capsys.readouterr().err


def test_a_teacher_for_a_model_that_learns_from_none(fit, tmp_path, capsys):
    assert fit("--teacher_config=configs/small_cpu/teacher.yaml") == 2
    assert "--teacher_config: this model learns from no teacher" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()


def test_no_time_for_a_step(fit, capsys):
    assert fit("--trainer.max_time=00:00:00:00") == 2
    assert "nothing was trained" in capsys.readouterr().err


def test_a_refused_resume_changes_no_record(fit, tmp_path, capsys):
    assert fit() == 0
    run = tmp_path / "run"
    record = {name: (run / name).read_bytes() for name in ("config.yaml", "split.csv", "hparams.yaml")}
    last = [f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs=2"]
    for word, told in (
        ("--model.optim.name=sgd", "--model.optim.name: the checkpoint holds the state of adamw"),
        ("--data.split.seed=9", "it was trained on"),
        ("--checkpoint.monitor=val/loss", "--checkpoint.monitor: the run has chosen its best epoch by val/f1_macro"),
        ("--model.finetune=head_only", "--model.finetune: the checkpoint was trained with full"),
    ):
        assert fit(*last, word) == 2
        assert told in capsys.readouterr().err
        assert record == {name: (run / name).read_bytes() for name in record}
    with pytest.warns(UserWarning, match="goes on with its own lr"):
        assert fit(*last, "--model.optim.lr=0.5") == 0


def test_a_folder_that_has_a_network_without_its_last_checkpoint(fit, tmp_path, capsys):
    assert fit() == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "last.ckpt").unlink()
    best = (checkpoints / "best.ckpt").read_bytes()
    assert fit() == 2
    assert "holds the network of a run without its last.ckpt" in capsys.readouterr().err
    assert (checkpoints / "best.ckpt").read_bytes() == best
    (checkpoints / "best.ckpt").rename(tmp_path / "kept.ckpt")
    assert fit() == 0


def test_a_folder_of_checkpoints_that_another_run_has_written(fit, tmp_path, capsys):
    kept = tmp_path / "kept"
    assert fit(f"--checkpoint.dirpath={kept}") == 0
    best = (kept / "best.ckpt").read_bytes()
    other = f"--trainer.default_root_dir={tmp_path / 'other'}"
    assert fit(f"--checkpoint.dirpath={kept}", other) == 2
    assert "Name another --checkpoint.dirpath" in capsys.readouterr().err
    assert (kept / "best.ckpt").read_bytes() == best
    again = [f"--ckpt_path={kept / 'last.ckpt'}", "--trainer.max_epochs=2", f"--checkpoint.dirpath={kept}"]
    assert fit(*again) == 0


@contextmanager
def held(lock):
    """A process that holds a lock, as a fit does."""
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True)"
    words = [sys.executable, "-c", f"{hold}; time.sleep(600)", str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            yield
        finally:
            other.kill()


@pytest.mark.parametrize("ranks", [[], ["--trainer.devices=2", "--trainer.strategy=ddp"]])
def test_two_fits_in_one_folder(ranks, fit, tmp_path, capsys):
    """The first is killed, and then keeps nobody out."""
    run = tmp_path / "run"
    run.mkdir()
    with held(run / LOCK):
        assert fit(*ranks) == 2
        assert f"error: {run}: another fit is writing into it" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [LOCK]
    if not ranks:
        assert fit() == 0
        assert not (run / LOCK).exists()


def test_a_lock_that_an_ending_fit_has_removed_keeps_nobody_out(fit, tmp_path, monkeypatch, capsys):
    """Between opening and locking the earlier fit ends, which removes the file, and another begins."""
    run, lock = tmp_path / "run", fcntl.lockf
    with ExitStack() as meanwhile:

        def late(file, how):
            monkeypatch.setattr(fcntl, "lockf", lock)
            (run / LOCK).unlink()
            meanwhile.enter_context(held(run / LOCK))
            lock(file, how)

        monkeypatch.setattr(fcntl, "lockf", late)
        assert fit() == 2
    assert f"error: {run}: another fit is writing into it" in capsys.readouterr().err


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
