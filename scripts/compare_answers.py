"""Compares methods by a table of their answers: `python scripts/compare_answers.py docs/recipes/views/predictions.csv`.

The table has the columns method, repeat, image, lesion_id, label and prediction. Methods are compared on the repeats
that all those named have, with the intervals and tests of `kd-convnext compare`.
"""

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kd_convnext.evaluation.comparisons import Comparison, Difference, compare_pairs, make_pair
from kd_convnext.evaluation.statistics import Floats, class_scores, scores

RESAMPLES = 20_000


def main(words: Sequence[str] | None = None) -> None:
    """Prints a table of scores and one of differences, as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("answers", help="CSV with the answers")
    parser.add_argument("--methods", nargs="+", help="by default all")
    parser.add_argument("--repeats", nargs="+", type=int, help="by default those that all methods have")
    options = parser.parse_args(words)
    table = pd.read_csv(options.answers)
    methods = options.methods or list(dict.fromkeys(table["method"]))
    having = [set(table.loc[table["method"] == method, "repeat"]) for method in methods]
    repeats = sorted(set.intersection(*having).intersection(options.repeats or set.union(*having)))
    table = table[table["method"].isin(methods) & table["repeat"].isin(repeats)]
    classes = sorted(set(table["label"]))
    answers = {method: _answers(table[table["method"] == method], classes) for method in methods}
    pairs = [
        pair
        for first, second in itertools.combinations(methods, 2)
        if (pair := make_pair(second, answers[second], first, answers[first], classes)) is not None
    ]
    numbers = f"{len(table) // len(methods)} answers, {table['lesion_id'].nunique()} lesions"
    print(f"Repeats {', '.join(map(str, repeats))}: {numbers}.\n")
    print(_scores(answers, repeats, classes), end="\n\n")
    print(_differences(compare_pairs(pairs, RESAMPLES, 0)))


def _answers(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Fills in what the comparison asks for: two regions of one photograph are told apart by their order."""
    found = rows.assign(lesion=rows["lesion_id"], patient="", y=0, width=0, height=0)
    found["x"] = found.groupby(["repeat", "image"]).cumcount()
    return found.assign(**{f"prob_{name}": (rows["prediction"] == name).astype(float) for name in classes})


def _confusion(rows: pd.DataFrame, classes: Sequence[str]) -> Floats:
    counts = pd.crosstab(rows["label"], rows["prediction"])
    return counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy(np.float64)


def _scores(answers: dict[str, pd.DataFrame], repeats: Sequence[int], classes: Sequence[str]) -> str:
    heads = ["method", "accuracy", "macro F1 of the repeats", "mean", *(f"recall of {name}" for name in classes)]
    rows = []
    for method, found in answers.items():
        whole = _confusion(found, classes)
        each = [float(scores(_confusion(found[found["repeat"] == repeat], classes))["f1_macro"]) for repeat in repeats]
        recall = (f"{value:.2f}" for value in class_scores(whole)["recall"])
        values = ", ".join(f"{value:.3f}" for value in each)
        accuracy = f"{float(scores(whole)['accuracy']):.3f}"
        rows.append([method, accuracy, values, f"{float(np.mean(each)):.3f}", *recall])
    return _markdown(heads, rows)


def _differences(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [found.title, found.against, metric, *_said(found.differences[metric])]
        for found in comparisons
        for metric in ("f1_macro", "accuracy")
    ]
    number = f"corrected for {len(comparisons)} comparisons" if len(comparisons) > 1 else "corrected"
    return _markdown(["method", "against", "metric", "difference", "95 % interval by lesion", number, "verdict"], rows)


def _said(found: Difference) -> list[str]:
    spans = [f"{span.low:+.3f} to {span.high:+.3f}" for span in (found.interval, found.corrected)]
    return [f"{found.value:+.3f}", *spans, found.verdict]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
