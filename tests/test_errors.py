import multiprocessing
import pickle

import pytest
from torch._utils import ExceptionWrapper

from kd_convnext.errors import CARRIED, CacheError, ConfigError, Finding

TWO = (Finding("a: b. c", "what: x. y", "Do. Not."), Finding("row 3", "line\nbreak", "ä"))


def test_pickling_keeps_the_findings():
    assert pickle.loads(pickle.dumps(CacheError(TWO))).findings == TWO


def test_what_a_user_reads_holds_no_json():
    error = CacheError(TWO)
    assert CARRIED not in str(error) and not getattr(error, "__notes__", [])


def test_a_traceback_of_a_child_process_carries_them(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    try:
        raise ConfigError(TWO)
    except ConfigError:
        wrapped = ExceptionWrapper(where="in a worker")
    monkeypatch.undo()
    with pytest.raises(ConfigError) as caught:
        wrapped.reraise()
    assert caught.value.findings == TWO


def test_a_traceback_without_findings_is_kept_as_text():
    (finding,) = ConfigError("Traceback\n  ...\nKeyError: 3\n").findings
    assert finding.what == "KeyError: 3"
