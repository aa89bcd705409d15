"""What an argument parser says becomes one line that says what is likely meant."""

import inspect
from importlib import import_module

import jsonargparse
import pytest
from helpers.paths import CONFIGS

from kd_convnext.cli import TOOLS, main
from kd_convnext.common.configs import _refuse_misspelt
from kd_convnext.common.parsing import parsing
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.flat_options import FLAT
from kd_convnext.errors import ConfigError


@pytest.mark.parametrize(
    "word, hint",
    [
        ("--data.views=None", "written null, not None: --data.views=null"),
        ("--data.classes=[0,1,10]", "wants quotes"),
        ("--data.views=many", None),
    ],
)
def test_a_value_of_another_type_comes_with_what_is_meant(word, hint):
    def options(views: int | None = 1, classes: list[str] | None = None) -> None: ...

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(options, "data")
    with pytest.raises(ConfigError) as caught, parsing("fit"):
        parser.parse_args([word])
    said = str(caught.value)
    assert "Subtypes" not in said and "<class" not in said and "Parser" not in said
    assert (hint in said) if hint else ("null" not in said and "quotes" not in said)


TEACHER, STUDENT = (f"--config={CONFIGS / name}.yaml" for name in ("teacher_swin_tiny", "kd_convnext_tiny"))


@pytest.mark.parametrize(
    "words, said, meant",
    [
        (["prepare", "photos", "--upscaler=bicubik"], "--upscaler: 'bicubik' is none of auto", "bicubic"),
        (["fit", TEACHER, "--data.upscaler=bicubik"], "--data.upscaler: 'bicubik' is none of auto", "bicubic"),
        (["fit", TEACHER, "--model.finetune=ful"], "--model.finetune: 'ful' is none of head_first", "full"),
        (["fit", STUDENT, "--model.teacher_cache=stil"], "--model.teacher_cache: 'stil' is none of still", "still"),
    ],
)
def test_a_wrong_choice_comes_with_all_and_the_one_that_was_meant(words, said, meant, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and f"Did you mean {meant}? See kd-convnext {words[0]} --help." in error
    assert "Literal" not in error and "Union" not in error


@pytest.mark.parametrize(
    "words, said",
    [
        (["prepare", "photos", "--preview=true"], "--preview: 'True' is no whole number. See"),
        (["prepare", "photos", "--crops.roi_margin=wide"], "--crops.roi_margin: 'wide' is no number. See"),
        (
            ["fit", TEACHER, "--data.crops.store_size=None"],
            "--data.crops.store_size: 'None' is no whole number. Nothing",
        ),
        (["paper", "--manifest=a", "--repeats=x"], "--repeats: 'x' is no whole number or list. A list is written"),
        (["paper", "--manifest=a", "--overlays=a.yaml"], "--overlays: 'a.yaml' is no list. A list is written so: "),
        (["prepare", "photos", "--crops=3"], "--crops: '3' is neither a file of options nor options. Give them one"),
        (["prepare", "photos", "--classes"], "--classes: it has no value. Write it behind: --classes VALUE."),
        (["prepare", "photos", "--crops={margn: 3}"], "there is no option --crops.margn. Did you mean"),
        (["fit", TEACHER, "--data.classes=[0,1]"], "--data.classes: '0' is no text. Text that looks like a number"),
        (["fit", TEACHER, "--data.batch_size=null"], "--data.batch_size: null is no whole number. See"),
        (["fit", TEACHER, '--data={"manifest":3}'], "--data.manifest: '3' is no text. Text that looks like a number"),
        (["fit", TEACHER, "--data.split.ratios=[0.8,0.2]"], "--data.split.ratios: '[0.8, 0.2]' is no list of 3. See"),
        (["fit", TEACHER, "--data.split=3"], "--data.split: '3' is neither a file of options nor options. Give them"),
        (["fit", TEACHER, "--model=TeacherModle"], "--model: 'TeacherModle' is no class. Did you mean TeacherModule?"),
        (["fit", TEACHER, "--model=kd_convnext.Techer"], "--model: there is no kd_convnext.Techer. Did"),
        (
            ["fit", TEACHER, "--model.backbone=swin"],
            "--model.backbone: 'swin' is no class. Name a class by its path, or",
        ),
        (
            ["fit", TEACHER, "--model.backbone.nam=swin"],
            "--model.backbone.nam: BackboneSpec has no such option. Did you",
        ),
        (
            ["fit", TEACHER, "--model.backbone.args=3"],
            "--model.backbone.args: '3' is no mapping of names to values. It",
        ),
        (["fit", TEACHER, "--model.teacher_ckpt=a"], "--model.teacher_ckpt: TeacherModule has no such option. See"),
        (["fit", TEACHER, "--model.loss.gama=2"], "--model.loss.gama: --model.loss has no options of its own here."),
        (
            ["fit", TEACHER, "--trainer.precision=float16"],
            "--trainer.precision: 'float16' is none of transformer-engine",
        ),
        (["fit", TEACHER, "--seed_everything=abc"], "--seed_everything: 'abc' is no true or false or whole number."),
        (
            ["fit", TEACHER, "--trainer.callbacks=EarlyStoping"],
            "'EarlyStoping' is no class. Did you mean EarlyStopping?",
        ),
        (["fit", TEACHER, "--config=[a]"], "[a] is no file of options. See"),
        (["fit", STUDENT, "--model.objective.alfa=1"], "--model.objective.alfa: Eq5 has no such option. Did you mean"),
        (
            ["fit", STUDENT, "--model.objective=kd_convnext.Eq6"],
            "--model.objective: there is no kd_convnext.Eq6. Did you mean Eq5?",
        ),
        (
            ["fit", STUDENT, "--model.teachers={a: 1}"],
            "--model.teachers: '1' is no text. Text that looks like a number",
        ),
        (["fit", STUDENT, "--model.objective.drop=feature"], "--model.objective.drop: 'feature' is no list. A list is"),
    ],
)
def test_what_is_no_number_is_told_without_the_parsers_own_words(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not [word for word in ("<class", "Parser key", "Expected", "NestedArg", "Literal", "Union") if word in error]


@pytest.mark.parametrize("word", ["--data.veiws=2", "--data.clases=[a]", "--data.far_from_all=1"])
def test_an_unknown_option_comes_with_the_one_that_was_meant(word):
    def options(views: int | None = 1, classes: list[str] | None = None) -> None: ...

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(options, "data")
    with pytest.raises(ConfigError) as caught, parsing("fit", parser._option_string_actions):
        parser.parse_args([word])
    meant = {"v": "--data.views", "c": "--data.classes"}.get(word[7])
    assert (f"Did you mean {meant}?" in str(caught.value)) if meant else "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "words, said",
    [
        (["prepare", "photos", "--dry"], "Did you mean --dry_run?"),
        (["prepare", "--manifset=photos"], "Did you mean --manifest?"),
        (["prepare", "--data.manifest=photos"], "Did you mean --manifest?"),
        (["classify", "photos", "--ckpt=best.ckpt"], "Did you mean --ckpt_path?"),
        (["calibrate"], "arguments are required: --ckpt_path."),
        (["calibrate", "--ckpt_path=no.ckpt"], "--ckpt_path: there is no file no.ckpt. Give the checkpoints/best.ckpt"),
        (["paper", "photos"], "arguments are required: --grid.methods. --config configs/paper.yaml names methods"),
        (["fit", TEACHER, "--data.manifset=photos"], "Did you mean --data.manifest?"),
        (["fit", TEACHER, "--data.image=64"], "Did you mean --data.image_size?"),
        (["fit", TEACHER, "--data.image_size=[64,96]"], "Images are square: give the side in pixels"),
        (["fit", TEACHER, "--config=typed.yaml"], "Did you mean --data.manifest?"),
        (
            ["prepare", "--config=typed.yaml"],
            "data.manifset: there is no such option. Did you mean manifest?",
        ),
    ],
)
def test_words_and_files_that_are_nearly_right_come_with_what_is_right(words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed.yaml").write_text("data: {manifset: photos, upscaler: bicubic}\n")
    assert main(words) == 2
    error = capfd.readouterr().err
    # One line of ours, without the parser's own advice.
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("command", TOOLS)
def test_no_option_of_a_fit_is_taken_for_a_misspelt_one_of_a_tool(command):
    module, function = TOOLS[command][0].split(":")
    known = inspect.signature(getattr(import_module(module), function)).parameters
    options = [*inspect.signature(SpecimenDataModule).parameters, *FLAT]
    for name in options:
        _refuse_misspelt("fit.yaml", [name], known)
