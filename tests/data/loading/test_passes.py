"""Few photographs: an epoch of ``least_batches`` makes several passes over them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from kd_convnext.data.loading.limited_views import limited_views
from kd_convnext.data.loading.mixing import training_sampler
from kd_convnext.data.loading.sampler import ViewSampler
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.errors import ConfigError


class Part(SimpleNamespace):
    """The rows and labels of a training part."""

    def __len__(self):
        return len(self.rows)


def part(count):
    return Part(rows=np.arange(count) + 100, labels=np.arange(count) % 3)


@given(
    count=st.integers(3, 60),
    least=st.integers(2, 9),
    block=st.integers(1, 16),
    replicas=st.integers(1, 3),
    sampling=st.sampled_from(["natural", "balanced"]),
)
def test_an_epoch_has_batches_enough_and_draws_all_crops_alike(count, least, block, replicas, sampling):
    loader = LoaderSpec(least_batches=least, sampling=sampling)
    draws = []
    for rank in range(replicas):
        sampler, _ = training_sampler(part(count), loader, block, num_replicas=replicas, rank=rank)
        draws.append([view.position for view in sampler])
        assert len(draws[-1]) == len(sampler) >= min(least * block, len(sampler)) and len(sampler) >= least * block
    assert len({len(each) for each in draws}) == 1
    if sampling == "natural":
        often = np.bincount(np.concatenate(draws), minlength=count)
        assert often.max() - often.min() <= (1 if least * block * replicas >= count else 2)


@pytest.mark.parametrize("sampling", ["natural", "square_root"])
def test_photographs_enough_are_drawn_as_ever(sampling):
    few = ViewSampler(part(40), seed=3, sampling=sampling, views=4, least=40)
    ever = ViewSampler(part(40), seed=3, sampling=sampling, views=4)
    for epoch in (0, 1):
        few.set_epoch(epoch)
        ever.set_epoch(epoch)
        assert list(few) == list(ever)


def test_passes_show_the_limited_views_in_turn():
    sampler = ViewSampler(part(5), seed=0, views=6, least=15)
    seen = {}
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        for view in sampler:
            seen.setdefault(view.position, []).append(view.seed)
    assert [len(set(seeds)) for seeds in seen.values()] == [6] * 5
    loader = LoaderSpec(least_batches=3, views=6)
    listed = {(view.position, view.seed) for view in limited_views(part(5), loader, 2)}
    assert listed == {(position, seed) for position, seeds in seen.items() for seed in seeds}


def test_a_fit_takes_as_many_steps(tiny_manifest, tiny_cache, tmp_path):
    source = tiny.data(tiny_manifest, tiny_cache)
    source.loader = replace(source.loader, least_batches=7)
    fit = tiny.trainer(tmp_path, 2)
    fit.fit(tiny.teacher(source), datamodule=source)
    assert fit.global_step == 14


def test_none_is_refused():
    with pytest.raises(ConfigError, match="least_batches"):
        LoaderSpec(least_batches=0)
