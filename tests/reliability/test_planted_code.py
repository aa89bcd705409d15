"""Configurations and checkpoints of strangers name code; none of it runs, and none of it is imported."""

import json
import sys

import pytest
import torch
import yaml
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.common.trust import require_trusted, require_trusted_words, trusting
from kd_convnext.errors import ConfigError

PLACES = [
    "model",
    "model.class_path",
    "data.class_path",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.strategy",
    "trainer.strategy.init_args.ddp_comm_state",
    "trainer.strategy.init_args.ddp_comm_hook",
    "trainer.logger.init_args.config.x",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.accelerator",
    "model.init_args.backbone.args.x",
    "model.init_args.optim",
    "data.init_args.augment",
]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, and again when its class is built."""
    mark = tmp_path / "mark"
    write = f"open({str(mark)!r}, 'a').write"
    code = f"{write}('x')\nclass Bomb:\n    def __init__(self, **_):\n        {write}('y')\n"
    (tmp_path / "planted_code.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("planted_code", None)


def nested(place, value):
    for name in reversed(place.split(".")):
        value = {name: value}
    return value


def payload(place, name):
    if place.endswith("class_path"):
        return name
    return {"class_path": name, "init_args": {}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_no_place_of_a_configuration_runs_it(command, place, planted, tmp_path, capsys):
    file = tmp_path / "stranger.yaml"
    file.write_text(yaml.safe_dump(nested(place, payload(place, "planted_code.Bomb"))))
    assert main([command, "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert "planted_code" in error and "not trusted" in error and "--trust planted_code" in error
    assert not planted.exists() and "planted_code" not in sys.modules


@pytest.mark.parametrize("word", ["--trainer.callbacks+=", "--trainer.strategy=", "--model=", "--trainer.logger="])
@pytest.mark.parametrize("name", ["planted_code.Bomb", "os.system", "torch.os.system", "posix.abort"])
def test_no_word_runs_it(word, name, planted):
    with pytest.raises(ConfigError, match="name"):
        require_trusted_words([f"{word}{name}"], callables=True)
    assert not planted.exists()


@pytest.mark.parametrize(
    "name", ["torch.hub.load", "lightning.fabric.strategies.launchers.subprocess_script.subprocess.Popen"]
)
def test_trusted_packages_give_classes_of_their_own_only(name):
    with pytest.raises(ConfigError, match="Name a class"):
        require_trusted({"x": {"class_path": name}}, "config")


def test_what_hides_in_text_or_in_a_file_of_a_file_is_found(planted, tmp_path):
    inner = tmp_path / "inner.yaml"
    inner.write_text("- class_path: planted_code.Bomb\n")
    for value in (str(inner), "[{class_path: planted_code.Bomb}]", json.dumps({"class_path": "planted_code.Bomb"})):
        with pytest.raises(ConfigError, match="not trusted"):
            require_trusted({"trainer": {"callbacks": value}}, "config")
    assert not planted.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"],
        ["--trainer.callbacks+=EMAWeightAveraging"],
        ["--model", "kd_convnext.DistillModule"],
        ["--data.manifest", "test.csv"],
        ["--data.manifest=photos/os.csv", "--name", "os.path"],
        ["--checkpoint.monitor=val/f1_macro"],
        [
            "--trainer.strategy.ddp_comm_hook=torch.distributed.algorithms.ddp_comm_hooks.default_hooks.fp16_compress_hook"
        ],
    ],
)
def test_what_is_ordinary_passes(words):
    require_trusted_words(words, callables=True)


ESCAPED = '[{"class\\u005fpath": "planted_code.Bomb"}]'
LIST, ALONE = "- class_path: planted_code.Bomb\n", "class_path: planted_code.Bomb\n"
OTHERWISE = {
    "escaped": ("", [f"--trainer.callbacks={ESCAPED}"]),
    "escaped in a file": (yaml.safe_dump({"trainer": {"callbacks": ESCAPED}}), ["--config"]),
    "a configuration of another name": (yaml.safe_dump({"trainer": {"callbacks": yaml.safe_load(LIST)}}), ["--config"]),
    "callbacks in a file of another name": (LIST, ["--trainer.callbacks"]),
    "a model in a file of another name": (ALONE, ["--model"]),
    "a logger in a file of another name": (ALONE, ["--trainer.logger"]),
    "augmentation": ("", ["--data.augment=planted_code.Bomb"]),
    "crops": ("", ["--data.crops=planted_code.Bomb"]),
}


@pytest.mark.parametrize("written", OTHERWISE)
def test_nothing_is_imported_however_it_is_written(written, planted, tmp_path, tiny_manifest, capsys):
    content, words = OTHERWISE[written]
    file = tmp_path / "stranger.txt"
    file.write_text(content)
    ours = ["fit", "--config", "configs/small_cpu/convnext.yaml", f"--data.manifest={tiny_manifest}"]
    assert main([*ours, *words, *([str(file)] if content else [])]) == 2
    error = capsys.readouterr().err
    assert "planted_code.Bomb" in error and "Traceback" not in error
    assert not planted.exists() and "planted_code" not in sys.modules


def test_a_package_that_was_trusted_once_is_a_stranger_to_the_next_command(planted, tiny_manifest, capsys):
    words = ["fit", "--config", "configs/small_cpu/convnext.yaml", f"--data.manifest={tiny_manifest}"]
    hidden = f"--trainer.callbacks={ESCAPED}"
    assert main([*words, hidden, "--trust", "planted_code"]) == 2  # no callback
    assert planted.read_text() == "x"
    sys.modules.pop("planted_code")
    planted.unlink()
    assert main([*words, hidden]) == 2
    assert not planted.exists()


def test_a_package_is_trusted_by_name_and_for_one_command(planted):
    word = "--trainer.callbacks+=planted_code.Bomb"
    with trusting(["fit", "--trust", "planted_code", word]) as words:
        assert words == ["fit", word]
        require_trusted_words(words, callables=True)
    with pytest.raises(ConfigError):
        require_trusted_words([word], callables=True)
    with pytest.raises(ConfigError, match="no package"), trusting(["--trust", "os.system"]):
        pass


def test_a_configuration_cannot_trust_itself(planted, tmp_path, capsys):
    file = tmp_path / "stranger.yaml"
    file.write_text(yaml.safe_dump({"trust": "planted_code", "model": {"class_path": "planted_code.Bomb"}}))
    assert main(["fit", "--config", str(file)]) == 2
    assert not planted.exists()


def test_checkpoints_run_nothing_they_say(planted, tmp_path, tiny_manifest, tiny_cache, capsys):
    run = tmp_path / "run"
    words = ["--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    assert main(["fit", *words, *data, f"--trainer.default_root_dir={run}"]) == 0
    best = run / "checkpoints" / "best.ckpt"
    found = torch.load(best, weights_only=True)
    for name in ("planted_code.Bomb", "torch.hub.load", "torch.nn.Identity"):
        found["hyper_parameters"]["backbone"]["args"]["x"] = {"class_path": name, "init_args": {}}
        torch.save(found, best)
        for command in ("test", "validate", "predict"):
            assert main([command, "--config", str(run / "config.yaml"), "--ckpt_path", str(best)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not planted.exists()


@pytest.mark.parametrize("option", [["--dry_run", "true"], ["--collect", "true"], []])
def test_cells_of_an_experiment_run_nothing(option, planted, tmp_path, tiny_manifest, capsys):
    cell = tmp_path / "cell.yaml"
    cell.write_text(yaml.safe_dump({"model": {"class_path": "kd_convnext.TeacherModule"}}))
    grid = {
        "title": "tiny",
        "baseline": "net",
        "common": {"trainer": {"callbacks": {"class_path": "planted_code.Bomb"}}},
        "methods": {"net": {"title": "Net", "config": str(cell)}},
    }
    paper = tmp_path / "paper.yaml"
    paper.write_text(yaml.safe_dump({"repeats": 1, "seed": 0, "grid": grid}))
    words = ["paper", "--config", str(paper), "--manifest", str(tiny_manifest), "--out", str(tmp_path / "out")]
    assert main([*words, *option]) == 2
    assert "planted_code" in capsys.readouterr().err
    grid["common"] = {}
    cell.write_text(yaml.safe_dump({"model": {"class_path": "planted_code.Bomb"}}))
    paper.write_text(yaml.safe_dump({"repeats": 1, "seed": 0, "grid": grid}))
    assert main([*words, *option]) == 2
    assert not planted.exists() and "planted_code" not in sys.modules
