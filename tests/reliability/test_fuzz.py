"""A few of the fuzzed inputs, and all that have once gone wrong; ``make fuzz`` runs ten thousand."""

import json

import pytest
from helpers import fuzz

KEPT = [tuple(entry) for entry in json.loads(fuzz.SEEDS.read_text())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.photographs(folder)
    return folder


@pytest.mark.parametrize("kind", list(fuzz.CASES))
def test_each_is_read_or_refused_in_words(kind, folder):
    read = 0
    for seed in range(120):
        well, seconds = fuzz.run(kind, seed, folder)
        read += well
        assert seconds < fuzz.LONGEST, seed
    assert 5 < read < 115, "all are read, or none: nothing is tried"


@pytest.mark.parametrize(("kind", "seed"), KEPT)
def test_what_went_wrong_once(kind, seed, folder):
    fuzz.run(kind, seed, folder)
