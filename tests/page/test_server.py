"""The command ``page`` as a process, and the container that runs it."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from helpers.pages import TOKEN, photographs, served
from helpers.paths import REPOSITORY

from kd_convnext.cli import main

DOCKERFILE = REPOSITORY / "Dockerfile"


def test_there_must_be_something_to_show(capsys, tmp_path):
    assert main(["page"]) == 2
    assert "--manifest FOLDER" in capsys.readouterr().err
    assert main(["page", "--manifest", str(tmp_path / "gone"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["page", "--ckpt_path", str(tmp_path / "gone.ckpt"), "--port", "0"]) == 2


def test_a_taken_port_is_named(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["page", "--manifest", str(tmp_path), "--port", str(port)]) == 2
    assert "another --port" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    photographs(tmp_path / "photos", 2)
    with served("--manifest", tmp_path / "photos", "--cache_dir", tmp_path / "cache") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        with httpx.Client(trust_env=False, follow_redirects=True) as browser:
            assert browser.get(address).status_code == 200
            base = address.split("/?")[0]
            assert len(browser.get(f"{base}/api/mark/photographs").json()["photographs"]) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
        assert "Traceback" not in process.stderr.read()


def test_a_table_with_other_columns(tmp_path, capsys):
    photographs(tmp_path, 2)
    (tmp_path / "table.csv").write_text("file,dx\np0000.png,AIS\n")
    words = ["--manifest", tmp_path / "table.csv", "--cache_dir", tmp_path / "cache"]
    assert main(["page", *map(str, words), "--port", "0"]) == 2
    assert 'give --columns "image=file"' in capsys.readouterr().err
    with (
        served(*words, "--columns", "image=file,label=dx") as (_, address),
        httpx.Client(trust_env=False, follow_redirects=True) as browser,
    ):
        browser.get(address)
        marked = f"{address.split('/?')[0]}/api/mark"
        found, checks = (browser.get(f"{marked}/{name}").json() for name in ("photographs", "checks"))
    assert found["classes"] == ["AIS"]
    assert not [entry for entry in checks["findings"] if "column" in entry["what"]]


def test_marking_alone_loads_no_torch(tmp_path):
    code = "import sys; import kd_convnext.page.app, kd_convnext.tools.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def instructions():
    """Returns the Dockerfile's instructions, continued lines joined."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_container_holds_no_weights_and_runs_as_nobody_in_particular():
    lines = instructions()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and users[-1] not in ("0", "root")
    assert lines[0].startswith("FROM python:3.1") and ":latest" not in lines[0]
    copied = [word for line in lines if line.startswith(("COPY", "ADD")) for word in line.split()[1:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "configs", "kd_convnext"}
    assert not any(line.startswith(("ADD", "VOLUME")) or "sudo" in line or "apt-get upgrade" in line for line in lines)
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(allowed) == set(copied)
    for name in copied:
        assert (REPOSITORY / name).exists(), name


def test_the_container_reads_what_hospitals_keep_with_the_locked_torch():
    installed = " ".join(line for line in instructions() if line.startswith("RUN pip install"))
    assert '".[page,heic,dicom]"' in installed
    locked = re.findall(r"^((?:torch|torchvision)==\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert re.findall(r"\btorch\w*==\S+", installed) == locked
    # Small by default; PyPI's files bring CUDA along.
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in instructions()
    assert '--index-url "${TORCH_INDEX}"' in installed


def test_the_containers_command_is_the_one_there_is():
    import inspect

    from kd_convnext.tools.page import page

    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in instructions()}
    words = json.loads(lines["ENTRYPOINT"]) + json.loads(lines["CMD"])
    assert words[:2] == ["kd-convnext", "page"]
    options = {word.removeprefix("--") for word in words[2:] if word.startswith("--")}
    assert options <= set(inspect.signature(page).parameters)
    assert words[words.index("--port") + 1] == lines["EXPOSE"] and f":{lines['EXPOSE']}/healthz" in lines["HEALTHCHECK"]


@pytest.mark.slow
def test_the_container_is_built_and_answers(tiny_run):
    found = [name for name in ("docker", "podman") if shutil.which(name)]
    able = [name for name in found if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0]
    if not able:
        pytest.skip("no docker or podman that can build here")
    builder = able[0]
    subprocess.run([builder, "build", "-t", "kd-convnext-test", str(REPOSITORY)], check=True, timeout=1800)
    run = tiny_run.parent.parent
    words = ["run", "-d", "--rm", "-p", "127.0.0.1::8734", "-e", f"KD_CONVNEXT_PAGE_TOKEN={TOKEN}"]
    started = subprocess.run(
        [builder, *words, "-v", f"{run}:/run_folder:ro", "kd-convnext-test"], check=True, capture_output=True, text=True
    )
    name = started.stdout.strip()
    try:
        port = subprocess.run([builder, "port", name, "8734"], check=True, capture_output=True, text=True).stdout
        transport = httpx.HTTPTransport(retries=30)
        with httpx.Client(transport=transport, trust_env=False, timeout=60) as client:
            assert client.get(f"http://{port.strip()}/healthz").json() == {"status": "ok"}
    finally:
        subprocess.run([builder, "stop", name], check=False)
