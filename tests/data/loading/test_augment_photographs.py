import numpy as np
import pytest

from kd_convnext.data.loading.augment import AugmentSpec, built_transforms
from kd_convnext.data.loading.augment_photographs import PhotographSpec, photographed
from kd_convnext.data.loading.views import Views
from kd_convnext.errors import ConfigError

NOTHING = dict.fromkeys(
    ["rotate", "stretch", "scale", "brightness", "contrast", "saturation", "white_balance", "blur", "jpeg", "dropout"],
    0.0,
)
PICTURE = np.random.default_rng(0).integers(60, 190, (48, 48, 3), np.uint8)


def only(**changes) -> PhotographSpec:
    return PhotographSpec(**(NOTHING | changes))


def test_nothing_asked_changes_nothing():
    assert np.array_equal(photographed(PICTURE, only(), 5), PICTURE)


@pytest.mark.parametrize("name", NOTHING)
def test_each_change_is_made_alone_and_repeats_by_its_seed(name):
    spec = only(**{name: 1.0 if name in ("blur", "jpeg", "dropout") else 0.1 if name != "rotate" else 30.0})
    first, again, other = (photographed(PICTURE, spec, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, PICTURE) and not np.array_equal(first, other)
    assert first.shape == PICTURE.shape and first.dtype == np.uint8


def test_a_turn_follows_the_border_that_was_chosen():
    bright = np.full((48, 48, 3), 200, np.uint8)
    spec = dict(crop=0.0, translate=0.0, engine="opencv", photograph=only(rotate=180.0))
    black, reflected = (Views(48, 3, AugmentSpec(border=border, **spec)) for border in ("black", "reflect"))
    assert min(int(black(bright, seed).min()) for seed in range(5)) == 0
    assert all(int(reflected(bright, seed).min()) == 200 for seed in range(5))
    assert black.identity()["drawn_by"] != reflected.identity()["drawn_by"]  # nothing stored of before is taken for it


def test_views_by_transforms_are_named_by_the_package_that_draws_them():
    blur = [{"class_path": "albumentations.Blur", "init_args": {"p": 1.0}}]
    assert "albumentations" in Views(32, 3, AugmentSpec(engine="opencv", transforms=blur)).identity()["drawn_by"]
    assert "albumentations" not in Views(32, 3, AugmentSpec(engine="opencv")).identity()["drawn_by"]


def test_a_turn_keeps_the_distance_to_the_middle():
    bright = np.zeros((41, 41, 3), np.uint8)
    bright[19:22, 25:28] = 255  # right of the middle
    spec = only(rotate=180.0)
    places = [np.argwhere(photographed(bright, spec, seed)[..., 0] > 99).mean(0) for seed in range(60)]
    radii = [np.hypot(row - 20, column - 20) for row, column in places]
    np.testing.assert_allclose(radii, 6, atol=0.6)
    angles = np.arctan2([row - 20 for row, _ in places], [column - 20 for _, column in places])
    assert np.histogram(angles, 4, (-np.pi, np.pi))[0].min() > 5  # to all sides


def test_a_scale_changes_distances_alike_up_and_down():
    bright = np.zeros((81, 81, 3), np.uint8)
    bright[39:42, 59:62] = bright[59:62, 39:42] = 255  # 20 pixels right of the middle, and below it
    spec, ratios = only(scale=0.3), []
    for seed in range(40):
        rows, columns = np.nonzero(photographed(bright, spec, seed)[..., 0] > 99)
        right, below = columns[np.abs(rows - 40) < 9].mean() - 40, rows[np.abs(columns - 40) < 9].mean() - 40
        assert abs(right - below) < 1
        ratios.append(right / 20)
    assert np.exp(-0.3) - 0.05 < min(ratios) < 0.85 and 1.15 < max(ratios) < np.exp(0.3) + 0.05


def test_without_a_scale_views_and_their_names_are_those_of_before():
    known = Views(32, 3, AugmentSpec(photograph=only(rotate=30.0), engine="opencv")).identity()["augment"]["photograph"]
    assert "scale" not in known
    moved = Views(32, 3, AugmentSpec(photograph=only(scale=0.1), engine="opencv")).identity()["augment"]["photograph"]
    assert moved["scale"] == 0.1


def test_white_balance_changes_channels_and_brightness_all_alike():
    balance = photographed(PICTURE, only(white_balance=0.2), 3).reshape(-1, 3).mean(0) / PICTURE.reshape(-1, 3).mean(0)
    assert np.ptp(balance) > 0.02 and (np.abs(balance - 1) < 0.21).all()
    moved = photographed(PICTURE, only(brightness=0.1), 3).astype(int) - PICTURE
    assert len(np.unique(moved)) == 1 and 0 < abs(moved.flat[0]) <= 26


def test_saturation_keeps_luminance():
    grey = np.array([0.299, 0.587, 0.114])
    views = [photographed(PICTURE, only(saturation=0.5), seed) for seed in range(20)]
    assert max(np.abs(view @ grey - PICTURE @ grey).mean() for view in views) < 1.5
    assert max(np.abs(view.astype(int) - PICTURE).max() for view in views) > 20


def test_values_outside_are_named_together():
    with pytest.raises(ConfigError) as caught:
        PhotographSpec(rotate=200.0, blur=-0.1)
    assert len(caught.value.findings) == 2


def test_any_transform_of_albumentations_by_its_class_path():
    described = [
        {
            "class_path": "albumentations.OneOf",
            "init_args": {
                "transforms": [{"class_path": "albumentations.InvertImg", "init_args": {"p": 1.0}}],
                "p": 1.0,
            },
        }
    ]
    still = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "translate": 0.0, "crop": 0.0}
    view = Views(48, 3, AugmentSpec(**still, transforms=described, engine="opencv"))(PICTURE, 0)
    assert np.array_equal(view, 255 - PICTURE)
    assert "transforms" not in Views(48, 3, AugmentSpec(**still)).identity()["augment"]


@pytest.mark.parametrize(
    "path", ["os.system", "albumentations.core.composition.os", "albumentations.os", "albumentations.Compos", ""]
)
def test_nothing_but_transforms_is_built(path):
    with pytest.raises(ConfigError, match="no transform of albumentations"):
        built_transforms([{"class_path": path, "init_args": {}}])


def test_arguments_that_do_not_suit_are_named():
    with pytest.raises(ConfigError, match="GaussianBlur"):
        built_transforms([{"class_path": "albumentations.GaussianBlur", "init_args": {"blur_limit": "much"}}])
