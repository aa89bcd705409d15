import re
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from kd_convnext.common.console import duration, shown
from kd_convnext.common.machine import PrecisionChoice
from kd_convnext.training import header as progress
from kd_convnext.training.header import RunHeader, estimate_lines, next_commands
from kd_convnext.training.pace import batches_left, validation_batches_left
from kd_convnext.training.progress_bar import DataWaitBar


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3_500, "58 min"),
        (3_599, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_duration_is_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_long_fit_on_a_cpu_names_the_small_config():
    lines = estimate_lines(40_000, 7.2, on_cpu=True, small_config="configs/small_cpu/kd_convnext.yaml")
    assert lines[0] == "The whole fit is expected to take 11 h 7 min (7.2 s a step, measured)"
    assert lines[1].startswith("Warning:")
    assert lines[1].endswith("kd-convnext fit --config configs/small_cpu/kd_convnext.yaml")
    assert "configs/small_cpu/" in estimate_lines(40_000, 7.2, on_cpu=True, small_config=None)[1]
    assert len(estimate_lines(40_000, 7.2, on_cpu=False, small_config=None)) == 1
    assert len(estimate_lines(7_000, 7.2, on_cpu=True, small_config=None)) == 1


def test_next_commands_can_be_pasted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "my run"
    lines = next_commands(run / "checkpoints" / "best.ckpt", run / "config.yaml", "configs/kd_convnext_tiny.yaml")
    best = "'runs/my run/checkpoints/best.ckpt'"
    assert lines[1].split("kd-convnext ")[1] == f"test --config 'runs/my run/config.yaml' --ckpt_path {best}"
    assert lines[2].split("kd-convnext ")[1] == (
        "fit --config 'runs/my run/config.yaml' --config configs/kd_convnext_tiny.yaml --name kd_convnext_tiny"
        f" --model.teacher_ckpt {best}"
    )
    assert len(next_commands(run / "best.ckpt", run / "config.yaml", None)) == 2


def test_paths_elsewhere_are_shown_whole(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert shown(tmp_path / "there") == str(tmp_path / "there")


class Model(BoringModel):
    """Eight training and four validation batches an epoch; loading an image can be made slow."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause

    def train_dataloader(self):
        return DataLoader(Slow(self.pause), batch_size=1)

    def val_dataloader(self):
        return DataLoader(RandomDataset(32, 4), batch_size=1)


class Slow(RandomDataset):
    def __init__(self, pause: float) -> None:
        super().__init__(32, 8)
        self.pause = pause

    def __getitem__(self, index):
        time.sleep(self.pause)
        return super().__getitem__(index)


def fit(folder: Path, callbacks: list, model: BoringModel | None = None, **options) -> Trainer:
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=callbacks, **(settings | options))
    trainer.fit(model or Model())
    return trainer


class Count(progress.Callback):
    """Notes what is left after every training batch."""

    def __init__(self) -> None:
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, *_):
        self.train.append(batches_left(trainer))
        self.val.append(validation_batches_left(trainer))


def test_what_is_left_of_a_fit(tmp_path):
    count = Count()
    fit(tmp_path, [count], enable_progress_bar=False, enable_checkpointing=False)
    assert count.train == list(range(23, -1, -1))
    assert count.val[0] == pytest.approx(23 / 8 * 4)


def test_steps_limit_a_fit_too(tmp_path):
    count = Count()
    options = {"max_steps": 5, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    fit(tmp_path, [count], enable_progress_bar=False, enable_checkpointing=False, **options)
    assert count.train[1] == 8  # one of five steps done, two batches each
    assert count.train[-1] == 0
    assert set(count.val) == {0.0}


def test_header_estimate_and_next_command_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG_ON_CPU", 0.0)
    monkeypatch.chdir(tmp_path)
    header = RunHeader(small_config="configs/small_cpu/teacher.yaml", distill_config="configs/kd_convnext_tiny.yaml")
    fit(tmp_path / "run", [header], enable_progress_bar=False)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"Fitting Model \(0\.00 M parameters, 0\.00 M of them train\) on CPU \(\d+ threads?\), "
        r"precision 32-true, folder run",
        lines[0],
    )
    assert re.fullmatch(r"Machine: \d+ cores?, no GPU: precision 32-true \(.+\)", lines[1])
    assert re.fullmatch(r"The whole fit is expected to take \d+ s \(\S+ s a step, measured\)", lines[2])
    assert "configs/small_cpu/teacher.yaml" in lines[3]
    assert lines[4] == "Next:"
    assert "test --config run/config.yaml --ckpt_path run/" in lines[5]
    assert "--model.teacher_ckpt run/" in lines[6]
    assert len(lines) == 7


def test_estimate_comes_after_three_steps_and_is_right(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(progress, "say", lambda trainer, line: seen.append((line, batches_left(trainer))))
    begun = time.perf_counter()
    fit(tmp_path, [RunHeader()], Model(pause=0.05), enable_progress_bar=False, enable_checkpointing=False)
    took = time.perf_counter() - begun
    (line, left) = seen[2]
    assert left == 21
    step = float(re.search(r"\((\S+) s a step", line)[1])
    assert 0.05 < step < took / 4


def test_estimate_knows_that_steps_get_slower_when_the_body_learns(tmp_path, monkeypatch):
    class HeadFirst(Model):
        head_epochs = 1

        def on_train_epoch_start(self):
            self.layer.weight.requires_grad_(self.current_epoch >= self.head_epochs)

    told = []
    monkeypatch.setattr(progress, "estimate_lines", lambda seconds, step, **_: told.append(seconds / step) or [])
    options = {"limit_val_batches": 0, "enable_progress_bar": False, "enable_checkpointing": False}
    fit(tmp_path, [RunHeader()], HeadFirst(), **options)
    fit(tmp_path, [RunHeader()], Model(), **options)
    # After three steps of 24: 5 more with the head alone, then 16 that cost three times as much.
    assert told == pytest.approx([5 + 3 * 16, 21])


def test_a_fit_of_two_steps_has_no_estimate(tmp_path, capsys):
    fit(tmp_path, [RunHeader()], max_steps=2, enable_progress_bar=False, enable_checkpointing=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_bar_shows_the_wait_for_data_and_what_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(tmp_path, [DataWaitBar(refresh_rate=1)], Model(pause=0.03), max_epochs=1, enable_checkpointing=False)
    shares = [int(share) for share in re.findall(r"data_wait=(\d+)%", capsys.readouterr().out)]
    assert shares and shares[-1] > 50


def test_bar_of_fast_data_shows_little_wait(tmp_path, capsys, monkeypatch):
    class SlowStep(Model):
        def training_step(self, batch, batch_idx):
            time.sleep(0.03)
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(tmp_path, [DataWaitBar(refresh_rate=1)], SlowStep(), max_epochs=1, enable_checkpointing=False)
    out = capsys.readouterr().out
    shares = [int(share) for share in re.findall(r"data_wait=(\d+)%", out)]
    assert shares[-1] < 50
    assert "left=0 s" in out


@pytest.mark.parametrize("terminal", [True, False])
def test_a_file_gets_a_line_an_epoch_in_place_of_bars(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    trainer = fit(tmp_path, [DataWaitBar()], max_epochs=2, enable_checkpointing=False)
    trainer.test(Model(), DataLoader(RandomDataset(32, 4)), verbose=False)
    trainer.predict(Model(), DataLoader(RandomDataset(32, 4)))
    out = capsys.readouterr().out
    bars = [name for name in ("100%|", "Sanity", "Validation", "Testing", "Predicting", "\r") if name in out]
    assert bars == (["100%|", "Sanity", "Validation", "Testing", "Predicting", "\r"] if terminal else [])
    lines = [line for line in out.splitlines() if re.fullmatch(r"Epoch [01]: .*data_wait=\d+%, left=\d+ s", line)]
    assert len(lines) == (0 if terminal else 2)


def test_a_bar_that_is_turned_off_writes_no_lines_either(tmp_path, capsys):
    fit(tmp_path, [DataWaitBar(refresh_rate=0)], max_epochs=1, enable_checkpointing=False)
    assert "Epoch" not in capsys.readouterr().out


def test_header_counts_what_trains(tmp_path, capsys):
    model = Model()
    model.layer = torch.nn.Linear(32, 40_000)
    model.layer.weight.requires_grad_(False)
    model.layer.bias.data.zero_()
    fit(tmp_path, [RunHeader()], model, max_steps=1, enable_progress_bar=False, enable_checkpointing=False)
    assert "(1.32 M parameters, 0.04 M of them train)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.1, "as given; float32 multiplies 10.0 times as fast on this CPU: leave --trainer.precision out"),
        (1.2, "as given"),
    ],
)
def test_a_precision_that_slows_a_cpu_is_named(monkeypatch, gain, words):
    monkeypatch.setattr(progress, "best_precision", lambda device: PrecisionChoice("32-true", "a CPU without AMX"))
    monkeypatch.setattr(progress, "bf16_gain", lambda: gain)
    assert progress.precision_reason("bf16-mixed", "cpu") == words
    assert progress.precision_reason("32-true", "cpu") == "a CPU without AMX"
    assert progress.precision_reason("64-true", "cpu") == "as given"
