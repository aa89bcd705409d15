"""Several processes of one training: where one is lost, all end within a minute and say so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.command_line import TINY, convnext
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from kd_convnext.cli import main
from kd_convnext.common.process import is_stopped
from kd_convnext.errors import Terminated, TrainingError
from kd_convnext.runs.folder import RunFolder
from kd_convnext.training import foreign_errors
from kd_convnext.training.one_fit import LOCK
from kd_convnext.training.ranks import RankWatch

BOUND = 60
PATIENCE = 300

FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), "--trainer.max_epochs=5000"]
FIT += ["--trainer.devices=2", "--trainer.strategy=ddp"]


def children(process):
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture
def training(tiny_manifest, tiny_cache, tmp_path):
    """A fit of two processes that has finished an epoch; its first process and the number of the second."""
    run = tmp_path / "run"
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    words = [sys.executable, "-m", "kd_convnext.cli", *FIT, *data, f"--trainer.default_root_dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w+") as said:
        first = subprocess.Popen(words, stdout=said, stderr=said, env=environment)
        end = time.monotonic() + PATIENCE
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert first.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end, "no checkpoint"
            time.sleep(0.2)
        (second,) = [number for number in children(first.pid) if b"kd_convnext" in _command(number)]
        yield first, second, tmp_path / "said"
        for number in (second, first.pid):
            if Path(f"/proc/{number}").exists():
                os.kill(number, signal.SIGKILL)
        first.wait()


def _command(number):
    return Path(f"/proc/{number}/cmdline").read_bytes()


def gone(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def ended(first, second):
    """Waits for both, for a minute at most."""
    end = time.monotonic() + BOUND
    code = first.wait(timeout=BOUND)
    while not gone(second):
        assert time.monotonic() < end, "the second process goes on"
        time.sleep(0.2)
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom", "code"),
    [
        (signal.SIGKILL, "second", 2),
        (signal.SIGSTOP, "second", 2),
        (signal.SIGTERM, "second", 143),
        (signal.SIGTERM, "first", 143),
        (signal.SIGTERM, "both", 143),
        (signal.SIGKILL, "first", -signal.SIGKILL),
    ],
)
def test_all_end_within_a_minute_in_words(number, whom, code, training):
    first, second, said = training
    for process in {"first": [first.pid], "second": [second], "both": [first.pid, second]}[whom]:
        os.kill(process, number)
    assert ended(first, second) == code
    text = said.read_text()
    assert "error: " in text and "Traceback" not in text and "last.ckpt" in text
    # The folder is free again, and the fit goes on from where it was.
    run = RunFolder(said.parent / "run")
    epoch = torch.load(run.last, weights_only=True)["epoch"]
    again = ["fit", "--config", str(run.config), "--ckpt_path", str(run.last), f"--trainer.max_epochs={epoch + 2}"]
    assert subprocess.run([sys.executable, "-m", "kd_convnext.cli", *again], timeout=PATIENCE).returncode == 0
    assert torch.load(run.last, weights_only=True)["epoch"] == epoch + 1 and not (run.path / LOCK).exists()


@pytest.mark.slow
def test_a_fit_of_several_processes_keeps_others_out(training, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    assert main(["fit", "--config", str(run.config), "--ckpt_path", str(run.last), "--trainer.devices=1"]) == 2
    assert "another fit is writing into it" in capsys.readouterr().err


def test_a_stopped_process_is_seen():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        end = time.monotonic() + 10
        while not is_stopped(process.pid):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


@pytest.mark.parametrize(("told", "kind"), [(True, Terminated), (False, TrainingError)])
def test_the_other_one_may_end_first_where_both_are_told(told, kind, monkeypatch):
    monkeypatch.setattr(foreign_errors, "told_to_stop", lambda: told)
    with pytest.raises(kind, match=r"ckpt_path|give the command again"), foreign_errors.in_words("fit"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:4711")


@pytest.mark.parametrize("restored", [True, False])
def test_the_end_of_a_watch_leaves_the_handler_of_before(restored):
    """Lightning puts its handlers back before callbacks end: what was there before the fit stays then."""
    before, lightning = signal.getsignal(signal.SIGTERM), lambda number, frame: None
    environment = LightningEnvironment()
    trainer = SimpleNamespace(world_size=2, local_rank=1, state=SimpleNamespace(status="running"))
    trainer.strategy = SimpleNamespace(launcher=SimpleNamespace(cluster_environment=environment))
    watch = RankWatch()
    try:
        signal.signal(signal.SIGTERM, lightning)
        watch.on_train_start(trainer, None)
        assert signal.getsignal(signal.SIGTERM) is not lightning
        if restored:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watch.teardown(trainer, None, "fit")
        assert signal.getsignal(signal.SIGTERM) == (signal.SIG_DFL if restored else lightning)
    finally:
        signal.signal(signal.SIGTERM, before)
