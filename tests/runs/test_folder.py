import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.runs.folder import RunFolder, new_run_folder, require_empty, run_of_checkpoint
from kd_convnext.runs.tables import class_table, prediction_table, read_metrics, write_metrics, write_predictions

CLASSES = ("AIS", "MIA")


def manifest(boxes: bool) -> Manifest:
    box = [1, 2, 3, 4] if boxes else [pd.NA] * 4
    table = pd.DataFrame(
        {
            "row": range(2, 6),
            "image": ["a.jpg", "b.jpg", "b.jpg", "ü, c.jpg"],
            "label": ["AIS", "AIS", "MIA", ""],
            "lesion_id": ["L1", "L1", "L2", ""],
            "patient_id": ["P1", "P1", "P1", ""],
            "photograph": ["a.jpg", "b.jpg", "b.jpg", "ü, c.jpg"],
        }
    ).assign(**dict(zip(("x", "y", "width", "height"), box, strict=True)))
    return Manifest(Path("m.csv"), Path(), table, CLASSES)


def answers() -> Evaluation:
    probabilities = np.array([[0.25, 0.75], [0.125, 0.875], [1.0, 1e-9]])
    return Evaluation("test", np.array([0, 2, 3]), np.array([0, 1, -1]), probabilities, CLASSES)


def test_runs_of_one_second_get_their_own_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path, "teacher").path, range(24)))
    assert len(set(folders)) == 24
    assert {folder.parent for folder in folders} == {tmp_path / "teacher"}


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp"])
def test_a_run_name_is_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="plain folder name"):
        new_run_folder(tmp_path, name)


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"runs.*cannot be written.*--trainer.default_root_dir"):
        new_run_folder(tmp_path / "runs", "teacher")


def test_run_of_a_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    assert run_of_checkpoint(run.best) == run_of_checkpoint(str(run.last)) == run
    assert run_of_checkpoint(tmp_path / "lent.ckpt") == run


def test_names_of_figures(tmp_path):
    run = RunFolder(tmp_path)
    assert run.figure("test/confusion_matrix") == tmp_path / "figures" / "confusion_matrix.png"
    assert run.figure("train/augmented_crops") == tmp_path / "figures" / "augmented_crops.png"
    assert run.figure("val/lesion/per class", ".csv") == tmp_path / "figures" / "val_lesion_per_class.csv"


def test_a_folder_with_something_in_it_is_refused_by_name(tmp_path):
    require_empty(tmp_path, permitted=False, option="--overwrite true")
    require_empty(tmp_path / "new", permitted=False, option="--overwrite true")
    (tmp_path / "old.csv").touch()
    with pytest.raises(ConfigError, match="add --overwrite true"):
        require_empty(tmp_path, permitted=False, option="--overwrite true")
    require_empty(tmp_path, permitted=True, option="--overwrite true")
    with pytest.raises(ConfigError, match="is a file"):
        require_empty(tmp_path / "old.csv", permitted=True, option="--overwrite true")


def test_metrics_of_validation_and_test_stand_beside_each_other(tmp_path):
    run = RunFolder(tmp_path)
    assert read_metrics(run) == {}
    write_metrics(run, {"val/accuracy": 0.5, "val/auroc_macro": math.nan})
    write_metrics(run, {"test/accuracy": 0.75})
    write_metrics(run, {"val/accuracy": 0.25})
    found = read_metrics(run)
    assert math.isnan(found.pop("val/auroc_macro"))
    assert found == {"val/accuracy": 0.25, "test/accuracy": 0.75}
    assert "NaN" not in run.metrics.read_text()


@pytest.mark.parametrize("content", ["", "[1]", '{"test/accuracy": "good"}', '{"test/accuracy": {}}'])
def test_foreign_metrics_are_not_overwritten(tmp_path, content):
    run = RunFolder(tmp_path)
    run.metrics.write_text(content)
    with pytest.raises(ConfigError, match=r"metrics\.json"):
        write_metrics(run, {"test/accuracy": 1.0})
    assert run.metrics.read_text() == content


def test_predictions_name_image_lesion_label_answer_and_probabilities(tmp_path):
    run = RunFolder(tmp_path)
    write_predictions(run, answers(), manifest(boxes=False))
    patient, _, unknown = (name.split(":")[1] for name in pd.read_csv(run.predictions)["group"])
    assert re.fullmatch("[0-9a-f]{12}", patient) and re.fullmatch("[0-9a-f]{12}", unknown) and patient != unknown
    assert run.predictions.read_text(encoding="utf-8").splitlines() == [
        "image,lesion_id,label,prediction,prob_AIS,prob_MIA,group",
        f"a.jpg,L1,AIS,MIA,0.25,0.75,patient:{patient}",
        f"b.jpg,L2,MIA,MIA,0.125,0.875,patient:{patient}",
        f'"ü, c.jpg",,,AIS,1,1e-09,lesion:{unknown}',
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_boxes_tell_apart_the_rois_of_one_photograph():
    table = prediction_table(answers(), manifest(boxes=True))
    assert list(table.columns)[-5:] == ["x", "y", "width", "height", "group"]
    assert table.loc[1, ["x", "y", "width", "height"]].tolist() == [1, 2, 3, 4]


def test_predictions_that_cannot_be_written_say_so(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match=r"predictions\.csv: cannot be written"):
        write_predictions(RunFolder(tmp_path / "run"), answers(), manifest(boxes=False))


def test_class_table_counts_what_is_labelled():
    table = class_table(answers())
    assert table["support"].tolist() == [1, 1]
    assert table["predicted"].tolist() == [0, 2]
    assert table["precision"].tolist() == [0, 0.5]
    assert json.loads(table.to_json())["class"] == {"0": "AIS", "1": "MIA"}
