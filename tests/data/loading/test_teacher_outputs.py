"""The folder of stored outputs: any number of files, and the one that is damaged by its name."""

import contextlib
import errno
import os
import pickle
import resource

import numpy as np
import pytest

from kd_convnext.common.arrays import stored_array
from kd_convnext.data.crops.cache.entries import entry_size, read_entry
from kd_convnext.data.loading.teacher_outputs import AnswerKind, TeacherAnswers, view_name
from kd_convnext.errors import CacheError

SHARDS, EACH = 20, 3


@contextlib.contextmanager
def few_files(spare):
    """Lets the process open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # the limit is one of numbers, not of files
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def filled(folder, embedding=6):
    """Writes many small files, as a slow teacher does; logits are the number of the view."""
    answers = TeacherAnswers(folder, AnswerKind("teacher", (), {}, "32-true", 2, (), embedding))
    names = [view_name(str(number), 7) for number in range(SHARDS * EACH)]
    for begin in range(0, len(names), EACH):
        values = np.arange(begin, begin + EACH)[:, None] * np.ones(2)
        answers.add(names[begin : begin + EACH], values, embedding=np.ones((EACH, embedding)) if embedding else None)
    return answers, names


@pytest.mark.parametrize("embedding", [6, 0])
def test_more_files_than_a_process_may_open_are_one_store(tmp_path, embedding):
    written, names = filled(tmp_path, embedding)
    with few_files(8):
        for answers in (written, pickle.loads(pickle.dumps(written))):
            assert not answers.missing(names).any()
            for number in (0, 31, SHARDS * EACH - 1):
                assert answers.load(str(number), 7).logits.tolist() == [number, number]


def test_a_store_that_cannot_be_opened_is_not_taken_for_damaged(tmp_path):
    answers, names = filled(tmp_path)
    shard, entry = next(tmp_path.glob("*.npy")), tmp_path / "crop.png"
    entry.write_bytes(b"a crop")
    with few_files(0):
        for read in (
            lambda: answers.missing(names),
            lambda: stored_array(shard),
            lambda: entry_size(entry, None),
            lambda: read_entry(entry, None),
        ):
            with pytest.raises(CacheError, match=rf"{os.strerror(errno.EMFILE)}.*ulimit -n"):
                read()
    assert not answers.missing(names).any()


def test_of_a_damaged_file_alone_views_are_asked_again(tmp_path):
    answers, names = filled(tmp_path)
    assert not answers.missing(names).any()
    harmed = sorted(tmp_path.glob("*.npy"))[4]
    content = bytearray(harmed.read_bytes())
    content[-1] ^= 1
    harmed.write_bytes(content)
    found = []
    for number in range(len(names)):
        try:
            answers.load(str(number), 7)
        except CacheError as error:
            found.append((number, str(error)))
    ((number, message),) = found
    assert message.count(str(harmed)) == 2 and "Delete" in message
    harmed.unlink()
    with pytest.raises(CacheError, match=f"{harmed.name}.*Start again"):
        answers.load(str(number), 7)
    again = pickle.loads(pickle.dumps(answers))
    assert np.flatnonzero(again.missing(names)).tolist() == list(
        range(number // EACH * EACH, number // EACH * EACH + EACH)
    )
