"""Filling stores: what is said of it, and what is missing afterwards."""

from types import SimpleNamespace

import pytest
import torch

from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.teacher_outputs import AnswerKind, TeacherAnswers
from kd_convnext.errors import CacheError
from kd_convnext.modules import output_store
from kd_convnext.modules.output_store import Order, filled_stores


def trainer(processes=1):
    strategy = SimpleNamespace(broadcast=lambda found: found, barrier=lambda name: None)
    return SimpleNamespace(
        global_rank=0, world_size=processes, is_global_zero=True, progress_bar_callback=object(), strategy=strategy
    )


def order(folder, views=60, answered=60, looks=1):
    def asked(chosen):
        for _ in chosen[:answered]:
            yield torch.zeros(1, 2), [], None

    store = TeacherAnswers(folder, AnswerKind("teacher", (), {}, "32-true", 2, ()))
    return Order(store, [View(number, 1) for number in range(views)], range(views), asked, looks)


def test_two_stores_are_filled_with_one_estimate_and_views_are_counted(tmp_path, monkeypatch, capsys):
    counted = []
    monkeypatch.setattr(output_store.Forecast, "after", lambda self, size: counted.append((self.count, size)))
    stores = filled_stores([order(tmp_path / "a", looks=4), order(tmp_path / "b")], trainer())
    assert [store.missing(range(61)).sum() for store in stores] == [1, 1]
    assert counted == [(300, 4)] * 60 + [(300, 1)] * 60
    said = capsys.readouterr()
    assert "The teacher answers 120 views once, 16 and 16 bytes each, 0.00192 MB of" in said.out
    assert said.err.count("views/s") == 2 and "crops" not in said.err


@pytest.mark.parametrize(("processes", "told"), [(1, "1 output of those just written"), (2, "Give all processes one")])
def test_what_cannot_be_found_again_is_told_as_it_is(processes, told, tmp_path):
    with pytest.raises(CacheError, match=told):
        filled_stores([order(tmp_path, answered=59)], trainer(processes))
