import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.command_line import TINY, convnext
from helpers.tiny import CONVNEXT, SWIN

from kd_convnext import DistillModule, TeacherModule
from kd_convnext.cli import main

SRUN = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "fit", "SLURM_LOCALID": "1"}
TEACHER = {
    "model": {
        "class_path": "kd_convnext.TeacherModule",
        "init_args": {
            "backbone": {"name": "swin_tiny_patch4_window7_224", "image_size": 32, "args": SWIN},
            "optim": {"lr": 1e-3},
        },
    },
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "enable_progress_bar": False},
    "data": {"image_size": 32, "batch_size": 8, "num_workers": 0},
}


@pytest.fixture
def words(tmp_path, monkeypatch, tiny_manifest, tiny_cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    student = {"name": "convnext_tiny", "image_size": 32, "args": CONVNEXT}
    init = {"class_path": "kd_convnext.DistillModule", "init_args": {"student": student}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": init, "teacher_config": "teacher.yaml"}))
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", "--data.split.index=1"]
    return ["fit", "--config", "student.yaml", *TINY, *data, "--trainer.default_root_dir=run"]


def test_one_command_trains_the_teacher_and_then_the_student(words, tiny_manifest, tmp_path, capsys, recwarn):
    head, *rows = tiny_manifest.read_text().splitlines()
    odd = [f"{head},site", *(f"{tiny_manifest.parent}/{row},A" for row in rows)]
    (tmp_path / "odd.csv").write_text("\n".join(odd) + "\n")
    words = [*words, f"--data.manifest={tmp_path / 'odd.csv'}"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert sum("not used: 'site'" in str(entry.message) for entry in recwarn) == 1
    assert "The teacher first, by teacher.yaml:" in out and "not empty" not in err
    # What to type next is the student's, not its teacher's.
    assert out.count("kd-convnext test") == 1 and "run/teacher/config.yaml" not in out
    assert out.count("regions (photographs") == 1
    teacher, student = tmp_path / "run/teacher", tmp_path / "run"
    cards = [
        torch.load(run / "checkpoints/best.ckpt", weights_only=True)["kd_convnext"]["card"]
        for run in (teacher, student)
    ]
    assert cards[0]["split_hash"] == cards[1]["split_hash"]
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert config["model"]["init_args"]["teacher_ckpt"].endswith("run/teacher/checkpoints/best.ckpt")
    assert json.loads((student / "environment.json").read_text())
    # The student's own folder holds the student's run: the teacher changed neither its folder nor its precision.
    assert (student / "metrics.csv").is_file() and (teacher / "metrics.csv").is_file()


@pytest.mark.slow
def test_precision_and_device_of_the_student_hold_for_its_teacher(words, tmp_path):
    assert main([*words, "--trainer.precision=bf16-mixed"]) == 0
    trainer = yaml.safe_load((tmp_path / "run/teacher/config.yaml").read_text())["trainer"]
    assert trainer["precision"] == "bf16-mixed" and trainer["accelerator"] == "cpu"


@pytest.mark.slow
def test_a_resumed_student_does_not_train_its_teacher_again(words, tmp_path):
    assert main(words) == 0
    teacher = tmp_path / "run/teacher/checkpoints/best.ckpt"
    before = teacher.stat().st_mtime_ns
    words = [word for word in words if "max_epochs" not in word]
    assert main([*words, "--trainer.max_epochs=2", "--ckpt_path=run/checkpoints/last.ckpt"]) == 0
    assert teacher.stat().st_mtime_ns == before


def test_a_teacher_of_other_options_teaches_no_student_that_has_not_begun(words, tmp_path, capsys):
    assert main(words) == 0
    assert yaml.safe_load((tmp_path / "run/teacher/config.yaml").read_text())["trainer"]["devices"] == 1
    for path in (tmp_path / "run/checkpoints").iterdir():
        path.unlink()  # as where the student failed before its first epoch
    capsys.readouterr()
    changed = json.loads(json.dumps(TEACHER))
    changed["model"]["init_args"]["optim"]["lr"] = 2e-3
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(changed))
    assert main(words) == 2
    assert "run/teacher" in (error := capsys.readouterr().err) and "was trained by other options" in error
    (tmp_path / "run/teacher/ended").unlink()  # as where the teacher was interrupted
    assert main(words) == 2 and "was trained by other options" in capsys.readouterr().err
    assert main([*words, "--teacher_config=gone.yaml"]) == 2
    assert "gone.yaml cannot be read (No such file or directory)" in capsys.readouterr().err
    (tmp_path / "run/teacher/ended").touch()
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    assert main(words) == 0 and "The teacher first" not in capsys.readouterr().out


def test_a_fit_that_is_interrupted_names_the_students_folder_where_its_teacher_is_kept(words, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    # First the teacher is interrupted; then, by the same command, the student, where views are answered.
    monkeypatch.setattr(DistillModule, "on_fit_start", interrupt)
    for interrupted in (True, False):
        with monkeypatch.context() as patch:
            if interrupted:
                patch.setattr(TeacherModule, "on_validation_epoch_end", interrupt)
            assert main(words) == 130
        told = capsys.readouterr()
        assert "The teacher first" in told.out
        assert "run: the fit was interrupted" in told.err and "last.ckpt" not in told.err
        assert "Its teacher is kept: the same command with --trainer.default_root_dir run goes on." in told.err
    assert main(words) == 130 and "The teacher first" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.image_size=64"], "the data gives 64 px, the network takes 32"),
        (["--model.teacher_cache=true", "--data.loader.views=2", "--model.mixing.mixup=0.4"], "model.mixing"),
        (["--model.teacher_cache=true"], "--model.teacher_cache: the views of the training must be limited"),
        (["--model.teacher_cache=still"], "--model.teacher_cache: a term needs maps of 'teacher'"),
        (["--model.teachers={swin: a.ckpt}"], "--model.teachers.swin: no term learns from 'swin'"),
        (["--model.student.weights={start}"], "this checkpoint: it was trained on"),
    ],
)
def test_a_students_mistakes_are_told_before_its_teacher_is_trained(
    options, said, words, tmp_path, tiny_manifest, tiny_cache, capsys
):
    if "start" in options[0]:
        data = [word for word in words if word.startswith("--data")]
        model = ["--model=kd_convnext.TeacherModule", *convnext("backbone")]
        start = ["fit", *model, *TINY, *data, "--data.split.index=2", "--trainer.default_root_dir=start"]
        assert main(start) == 0
        options = [option.format(start="start/checkpoints/best.ckpt") for option in options]
    assert main([*words, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize(
    ("name", "started"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}),
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}),
        ("SLURM", SRUN),
    ],
)
def test_processes_that_a_launcher_has_started_train_no_teacher_first(
    name, started, words, tmp_path, capsys, monkeypatch
):
    for variable, value in started.items():
        monkeypatch.setenv(variable, value)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --teacher_config: {name} has started several processes")
    assert "kd-convnext fit --config teacher.yaml --data.manifest" in said
    assert "--model.teacher_ckpt runs/teacher/checkpoints/best.ckpt" in said
    assert not (tmp_path / "run/teacher").exists()


TOGETHER = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.precision=32-true"]


def in_two_processes(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", *words, *TOGETHER]
    done = subprocess.run(started, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "CPU (1 thread) x 2" in done.stdout
    return done.stdout


@pytest.mark.slow
def test_torchrun_trains_a_student_whose_teacher_is_there(words, tmp_path):
    assert main(words) == 0
    for path in (tmp_path / "run/checkpoints").iterdir():
        path.unlink()
    in_two_processes("torch.distributed.run", "--nproc_per_node=2", "-m", "kd_convnext.cli", *words)
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()


@pytest.mark.slow
def test_processes_that_the_first_one_starts_find_the_teacher_trained(words, tmp_path):
    printed = in_two_processes("kd_convnext.cli", *words)
    assert printed.count("The teacher first, by teacher.yaml") == 1
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_student_learns_alike_whether_its_teacher_was_trained_before_or_is_there(words, tmp_path):
    assert main(words) == 0
    given = [word for word in words if "root_dir" not in word]
    teacher = ["--teacher_config=null", "--model.teacher_ckpt=run/teacher/checkpoints/best.ckpt"]
    assert main([*given, *teacher, "--trainer.default_root_dir=given"]) == 0
    runs = [torch.load(tmp_path / run / "checkpoints/best.ckpt", weights_only=True) for run in ("run", "given")]
    first, second = (run["state_dict"] for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_missing_start_weights_are_named_with_their_source_and_place(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "cache"))
    vit = {
        "name": "vit_small_patch14_dinov2",
        "image_size": 28,
        "weights": "weights/vit.safetensors",
        "token_blocks": 1,
    }
    teacher = json.loads(json.dumps(TEACHER))
    teacher["model"]["init_args"]["backbone"] = vit
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("weights/vit.safetensors", "timm/vit_small_patch14_dinov2", str(tmp_path / "cache" / "weights")):
        assert part in error
