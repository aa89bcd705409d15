"""What an argument parser says becomes one line that says what is likely meant."""

import jsonargparse
import pytest
from helpers.paths import CONFIGS

from kd_convnext.cli import main
from kd_convnext.common.parsing import parsing
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
    assert "Subtypes" not in said and "Expected" in said
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


@pytest.mark.parametrize("word", ["--data.veiws=2", "--data.clases=[a]", "--data.far_from_all=1"])
def test_an_unknown_option_comes_with_the_one_that_was_meant(word):
    def options(views: int | None = 1, classes: list[str] | None = None) -> None: ...

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(options, "data")
    with pytest.raises(ConfigError) as caught, parsing("fit", parser._option_string_actions):
        parser.parse_args([word])
    meant = {"v": "--data.views", "c": "--data.classes"}.get(word[7])
    assert (f"Did you mean {meant}?" in str(caught.value)) if meant else "Did you mean" not in str(caught.value)
