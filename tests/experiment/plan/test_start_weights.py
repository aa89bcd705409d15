import pytest
from helpers.experiments import description, write

from kd_convnext.cli import main


@pytest.mark.parametrize("more", [["--dry_run"], []])
def test_start_weights_that_are_not_there_are_told_before_anything_runs(tiny_manifest, tmp_path, capsys, more):
    plan = description()
    for name, network in (("swin", "backbone"), ("kd_both", "student")):
        arguments = plan["methods"][name]["overlay"]["model"]["init_args"]
        arguments[network] = {**arguments[network], "weights": f"runs/{name}.ckpt"}
    words = ["paper", f"--config={write(tmp_path, plan)}", f"--manifest={tiny_manifest}", f"--out={tmp_path / 'out'}"]
    assert main([*words, f"--cache_dir={tmp_path / 'cache'}", *more]) == 2
    told = capsys.readouterr().err
    assert all(f"grid.methods.{name}: its start weights runs/{name}.ckpt" in told for name in ("swin", "kd_both"))
    assert not (tmp_path / "out").exists()
