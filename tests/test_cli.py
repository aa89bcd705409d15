import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
import yaml
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY, convnext
from helpers.paths import CONFIGS

from kd_convnext.cli import main


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tiny_manifest, tiny_cache, tmp_path_factory):
    """A teacher and a student of the shipped configurations, fitted once through the command line."""
    folder = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
        words = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *data, *TINY, *SMALL_SWIN, *OFFLINE]
        assert main(["fit", *words]) == 0
        (teacher,) = (folder / "runs" / "teacher_swin_tiny").iterdir()
        words = ["--config", str(CONFIGS / "kd_convnext_tiny.yaml"), *data, *TINY, *convnext("student")]
        words += ["--model.student.pretrained=false", f"--model.teacher_ckpt={teacher}/checkpoints/best.ckpt"]
        assert main(["fit", *words]) == 0
        (student,) = (folder / "runs" / "kd_convnext_tiny").iterdir()
    finally:
        os.chdir(before)
    return teacher, student


def test_run_folder_has_its_tree(runs):
    for run in runs:
        for name in ("config.yaml", "split.csv", "environment.json", "metrics.csv", "checkpoints/best.ckpt"):
            assert (run / name).is_file(), name
        assert (run / "checkpoints" / "last.ckpt").exists()
        assert (run / "figures" / "training_curves.png").is_file()
        assert (run / "figures" / "augmented_crops.png").is_file()
    columns = pd.read_csv(runs[1] / "metrics.csv").columns
    assert {"train/loss", "train/loss_feature", "train/loss_soft", "train/loss_focal", "val/f1_macro"} <= set(columns)


def test_test_validate_and_predict_from_the_checkpoint(runs, tiny_manifest, capsys):
    _, run = runs
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    for command in ("test", "validate", "predict"):
        assert main([command, *words]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/f1_macro", "test/f1_paper", "test/recall/Grade 1", "test/lesion/f1_macro", "val/f1_macro"} <= set(
        metrics
    )
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (run / "split.csv").open() as file:
        parts = {row["image"]: row["split"] for row in csv.DictReader(file)}
    assert {row["image"] for row in rows} == {image for image, part in parts.items() if part == "test"}
    total = sum(float(rows[0][f"prob_{name}"]) for name in ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"))
    assert total == pytest.approx(1, abs=1e-5)
    right = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert metrics["test/accuracy"] == pytest.approx(right, abs=1e-6)
    assert len(pd.read_csv(run / "predictions_all.csv")) == len(pd.read_csv(tiny_manifest))


@pytest.mark.slow
def test_next_command_is_printed_and_works(runs, tiny_manifest, tiny_cache, at, capsys):
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    config = str(CONFIGS / "teacher_swin_tiny.yaml")
    assert main(["fit", "--config", config, *data, *TINY, *SMALL_SWIN, *OFFLINE]) == 0
    printed = capsys.readouterr().out
    following = [line.split() for line in printed.splitlines() if line.strip().startswith("kd-convnext")]
    assert [words[1] for words in following] == ["test", "fit"]
    assert main(following[0][1:]) == 0
    smaller = [*convnext("student"), "--model.student.pretrained=false", "--trainer.limit_train_batches=1"]
    assert main([*following[1][1:], *smaller, "--data.image_size=32", "--data.batch_size=8"]) == 0
    (student,) = (at / "runs" / "kd_convnext_tiny").iterdir()
    (teacher,) = (at / "runs" / "teacher_swin_tiny").iterdir()
    assert (student / "split.csv").read_text() == (teacher / "split.csv").read_text()


def test_resume_goes_on_in_the_same_folder(runs, tiny_manifest, tiny_cache, at):
    teacher, _ = runs
    last = str(teacher / "checkpoints" / "last.ckpt")
    words = ["--config", str(teacher / "config.yaml"), "--ckpt_path", last, "--trainer.max_epochs", "2"]
    assert main(["fit", *words]) == 0
    assert torch.load(last, weights_only=True, map_location="cpu")["global_step"] == 4
    assert (teacher / "metrics_until_resume_1.csv").is_file()
    assert not (at / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    # Experiments and the sweep are of other commands (test_experiment.py).
    sorted(
        path.relative_to(CONFIGS).as_posix()
        for path in CONFIGS.rglob("*.yaml")
        if path.name not in ("paper.yaml", "recipes.yaml", "sweep.yaml")
    ),
)
def test_every_shipped_configuration_runs(config, runs, tiny_manifest, tiny_cache, at):
    settings = yaml.safe_load((CONFIGS / config).read_text())
    words = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY]
    base = ["--config", str(CONFIGS / config)]
    if "model" not in settings:
        base = ["--config", str(CONFIGS / "small_cpu" / "convnext.yaml"), *base]
        words += convnext("backbone")
    elif "teacher_ckpt" in settings["model"]["init_args"] or settings["model"]["class_path"].endswith("DistillModule"):
        words += [*convnext("student"), "--model.student.pretrained=false"]
        if config != "small_cpu/alone.yaml":
            words += [f"--model.teacher_ckpt={runs[0]}/checkpoints/best.ckpt"]
        if settings["data"].get("labels") == "ignore":
            words += ["--data.allow_leak=true", "--data.split.ratios=[0.8,0.1,0.1]"]
    elif settings["model"]["init_args"].get("finetune") == "linear":
        small = {"depth": 2, "embed_dim": 12, "num_heads": 2}
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **small)
        torch.save(vit.state_dict(), at / "vit.pth")
        words += ["--model.backbone.name=vit_tiny_patch16_224", "--model.backbone.token_blocks=1"]
        words += [f"--model.backbone.args={json.dumps(small)}", "--model.backbone.image_size=32"]
        words += ["--model.backbone.weights=vit.pth"]
    else:
        name = settings["model"]["init_args"]["backbone"]["name"]
        words += [*OFFLINE, *TINY_RIVALS.get(name, SMALL_SWIN if "swin" in name else convnext("backbone"))]
    assert main(["fit", *base, *words]) == 0


def _rival(size, **arguments):
    return [
        f"--model.backbone.image_size={size}",
        f"--data.image_size={size}",
        f"--model.backbone.args={json.dumps(arguments)}",
        "--data.batch_size=2",
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
    ]


# Small relatives of the published networks: same classes of timm, fewer and narrower blocks.
TINY_RIVALS = {
    "tf_efficientnetv2_s": [*_rival(32), "--model.backbone.name=efficientnetv2_rw_t"],
    "davit_tiny": _rival(
        32,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 32, 32, 64],
        num_heads=[1, 2, 2, 4],
        window_size=2,
    ),
    "coatnet_0_rw_224": [*_rival(32), "--model.backbone.name=coatnet_pico_rw_224"],
}


class TestBadInput:
    def run(self, capsys, *words):
        code = main(list(words))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.err

    def test_typo_in_an_option(self, capsys, tiny_manifest):
        code, err = self.run(capsys, "fit", "--config", str(CONFIGS / "small_cpu/teacher.yaml"), "--data.manifst=x")
        assert code == 2 and "manifst" in err and err.count("\n") == 1
        assert "Did you mean --data.manifest?" in err

    def test_wrong_value(self, capsys):
        code, err = self.run(
            capsys,
            "fit",
            "--config",
            str(CONFIGS / "small_cpu/teacher.yaml"),
            "--data.manifest=x",
            "--data.batch_size=many",
        )
        assert code == 2 and "data.batch_size" in err and "many" in err

    def test_unknown_command(self, capsys):
        code, err = self.run(capsys, "fitt")
        assert code == 2 and "Did you mean fit?" in err

    def test_explicit_number_of_classes(self, capsys):
        code, err = self.run(capsys, "fit", "--model.num_classes=3")
        assert code == 2 and "comes from the data" in err

    def test_findings_of_a_manifest_all_at_once(self, capsys, at, tiny_manifest):
        bad = at / "bad.csv"
        image = tiny_manifest.parent / "0_0_0.png"
        bad.write_text(
            "image,label,lesion_id,x,y,width,height\n"
            f"{image},Grade 1,a,0,0,999,10\nmissing.png,MIA,b,,,,\n{image},,c,1,,2,2\n"
        )
        code, err = self.run(
            capsys, "fit", "--config", str(CONFIGS / "small_cpu/teacher.yaml"), f"--data.manifest={bad}"
        )
        assert code == 2
        for row in ("row 2", "row 3", "row 4"):
            assert row in err

    def test_checkpoint_is_missing_for_test(self, capsys, tiny_manifest):
        words = ["--config", str(CONFIGS / "small_cpu/teacher.yaml"), f"--data.manifest={tiny_manifest}"]
        code, err = self.run(capsys, "test", *words)
        assert code == 2 and "--ckpt_path" in err
        code, err = self.run(capsys, "test", *words, "--ckpt_path=nowhere.ckpt")
        assert code == 2 and "there is no file" in err

    def test_pretrained_without_network(self, capsys, at, tiny_manifest, tiny_cache, monkeypatch):
        monkeypatch.setenv("HF_HOME", str(at))
        words = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), f"--data.manifest={tiny_manifest}"]
        code, err = self.run(capsys, "fit", *words, f"--data.cache_dir={tiny_cache}", *TINY[:7])
        assert code == 2 and "pretrained: false" in err and "weights FILE" in err

    def test_distillation_without_teacher(self, capsys, at, tiny_manifest, tiny_cache):
        words = ["--config", str(CONFIGS / "small_cpu/student.yaml"), f"--data.manifest={tiny_manifest}"]
        code, err = self.run(capsys, "fit", *words, f"--data.cache_dir={tiny_cache}", *TINY, *convnext("student"))
        assert code == 2 and "--model.teacher_ckpt" in err

    def test_folder_that_holds_a_run(self, capsys, runs, tiny_manifest):
        words = ["--config", str(runs[0] / "config.yaml"), f"--trainer.default_root_dir={runs[0]}"]
        code, err = self.run(capsys, "fit", *words)
        assert code == 2 and "holds a run already" in err


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=True,
    ).stdout


def test_shipped_configurations_are_found_from_anywhere(capsys, at):
    assert main(["fit", "--config", "configs/small_cpu/teacher.yaml", "--data.manifest=nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["prepare", "--help", "all"]])
def test_help_loads_no_torch(words):
    code = (
        "import sys\nfrom kd_convnext.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        # The goal is 1.5 s; a page alone takes a tenth of it.
        f"import time\nassert time.process_time() < {1.5 if words[-1] == '--help' else 15}\n"
        "print([name for name in ('torch', 'timm', 'lightning', 'albumentations') if name in sys.modules])"
    )
    assert python(code).strip().endswith("[]")


def test_skipped_photographs_are_counted_and_listed(tiny_manifest, at, capsys):
    lines = tiny_manifest.read_text().splitlines()
    (at / "broken.png").write_bytes(b"no picture")
    manifest = at / "m.csv"
    rows = [f"{tiny_manifest.parent}/{line}" for line in lines[1:]]
    manifest.write_text("\n".join([lines[0], "broken.png,MIA,L9,,,,", *rows]) + "\n")
    words = ["prepare", f"--manifest={manifest}", "--cache_dir=cache", "--upscaler=bicubic"]
    assert main(words) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main([*words, "--on_error=skip"]) == 0
    printed = capsys.readouterr()
    assert "1 photograph left out:" in printed.err and "broken.png" in printed.err
    # The fit that is named next leaves them out as well.
    assert "--data.on_error skip" in printed.out


def test_a_full_disk_is_one_line(tiny_manifest, tiny_cache, at, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "last.ckpt")

    monkeypatch.setattr("lightning.pytorch.trainer.trainer.Trainer.save_checkpoint", full)
    words = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", *TINY, *convnext("backbone")]
    assert main(["fit", "--config", str(CONFIGS / "small_cpu" / "convnext.yaml"), *words]) == 2
    err = capsys.readouterr().err
    assert "last.ckpt" in err and "space" in err and "Traceback" not in err


@pytest.mark.slow
def test_short_names_of_modules_are_known_to_a_new_process(tmp_path):
    words = ["-m", "kd_convnext.cli", "fit", "--model=TeacherModule", "--data.manifest=m.csv", "--print_config"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "class_path: kd_convnext.TeacherModule" in done.stdout, done.stderr


def test_null_starts_a_network_of_a_file_from_nothing(at, tiny_manifest, tiny_cache, capsys):
    model = {"class_path": "kd_convnext.TeacherModule", "init_args": {"backbone": {"weights": "gone.safetensors"}}}
    (at / "own.yaml").write_text(yaml.safe_dump({"model": model}))
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    words = ["fit", "--config=own.yaml", *data, *TINY, *convnext("backbone"), "--trainer.default_root_dir=run"]
    assert main([*words, "--model.backbone.weights", "null"]) == 0, capsys.readouterr().err
    backbone = yaml.safe_load((at / "run" / "config.yaml").read_text())["model"]["init_args"]["backbone"]
    assert backbone["weights"] is None and backbone["name"] == "convnext_tiny"
    capsys.readouterr()
    for option, more in (("backbone.wrong", []), ("optim.lr", []), ("backbone.weights", ["--print_config"])):
        assert main([*words, f"--model.{option}", "null", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and option.split(".")[-1] in error
