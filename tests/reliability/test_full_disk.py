"""A disk that is full: each command says which place is, and what was there before stays whole."""

import errno
import os
import shutil

import pytest
from helpers.command_line import TINY, convnext
from helpers.disks import small_disk

from kd_convnext.cli import main
from kd_convnext.common.files import sha256_of
from kd_convnext.inference.trust.calibration import FILE
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.judged import read_judged

COMMANDS = ["calibrate", "test", "card", "fit", "predict", "classify", "explain"]
COMMANDS += [pytest.param(name, marks=pytest.mark.slow) for name in ("report", "compare", "torch")]


@pytest.fixture(scope="module")
def whole(tiny_manifest, tiny_cache, tmp_path_factory):
    """A run that was tested and calibrated."""
    run = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    fit = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), *data]
    assert main([*fit, f"--trainer.default_root_dir={run.path}"]) == 0
    assert main(["test", "--config", str(run.config), "--ckpt_path", str(run.best)]) == 0
    assert main(["calibrate", "--ckpt_path", str(run.best)]) == 0
    photographs = sorted(tiny_manifest.parent.glob("*.png"))[:3]
    (run.path / "asked").mkdir()
    for photograph in photographs:
        shutil.copy(photograph, run.path / "asked")
    for command in ("predict", "classify", "explain"):
        assert main(words(command, run)) == 0
    return run


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def words(command, run):
    best = ["--ckpt_path", str(run.best)]
    configured = ["--config", str(run.config)]
    asked = [str(run.path / "asked"), *best, "--overwrite", "true", "--out"]
    return {
        "calibrate": ["calibrate", *best],
        "test": ["test", *configured, *best],
        "card": ["card", *best],
        "predict": ["predict", *configured, *best],
        "classify": ["classify", *asked, str(run.path / "classified")],
        "explain": ["explain", *asked, str(run.path / "explained"), "--neighbours", "0"],
        "compare": ["compare", str(run.path), "--bootstrap", "20", "--out", str(run.path.parent / "compared")],
        "report": ["report", str(run.path), "--bootstrap", "20"],
        "fit": ["fit", *configured, "--ckpt_path", str(run.last), "--trainer.max_epochs=3"],
        "torch": ["export", *best, "--format", "torch", "--out", str(run.path.parent / "model")],
        "onnx": ["export", *best, "--format", "onnx", "--out", str(run.path.parent / "model")],
    }[command]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_after(monkeypatch, count):
    """Files reach the disk this often; then it is full, which the system says without a name."""
    left, flush = iter(range(count)), os.fsync

    def sync(number):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(number)

    monkeypatch.setattr(os, "fsync", sync)


def said_in_one_line(error, folder):
    lines = [line for line in error.splitlines() if "error: " in line]
    return len(lines) == 1 and "No space left" in lines[0] and str(folder) in lines[0] and "Traceback" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_the_place_is_named_and_nothing_changes(command, run, tmp_path, monkeypatch, capsys):
    before = contents(tmp_path)
    with monkeypatch.context() as harm:
        full_after(harm, 0)
        assert main(words(command, run)) == 2
    assert said_in_one_line(capsys.readouterr().err, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, "onnx"])  # a library writes ONNX, past any stand-in
def test_a_disk_that_is_full(command, whole, tmp_path, capsys):
    with small_disk(tmp_path, "12m") as disk:
        shutil.copytree(whole.path, disk / "run")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        before = contents(disk)
        assert main(words(command, RunFolder(disk / "run"))) == 2
        assert said_in_one_line(capsys.readouterr().err, disk)
        assert contents(disk) == before


def test_an_earlier_calibration_stays_whole(run, monkeypatch, capsys):
    before = contents(run.best.parent)
    # With mirror images the features are others, so that both files change.
    again = ["calibrate", "--ckpt_path", str(run.best), "--coverage", "0.8", "--tta", "true"]
    with monkeypatch.context() as harm:
        full_after(harm, 1)
        assert main(again) == 2
    assert said_in_one_line(capsys.readouterr().err, run.best.with_name(FILE).parent)
    assert contents(run.best.parent) == before


def test_earlier_answers_stay_whole(run, monkeypatch, capsys):
    """The second file does not reach the disk; one of the photographs asked about before is gone by then."""
    before = contents(run.path / "classified")
    next((run.path / "asked").iterdir()).unlink()
    with monkeypatch.context() as harm:
        full_after(harm, 1)
        assert main(words("classify", run)) == 2
    assert said_in_one_line(capsys.readouterr().err, run.path / "classified")
    assert contents(run.path / "classified") == before


@pytest.mark.parametrize("count", [1, 2])
def test_earlier_explanations_stay_whole(count, run, monkeypatch, capsys):
    """The disk is full after some of the figures; they are of another class than those of before."""
    before = contents(run.path)
    with monkeypatch.context() as harm:
        full_after(harm, count)
        assert main([*words("explain", run), "--target", "MIA"]) == 2
    assert said_in_one_line(capsys.readouterr().err, f"{run.path / 'explained'}:")
    assert contents(run.path) == before
    assert main([*words("explain", run), "--target", "MIA"]) == 0
    assert contents(run.path).keys() == before.keys() and contents(run.path) != before


def test_training_cases_that_find_no_room_name_their_own_folder(run, monkeypatch, capsys):
    with monkeypatch.context() as harm:
        full_after(harm, 0)
        assert main(words("explain", run)[:-2]) == 2
    assert said_in_one_line(capsys.readouterr().err, run.best.with_name("best.features.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_earlier_comparison_stays_whole(count, run, monkeypatch, capsys):
    """The disk is full after some tables or figures; they are of other answers than those of before."""
    compare = words("compare", run)
    assert main(compare) == 0
    before = contents(run.path.parent / "compared")
    table = run.predictions.read_text().splitlines(keepends=True)
    run.predictions.write_text("".join(table[:-4]))
    with monkeypatch.context() as harm:
        full_after(harm, count)
        assert main([*compare, "--overwrite", "true"]) == 2
    assert said_in_one_line(capsys.readouterr().err, run.path.parent / "compared")
    assert contents(run.path.parent / "compared") == before


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_results_are_never_said_to_be_of_another_checkpoint(count, run, whole, monkeypatch, capsys):
    test = ["test", "--config", str(run.config), "--ckpt_path", str(run.last), "--overwrite", "true"]
    with monkeypatch.context() as harm:
        full_after(harm, count)
        assert main(test) == 2
    owner = read_judged(run)["test"].checkpoint_sha256
    own = all(path.read_bytes() == (whole.path / path.name).read_bytes() for path in (run.metrics, run.predictions))
    assert owner == (sha256_of(run.best) if count == 0 else "") and (own or count > 1)
    assert main(["card", "--ckpt_path", str(run.best)]) == 0
    assert ("were not written to their end" in (run.path / "MODEL_CARD.md").read_text()) == (count > 0)
    assert main([*test[:-2], *(["--overwrite", "true"] if count == 0 else [])]) == 0
    assert read_judged(run)["test"].checkpoint_sha256 == sha256_of(run.last)
    capsys.readouterr()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_resume_that_is_stopped_before_its_first_step_loses_nothing(count, run, monkeypatch, capsys):
    """Not even a curve's later epochs, which a fit that goes on from an earlier one takes again."""
    curve = run.path / "metrics.csv"
    curve.write_text(curve.read_text() + ",".join(["99"] * len(curve.read_text().split("\n")[0].split(","))) + "\n")
    before = contents(run.path)
    with monkeypatch.context() as harm:
        full_after(harm, count)
        assert main(words("fit", run)) == 2
    assert said_in_one_line(capsys.readouterr().err, run.path)
    after = contents(run.path)
    assert {path: after.get(path) for path in before} == before


def test_the_curve_of_a_fit_names_its_folder(run, monkeypatch, capsys):
    from lightning.fabric.loggers import csv_logs

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(csv_logs._ExperimentWriter, "save", full)
    assert main(words("fit", run)) == 2
    assert said_in_one_line(capsys.readouterr().err, run.path)


def test_a_name_that_is_given_stays(tmp_path, monkeypatch):
    """What a foreign file lacked is not said of ours."""
    from kd_convnext.common.files import atomic_write

    with pytest.raises(OSError) as caught:
        atomic_write(tmp_path / "ours", lambda file: file.write((tmp_path / "theirs").read_bytes()))
    assert caught.value.filename == str(tmp_path / "theirs")
