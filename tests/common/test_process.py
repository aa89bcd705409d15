"""A command leaves the process as it found it."""

import errno
import logging
import os
import signal
import subprocess
import sys
import warnings

import pytest
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY, convnext
from helpers.paths import CONFIGS, REPOSITORY
from lightning.pytorch.loggers import CSVLogger

from kd_convnext.cli import main
from kd_convnext.common.process import OWN_VARIABLES
from kd_convnext.modules.teacher import TeacherModule
from kd_convnext.runs.folder import RunFolder
from kd_convnext.training import command


def state():
    return (
        warnings.formatwarning,
        list(warnings.filters),
        logging.getLogger("lightning.pytorch").level,
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        {name: os.environ.get(name) for name in OWN_VARIABLES},
    )


def test_a_fit_restores_warnings_levels_and_environment(tiny_manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = state()
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    words = [*swin, f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY]
    for _ in range(2):
        assert main(["fit", *words]) == 0
        assert state() == before
    assert len(list((tmp_path / "runs" / "teacher_swin_tiny").iterdir())) == 2


def test_a_fit_that_fails_once_more_while_it_ends_leaves_no_handler(tiny_manifest, tmp_path, monkeypatch):
    """Lightning then never puts back the handlers of signals: SIGTERM would be passed over from then on."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    before = state()
    monkeypatch.setattr(TeacherModule, "on_train_epoch_start", full)
    monkeypatch.setattr(CSVLogger, "finalize", full)
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    assert main(["fit", *swin, f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY]) == 2
    assert state() == before


def test_bad_input_restores_them_too(capsys):
    before = state()
    assert main(["nothing"]) == 2
    assert state() == before


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_what_will_stop_working_is_an_error_here(category):
    with pytest.raises(category):
        warnings.warn("old", category, stacklevel=1)


def test_a_fit_and_a_test_call_nothing_that_will_stop_working(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    """Commands silence such warnings for their users, and the tests of commands with them; here they are errors."""
    monkeypatch.setattr(command, "quiet_libraries", lambda: None)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    run = RunFolder(tmp_path / "run")
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    words = ["--config", str(CONFIGS / "small_cpu" / "convnext.yaml"), *TINY, *convnext("backbone"), *data]
    assert main(["fit", *words, f"--trainer.default_root_dir={run.path}"]) == 0
    assert main(["test", "--config", str(run.config), "--ckpt_path", str(run.best)]) == 0


@pytest.mark.slow
def test_a_script_of_ones_own_is_as_quiet_as_a_command(tiny_manifest, tmp_path):
    """In a process of its own: what a trainer prints goes by its first import."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import kd_convnext\n"
        "if sys.argv[4] == 'quiet': kd_convnext.quiet_libraries()\n"
        "from helpers import tiny\n"
        "source = tiny.data(sys.argv[2], sys.argv[3])\n"
        "tiny.trainer(sys.argv[3]).fit(tiny.teacher(source), datamodule=source)\n"
    )
    printed = {}
    for way in ("loud", "quiet"):
        words = [sys.executable, "-c", script, str(REPOSITORY / "tests"), str(tiny_manifest), str(tmp_path), way]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        printed[way] = done.stdout + done.stderr
    noise = ("GPU available", "litlogger", "LeafSpec", "Loading `train_dataloader`", "`Trainer.fit` stopped")
    assert "GPU available" in printed["loud"]
    assert not [word for word in noise if word in printed["quiet"]]
