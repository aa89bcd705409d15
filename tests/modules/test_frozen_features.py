import copy
import csv
import pickle
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny
from helpers.command_line import TINY, convnext
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from sklearn.linear_model import LogisticRegression

from kd_convnext import TeacherModule
from kd_convnext.cli import main
from kd_convnext.common import machine
from kd_convnext.data.loading.limited_views import limited_views
from kd_convnext.data.loading.teacher_outputs import STILL
from kd_convnext.errors import CacheError, ConfigError
from kd_convnext.losses import BalancedSoftmax, CosineEmbedding, Objective, SoftTargets, UnlikeMaps
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.modules import frozen_features
from kd_convnext.modules.frozen_features import body_fingerprint, headed_features, still_features
from kd_convnext.modules.frozen_teacher import FrozenTeacher
from kd_convnext.modules.linear_heads import fit_linear_head, held_out_heads

VIT = BackboneSpec(
    name="vit_tiny_patch16_224",
    image_size=32,
    token_blocks=2,
    args={"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
)


def blobs(count=120, width=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=np.array([0.7, 0.2, 0.1]))
    features = rng.normal(size=(count, width)) + 1.5 * np.eye(classes, width)[labels]
    return (features * rng.uniform(0.1, 5, width) + 3).astype(np.float32), labels


@pytest.mark.parametrize("c", [0.05, 1e-3, 1e-4, 1e-5])
def test_the_head_is_scikit_learns_on_standardised_features(c):
    features, labels = blobs()
    given = features[:, None].copy()
    weight, bias = fit_linear_head(given, labels, 3, c)
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    assert np.array_equal(given[:, 0], scaled)  # no second copy of what may be large
    exact = LogisticRegression(C=c, class_weight="balanced", solver="newton-cholesky", tol=1e-10)
    theirs = exact.fit(scaled.astype(np.float64), labels)
    ours = torch.softmax(torch.from_numpy(features) @ weight.T + bias, 1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaled), atol=5e-5)
    np.testing.assert_allclose(weight.numpy() * (features.std(0) + 1e-6), theirs.coef_, atol=2e-3 * theirs.coef_.max())


def test_a_class_without_crops_never_wins():
    features, labels = blobs()
    weight, bias = fit_linear_head(features[:, None].copy(), np.where(labels == 1, 3, labels), 4, 1.0)
    for scale in (1, 100):  # also far from the crops it was fitted on
        found = torch.from_numpy(features * scale) @ weight.T + bias
        assert 1 not in found.argmax(1).unique().tolist()
    # Not so far below that other classes' differences are lost where logits are standardised.
    found = torch.from_numpy(features) @ weight.T + bias
    assert -40 < found[:, 1].max() < -10


def test_the_only_lesion_of_a_class_is_answered_by_the_teacher_s_own_head():
    """No head without it knows its class: each would say never."""
    features, labels = blobs()
    labels[labels == 2] = 1
    labels[7:9] = 2
    groups = np.array([f"L{number // 2}" if number not in (7, 8) else "only" for number in range(len(labels))])
    heads = held_out_heads(features[:, None], labels, groups, 3, 0.05)
    assert [number for number, head in enumerate(heads) if head is None] == [7, 8]


def test_held_out_answers_come_from_heads_without_the_lesion():
    """Random labels can only be learnt by heart: held out they are guessed, no better than by chance."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 250)).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    groups = np.array([f"lesion:{number // 2}" for number in range(300)])
    weight, bias = fit_linear_head(features[:, None].copy(), labels, 3, 10.0)
    by_heart = ((features @ weight.numpy().T + bias.numpy()).argmax(1) == labels).mean()
    heads = held_out_heads(features[:, None], labels, groups, 3, 10.0)
    answers = [head.logits(values).argmax() for head, values in zip(heads, features, strict=True) if head is not None]
    assert len(answers) == 300
    held_out = (np.array(answers) == labels).mean()
    assert by_heart > 0.85 and held_out < 0.45


@pytest.fixture
def folds(monkeypatch):
    """Lists which crops each fold leaves out; a head costs nothing."""
    found = []

    def fit(features, labels, classes, c):
        found.append(set(range(500)) - set(features[:, 0, 0].astype(int)))
        return torch.zeros(classes, 1), torch.zeros(classes)

    monkeypatch.setattr("kd_convnext.modules.linear_heads.fit_linear_head", fit)
    return found


def heads_of(labels, groups, classes):
    return held_out_heads(np.arange(len(labels), dtype=np.float32)[:, None, None], labels, groups, classes, 1.0)


def test_lesions_are_never_divided(folds):
    heads_of(np.arange(500) % 2, np.array([f"L{number % 20}" for number in range(500)]), 2)
    assert sorted(number for fold in folds for number in fold) == list(range(500))
    assert [len({number % 20 for number in fold}) for fold in folds] == [4] * 5


def test_lesions_of_one_class_keep_their_folds(folds):
    """Stored results rest on them: the formula of all versions."""
    lesion = np.repeat(np.arange(100), 5)
    of_lesion = np.random.default_rng(3).choice(4, 100, p=[0.6, 0.3, 0.07, 0.03])
    labels = of_lesion[lesion]
    heads_of(labels, np.array([f"{number:03d}" for number in lesion]), 4)
    drawn = np.random.default_rng(0).random(100)
    order = np.lexsort((drawn, of_lesion, np.bincount(labels, minlength=4)[of_lesion]))
    expected = [set(np.flatnonzero(np.isin(lesion, order[number::5]))) for number in range(5)]
    assert folds == expected


@pytest.mark.usefixtures("folds")
def test_a_class_of_two_patients_is_in_two_folds():
    """Whatever other classes these patients have, and in whichever order."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 3)
        labels = rng.choice(2, 180, p=[0.7, 0.3])
        labels[3 * rng.choice(60, 2, replace=False)] = 2
        assert None not in heads_of(labels, patients.astype(str), 3)
        # Class 2 has more photographs than 3, and so comes after it, but fewer patients; one patient has both.
        patients = np.concatenate([patients, np.repeat([100, 101], 20), [101, 102, 103, 104, 105, 106]])
        labels = np.concatenate([labels % 2, np.full(40, 2), np.full(6, 3)])
        assert None not in heads_of(labels, rng.permutation(200)[patients].astype(str), 4)


def test_token_head_reads_class_tokens_and_the_mean_patch():
    backbone = build_backbone(VIT, 5).eval()
    images = torch.rand(2, 3, 32, 32)
    network = backbone.network
    tokens = network.vit.forward_features(backbone.normalise(images))
    embedding = network.embed(backbone.normalise(images))
    assert embedding.shape == (2, 72)
    torch.testing.assert_close(embedding[:, 24:48], tokens[:, 0])
    torch.testing.assert_close(embedding[:, 48:], tokens[:, 1:].mean(1))


def linear_teacher(source, **options):
    names = {"num_classes": source.num_classes, "class_names": source.class_names}
    return TeacherModule(**names, backbone=VIT, finetune="linear", linear_c=100.0, **options)


@pytest.fixture(scope="module")
def fitted(tiny_manifest, tiny_cache, tmp_path_factory):
    source = tiny.data(tiny_manifest, tiny_cache)
    module = linear_teacher(source)
    folder = tmp_path_factory.mktemp("linear")
    trainer = tiny.trainer(folder, limit_train_batches=1)
    trainer.fit(module, datamodule=source)
    trainer.save_checkpoint(folder / "teacher.ckpt")
    return module, source, trainer, folder / "teacher.ckpt"


def test_only_the_head_is_fitted_and_it_fits(fitted):
    module, source, trainer, _ = fitted
    torch.manual_seed(0)
    fresh = build_backbone(VIT, 5)
    assert trainer.global_step == 1
    part = source.train_set
    images = torch.stack([part.seen_through(source.val_set.views)[place]["image"] for place in range(len(part))])
    with torch.no_grad():
        found = (module.backbone.eval()(images) + module.backbone(images.flip(-1))).argmax(1).numpy()
    assert (found == part.labels).mean() > 0.8
    assert {name for name, _ in fresh.named_parameters()} == {name for name, _ in module.backbone.named_parameters()}


def test_a_head_in_one_go_needs_no_scaled_gradients(tiny_manifest, tiny_cache, tmp_path):
    """As ``--trainer.precision 16-mixed`` on a GPU, whose scaler refuses a step without gradients."""
    source = tiny.data(tiny_manifest, tiny_cache)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = tiny.trainer(tmp_path, limit_train_batches=1, plugins=[scaled])
    trainer.fit(linear_teacher(source), datamodule=source)
    assert trainer.global_step == 1


def test_what_does_not_fit_is_refused_before_a_crop_is_looked_at(
    fitted, tiny_manifest, tiny_cache, tmp_path, monkeypatch
):
    source = tiny.data(tiny_manifest, tiny_cache, views=2)
    source.trainer = tiny.trainer(tmp_path, epochs=2)
    source.setup("fit")
    backbone = copy.deepcopy(fitted[0].backbone)
    with torch.no_grad():
        next(iter(backbone.body_parameters())).add_(1)  # nothing of it is stored
    teacher = linear_teacher(source)
    monkeypatch.setattr("kd_convnext.models.token_head.TokenHead.embed", None)  # would be called
    crops = len(source.train_set.rows)
    need = crops * (12 + 2 * 2 * 72) + 2 * crops * (12 + 2 * 72)  # of still crops, at two looks, and of views
    usage = shutil.disk_usage(tmp_path)._replace(free=need - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match=f"the teacher's answers for {3 * crops} views need"):
        headed_features(backbone, source, source.trainer, 100.0, views=True)
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    takes = f"a linear head's fit on {crops} crops at 2 looks takes"
    with pytest.raises(ConfigError, match=f"teacher: {takes} 3.46e-05 GB of memory, 1e-06 GB are free"):
        headed_features(backbone, source, source.trainer, 100.0, views=True)
    with pytest.raises(ConfigError, match=f"--model.finetune linear: {takes} 1.73e-05 GB"):
        tiny.trainer(tmp_path).fit(teacher, datamodule=source)


def test_features_too_large_for_half_precision_are_told_in_the_words_of_their_fit(
    tiny_manifest, tiny_cache, tmp_path, monkeypatch
):
    source = tiny.data(tiny_manifest, tiny_cache)
    teacher = linear_teacher(source)
    with torch.no_grad():
        for parameter in teacher.backbone.body_parameters():
            parameter.fill_(1e30)
    with pytest.raises(CacheError, match=r"--model\.finetune linear: [^.]* half precision.*--model\.backbone\.weights"):
        tiny.trainer(tmp_path).fit(teacher, datamodule=source)


def test_classes_that_the_teacher_s_own_head_answers_are_named(fitted, monkeypatch, capsys):
    module, source, trainer, _ = fitted
    names, labels = source.class_names, source.train_set.labels
    monkeypatch.setattr(
        frozen_features, "held_out_heads", lambda *_: [None if label in (1, 3) else "other" for label in labels]
    )
    headed_features(module.backbone, source, trainer, 100.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"The teacher's own head answers for crops of {names[1]}, {names[3]}: ")


def test_features_are_computed_once_whatever_the_head(fitted, monkeypatch):
    _, source, trainer, path = fitted
    again = TeacherModule.load_from_checkpoint(path)
    monkeypatch.setattr("kd_convnext.models.token_head.TokenHead.embed", None)  # would be called
    store = still_features(again.backbone, source, trainer)
    with torch.no_grad():
        again.backbone.network.head.weight.add_(1.0)
    assert still_features(again.backbone, source, trainer).path == store.path


@pytest.mark.parametrize("looks", [2, 4, 8])
def test_stored_answers_are_the_network_s_mean_over_its_looks(fitted, looks):
    module, source, trainer, _ = fitted
    answers = headed_features(module.backbone, source, trainer, looks=looks)
    part = source.train_set
    for position in (0, 5):
        image = part.seen_through(source.val_set.views)[position]["image"]
        turned = [np.rot90(picture, turns, (1, 2)) for turns in range(4) for picture in (image, image.flip(-1))]
        # Four looks: every quarter turn once, every other one mirrored, first or last.
        seen = {2: turned[:2], 4: [turned[0], turned[7], turned[4], turned[3]], 8: turned}[looks]
        with torch.no_grad():
            logits = module.backbone.eval()(torch.stack([torch.from_numpy(copy.copy()) for copy in seen])).mean(0)
        found = answers.load(part.crops.key(int(part.rows[position])), STILL)
        np.testing.assert_allclose(found.logits.astype(np.float32), logits.numpy(), rtol=0.02, atol=0.05)
        assert found.embedding.shape == (72,)


def test_looks_at_a_crop_count_as_one_crop():
    features, labels = blobs()
    once = fit_linear_head(features[:, None].copy(), labels, 3, 0.05)
    thrice = fit_linear_head(np.repeat(features[:, None], 3, axis=1), labels, 3, 0.05)
    for one, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_head_learns_to_see_past_what_turning_changes():
    """A feature that tells the classes apart in one look and the other way round in the next is not relied upon."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = rng.normal(size=(200, 2, 2)).astype(np.float32)
    features[:, :, 0] += labels[:, None]
    features[:, :, 1] = 4 * (2 * labels[:, None] - 1) * np.array([1, -1]) + features[:, :, 1]
    one_look, _ = fit_linear_head(features[:, :1].copy(), labels, 2, 1.0)
    weight, _ = fit_linear_head(features, labels, 2, 1.0)
    assert one_look[1, 1] > one_look[1, 0] > 0
    assert weight[1, 0] > 0.2 > abs(weight[1, 1]) * 4


def test_the_student_s_teacher_looks_as_it_was_fitted(fitted, tmp_path):
    module, source, _, _ = fitted
    turned = linear_teacher(source, linear_looks=4)
    trainer = tiny.trainer(tmp_path, limit_train_batches=1)
    trainer.fit(turned, datamodule=source)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    assert FrozenTeacher(str(tmp_path / "teacher.ckpt")).looks == 4
    assert (turned.backbone.network.head.weight != module.backbone.network.head.weight).any()


def test_what_changes_no_weight_but_the_features_is_another_body():
    spec = BackboneSpec("convnext_atto", args={"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]})
    other = replace(spec, args={**spec.args, "global_pool": "max"})
    torch.manual_seed(0)
    mean = build_backbone(spec, 2)
    most = build_backbone(other, 2)
    most.load_state_dict(mean.state_dict())
    assert body_fingerprint(mean) == body_fingerprint(mean) != body_fingerprint(most)


def test_views_are_answered_at_the_teacher_s_size_by_heads_without_their_lesion(
    fitted, tiny_manifest, tiny_cache, tmp_path
):
    (tmp_path / "others").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)).save(
        tmp_path / "others" / "1.png"
    )
    module = fitted[0]
    options = {"image_size": 24, "views": 2, "unlabelled": str(tmp_path / "others")}
    source = tiny.data(tiny_manifest, tiny_cache, **options)
    source.trainer = tiny.trainer(tmp_path, epochs=2)
    source.setup("fit")
    answers = headed_features(module.backbone, source, source.trainer, 100.0, views=True)
    part = source.train_set
    views = limited_views(part, source.loader, 2)
    assert len(views) == 2 * len(part.rows)
    for view in views[::5]:
        picture = part.seen_through(part.views.at(32))[view]["image"]
        key = part.crops.key(int(part.rows[view.position]))
        found = answers.load(key, view.seed)
        with torch.no_grad():
            embedding = module.backbone.network.embed(module.backbone.normalise(picture[None] / 255))[0].numpy()
        np.testing.assert_allclose(found.embedding.astype(np.float32), embedding, rtol=0.02, atol=0.02)
        logits = answers.held_out[key].logits(embedding)
        np.testing.assert_allclose(found.logits.astype(np.float32), logits, rtol=0.02, atol=0.1)
    alone = pickle.loads(pickle.dumps(answers))  # as a loader's process has it
    alone.views.path.rename(tmp_path / "gone")
    with pytest.raises(CacheError, match="is gone"):
        alone.load(key, view.seed)
    (tmp_path / "gone").rename(alone.views.path)
    other = part.place(len(part.rows))
    alike = [answers.load(other.crops.key(other.row), seed).embedding for seed in (STILL, 17)]
    assert np.array_equal(*alike)


def test_a_student_of_views_learns_from_answers_without_its_lesions(fitted, tiny_manifest, tiny_cache, tmp_path):
    source = tiny.data(tiny_manifest, tiny_cache, views=2)
    soft = Objective({"soft": SoftTargets(), "embedding": CosineEmbedding()})
    student = tiny.student(source, fitted[3], objective=soft, teacher_cache=True)
    seen = []

    class Answers(tiny.pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            seen.extend(zip(batch["index"].tolist(), batch["teacher_logits"].argmax(1).tolist(), strict=True))

    tiny.trainer(tmp_path, epochs=2, callbacks=[Answers()]).fit(student, datamodule=source)
    right = np.mean([source.manifest.labels[row] == answer for row, answer in seen])
    # Its head knows all of them by heart (`test_only_the_head_is_fitted_and_it_fits`).
    assert right < 0.7


def test_photographs_without_labels_of_a_training_lesion_are_answered_without_it(
    fitted, tiny_manifest, tiny_cache, tmp_path
):
    own = fitted[1]
    lesion = own.manifest.table["lesion_id"].iloc[int(own.train_set.rows[0])]
    rng = np.random.default_rng(0)
    namesake = own.manifest.table["image"].iloc[int(own.train_set.rows[0])]  # shows something else
    for name in ("same.png", "other.png", namesake):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(tmp_path / name)
    rows = f"same.png,{lesion.lower()}\nother.png,far away\n{namesake},away\n"
    (tmp_path / "others.csv").write_text(f"image,lesion_id\n{rows}")
    source = tiny.data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "others.csv"))
    source.trainer = tiny.trainer(tmp_path)
    source.setup("fit")
    part = source.train_set
    answers = headed_features(fitted[0].backbone, source, source.trainer, 100.0)
    keys = [place.crops.key(place.row) for place in map(part.place, (0, *range(len(part.rows), len(part.rows) + 3)))]
    assert answers.held_out[keys[1]] is answers.held_out[keys[0]] and not {*keys[2:]} & {*answers.held_out}


def soft(**more):
    return Objective({"labels": BalancedSoftmax(), "soft": SoftTargets(), **more})


@pytest.mark.parametrize(
    ("options", "of_data", "remedy"),
    [
        ({}, {}, "teacher_cache true or still"),
        ({"mixing": {"mixup": 0.4}}, {}, "teacher_cache true or still, without --model.mixing"),
        ({"teacher_cache": True, "objective": {"maps": UnlikeMaps}}, {"views": 1}, "another teacher"),
        ({"teacher_cache": "still"}, {"split_seed": 5, "allow_leak": True}, "train it on this split"),
    ],
    ids=["live", "mixed", "maps", "another split"],
)
def test_in_sample_answers_are_named(fitted, tiny_manifest, tiny_cache, tmp_path, options, of_data, remedy):
    source = tiny.data(tiny_manifest, tiny_cache, **of_data)
    terms = {name: term() for name, term in options.get("objective", {}).items()}
    student = tiny.student(source, fitted[3], **{**options, "objective": soft(**terms)})
    fit = tiny.trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
    with pytest.warns(UserWarning, match="linear head was fitted on") as caught:
        fit.fit(student, datamodule=source)
    (text,) = (str(entry.message) for entry in caught if "linear head was fitted on" in str(entry.message))
    assert text.startswith("--model.teacher_ckpt") and remedy in text and "\n" not in text
    assert torch.isfinite(fit.callback_metrics["train/loss_soft"])


def test_a_mixed_fit_of_a_linear_teacher_by_one_command_says_so_once(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit = {"name": VIT.name, "image_size": 32, "token_blocks": 2, "args": dict(VIT.args)}
    teacher = {"class_path": "kd_convnext.TeacherModule", "init_args": {"backbone": vit, "finetune": "linear"}}
    terms = {
        "labels": {"class_path": "kd_convnext.losses.BalancedSoftmax"},
        "soft": {"class_path": "kd_convnext.losses.SoftTargets"},
    }
    objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}
    student = {"class_path": "kd_convnext.DistillModule", "init_args": {"objective": objective}}
    shared = {"data": {"image_size": 32}, "trainer": {"max_epochs": 1, "limit_train_batches": 1}}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"model": teacher, **shared}))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": student, "teacher_config": "teacher.yaml"}))
    words = [*TINY, *convnext("student"), f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    words += ["--model.mixing.mixup=0.4", "--trainer.default_root_dir=run"]
    with pytest.warns(UserWarning, match="linear head was fitted on") as caught:
        assert main(["fit", "--config", "student.yaml", *words]) == 0
    assert sum("linear head was fitted on" in str(entry.message) for entry in caught) == 1
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [row["train/loss_labels"] for row in csv.DictReader(file) if row.get("train/loss_labels")]
    assert losses and all(0.5 < float(loss) < 10 for loss in losses)


@pytest.mark.parametrize(
    "options", [{"teacher_cache": "still"}, {"objective": Objective({"embedding": CosineEmbedding()})}]
)
def test_nothing_is_said_where_no_answer_is_in_sample(fitted, tiny_manifest, tiny_cache, tmp_path, options):
    source = tiny.data(tiny_manifest, tiny_cache)
    student = tiny.student(source, fitted[3], **{"objective": soft(), **options})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*linear head was fitted on")
        tiny.trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(student, datamodule=source)
