import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.bad_files import cut_short
from helpers.tiny import data, teacher, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_convnext.data.loading.dataset import View
from kd_convnext.data.loading.limited_views import limited_views
from kd_convnext.data.loading.mixing import MixedDataset, MixedSampler, often_drawn, training_sampler
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.loading.teacher_outputs import STILL, StoredOutputs, StoredTeacher
from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.errors import ConfigError, LeakError, ManifestError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of seven photographs that nobody has labelled."""
    folder = tmp_path_factory.mktemp("unlabelled")
    rng = np.random.default_rng(3)
    (folder / "ward").mkdir()
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(folder / "ward" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache, photographs):
    found = data(tiny_manifest, tiny_cache, unlabelled=str(photographs), unlabelled_ratio=0.5)
    found.setup("fit")
    return found


def test_every_batch_has_its_share_of_both(source):
    loader = source.train_dataloader()
    labelled = len(source.split.rows("train"))
    seen = []
    for batch in loader:
        size = len(batch["label"])
        inner = (batch["label"] >= 0).sum().item()
        assert inner in (8, labelled % 8) and size - inner == max(1, round(inner / 2))
        assert ((batch["label"] == -1) == (batch["index"] < 0)).all()
        seen += batch["index"][batch["label"] >= 0].tolist()
    assert sorted(seen) == sorted(source.split.rows("train").tolist())
    assert len(loader) == -(-labelled // 8)


def test_labels_of_an_unlabelled_manifest_are_never_read(tiny_manifest, tiny_cache, photographs, tmp_path):
    manifest = photographs / "labels.csv"
    manifest.write_text("image,label\n" + "".join(f"ward/{number}.png,a class of its own\n" for number in range(7)))
    found = data(tiny_manifest, tiny_cache, unlabelled=str(manifest))
    found.setup("fit")
    assert found.num_classes == 5
    part = found.train_set
    assert isinstance(part, MixedDataset)
    assert {part[position]["label"] for position in range(len(part.labelled), len(part))} == {-1}


def test_other_columns_of_photographs_without_labels(tiny_manifest, photographs, tmp_path):
    cache = tmp_path / "cache"
    table = photographs / "files.csv"
    table.write_text("file\n" + "".join(f"ward/{number}.png\n" for number in range(7)))
    with pytest.raises(ManifestError, match=r'give --data\.unlabelled_columns "image=file"\. Name'):
        data(tiny_manifest, cache, unlabelled=str(table)).setup("fit")
    assert not list(cache.rglob("*.png"))  # no crop is made for what is refused
    found = data(tiny_manifest, cache, unlabelled=str(table), unlabelled_columns="image=file")
    assert len(found.unlabelled.rows) == 7


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.floats(0.1, 3), st.integers(0, 5), st.integers(1, 3))
def test_unlabelled_crops_are_passed_over_evenly(source, block, ratio, epochs, replicas):
    """After any number of epochs each unlabelled crop was drawn as often as any other, or once more."""
    counts = np.zeros(len(source.train_set.unlabelled), int)
    first = len(source.train_set.labelled)
    for rank in range(replicas):
        sampler = MixedSampler(source.train_set, block=block, ratio=ratio, seed=1, num_replicas=replicas, rank=rank)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            views = list(sampler)
            assert len(views) == len(sampler)
            for view in views:
                if view.position >= first:
                    counts[view.position - first] += 1
    assert counts.max() - counts.min() <= 1


def test_an_epoch_is_repeated_exactly(source):
    sampler = MixedSampler(source.train_set, block=4, ratio=1.5, seed=2)
    sampler.set_epoch(3)
    once = list(sampler)
    assert once == list(sampler)
    sampler.set_epoch(4)
    assert once != list(sampler)


@pytest.mark.parametrize("part, refused", [("val", True), ("test", True), ("train", False)])
def test_lesions_of_judged_parts_are_refused(tiny_manifest, tiny_cache, tmp_path, part, refused):
    found = data(tiny_manifest, tiny_cache)
    row = int(found.split.rows(part)[0])
    lesion = found.manifest.table.at[row, "lesion_id"]
    Image.new("RGB", (30, 30)).save(tmp_path / "other.png")
    (tmp_path / "m.csv").write_text(f"image,lesion_id\nother.png,{lesion}\n")
    options = {"unlabelled": str(tmp_path / "m.csv")}
    if not refused:
        data(tiny_manifest, tiny_cache, **options).setup("fit")
        return
    with pytest.raises(LeakError, match=r"1 of its photographs .* \(other.png\)"):
        data(tiny_manifest, tiny_cache, **options).setup("fit")
    allowed = data(tiny_manifest, tiny_cache, allow_leak=True, **options)
    allowed.setup("fit")
    assert allowed.card().leak_allowed


def test_a_copy_of_a_judged_file_is_refused_under_any_name(tiny_manifest, tiny_cache, tmp_path):
    found = data(tiny_manifest, tiny_cache)
    row = int(found.split.rows("test")[0])
    (tmp_path / "renamed.png").write_bytes(found.manifest.image_path(row).read_bytes())
    with pytest.raises(LeakError, match=r"renamed\.png"):
        data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path)).setup("fit")


def test_a_judged_photograph_saved_again_is_refused_unless_likeness_is_not_asked_for(
    tiny_manifest, tiny_cache, tmp_path
):
    found = data(tiny_manifest, tiny_cache)
    row = int(found.split.rows("test")[0])
    with Image.open(found.manifest.image_path(row)) as picture:
        picture.resize((80, 72)).save(tmp_path / "again.jpg", quality=85)
    with pytest.raises(LeakError, match=r"1 of its photographs .* \(again\.jpg\)"):
        data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path)).setup("fit")
    data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path), group_by="lesion").setup("fit")


def test_a_chain_to_a_judged_lesion_is_refused(tiny_manifest, tiny_cache, tmp_path):
    found = data(tiny_manifest, tiny_cache)
    lesion = found.manifest.table.at[int(found.split.rows("test")[0]), "lesion_id"]
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "m.csv").write_text(f"image,lesion_id,patient_id\n0.png,{lesion},P9\n1.png,new,p9\n2.png,free,P8\n")
    with pytest.raises(LeakError, match=r"2 of its photographs .* \(0\.png, 1\.png\)"):
        data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "m.csv")).setup("fit")


def test_the_card_knows_the_unlabelled_lesions(source, tiny_manifest, tiny_cache):
    groups = source.unlabelled.groups(source.manifest)
    assert np.array_equal(source.card().shared(groups), groups)
    assert not len(data(tiny_manifest, tiny_cache).card().shared(groups))


def test_a_name_that_both_sets_have_is_no_leak_unless_both_mean_one_photograph(tiny_manifest, tiny_cache, tmp_path):
    found = data(tiny_manifest, tiny_cache)
    table = found.manifest.table
    trained, judged = (table.at[int(found.split.rows(part)[0]), "image"] for part in ("train", "test"))
    for number, name in enumerate((trained, judged)):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    others = data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path))
    others.setup("fit")
    card = others.card()
    assert not len(others.shared_with(card, "test"))
    # Labelled since, they are known by their own names.
    (tmp_path / "since.csv").write_text(f"image,label,split\n{judged},AIS,test\n{trained},MIA,test\n")
    since = data(tmp_path / "since.csv", tiny_cache)
    assert len(since.shared_with(card, "test")) == 3  # one of them has the name of a labelled one of the training too
    # A photograph of the labelled set has the name that it has there, whatever it is called here.
    row = int(found.split.rows("train")[0])
    (tmp_path / "again.csv").write_text(f"image\n{found.manifest.image_path(row).absolute()}\n")
    again = data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "again.csv"))
    own = group_hashes(table, np.array([row]), ("image",))
    assert np.isin(own, again.unlabelled.hashes(again.manifest)).all()


def test_what_is_judged_needs_no_photographs_without_labels(source, tiny_manifest, tiny_cache, tmp_path):
    gone = data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "gone"))
    module = teacher(gone)
    module.card = source.card()
    for judging in ("validate", "test", "predict"):
        getattr(trainer(tmp_path), judging)(module, datamodule=gone)
    assert len(module.evaluation) == 60


def test_photographs_of_which_none_can_be_read_are_refused(photographs, tiny_manifest, tiny_cache, tmp_path):
    folder = shutil.copytree(photographs / "ward", tmp_path / "ward")
    for path in folder.iterdir():
        cut_short(path)
    with pytest.raises(ManifestError, match="unlabelled ward: no photograph could be read") as caught:
        data(tiny_manifest, tiny_cache, unlabelled=str(folder)).setup("fit")
    assert len(caught.value.findings) == 8


def test_all_photographs_that_are_judged_are_listed_in_a_file(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = data(tiny_manifest, tiny_cache, unlabelled=str(tiny_manifest))
    with pytest.raises(LeakError, match=r", \.\.\.; all are listed in unlabelled_judged\.csv\)"):
        refused.setup("fit")
    judged = refused.manifest.table[refused.split.parts != "train"]
    assert pd.read_csv("unlabelled_judged.csv").to_dict("list") == judged[["row", "image"]].to_dict("list")


def test_few_photographs_that_fill_half_of_every_batch_are_named(source):
    part = source.train_set
    assert often_drawn(part, source.loader, 8) is None
    drawn = MixedSampler(part, block=8, ratio=2, seed=0).unlabelled_an_epoch / 7
    told = often_drawn(part, LoaderSpec(unlabelled_ratio=2), 8)
    assert told.startswith(f"each of the 7 photographs without labels is drawn {drawn:.3g} times an epoch")
    assert told.endswith(f"--data.loader.unlabelled_ratio {2 / drawn:.2g}")


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(30, 1), (29, 1), (28, 1), (27, 1), (26, 2), (20, 2), (7, 4), (4, 8), (2, 15), (1, 30)]
)
def test_a_last_batch_of_a_few_is_left_out(source, batch_size, batches, monkeypatch):
    monkeypatch.setattr(source, "batch_size", batch_size)
    assert len(source.split.rows("train")) == 30
    loader = source.train_dataloader()
    assert len(loader) == batches
    labelled = [(batch["label"] >= 0).sum().item() for batch in loader]
    assert len(labelled) == batches
    assert sum(labelled) == 30 - (30 % batch_size if batches == 30 // batch_size else 0)


def test_an_empty_folder_and_a_ratio_of_nothing_are_refused(tiny_manifest, tiny_cache, tmp_path):
    with pytest.raises(ManifestError, match="no photographs"):
        data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path)).setup("fit")
    with pytest.raises(ConfigError, match="unlabelled_ratio"):
        data(tiny_manifest, tiny_cache, unlabelled_ratio=-1.0)


def test_no_more_unlabelled_views_are_listed_than_the_passes_of_a_fit(tiny_manifest, tiny_cache, photographs):
    found = data(tiny_manifest, tiny_cache, unlabelled=str(photographs), unlabelled_ratio=0.5, views=50)
    found.setup("fit")
    sampler, _ = training_sampler(found.train_set, found.loader, found.batch_size)
    asked = set()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        asked.update(view for view in sampler if view.position >= len(found.train_set.rows))
    drawn = sampler.unlabelled_an_epoch
    listed = limited_views(found.train_set, found.loader, 2, unlabelled_an_epoch=drawn)
    others = {view for view in listed if view.position >= len(found.train_set.rows)}
    assert asked <= others and len(others) == 7 * -(-2 * drawn // 7) < 7 * 50


class Answers:
    """Stored outputs of a teacher who takes six of seven crops for class 0."""

    def __init__(self, keys):
        self.classes = {key: int(number == 6) for number, key in enumerate(keys)}
        self.seeds = set()

    def load(self, crop_key, seed):
        self.seeds.add(seed)
        return StoredOutputs(np.eye(5, dtype=np.float16)[self.classes[crop_key]], [], None)


@pytest.mark.parametrize(("sampling", "rare"), [("balanced", 1 / 2), ("square_root", 1 / (1 + 6**0.5))])
@pytest.mark.parametrize("views", [None, 3])
def test_unlabelled_crops_are_drawn_by_the_classes_that_the_teacher_predicts(
    tiny_manifest, tiny_cache, photographs, sampling, rare, views
):
    options = {"unlabelled_sampling": sampling, "views": views, "unlabelled_ratio": 2}
    found = data(tiny_manifest, tiny_cache, unlabelled=str(photographs), loader=options)
    found.setup("fit")
    part = found.train_set
    with pytest.raises(ConfigError, match=r"unlabelled_sampling: .* Give --model\.teacher_cache true"):
        found.train_dataloader()
    answers = Answers([part.unlabelled.crops.key(row) for row in part.unlabelled.rows.tolist()])
    found.teach({"teacher": StoredTeacher(answers, STILL)})
    ranks = [training_sampler(part, found.loader, 8, num_replicas=2, rank=rank)[0] for rank in range(2)]
    assert answers.seeds == {STILL}
    drawn, first = [], len(part.labelled)
    for epoch in range(40):
        for sampler in ranks:
            sampler.set_epoch(epoch)
            own = list(sampler)
            assert own == list(sampler) and len(own) == len(sampler)
            drawn += [(view.position - first, view.seed) for view in own if view.position >= first]
    share = np.mean([position == 6 for position, _ in drawn])
    assert share == pytest.approx(rare, abs=4 * (rare * (1 - rare) / len(drawn)) ** 0.5)
    if views:
        listed = limited_views(part, found.loader, 1, unlabelled_an_epoch=1)
        assert {View(first + position, seed) for position, seed in drawn} == {v for v in listed if v.position >= first}
    else:
        assert len({seed for _, seed in drawn}) == len(drawn)


@pytest.mark.parametrize("options", [{"views_seed": -1}, {"views": 2, "seed": -1}])
def test_seeds_of_views_are_not_negative(options):
    with pytest.raises(ConfigError, match=f"--data.loader.{list(options)[-1]}: -1 is too small"):
        LoaderSpec(**options)
