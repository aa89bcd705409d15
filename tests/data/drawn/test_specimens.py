import hashlib

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.drawn.lesions import Structure, draw_lesion, photograph
from kd_convnext.data.drawn.specimens import DEMO_LESIONS, draw_photographs, draw_specimens
from kd_convnext.data.manifest.manifest import PAPER_CLASSES, read_manifest
from kd_convnext.data.manifest.splits import make_split
from kd_convnext.errors import ConfigError

FEW = dict.fromkeys(DEMO_LESIONS, 2)
RATIOS = (0.5, 0.16, 0.34)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_equal_seeds_draw_equal_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw_specimens(tmp_path / name, seed=seed, lesions_per_class=FEW, progress=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    seeds = [set(read_manifest(tmp_path / name / "manifest.csv").table["lesion_id"]) for name in "ac"]
    assert not seeds[0] & seeds[1]


def test_manifest_is_whole_and_its_boxes_hold_the_tumour(tmp_path):
    manifest = read_manifest(draw_specimens(tmp_path, seed=1, lesions_per_class=FEW, progress=False))
    assert manifest.class_names == PAPER_CLASSES
    assert set(manifest.table.groupby("lesion_id").size()) <= {2, 3}
    assert manifest.table["width"].min() > 60 and manifest.table["height"].min() > 60


def test_boxes_hold_the_tumour():
    rng, twin = np.random.default_rng(5), np.random.default_rng(5)
    structure = Structure(glandular=0.5, lobes=0.3)
    (drawn,) = draw_photographs(rng, structure, 1)
    tumour = photograph(twin, draw_lesion(twin, structure), 320, 240).tumour
    inside = tumour[drawn.box.y : drawn.box.y + drawn.box.height, drawn.box.x : drawn.box.x + drawn.box.width]
    assert inside.sum() == tumour.sum() > 0
    assert inside.mean() > 0.4


def test_by_default_classes_are_uneven_by_eight():
    assert max(DEMO_LESIONS.values()) == 8 * min(DEMO_LESIONS.values())


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        draw_specimens(tmp_path, seed=0, lesions_per_class=FEW, photos_per_lesion=(3, 2))


def colour_statistics(crop):
    found = []
    for picture in (crop, cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)):
        values = picture.reshape(-1, 3).astype(float)
        found += [values.mean(0), values.std(0), *np.percentile(values, (5, 10, 25, 50, 75, 90, 95), axis=0)]
    return np.concatenate(found)


@pytest.fixture(scope="module")
def demo_specimens(tmp_path_factory):
    return read_manifest(draw_specimens(tmp_path_factory.mktemp("demo"), seed=0, progress=False))


@pytest.mark.slow
def test_colour_says_next_to_nothing_about_the_class(demo_specimens):
    manifest, spec = demo_specimens, CropSpec(upscaler="none", store_size=96)
    upscaler = spec.build_upscaler()
    rows = range(len(manifest.table))
    crops = [make_crop(manifest.image_path(row), manifest.box(row), spec, upscaler) for row in rows]
    features = np.array([colour_statistics(crop) for crop in crops])
    scores = []
    for index in range(3):
        split = make_split(manifest, index=index, ratios=RATIOS)
        train, test = split.rows("train"), split.rows("test")
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        model.fit(features[train], manifest.labels[train])
        scores.append(f1_score(manifest.labels[test], model.predict(features[test]), average="macro"))
    assert max(scores) < 0.35, scores


@pytest.mark.slow
def test_every_class_has_eight_lesions_in_a_third(demo_specimens):
    split = make_split(demo_specimens, ratios=RATIOS)
    table = demo_specimens.table.iloc[split.rows("test")]
    assert table.groupby("label")["lesion_id"].nunique().min() >= 8
