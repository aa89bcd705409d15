"""How many loader processes a fit takes."""

import time

import pytest
import torch
from test_cli import CONFIGS, OFFLINE, SMALL_SWIN, TINY
from tiny import data, teacher, trainer

from kd_convnext.cli import main
from kd_convnext.data import workers
from kd_convnext.data.workers import MOST, Workers, choose_workers, default_workers


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


class Delayed:
    """Crops that take their time."""

    def __init__(self, crops, seconds):
        self.crops, self.seconds = crops, seconds

    def load(self, i):
        time.sleep(self.seconds)
        return self.crops.load(i)

    def key(self, i):
        return self.crops.key(i)


@pytest.mark.parametrize("seconds, count", [(0.0, 0), (0.05, 1)])
def test_a_fit_measures_what_it_is_given(tiny_manifest, tiny_cache, tmp_path, monkeypatch, seconds, count):
    # A step of known length: the tiny networks' own is about as long as loading.
    monkeypatch.setattr(workers, "_passing", lambda network, images: 0.02)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.setattr(workers, "NEGLIGIBLE", 0.5)
    source = data(tiny_manifest, tiny_cache, num_workers=None)
    source.setup("fit")
    source.train_set.crops = Delayed(source.train_set.crops, seconds)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(teacher(source), datamodule=source)
    assert source.workers.count == count and "measured" in source.workers.reason
    assert source.train_dataloader().num_workers == source.val_dataloader().num_workers == count


def test_measuring_leaves_no_trace(tiny_manifest, tiny_cache, tmp_path):
    found = []
    for asked in (None, 0):
        source = data(tiny_manifest, tiny_cache, num_workers=asked)
        module = teacher(source)
        trainer(tmp_path).fit(module, datamodule=source)
        found.append(module)
    assert found[0].training == found[1].training
    for one, other in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_line_says_what_was_chosen_and_what_would_help(tiny_manifest, tiny_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "_passing", lambda network, images: 1e-6)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    words = [word for word in TINY if "num_workers" not in word]
    words = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *words, *SMALL_SWIN, *OFFLINE]
    assert main(["fit", "--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Machine:")]
    assert "1 loader worker (loading takes" in line and "measured" in line
    assert "steps will wait: --data.packed true --data.augment.engine opencv" in line
