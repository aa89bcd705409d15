"""The figures of docs/recipes come from the answers that lie beside them."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
VIEWS = ROOT / "docs/recipes/views"


def script():
    """Loads the script as a module."""
    place = importlib.util.spec_from_file_location("compare_answers", ROOT / "scripts/compare_answers.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_table_of_five_splits_is_that_of_the_answers(capsys):
    script().main([str(VIEWS / "predictions.csv"), "--methods", "labels_alone", "teacher", "views"])
    found = capsys.readouterr().out.strip()
    assert found in (VIEWS / "pooled.md").read_text()
    # What the pages say of it.
    for page in ("README.md", "docs/results.md", "docs/methods.md", "docs/recipes/README.md"):
        said = (ROOT / page).read_text()
        assert "+0.070 (+0.015 to +0.123)" in said and "+0.049 (+0.021 to +0.079)" in said
    assert "| views | labels_alone | f1_macro | +0.070 | +0.015 to +0.123 |" in found
    assert "| views | labels_alone | accuracy | +0.049 | +0.021 to +0.079 |" in found


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
