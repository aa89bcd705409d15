import shutil

import numpy as np
import pytest
import torch
from helpers.bad_files import cut_short
from helpers.tiny import data, trainer

from kd_convnext import CropSpec, LoaderSpec, SpecimenDataModule, SplitSpec
from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.views import Views
from kd_convnext.errors import CacheError, ConfigError, Finding, SplitError


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    module = data(tiny_manifest, tiny_cache)
    for stage in ("fit", "test", "predict"):
        module.setup(stage)
    return module


def test_batches(source):
    batch = next(iter(source.train_dataloader()))
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 3, 32, 32)
    assert batch["label"].dtype == torch.int64 and batch["index"].dtype == torch.int64
    assert batch["label"].tolist() == source.manifest.labels[batch["index"]].tolist()


def test_parts_share_no_lesion_and_cover_everything(source):
    lesions = source.manifest.groups("lesion")
    parts = [set(lesions[part.rows]) for part in (source.train_set, source.val_set, source.test_set)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert sum(len(part) for part in (source.train_set, source.val_set, source.test_set)) == 60
    assert len(source.predict_set) == 60


def test_validation_and_test_are_never_augmented(source):
    for part in (source.val_set, source.test_set):
        assert torch.equal(part[0]["image"], part[0]["image"])
        assert not part.views.random
    loader = source.val_dataloader()
    assert [b["index"].tolist() for b in loader] == [b["index"].tolist() for b in loader]


def epoch_of(source, epoch):
    loader = source.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return torch.cat([b["index"] for b in batches]), torch.cat([b["image"] for b in batches])


def test_epochs_differ_and_repeat(source):
    rows, images = epoch_of(source, 0)
    again, same_images = epoch_of(source, 0)
    assert torch.equal(rows, again) and torch.equal(images, same_images)
    later, _ = epoch_of(source, 1)
    assert not torch.equal(rows, later)
    assert sorted(rows.tolist()) == sorted(source.train_set.rows.tolist())


def test_views_do_not_depend_on_workers(source, tiny_manifest, tiny_cache):
    parallel = data(tiny_manifest, tiny_cache, num_workers=2)
    parallel.setup("fit")
    for one, other in zip(epoch_of(source, 3), epoch_of(parallel, 3), strict=True):
        assert torch.equal(one, other)


def test_balanced_sampling(tiny_cache, tiny_manifest, tmp_path):
    text = tiny_manifest.read_text().splitlines()
    kept = [line for line in text if not line.startswith(("0_3", "0_4", "0_5"))]
    uneven = tmp_path / "uneven.csv"
    uneven.write_text("\n".join(line if n == 0 else f"{tiny_manifest.parent}/{line}" for n, line in enumerate(kept)))
    module = data(uneven, tiny_cache, sampling="balanced")
    module.setup("fit")
    loader = module.train_dataloader()
    counts = np.zeros(5)
    for epoch in range(60):
        loader.sampler.set_epoch(epoch)
        counts += np.bincount(module.train_set.labels[[view.position for view in loader.sampler]], minlength=5)
    assert counts.min() / counts.max() > 0.8


def test_grey(tiny_manifest, tiny_cache):
    module = data(tiny_manifest, tiny_cache, in_chans=1)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["image"].shape[1] == 1


def test_class_weights_are_the_inverse_counts_of_the_training_part(tiny_cache, tiny_manifest, tmp_path):
    lines = tiny_manifest.read_text().splitlines()
    # Training images of the five classes: 8, 4, 2, 1, 0; validation and test hold other counts.
    wanted = {"Grade 1": 8, "Grade 2": 4, "Grade 3": 2, "AIS": 1, "MIA": 0}
    rows, given = [lines[0] + ",split"], dict.fromkeys(wanted, 0)
    for line in lines[1:]:
        label, lesion = line.split(",")[1:3]
        inside = given[label] < wanted[label] and (wanted[label] > 1 or line.split(",")[0].endswith("_0.png"))
        given[label] += inside
        part = "train" if inside else "val" if lesion.endswith("5") else "test" if lesion.endswith("4") else None
        rows += [f"{tiny_manifest.parent}/{line},{part}"] if part else []
    manifest = tmp_path / "unbalanced.csv"
    manifest.write_text("\n".join(rows) + "\n")
    module = data(manifest, tiny_cache)
    counts = {
        name: int((module.manifest.labels[module.split.rows("train")] == n).sum())
        for n, name in enumerate(module.class_names)
    }
    assert counts == wanted
    # 1/8, 1/4, 1/2 and 1 have the mean 15/32.
    by_hand = {"Grade 1": 4 / 15, "Grade 2": 8 / 15, "Grade 3": 16 / 15, "AIS": 32 / 15, "MIA": 0.0}
    assert module.class_weights == pytest.approx([by_hand[name] for name in module.class_names])
    assert all(type(weight) is float for weight in module.class_weights)


@pytest.mark.parametrize("workers", [1, 2])
def test_two_findings_cross_a_loader_process_whole(tiny_manifest, tiny_cache, workers, monkeypatch):
    findings = (
        Finding("a.csv, row 3 (C:)", "the box: 1, 2. It is empty", "Correct it. Or leave it out."),
        Finding("b.csv, row 4", "naïve\nlines", "None"),
    )

    def refuse(*_):
        raise CacheError(findings)

    module = data(tiny_manifest, tiny_cache, num_workers=workers)
    module.setup("fit")
    monkeypatch.setattr(type(module.train_set.crops), "load", refuse)
    with pytest.raises(CacheError) as caught:
        next(iter(module.train_dataloader()))
    assert caught.value.findings == findings
    assert str(caught.value).startswith("2 problems found:")


def test_whole_crops_of_any_shape(tiny_manifest, tiny_cache):
    module = data(tiny_manifest, tiny_cache, store_size=None)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["image"].shape == (8, 3, 32, 32)


def test_augmentation_keeps_at_least_nine_tenths(source):
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0] = np.arange(200)[:, None]
    ramp[..., 1] = np.arange(200)[None]
    for crop_of, least in (("area", 0.9), ("side", 0.81)):
        views = Views(200, 3, AugmentSpec(translate=0.0, crop_of=crop_of))
        kept = []
        for seed in range(200):
            view = views(ramp, seed).astype(float)
            spans = [view[..., axis].max() - view[..., axis].min() + 1 for axis in (0, 1)]
            kept.append(spans[0] * spans[1] / 200**2)
        assert min(kept) >= least - 0.02 and min(kept) < least + 0.03 and max(kept) > 0.99


def test_flips_and_shifts_are_drawn_as_often_as_asked():
    mark = np.zeros((40, 40, 3), np.uint8)
    mark[:20, :20] = 255
    views = Views(40, 3, AugmentSpec(crop=0.0, translate=0.0))
    corners = [views(mark, seed)[::39, ::39, 0].argmax() for seed in range(400)]
    assert np.bincount(corners, minlength=4).min() > 70
    moving = Views(40, 3, AugmentSpec(horizontal_flip=0, vertical_flip=0, crop=0.0, border="black"))
    edges = [int((moving(mark, seed)[..., 0] > 127).any(axis=0).nonzero()[0].max()) for seed in range(200)]
    assert min(edges) >= 14 and max(edges) <= 24 and min(edges) < 17 < 21 < max(edges)


def test_bad_values_are_named_together(tiny_manifest):
    with pytest.raises(ConfigError) as caught:
        data(tiny_manifest, None, image_size=2, batch_size=0)
    assert [finding.where for finding in caught.value.findings] == ["--data.image_size", "--data.batch_size"]
    with pytest.raises(ConfigError) as caught:
        LoaderSpec(
            num_workers=-1, views=0, sampling="often", unlabelled_sampling="all", unlabelled_ratio=-1.0, on_miss="x"
        )
    assert len(caught.value.findings) == 6


def test_old_arguments_are_read_with_one_warning(tiny_manifest, recwarn):
    old = {"store_size": 40, "resize": "pad", "split_index": 1, "split_seed": 2, "views": 3, "ratios": (8, 1, 1)}
    found = SpecimenDataModule(str(tiny_manifest), upscaler="none", **old, view_seed=4, class_balanced=True)
    assert found.crop_spec == CropSpec(upscaler="none", store_size=40, resize="pad")
    assert found.split_spec == SplitSpec(index=1, seed=2, ratios=(8, 1, 1))
    assert found.loader == LoaderSpec(views=3, seed=4, sampling="balanced")
    (warning,) = [str(entry.message) for entry in recwarn]
    assert "store_size, resize, split_index, split_seed, views, ratios, view_seed, class_balanced" in warning
    assert "crops.store_size, crops.resize, split.index, split.seed, loader.views, split.ratios" in warning
    assert "loader.seed, loader.sampling" in warning
    with pytest.raises(TypeError, match="'storesize'"):
        SpecimenDataModule(str(tiny_manifest), storesize=40)


def test_upscaler_and_weights_hold_over_the_crops(tiny_manifest):
    crops = CropSpec(upscaler="bicubic", sr_weights="a.pth", store_size=64)
    found = SpecimenDataModule(str(tiny_manifest), upscaler="spandrel", sr_weights="b.pth", crops=crops).crop_spec
    assert found == CropSpec(upscaler="spandrel", sr_weights="b.pth", store_size=64)
    assert SpecimenDataModule(str(tiny_manifest), crops=crops).crop_spec == crops


def test_given_split_has_no_repeats(tiny_manifest, tiny_cache, tmp_path, source):
    path = tiny_manifest.parent / "split_given.csv"
    source.split.write(path, source.manifest)
    again = data(path, tiny_cache)
    assert again.split.hash == source.split.hash
    with pytest.raises(SplitError):
        _ = data(path, tiny_cache, split_index=1).split


def test_training_and_validation_shrink_a_crop_alike():
    """Bilinear shrinking by 3 would let a fine grating through that averaging does not."""
    grating = np.zeros((192, 192, 3), np.uint8)
    grating[:, ::2] = 255
    flat = Views(64, 3)(grating, 0)
    drawn = [Views(64, 3, AugmentSpec(translate=0.0, crop=0.01))(grating, seed) for seed in range(20)]
    assert flat.std() < 50
    assert max(view.std() for view in drawn) < 50


def test_whole_crops_are_padded_where_padding_is_asked_for():
    tall = np.full((60, 30, 3), 200, np.uint8)
    padded, stretched = (Views(60, 3, resize=resize)(tall, 0) for resize in ("pad", "stretch"))
    assert (stretched == 200).all()
    assert (padded[:, 15:45] == 200).all() and (padded[:, :15] == 0).all() and (padded[:, 45:] == 0).all()


def test_crops_that_cannot_be_made_are_named_whenever_they_are_left_out(tiny_manifest, tmp_path, capsys):
    head, first, *rest = tiny_manifest.read_text().splitlines()
    name = first.split(",")[0]
    shutil.copy(tiny_manifest.parent / name, tmp_path / name)
    cut_short(tmp_path / name)
    rows = [head, first, *(f"{tiny_manifest.parent}/{row}" for row in rest)]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    source = data(tmp_path / "m.csv", tmp_path / "cache", on_error="skip")
    source.trainer = trainer(tmp_path)
    for stage in ("fit", "test"):
        source.setup(stage)
    said = capsys.readouterr().out
    assert said.count("Warning: 1 crop left out") == 1 and "m.csv, row 2" in said and name in said
