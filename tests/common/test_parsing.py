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
        (["paper", "--manifest=a", "--repeats=x"], "--repeats: - Expected a whole number - Expected a list Given"),
    ],
)
def test_what_is_no_number_is_told_without_the_parsers_own_words(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and "<class" not in error and "Parser key" not in error


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
