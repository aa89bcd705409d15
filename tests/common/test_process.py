"""A command leaves the process as it found it."""

import errno
import logging
import os
import signal
import warnings

from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from helpers.paths import CONFIGS
from lightning.pytorch.loggers import CSVLogger

from kd_convnext.cli import main
from kd_convnext.common.process import OWN_VARIABLES
from kd_convnext.modules.teacher import TeacherModule


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
