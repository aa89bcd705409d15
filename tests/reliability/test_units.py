"""What an interval takes as independent: where that is more than is known, whoever reads it is told."""

import shutil

import pandas as pd
import pytest
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.data.manifest.grouping import crowded
from kd_convnext.runs.folder import RunFolder

TOLD = "5 of 5 patients with several lesions, or photographs that name none: intervals by lesion take these as"


def test_patients_alone(tiny_manifest, tmp_path, capsys):
    manifest = shutil.copytree(tiny_manifest.parent, tmp_path / "photos") / tiny_manifest.name
    manifest.write_text(manifest.read_text().replace("lesion_id", "patient_id"))
    fit = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]
    run = RunFolder(tmp_path / "run")
    places = [f"--data.cache_dir={tmp_path / 'cache'}", f"--trainer.default_root_dir={run.path}"]
    assert main([*fit, f"--data.manifest={manifest}", *places]) == 0
    best = ["--ckpt_path", str(run.best)]
    assert main(["test", "--config", str(run.config), *best]) == 0
    assert f"note: {TOLD}" in capsys.readouterr().out
    assert main(["card", *best, "--resamples=20"]) == 0
    assert TOLD in (run.path / "MODEL_CARD.md").read_text().replace("\n", " ")
    assert main(["report", str(run.path), "--bootstrap=20"]) == 0
    assert f"Patients tested: {TOLD}" in run.report.read_text()


@pytest.mark.parametrize(
    ("lesions", "patients", "told"),
    [
        (["L1", "L1", "L2"], ["P1", "P1", "P2"], ""),
        (["L1", "L2", "L3"], ["", "", ""], ""),
        (["L1", "L2", "L3"], ["P1", "P1", "P2"], "1 of 2 patients with several lesions: "),
        (["L1", "", ""], ["P1", "P2", "P2"], "1 of 2 patients with several lesions, or photographs that name none: "),
    ],
)
def test_patients_with_several_lesions(lesions, patients, told):
    table = pd.DataFrame({"image": ["a", "b", "c"], "lesion_id": lesions, "patient_id": patients}, index=[4, 7, 9])
    assert crowded(table).startswith(told) and bool(crowded(table)) == bool(told)
