"""No command and no import asks the network for anything: name look-ups and connections are recorded."""

import os
import subprocess
import sys

import pytest

RECORDED = """
import json, socket, sys
asked = []
real = socket.socket.connect
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        asked.append(str(address))
        raise OSError(101, "Network is unreachable")
    return real(self, address)
def look_up(host, *_, **__):
    asked.append(str(host))
    raise socket.gaierror(-2, "Name or service not known")
socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = look_up
code = 0
{body}
print("asked", json.dumps(asked), code)
"""

LIBRARY = """
from kd_convnext.data.loading.augment import AugmentSpec, built_transforms
import kd_convnext.data.loading.augment as augment
built_transforms([{"class_path": "albumentations.HorizontalFlip"}])
"""

COMMANDS = """
from kd_convnext.cli import main
for words in json.loads(sys.argv[1]):
    code = code or main(words)
"""


def asked_by(body, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    script = RECORDED.replace("{body}", body)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("asked")] or [done.stderr]
    return line


def test_the_library_asks_nothing():
    assert asked_by(LIBRARY) == "asked [] 0"


@pytest.mark.slow
def test_the_commands_ask_nothing(tiny_run, tiny_manifest, tiny_cache, tmp_path):
    import json

    from helpers.inference import copy_run

    checkpoint = str(copy_run(tiny_run, tmp_path / "run"))
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    commands = [
        ["prepare", "--manifest", str(tiny_manifest), "--cache_dir", str(tmp_path / "cache"), "--upscaler", "bicubic"],
        ["calibrate", "--ckpt_path", checkpoint, "--coverage", "0.5"],
        ["classify", photo, "--ckpt_path", checkpoint, "--out", str(tmp_path / "answers")],
        ["card", "--ckpt_path", checkpoint, "--resamples", "5"],
        ["publish", "--ckpt_path", checkpoint, "--out", str(tmp_path / "published")],
        ["export", "--ckpt_path", checkpoint, "--out", str(tmp_path / "onnx")],
        ["export", "--ckpt_path", checkpoint, "--out", str(tmp_path / "openvino"), "--format", "openvino"],
        ["doctor"],
    ]
    assert asked_by(COMMANDS, json.dumps(commands)) == "asked [] 0"
