"""A tool that is killed (SIGKILL) leaves its earlier result whole, or one that its reader refuses; again, it works."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.inference import copy_run

from kd_convnext.checkpoints.format import KEY, weights_sha256
from kd_convnext.cli import main
from kd_convnext.common.files import sha256_of
from kd_convnext.errors import CheckpointError
from kd_convnext.inference.publishing.hub import PublishedModel


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(count, words):
    """Runs a command in a process of its own, which is killed before it renames one file more than so many.

    Returns:
        Whether it was killed; where it renames fewer files, it ends by itself.
    """
    process = os.fork()
    if process == 0:
        left, rename = iter(range(count)), Path.replace

        def replace(path, target):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.replace = replace
        code = 1
        try:
            code = main(words)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.fixture
def newer(tiny_run, tmp_path):
    """The same run, trained on: its weights are others."""
    checkpoint = copy_run(tiny_run, tmp_path / "newer")
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]
    weights |= {name: value * 1.01 for name, value in weights.items() if value.is_floating_point()}
    content[KEY]["weights_sha256"] = weights_sha256(weights)
    torch.save(content, checkpoint)
    return checkpoint


def test_publish(tiny_run, newer, tmp_path):
    out, count = tmp_path / "model", 0
    assert main(["publish", "--ckpt_path", str(tiny_run), "--out", str(out)]) == 0
    before = contents(out)
    while killed(count, ["publish", "--ckpt_path", str(newer), f"--out={out}", "--overwrite=true"]):
        count += 1
        if contents(out) != before:
            with pytest.raises(CheckpointError, match=r"config\.json"):
                PublishedModel.from_pretrained(str(out))
    assert count > 3
    info = PublishedModel.from_pretrained(str(out)).predictor.network.info
    assert info.checkpoint_sha256 == sha256_of(newer)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "key"), [("torch", "model.pt2"), ("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_export(form, key, tiny_run, newer, tmp_path):
    out, count = tmp_path / "model", 0
    words = ["export", "--format", form, f"--out={out}", "--overwrite=true", "--samples=2"]
    assert main([*words, "--ckpt_path", str(tiny_run)]) == 0
    before = contents(out)
    while killed(count, [*words, "--ckpt_path", str(newer)]):
        count += 1
        assert contents(out) == before or key not in contents(out)
    assert count > 1 and contents(out).keys() == before.keys() and contents(out)["model.json"] != before["model.json"]
