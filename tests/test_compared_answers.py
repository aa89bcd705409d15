"""The figures of docs/recipes come from the answers that lie beside them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VIEWS = ROOT / "docs/recipes/views"


def script():
    """Loads the script as a module."""
    place = importlib.util.spec_from_file_location("compare_answers", ROOT / "scripts/compare_answers.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_table_of_five_splits_is_that_of_the_answers(capsys):
    methods = ["labels_alone", "teacher", "views", "unlabelled_views"]
    script().main([str(VIEWS / "predictions.csv"), "--methods", *methods])
    found = capsys.readouterr().out.strip()
    assert found in (VIEWS / "pooled.md").read_text()
    # What the pages say of it.
    for method, metric, difference, interval in (
        ("views", "f1_macro", "+0.070", "+0.013 to +0.126"),
        ("views", "accuracy", "+0.049", "+0.019 to +0.079"),
        ("unlabelled_views", "f1_macro", "+0.156", "+0.094 to +0.222"),
        ("unlabelled_views", "accuracy", "+0.079", "+0.046 to +0.113"),
    ):
        assert f"| {method} | labels_alone | {metric} | {difference} | {interval} |" in found
        for page in ("README.md", "docs/results.md", "docs/recipes/README.md"):
            assert f"{difference} ({interval})" in (ROOT / page).read_text()
    assert "+0.156 (+0.094 to +0.222)" in (ROOT / "docs/methods.md").read_text().replace("\n", " ")


def test_repeats_by_choice(capsys, tmp_path):
    table = tmp_path / "answers.csv"
    rows = [
        f"{method},{repeat},{repeat}-{number}.jpg,L{number},{'ab'[number % 2]},{'ab'[(number + wrong) % 2]}"
        for method, wrong in (("right", 0), ("wrong", 1))
        for repeat in (0, 1)
        for number in range(12)
    ]
    table.write_text("\n".join(["method,repeat,image,lesion_id,label,prediction", *rows]) + "\n")
    script().main([str(table), "--repeats", "1"])
    said = capsys.readouterr().out
    assert "Repeats 1: 12 answers, 12 lesions." in said
    assert "| right | 1.000 | 1.000 | 1.000 | 1.00 | 1.00 |" in said
    assert "| wrong | right | accuracy | -1.000 |" in said
