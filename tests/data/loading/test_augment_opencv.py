"""The augmentation in plain OpenCV against the albumentations pipeline."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.views import Views

SIDE, SIZE, DRAWS = 240, 120, 600
ENGINES = ("albumentations", "opencv")


def ramps() -> np.ndarray:
    """Red tells the column of a pixel, green its row."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[..., 0] = np.arange(SIDE)
    picture[..., 1] = np.arange(SIDE)[:, None]
    return picture


def geometry(view) -> tuple[float, float, float, float]:
    """Where the middle of a view comes from (column, row), and how fast the source runs along its rows and columns."""
    middle = view[SIZE // 4 : -SIZE // 4].astype(float)[:, SIZE // 4 : -SIZE // 4]
    across, down = np.diff(middle[..., 0], axis=1).mean(), np.diff(middle[..., 1], axis=0).mean()
    return middle[..., 0].mean(), middle[..., 1].mean(), across, down


def drawn(spec: AugmentSpec) -> np.ndarray:
    views = Views(SIZE, 3, spec)
    return np.array([geometry(views(ramps(), seed)) for seed in range(DRAWS)])


@pytest.mark.parametrize("crop_of", ["area", "side"])
def test_draws_are_those_of_the_pipeline(crop_of):
    slow, fast = (
        drawn(AugmentSpec(crop=0.2, crop_of=crop_of, engine=engine)) for engine in ("albumentations", "opencv")
    )
    for name, column in (("column", 0), ("row", 1), ("across", 2), ("down", 3)):
        assert ks_2samp(slow[:, column], fast[:, column]).pvalue > 1e-3, name
    flips = [np.unique(np.sign(each[:, 2:]), axis=0, return_counts=True)[1] for each in (slow, fast)]
    assert all(counts.shape == (4,) and counts.min() > DRAWS / 4 * 0.75 for counts in flips)
    zoom = [np.abs(each[:, 2]) for each in (slow, fast)]
    assert ks_2samp(*zoom).pvalue > 1e-3
    ranges = [np.ptp(each, axis=0) for each in (slow, fast)]
    np.testing.assert_allclose(ranges[0][:2], ranges[1][:2], rtol=0.12)


def test_without_randomness_both_engines_give_the_same_picture():
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    still = {"horizontal_flip": 0.0, "vertical_flip": 1.0, "translate": 0.0, "crop": 0.0}
    slow, fast = (
        Views(48, 3, AugmentSpec(**still, engine=engine))(picture, 3) for engine in ("albumentations", "opencv")
    )
    assert np.abs(slow.astype(int) - fast).max() <= 1


@pytest.mark.parametrize(("border", "translate"), [("reflect", 0.1), ("reflect", 0.9), ("black", 0.1), ("black", 0.9)])
def test_what_a_shift_brings_into_view(border, translate):
    """Every pixel of a shifted view is a pixel of the crop's reflection, or black."""
    spec = AugmentSpec(0.0, 0.0, 0.0, "area", translate, border, "opencv")
    picture = ramps()
    views = Views(SIDE, 3, spec)
    index = np.arange(-2 * SIDE, 3 * SIDE)
    period = np.abs(index) % (2 * SIDE - 2)
    mirrored = np.where(period < SIDE, period, 2 * SIDE - 2 - period)
    for seed in range(40):
        view = views(picture, seed)
        middle = view[SIDE // 2, SIDE // 2]
        column, row = (np.flatnonzero(mirrored == at) - SIDE // 2 for at in middle[:2])
        expected = [
            (np.stack([mirrored[c : c + SIDE]] * SIDE), np.stack([mirrored[r : r + SIDE]] * SIDE, axis=1))
            for c in column
            for r in row
            if c >= 0 and r >= 0 and c + SIDE <= len(index) and r + SIDE <= len(index)
        ]
        shown = view.any(axis=-1)
        if border == "reflect":
            assert any((view[..., 0] == x).all() and (view[..., 1] == y).all() for x, y in expected)
        elif translate < 0.5:
            assert any(
                ((view[..., 0] == x) | ~shown).all() and ((view[..., 1] == y) | ~shown).all() for x, y in expected
            )
            assert shown.mean() > 0.8


def test_equal_seeds_give_equal_views():
    views = Views(64, 3, AugmentSpec(engine="opencv"))
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    assert np.array_equal(views(picture, 5), views(picture, 5))
    assert not np.array_equal(views(picture, 5), views(picture, 6))


def test_grey_and_small_crops():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert Views(64, 1, AugmentSpec(engine="opencv"))(picture, 1).shape == (64, 64, 1)
