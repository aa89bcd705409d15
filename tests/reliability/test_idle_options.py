"""Options that have no effect beside others are named, through the door that they were given at."""

import pytest
import yaml
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main

FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tmp_path):
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    place = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.fast_dev_run=true"]
    return lambda *words: main([*FIT, *data, *place, *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.sr_weights=general-x4v3"], "sr_weights has no effect beside upscaler bicubic"),
        (
            ["--data.crops.sr_denoise=0.5", "--data.crops.sr_precision=bfloat16"],
            "sr_denoise, sr_precision have no effect beside upscaler bicubic",
        ),
        (["--data.upscaler=auto", "--data.crops.sr_denoise=0.5"], "sr_denoise has no effect without sr_weights"),
        (["--data.loader.unlabelled_ratio=2"], "loader.unlabelled_ratio has no effect without unlabelled"),
        (["--data.loader.unlabelled_sampling=balanced"], "loader.unlabelled_sampling has no effect without unlabelled"),
    ],
)
def test_of_a_fit(words, told, fit, capsys):
    assert fit(*words) == 0
    assert capsys.readouterr().err.count(f"warning: --data: {told}") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.linear_c=0.1"], "linear_c has no effect beside finetune full"),
        (["--model.linear_looks=4"], "linear_looks has no effect beside finetune full"),
        (["--model.head_epochs=2"], "head_epochs has no effect beside finetune full"),
        (["--model.finetune=linear", "--trainer.gradient_clip_val=null"], "optim has no effect beside finetune linear"),
        (
            ["--model.finetune=linear", "--trainer.gradient_clip_val=null", "--model.mixing.cutmix=1"],
            "mixing has no effect beside",
        ),
        (["--model.loss=cross_entropy", "--model.gamma=3"], "gamma has no effect beside loss cross_entropy"),
    ],
)
def test_of_a_model(words, told, fit, capsys):
    assert fit(*words) == 0
    assert capsys.readouterr().err.count(f"warning: --model: {told}") == 1


@pytest.fixture
def student(tmp_path, tiny_manifest, tiny_cache):
    """A fit of a student that has one term."""

    def run(kind, options, *words):
        terms = {"one": {"class_path": f"kd_convnext.losses.{kind}", "init_args": options}}
        objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}
        model = {"class_path": "kd_convnext.DistillModule", "init_args": {"objective": objective}}
        (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": model}))
        data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", "--trainer.fast_dev_run=true"]
        place = [f"--trainer.default_root_dir={tmp_path / 'run'}", *convnext("student")]
        return main(["fit", f"--config={tmp_path / 'student.yaml'}", *TINY, *data, *place, *words])

    return run


def test_taps_that_no_term_reads(student, capsys):
    assert student("CrossEntropy", {}, "--model.taps.student=[network.stages_3]") == 0
    assert "warning: --model: taps has no effect: no term of the objective reads maps" in capsys.readouterr().err


def test_views_that_serve_no_stored_outputs(student, capsys):
    assert student("CrossEntropy", {}, "--data.loader.views=4") == 0
    told = "warning: --model: data.loader.views 4 serves teacher_cache true; without it, it only shows each crop in 4"
    assert told in " ".join(capsys.readouterr().err.split())


POWER = '{"class_path":"kd_convnext.data.loading.sampling.ByFrequency","init_args":{"power":0.25}}'


@pytest.mark.parametrize(
    ("tau", "sampling", "right", "does"),
    [
        (0.5, "natural", 1, "leaves a part of"),
        (0.5, "balanced", 0, "takes away more than is left of"),
        (1.0, "square_root", 0.5, "takes away more than is left of"),
        (1.0, POWER, 0.25, "takes away more than is left of"),
    ],
)
def test_a_prior_that_the_sampling_contradicts(tau, sampling, right, does, student, capsys):
    assert student("BalancedSoftmax", {"tau": tau}, f"--data.loader.sampling={sampling}") == 0
    said = capsys.readouterr().err
    assert f"tau {tau:g} of the term one {does} the classes' shares" in said and f"it is {right:g}" in said
    assert student("BalancedSoftmax", {"tau": right}, f"--data.loader.sampling={sampling}") == 0
    assert "warning: --model" not in capsys.readouterr().err


def test_a_seed_beside_a_split_that_is_given(fit, tiny_manifest, tmp_path, capsys):
    header, *rows = tiny_manifest.read_text().splitlines()
    parts = {"0": "val", "1": "test"}
    lesion = header.split(",").index("lesion_id")
    given = [f"{row},{parts.get(row.split(',')[lesion][-1], 'train')}" for row in rows]
    manifest = tiny_manifest.with_name("given.csv")
    manifest.write_text("\n".join([f"{header},split", *given]) + "\n")
    try:
        assert fit(f"--data.manifest={manifest}", "--data.split.seed=3") == 0
    finally:
        manifest.unlink()
    assert "split.seed has no effect beside the manifest's split column" in capsys.readouterr().err


def test_an_ordinary_fit_is_quiet(fit, capsys):
    assert fit() == 0
    assert "no effect" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sr_weights=general-x4v3"], ["sr_weights has no effect beside upscaler bicubic"]),
        (["--crops.sr_wdn_weights=general-wdn-x4v3"], ["sr_wdn_weights has no effect beside upscaler bicubic"]),
        (["--yes", "--also=[other.csv]"], ["--yes has no effect without --prune", "--also has no effect without"]),
        (["--preview=2", "--prune"], ["--preview has no effect with --dry_run", "--prune has no effect with"]),
        ([], []),
    ],
)
def test_of_prepare(words, told, tiny_manifest, tmp_path, recwarn):
    always = ["prepare", str(tiny_manifest), "--upscaler=bicubic", "--dry_run", f"--cache_dir={tmp_path}"]
    assert main([*always, *words]) == 0
    said = [text for text in (str(warning.message) for warning in recwarn) if "no effect" in text]
    assert len(said) == len(told) and all(any(one in text for text in said) for one in told)


def test_of_publish_and_explain(tiny_run, tiny_manifest, tmp_path):
    publish = ["publish", "--ckpt_path", str(tiny_run), f"--out={tmp_path / 'model'}", "--private=false"]
    with pytest.warns(UserWarning, match="--private has no effect without --repo_id"):
        assert main(publish) == 0
    photo = str(next(tiny_manifest.parent.glob("*.png")))
    explain = ["explain", photo, "--ckpt_path", str(tiny_run), f"--out={tmp_path / 'out'}", "--neighbours=0"]
    with pytest.warns(UserWarning, match="--manifest has no effect with --neighbours 0"):
        assert main([*explain, "--manifest", str(tiny_manifest)]) == 0


@pytest.mark.parametrize(
    ("half", "words", "told"),
    [
        ("--ckpt_path", ["--columns=image=file"], ["--columns has no effect without --manifest"]),
        ("--manifest", ["--columns=image=file"], []),
        (
            "--manifest",
            ["--sr_weights=general-x4v3", "--calibration=none", "--tta=false"],
            [f"--{name} has no effect without --ckpt_path" for name in ("sr_weights", "calibration", "tta")],
        ),
    ],
)
def test_of_page(half, words, told, tmp_path, recwarn):
    pytest.importorskip("starlette")
    assert main(["page", half, str(tmp_path / "gone"), "--port=0", *words]) == 2
    said = [text for text in (str(warning.message) for warning in recwarn) if "no effect" in text]
    assert said == told
