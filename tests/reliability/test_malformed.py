"""Files that were edited, cut, exchanged or made to do harm: every command ends in words, and runs nothing in them."""

import copy
import json
import os
import pickle
import shutil

import pytest
import torch
import yaml
from helpers.bad_files import Payload
from helpers.inference import copy_run

from kd_convnext.checkpoints.format import KEY
from kd_convnext.cli import main
from kd_convnext.common.files import LARGEST
from kd_convnext.common.reading import json_of, json_text, read_json, read_yaml, yaml_of
from kd_convnext.common.tables import read_numbers, read_table
from kd_convnext.common.trust import require_trusted_words
from kd_convnext.data.loading.teacher_outputs import AnswerKind, TeacherAnswers
from kd_convnext.data.manifest.likeness import _read as read_likeness
from kd_convnext.errors import ConfigError, KDConvNeXtError
from kd_convnext.inference.predictor import Predictor

TEXTS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00\xd8name",
    "NUL": b"\x00" * 64,
    "cut": b'{"test/f1_macro": 0.',
    "a list": b"[1, 2]",
    "nothing": b"null",
    "a number": b"3",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "other names": b'{"a": {"b": []}}',
    "a table of one column": b"a\n1\n",
    "a bad time": b"2020-99-99",
    "a tag": b"!!python/object/apply:os.system [true]",
}
UNSOUND = {
    "ckpt_path: a\ndata: {}\nckpt_path: b\n": r"names ckpt_path twice in one place \(line 1 and line 3\)",
    'data: {manifest: a, "manifest": b}': "names manifest twice",
    "data: &d\n  manifest: m.csv\n  crops: *d\n": r"holds itself by an alias \(line 1\)",
    "model: &d [*d]": "holds itself by an alias",
    "a0: &a0 [x]\n"
    + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10)): "more than 1,000",
}
WRONG = (None, 3, -1.5, "text", [], {}, [[1]], True)


@pytest.fixture(scope="module")
def tested(tiny_run, tiny_manifest, tiny_cache, tmp_path_factory):
    """A run with all the files that one can have."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoint = copy_run(tiny_run, folder)
    classes = ["Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"]
    rows = ["image,lesion_id,label,prediction," + ",".join(f"prob_{name}" for name in classes)]
    rows += [f"{n}.png,L{n},{classes[n % 5]},{classes[n % 3]},.6,.1,.1,.1,.1" for n in range(10)]
    (folder / "predictions.csv").write_text("\n".join(rows) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"test/f1_macro": 0.5}))
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/f1_macro,val/loss\n0,2,1.5,,\n0,2,,.5,1.0\n")
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "2"}, "device": "cpu"}))
    return checkpoint


@pytest.fixture
def run(tested, tmp_path):
    """A copy to be harmed."""
    shutil.copytree(tested.parent.parent, tmp_path / "run")
    return tmp_path / "run"


def ends_in_words(words, capsys):
    """Runs a command; an exception that is not ours would come through."""
    code = main(words)
    said = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in said.err and "weights_only" not in said.err
    assert (code == 2) == said.err.startswith("error: ") or "error: " in said.err or code == 0
    return code


@pytest.mark.parametrize("text", UNSOUND)
def test_yaml_that_its_writer_did_not_mean_is_refused(text, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    for words in (["fit", "--config", str(file)], ["prepare", "--config", str(file)], ["fit", "--data", str(file)]):
        assert ends_in_words(words, capsys) == 2
    with pytest.raises(ConfigError, match=UNSOUND[text]) as caught:
        read_yaml(file, "Mend it.")
    assert caught.value.findings[0].where == str(file)
    with pytest.raises(ConfigError, match=UNSOUND[text]):
        require_trusted_words(["--data", str(file)], callables=True)


def test_aliases_and_merged_mappings_that_are_sound_stay():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n1: 1\n'1': 2\n"
    assert yaml_of(text) == yaml.safe_load(text)


@pytest.mark.parametrize("file", ["split.csv", "predictions.csv", "environment.json", "judged.json", "metrics.json"])
def test_card_and_report_of_a_harmed_run(file, run, capsys):
    refused = 0
    for name in ("empty", "not UTF-8", "cut", "a list", "deep", "other names"):
        (run / file).write_bytes(TEXTS[name])
        card = ["card", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--resamples", "5"]
        refused += ends_in_words(card, capsys) == 2
    assert refused >= (0 if file == "metrics.json" else 4)


@pytest.mark.parametrize("file", ["predictions.csv", "metrics.json", "config.yaml", "metrics.csv", "split.csv"])
def test_comparing_harmed_runs(file, run, tmp_path, capsys):
    for name in ("not UTF-8", "deep", "other names"):
        (run / file).write_bytes(TEXTS[name])
        ends_in_words(["report", str(run), "--bootstrap", "5"], capsys)


def test_a_calibration_that_is_none(run, tiny_manifest, capsys):
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    for name in ("empty", "not UTF-8", "cut", "a list", "deep", "other names"):
        (run / "checkpoints" / "calibration.json").write_bytes(TEXTS[name])
        words = ["classify", photo, "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--out", str(run / "out")]
        assert ends_in_words(words, capsys) == 2


def test_a_calibration_that_was_edited(run, capsys):
    checkpoint, file = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "calibration.json"
    assert main(["calibrate", "--ckpt_path", str(checkpoint)]) == 0
    whole = json.loads(file.read_text())
    assert Predictor.from_checkpoint(checkpoint).calibration is not None
    for name in sorted(whole.keys() - {"lesion", "photograph"}):
        for value in (float("nan"), -1, [], {}, "x", 1e308):
            if (name, value) in (("format_version", -1), ("record", {})):
                continue
            file.write_text(json.dumps({**whole, name: value}))
            with pytest.raises(KDConvNeXtError, match=r"calibration\.json"):
                Predictor.from_checkpoint(checkpoint)


@pytest.mark.parametrize("command", ["fit", "test", "calibrate", "prepare"])
def test_a_configuration_that_is_none(command, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    for name in ("not UTF-8", "cut", "a list", "deep", "a bad time"):
        file.write_bytes(TEXTS[name])
        assert ends_in_words([command, "--config", str(file)], capsys) == 2


CELLS = (
    "seed_everything: 1",
    "model: 3",
    "{model: {class_path: kd_convnext.TeacherModule}, trainer: [1]}",
    "{model: {class_path: kd_convnext.TeacherModule}, data: text}",
    "model: {init_args: {}}",
    "model: {class_path: kd_convnext.TeacherModule, init_args: [1]}",
    "model: {class_path: kd_convnext.TeacherModule, init_args: {backbone: name}}",
)


@pytest.mark.parametrize("option", [["--dry_run", "true"], []])
def test_cells_that_are_no_fits(option, tmp_path, tiny_manifest, capsys):
    cell, paper = tmp_path / "cell.yaml", tmp_path / "paper.yaml"
    methods = {"net": {"title": "Net", "config": str(cell)}}
    paper.write_text(json.dumps({"repeats": 1, "grid": {"title": "t", "baseline": "net", "methods": methods}}))
    words = ["paper", "--config", str(paper), "--manifest", str(tiny_manifest), "--out", str(tmp_path / "out")]
    for text in CELLS:
        cell.write_text(text)
        assert ends_in_words([*words, *option], capsys) == 2, text


@pytest.mark.parametrize("name", list(TEXTS))
def test_readers_raise_what_they_promise(name, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(TEXTS[name])
    for read in (read_json, read_yaml):
        try:
            assert isinstance(read(file, "Mend it."), dict)
        except ConfigError as error:
            assert "Mend it." in str(error)
    for parse in (json_of, yaml_of):
        try:
            parse(TEXTS[name])
        except ValueError as error:
            assert str(error).startswith("is not ")
    for read_csv in (read_table, read_numbers):
        try:
            read_csv(file)
        except ConfigError as error:
            assert str(file) in str(error)
    with pytest.raises(ConfigError):
        read_table(file, ("image", "label"))


def test_what_is_no_number_is_null_in_json():
    written = json_text({"a": (1.5, float("nan"), float("-inf")), 2: [True, None, "NaN"]})
    assert json.loads(written, parse_constant=pytest.fail) == {"a": [1.5, None, None], "2": [True, None, "NaN"]}


def entries(value, path=()):
    """Lists the paths of all entries of nested tables."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict) and key != "state_dict":
            yield from entries(inner, (*path, key))


@pytest.mark.slow
def test_a_checkpoint_with_entries_missing_or_of_another_kind(tiny_run, tmp_path):
    whole = torch.load(tiny_run, weights_only=True)
    kept = {key: whole[key] for key in (KEY, "state_dict", "hyper_parameters", "epoch", "global_step")}
    file, refused = tmp_path / "best.ckpt", 0
    places = [place for place in entries(kept) if place[0] in (KEY, "hyper_parameters")] + [("state_dict",)]
    assert len(places) > 30
    for number, place in enumerate(places):
        for value in ("absent", WRONG[number % len(WRONG)], WRONG[(number + 3) % len(WRONG)]):
            harmed = copy.deepcopy(kept)
            inner = harmed
            for key in place[:-1]:
                inner = inner[key]
            if isinstance(value, str) and value == "absent":
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            torch.save(harmed, file)
            try:
                Predictor.from_checkpoint(file, calibration="none")
            except KDConvNeXtError:
                refused += 1
    assert refused > len(places) / 2


@pytest.mark.timeout(120)
def test_pipes_and_devices_are_no_files(run, tiny_manifest, tmp_path, capsys):
    """They may never end; and what replaces one by a file destroys it."""
    pipe, checkpoint = tmp_path / "pipe", str(run / "checkpoints" / "best.ckpt")
    os.mkfifo(pipe)
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    commands = [
        ["fit", "--config", str(pipe)],
        ["fit", f"--data={pipe}"],
        ["prepare", "--manifest", str(tiny_manifest), "--crops", str(pipe)],
        ["prepare", f"--config={pipe}"],
        ["prepare", "--manifest", str(tiny_manifest), "--sr_weights", str(pipe), "--dry_run", "true"],
        ["classify", photo, "--ckpt_path", checkpoint, "--calibration", str(pipe), "--out", str(tmp_path / "out")],
        ["card", "--ckpt_path", checkpoint, "--out", str(pipe)],
    ]
    for words in commands:
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert str(pipe) in error and "pipe or a device" in error and "Traceback" not in error
    assert pipe.is_fifo()
    for reader in (read_json, read_yaml):
        with pytest.raises(ConfigError, match="pipe or a device"):
            reader(pipe, "")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("file", ["split.csv", "predictions.csv", "environment.json", "judged.json", "metrics.json"])
@pytest.mark.parametrize("command", ["card", "report"])
def test_a_pipe_among_the_files_of_a_run(command, file, run, capsys):
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    given = {"card": ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--resamples", "5"]}
    ends_in_words([command, *given.get(command, [str(run), "--bootstrap", "5"])], capsys)


def test_files_that_are_too_large_are_not_read(tmp_path):
    file = tmp_path / "config.yaml"
    with file.open("wb") as large:
        large.truncate(LARGEST + 1)  # of holes: no space is taken
    with pytest.raises(ConfigError, match=r"config\.yaml.* at most 268 MB are read\)\. Mend it\."):
        read_yaml(file, "Mend it.")
    assert main(["fit", "--config", str(file)]) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["card", "--resamples=-3", "--seed=-1"], ["--resamples", "--seed"]),
        (["report", "--bootstrap=0"], ["--bootstrap"]),
        (["compare", "--bootstrap=-1", "--seed=-1"], ["--bootstrap", "--seed"]),
        (["explain", "--neighbours=-1"], ["--neighbours"]),
    ],
)
def test_counts_below_the_least(words, named, run, tmp_path, capsys):
    command, *options = words
    given = {"card": ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")], "report": [str(run)]}
    given["explain"] = ["x.png", *given["card"], "--out", str(tmp_path / "out")]
    given["compare"] = [str(run), "--out", str(tmp_path / "out")]
    assert main([command, *given[command], *options]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in named) and "is less than" in error


@pytest.mark.parametrize("name", ["best.ckpt", "best.pth", "best.pt", "best.safetensors"])
def test_a_payload_in_a_file_of_weights(name, tmp_path, tiny_manifest, capsys, recwarn):
    mark, file = tmp_path / "mark", tmp_path / name
    file.write_bytes(pickle.dumps({KEY: {}, "state_dict": Payload(mark), "model": Payload(mark)}))
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    commands = [
        ["classify", photo, "--ckpt_path", str(file), "--out", str(tmp_path / "out")],
        ["explain", photo, "--ckpt_path", str(file), "--out", str(tmp_path / "out")],
        ["calibrate", "--ckpt_path", str(file)],
        ["card", "--ckpt_path", str(file)],
        ["export", "--ckpt_path", str(file), "--out", str(tmp_path / "x.onnx")],
        ["publish", "--ckpt_path", str(file), "--out", str(tmp_path / "published")],
        ["test", "--ckpt_path", str(file), f"--data.manifest={tiny_manifest}"],
        ["prepare", "--manifest", str(tiny_manifest), "--sr_weights", str(file), "--dry_run", "true"],
    ]
    for words in commands:
        assert ends_in_words(words, capsys) == 2, words[0]
    assert not mark.exists()
    # torch's own words on such a file, which ask to write to its makers, are not for whoever has it.
    assert not [entry for entry in recwarn if "pickle" in str(entry.message)]


def test_a_payload_in_a_store_counts_as_none(tmp_path):
    mark = tmp_path / "mark"
    for name in ("shard.npy", "likeness.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(mark)))
    answers = TeacherAnswers(tmp_path, AnswerKind("teacher", (), {}, "32-true", 5, ()))
    answers._open()
    assert not answers._shards and read_likeness(tmp_path / "likeness.npz") == {}
    assert not mark.exists()


@pytest.mark.timeout(120)
def test_pipes_and_nonsense_in_a_cache(tiny_manifest, tmp_path, capsys):
    """A cache may be shared: what stands there in place of its files is made again, and nothing waits for a pipe."""
    words = ["prepare", str(tiny_manifest), "--upscaler", "bicubic", "--cache_dir", str(tmp_path / "cache")]
    assert main(words) == 0
    (folder,) = {entry.parent.parent for entry in (tmp_path / "cache").glob("*/??/*.png")}
    (index,) = (folder / "index").glob("*.jsonl")
    line = index.read_bytes().splitlines()[1]
    deep = b'{"crop": ' + b"[" * 100_000
    odd = (deep, b"\xff\x00", b"3", b'{"crop": [1]}', line.replace(b"[2, 1, 36, 34]", b'["x", null, -1, []]'))
    index.write_bytes(b"\n".join([*odd, index.read_bytes()]))
    os.mkfifo(index.with_name("0.jsonl"))
    entries = sorted(folder.glob("??/*.png"))
    entries[0].unlink()
    os.mkfifo(entries[0])
    entries[1].write_bytes(entries[1].read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert main([*words, "--verify"]) == 2
    assert f"{entries[0]}: cannot be written (it is a pipe or a device)" in capsys.readouterr().err
    entries[0].unlink()
    assert main([*words, "--verify"]) == 0
    assert "0 failed" in capsys.readouterr().out
    assert main([*words, "--verify"]) == 0
    assert "0 made, 60 found, 0 failed" in capsys.readouterr().out
    assert main([*words, "--prune", "--yes"]) == 0


@pytest.mark.timeout(60)
def test_a_pipe_in_a_store_counts_as_none(tmp_path):
    os.mkfifo(tmp_path / "shard.npy")
    os.mkfifo(tmp_path / "likeness.npz")
    answers = TeacherAnswers(tmp_path, AnswerKind("teacher", (), {}, "32-true", 5, ()))
    answers._open()
    assert not answers._shards and read_likeness(tmp_path / "likeness.npz") == {}
