"""How often training draws each crop: by name, by class path, and by one's own class."""

import sys

import numpy as np
import pytest
import yaml
from helpers.command_line import SMALL_SWIN, TINY

from kd_convnext.cli import main
from kd_convnext.data.loading.sampling import ByFrequency, ClassSampling, drawn_weights
from kd_convnext.errors import ConfigError

LABELS = np.repeat([0, 1, 2], [16, 4, 1])

OWN = """
from kd_convnext.data.loading.sampling import ClassSampling

SEEN = []


class OnlyOne(ClassSampling):
    def __init__(self, label: int = 0) -> None:
        self.label = label

    def weights(self, labels):
        SEEN.append(self.label)
        return (labels == self.label).astype(float)
"""


@pytest.mark.parametrize(
    "sampling, shares",
    [
        ("square_root", [4 / 7, 2 / 7, 1 / 7]),
        ("balanced", [1 / 3, 1 / 3, 1 / 3]),
        (ByFrequency(1.0), [16 / 21, 4 / 21, 1 / 21]),
        (ByFrequency(0.25), np.array([2, 2**0.5, 1]) / (3 + 2**0.5)),
    ],
)
def test_shares_of_the_classes(sampling, shares):
    found = np.bincount(LABELS, drawn_weights(sampling, LABELS))
    np.testing.assert_allclose(found / found.sum(), shares, rtol=1e-12)


def test_natural_draws_each_once():
    assert drawn_weights("natural", LABELS) is None


@pytest.mark.parametrize("wrong", [np.ones(3), -np.ones(21), np.zeros(21), np.full(21, np.nan)])
def test_what_is_no_weight_is_refused(wrong):
    class Wrong(ClassSampling):
        def weights(self, labels):
            return wrong

    with pytest.raises(ConfigError, match=r"Wrong\.weights"):
        drawn_weights(Wrong(), LABELS)


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY]
    model = ["--model=kd_convnext.TeacherModule", *SMALL_SWIN, "--trainer.limit_val_batches=0"]
    return lambda *words: main(["fit", *model, *shared, *words, "--trainer.default_root_dir=run"])


def test_a_class_of_ones_own_by_its_path(fit, tmp_path, monkeypatch):
    (tmp_path / "own_sampling.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = {"class_path": "own_sampling.OnlyOne", "init_args": {"label": 2}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": {"loader": {"sampling": chosen}}}))
    assert fit("--config=own.yaml", "--trust=own_sampling") == 0
    import own_sampling

    assert set(own_sampling.SEEN) == {2}
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["loader"]["sampling"] == chosen


def test_values_and_paths_that_cannot_work(fit, capsys, tmp_path, monkeypatch):
    (tmp_path / "strange_sampling.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    path = "--data.loader.sampling=kd_convnext.data.loading.sampling.ByFrequency"
    assert fit(path, "--data.loader.sampling.power=3") == 2
    assert "--data.loader.sampling.power: 3.0 is outside -1..1" in capsys.readouterr().err
    assert fit("--data.loader.sampling=strange_sampling.OnlyOne") == 2
    assert "--trust" in capsys.readouterr().err and "strange_sampling" not in sys.modules
    assert fit("--data.loader.sampling=often") == 2
    said = capsys.readouterr().err
    assert "square_root" in said and said.count("\n") == 1
