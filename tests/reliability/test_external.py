"""Testing elsewhere: results on other photographs get a folder of their own, and nothing earlier is replaced."""

import json
import shutil

import pandas as pd
import pytest
from helpers.command_line import TINY, convnext
from PIL import Image, ImageOps

from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.judged import Judged, data_name, external_folder, read_judged, require_free, write_judged

OWN = Judged("best.ckpt", "a" * 64, "own", "here")


@pytest.fixture(scope="module")
def fitted(tiny_manifest, tiny_cache, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("fitted") / "run")
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    fit = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), *data]
    assert main([*fit, f"--trainer.default_root_dir={run.path}"]) == 0
    return run


@pytest.fixture
def run(fitted, tmp_path):
    return RunFolder(shutil.copytree(fitted.path, tmp_path / "run"))


def elsewhere(manifest, folder, prefix, change=ImageOps.mirror):
    """Mirrored photographs under other names and lesions, as another hospital's."""
    folder.mkdir(parents=True)
    table = pd.read_csv(manifest, dtype=str)
    for name in table["image"]:
        with Image.open(manifest.parent / name) as picture:
            change(picture).save(folder / f"{prefix}{name}")
    table["image"] = prefix + table["image"]
    table["lesion_id"] = prefix + table["lesion_id"]
    table["split"] = "test"
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def test_the_record_of_the_run_stays(run, tiny_manifest, tmp_path, capsys):
    test = ["test", "--config", str(run.config), "--ckpt_path", str(run.best)]
    assert main(test) == 0
    own = {path: path.read_bytes() for path in (run.metrics, run.predictions, run.figure("confusion_matrix"))}
    other = elsewhere(tiny_manifest, tmp_path / "hospital", "x")
    assert main([*test, f"--data.manifest={other}"]) == 0
    said = capsys.readouterr().out
    folder = RunFolder(run.external / "hospital")
    assert "Other photographs than the run's own" in said and "kd-convnext card" in said
    assert {path: path.read_bytes() for path in own} == own
    assert len(pd.read_csv(folder.predictions)) == 60 and folder.figure("confusion_matrix").is_file()
    assert 0 <= json.loads(folder.metrics.read_text())["test/f1_macro"] <= 1
    assert main(["card", "--ckpt_path", str(run.best)]) == 0
    card = (run.path / "MODEL_CARD.md").read_text()
    section = card[card.index("### On other photographs: hospital") :]
    assert "60 photographs of 30 lesions" in section
    assert card.index("On the test part (") < card.index("### On other photographs") < card.index("## Calibration")
    assert "| f1_macro |" in section or "| accuracy |" in section
    # Another checkpoint of the run does not replace what the best one has answered.
    last = ["test", "--config", str(run.config), "--ckpt_path", str(run.last)]
    assert main(last) == 2
    assert "--overwrite true" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in own} == own
    assert main([*last, "--overwrite", "true"]) == 0
    assert read_judged(run)["test"].checkpoint == "last.ckpt"
    assert main(["card", "--ckpt_path", str(run.best)]) == 0
    assert "results are of another checkpoint" in (run.path / "MODEL_CARD.md").read_text()


def test_copies_of_training_photographs_under_other_names(run, tiny_manifest, tmp_path, capsys):
    trained = pd.read_csv(run.split)["split"].eq("train").sum()
    other = elsewhere(tiny_manifest, tmp_path / "copies", "x")
    table = pd.read_csv(other, dtype=str)
    for name in table["image"]:
        shutil.copy(tiny_manifest.parent / name[1:], other.parent / name)
    test = ["test", "--config", str(run.config), "--ckpt_path", str(run.best), f"--data.manifest={other}"]
    assert main(test) == 2
    assert f"{trained} photographs of the training are among those to be judged (x" in capsys.readouterr().err
    assert not run.external.exists()
    assert main([*test, "--data.allow_leak=true"]) == 0
    assert "in training (allow_leak)" in capsys.readouterr().out
    assert "test/leak_allowed" in json.loads((run.external / "copies" / "metrics.json").read_text())


def test_other_photographs_of_the_same_names(run, tiny_manifest, tmp_path, capsys):
    other = elsewhere(tiny_manifest, tmp_path / "hospital", "")
    table = pd.read_csv(other, dtype=str)
    table["lesion_id"] = "x" + table["lesion_id"]
    table.to_csv(other, index=False)
    test = ["test", "--config", str(run.config), "--ckpt_path", str(run.best), f"--data.manifest={other}"]
    assert main(test) == 0
    assert "test/leak_allowed" not in json.loads((run.external / "hospital" / "metrics.json").read_text())
    trained = pd.read_csv(run.split).query("split == 'train'")["image"]
    with Image.open(tiny_manifest.parent / trained.iloc[0]) as picture:  # a copy of one of a lesion, saved again
        picture.resize((90, 80)).save(other.parent / trained.iloc[0])
    assert main(test) == 2
    assert "the paths of 2 photographs" in capsys.readouterr().err
    run.split.unlink()  # nobody knows what the training's photographs show
    assert main(test) == 2
    assert "name these by a table in a folder above" in capsys.readouterr().err


def test_training_photographs_saved_again(run, tiny_manifest, tmp_path, capsys):
    other = elsewhere(tiny_manifest, tmp_path / "again", "x", lambda picture: picture.point(lambda value: value + 2))
    test = ["test", "--config", str(run.config), "--ckpt_path", str(run.best), f"--data.manifest={other}"]
    assert main(test) == 0
    assert "near-identical to such of the training (x" in capsys.readouterr().out
    run.split.unlink()
    assert main(test) == 0
    assert "the run's own photographs are not at hand" in capsys.readouterr().out


def test_photographs_are_named_after_their_manifest_or_its_folder(tmp_path):
    (tmp_path / "by class").mkdir()
    assert data_name(str(tmp_path / "Site B" / "manifest.csv")) == "Site_B"
    assert data_name(str(tmp_path / "site_c.csv")) == "site_c"
    assert data_name(str(tmp_path / "by class")) == "by_class"
    assert data_name("/manifest.csv")


def test_others_of_the_same_name_get_another_folder(tmp_path):
    run = RunFolder(tmp_path)
    first = external_folder(run, "a/photos/manifest.csv", "1" * 64)
    write_judged(first, "test", Judged("best.ckpt", "c" * 64, "1" * 64, "photos"))
    assert external_folder(run, "a/photos/manifest.csv", "1" * 64) == first
    assert external_folder(run, "b/photos/manifest.csv", "2" * 64).path.name == "photos-22222222"


def test_what_may_replace_what(tmp_path):
    folder = RunFolder(tmp_path)
    require_free(folder, "test", OWN, own=True)
    write_judged(folder, "test", OWN)
    newer = Judged("best.ckpt", "b" * 64, "own", "here")
    require_free(folder, "test", newer, own=True)
    require_free(folder, "val", newer, own=False)
    with pytest.raises(ConfigError, match="--overwrite true"):
        require_free(folder, "test", newer, own=False)
    with pytest.raises(ConfigError, match="--overwrite true"):
        require_free(folder, "test", Judged("last.ckpt", "b" * 64, "own", "here"), own=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"test": 1}', '{"test": {}}', "\x00", '{"test": {"checkpoint": 1}}']
)
def test_a_record_that_is_not_ours_is_refused(text, tmp_path):
    folder = RunFolder(tmp_path)
    folder.judged.write_text(text)
    with pytest.raises(ConfigError, match=r"judged\.json"):
        read_judged(folder)
