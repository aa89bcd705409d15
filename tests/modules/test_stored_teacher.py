"""The teacher's answers, stored once: the same losses, never stale, never another picture's, lost by no interrupt."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.augment_opencv import augmented
from kd_convnext.data.loading.sampler import ViewSampler, view_seeds
from kd_convnext.data.loading.teacher_outputs import StoredTeacher, view_name
from kd_convnext.errors import CacheError, ConfigError
from kd_convnext.losses import Eq5, Needs, Outputs
from kd_convnext.models import TapSpec
from kd_convnext.modules import output_store
from kd_convnext.modules.frozen_teacher import FrozenTeacher
from kd_convnext.modules.stored_teacher import stored_answers

VIEWS = 2


@pytest.fixture(scope="module")
def teacher_ckpt(tiny_run):
    return tiny_run


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def asked(monkeypatch):
    """Counts the pictures that teachers were asked about."""
    counted = []
    plain = FrozenTeacher.__call__

    def counting(self, images):
        counted.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(FrozenTeacher, "__call__", counting)
    return counted


class Losses(tiny.pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, *rest):
        self.steps.append(float(outputs["loss"]))


def fit(manifest, cache, folder, teacher_ckpt, *, stored, epochs=3, data=None, trainer=None, **options):
    source = tiny.data(manifest, cache, **{"views": VIEWS, **(data or {})})
    if isinstance(options.get("objective"), dict):
        options["objective"] = Eq5(**options["objective"])  # a module keeps the projectors of its objective
    module = tiny.student(source, teacher_ckpt, teacher_cache=stored, **options)
    losses = Losses()
    tiny.trainer(folder, epochs, callbacks=[losses], **(trainer or {})).fit(module, datamodule=source)
    return np.array(losses.steps), module, source


@pytest.mark.parametrize(
    "options", [{}, {"objective": {"drop": ["feature"]}}, {"taps": TapSpec(["stages.3"], ["layers.3"])}]
)
def test_the_same_losses_and_weights_as_with_the_teacher_live(
    tiny_manifest, cache, tmp_path, teacher_ckpt, asked, options
):
    live, plain, source = fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=False, **options)
    images = len(source.train_set)
    assert sum(asked) == 3 * images
    asked.clear()
    first, _, _ = fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True, **options)
    assert sum(asked) == 1 + VIEWS * images  # the 1 asks for shapes
    asked.clear()
    again, module, _ = fit(tiny_manifest, cache, tmp_path / "c", teacher_ckpt, stored=True, **options)
    assert sum(asked) == 1
    assert np.array_equal(first, again)
    np.testing.assert_allclose(first, live, rtol=2e-3)
    assert not np.array_equal(first, live)  # rounded to half precision: these are stored ones
    for mine, other in zip(module.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=2e-3)


@pytest.mark.slow
def test_stored_with_the_command_line(tiny_manifest, cache, tmp_path, teacher_ckpt, capsys, asked):
    words = ["fit", "--model", "DistillModule", "--data.manifest", str(tiny_manifest), "--data.cache_dir", cache]
    words += [
        "--data.image_size=32",
        "--data.crops.store_size=40",
        "--data.split.ratios=[0.5,0.25,0.25]",
        "--data.loader.num_workers=1",
    ]
    words += ["--data.upscaler=bicubic", "--model.student.image_size=32", "--model.student.name=convnext_tiny"]
    words += [f"--model.student.args={tiny.CONVNEXT}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    words += [f"--model.teacher_ckpt={teacher_ckpt}", "--model.teacher_cache=true", "--data.loader.sampling=balanced"]
    words += ["--trainer.enable_progress_bar=false"]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'no'}"]) == 2
    error = capsys.readouterr().err
    assert "--model.teacher_cache" in error and "--data.loader.views" in error
    live = [f"--data.unlabelled={tiny_manifest.parent}", "--data.allow_leak=true", "--model.teacher_cache=false"]
    live += ["--data.loader.unlabelled_sampling=square_root", f"--trainer.default_root_dir={tmp_path / 'live'}"]
    assert main([*words, *live]) == 2
    assert "--data.loader.unlabelled_sampling: it goes by the classes" in capsys.readouterr().err
    for run, expected in (("a", True), ("b", False)):
        assert main([*words, "--data.loader.views=2", f"--trainer.default_root_dir={tmp_path / run}"]) == 0
        printed = capsys.readouterr().out
        assert ("The teacher answers 60 views once" in printed and " MB free" in printed) == expected
        best = tmp_path / run / "checkpoints" / "best.ckpt"
        asked.clear()
        assert main(["test", f"--config={tmp_path / run / 'config.yaml'}", f"--ckpt_path={best}"]) == 0
        assert not asked
    curves = [(tmp_path / run / "metrics.csv").read_text() for run in "ab"]
    assert curves[0] == curves[1]


def test_the_time_of_a_slow_teacher_is_said(tiny_manifest, cache, tmp_path, teacher_ckpt, monkeypatch, capsys):
    plain = FrozenTeacher.__call__

    def slow(self, images):
        time.sleep(0.02 * len(images))
        return plain(self, images)

    monkeypatch.setattr(FrozenTeacher, "__call__", slow)
    fit(tiny_manifest, cache, tmp_path / "quick", teacher_ckpt, stored=True)
    assert "is expected to take" not in capsys.readouterr().out  # less than a minute
    for name, seconds in (("WARM", 0.1), ("MEASURED", 0.3), ("LONG", 0.2)):
        monkeypatch.setattr(output_store, name, seconds)
    fit(tiny_manifest, f"{cache}2", tmp_path / "slow", teacher_ckpt, stored=True)
    said = capsys.readouterr().out
    ((seconds, each),) = re.findall(r"Asking the teacher is expected to take (\d+) s more \((\S+) s each", said)
    assert 0.02 <= float(each) < 0.2 and int(seconds) <= 60 * float(each)


def test_a_slow_start_says_nothing_of_the_pace(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(output_store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(output_store, "say", lambda trainer, text: said.append(text))
    forecast = output_store.Forecast(100_000, None)
    for seconds, batches in ((4.0, 2), (0.1, 200)):
        for _ in range(batches):
            now[0] += seconds
            forecast.after(10)
    assert len(said) == 1 and "(0.01 s each" in said[0]


def test_each_answer_belongs_to_its_picture(tiny_manifest, cache, tmp_path, teacher_ckpt):
    source = tiny.data(tiny_manifest, cache, views=VIEWS)
    trainer = tiny.trainer(tmp_path, epochs=VIEWS)
    source.trainer = trainer
    source.setup("fit")
    part, teacher = source.train_set, FrozenTeacher(str(teacher_ckpt), Needs.LOGITS | Needs.MAPS)
    part.answers = {"teacher": StoredTeacher(stored_answers(teacher, source, trainer))}
    for number in range(VIEWS):
        seeds = view_seeds(source.loader.seed, part.rows, np.full(len(part), number)).tolist()
        for position, seed in enumerate(seeds[::5]):
            sample = part[tiny_view(position * 5, seed)]
            logits, maps, _ = teacher(sample["image"][None])
            torch.testing.assert_close(sample["teacher_logits"].float(), logits[0], rtol=1e-3, atol=1e-3)
            assert len(maps) == len(sample["teacher_maps"]) == 4
            for kept, fresh in zip(sample["teacher_maps"], maps, strict=True):
                torch.testing.assert_close(kept.float(), fresh[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(CacheError, match="is gone"):
        part[tiny_view(0, seeds[1])]  # another crop's view
    keys = {part.crops.key(int(row)) for row in part.rows}
    assert len({view_name(key, seed) for key in keys for seed in range(100)}) == 100 * len(keys)


def test_processes_that_come_late_make_their_own_share(tiny_manifest, cache, tmp_path, teacher_ckpt, asked):
    source = tiny.data(tiny_manifest, cache, views=VIEWS)
    plain = source.trainer = tiny.trainer(tmp_path, epochs=VIEWS)
    source.setup("fit")
    told = []

    def run(rank, barrier, broadcast):
        strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=broadcast, barrier=barrier)
        of_plain = {name: getattr(plain, name) for name in ("precision_plugin", "precision", "max_epochs")}
        trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            is_global_zero=rank == 0,
            progress_bar_callback=None,
            strategy=strategy,
            **of_plain,
        )
        return stored_answers(FrozenTeacher(str(teacher_ckpt)), source, trainer)

    # The second looks when the first has written its share already.
    second = lambda *_: run(1, lambda *_: None, lambda missing: told[0])  # noqa: E731
    run(0, second, lambda missing: told.append(missing) or missing)
    assert sum(asked) == 2 + VIEWS * len(source.train_set)


def test_no_more_views_are_asked_about_than_the_fit_has_epochs(tiny_manifest, cache, tmp_path, teacher_ckpt, asked):
    many = {"views": 50}
    _, _, source = fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=True, epochs=2, data=many)
    assert sum(asked) == 1 + 2 * len(source.train_set)
    assert source.train_set.answers is None  # the next fit may be another network's
    asked.clear()
    fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True, epochs=3, data=many)
    assert sum(asked) == 1 + len(source.train_set)


def test_views_of_one_seed_serve_several(tiny_manifest, cache, tmp_path, teacher_ckpt, asked):
    curves = []
    for seed in (1, 2):
        data = {"loader": {"views_seed": 5, "seed": seed}}
        asked.clear()
        losses, _, source = fit(tiny_manifest, cache, tmp_path / str(seed), teacher_ckpt, stored=True, data=data)
        assert source.loader.seed == seed
        assert sum(asked) == 1 + (VIEWS * len(source.train_set) if seed == 1 else 0)
        curves.append(losses)
    assert not np.array_equal(*curves)


def test_crops_without_labels_are_answered_too(tiny_manifest, cache, tmp_path, teacher_ckpt, asked):
    (tmp_path / "others").mkdir()
    for number in range(7):
        picture = np.random.default_rng(number).integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "others" / f"{number}.png")
    data = {"unlabelled": str(tmp_path / "others"), "unlabelled_ratio": 0.5}
    options = {"objective": {"drop": ["feature"]}, "data": data}
    live, *_ = fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=False, **options)
    asked.clear()
    stored, _, source = fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True, **options)
    assert sum(asked) == 1 + VIEWS * (len(source.train_set.rows) + 7)
    np.testing.assert_allclose(stored, live, rtol=2e-3)
    # Drawn by its answers, with replacement, any of their views may be asked for.
    data["loader"] = {"unlabelled_sampling": "balanced"}
    drawn, *_ = fit(tiny_manifest, cache, tmp_path / "c", teacher_ckpt, stored=True, epochs=1, **options)
    assert len(drawn) == len(stored) / 3 and np.isfinite(drawn).all()


def tiny_view(position, seed):
    from kd_convnext.data.loading.dataset import View

    return View(position, seed)


def test_whatever_changes_an_answer_has_a_folder_of_its_own(tiny_manifest, cache, tmp_path, teacher_ckpt, tiny_cache):
    def folder(ckpt=teacher_ckpt, needs=Needs.MAPS, precision="32-true", **options):
        source = tiny.data(tiny_manifest, cache, views=1, **options)
        trainer = tiny.trainer(tmp_path, precision=precision)
        source.trainer = trainer
        source.setup("fit")
        return stored_answers(FrozenTeacher(str(ckpt), needs), source, trainer).path

    other = torch.load(teacher_ckpt, weights_only=True)
    name = next(name for name in other["state_dict"] if name.endswith("qkv.weight"))
    other["state_dict"][name][0, 0] += 1e-3
    torch.save(other, tmp_path / "other.ckpt")
    torch.save(torch.load(teacher_ckpt, weights_only=True), tmp_path / "copy.ckpt")
    found = [
        folder(),
        folder(tmp_path / "other.ckpt"),
        folder(needs=Needs.LOGITS),
        folder(needs=Needs.EMBEDDING),
        folder(needs=Needs.MAPS | Needs.EMBEDDING),
        folder(augment=AugmentSpec(crop=0.2)),
        folder(augment=AugmentSpec(engine="opencv")),
        folder(precision="bf16-mixed"),
    ]
    assert len(set(found)) == len(found)
    # The crop and the view's seed are each record's; the file's name and place, and what only orders, are nobody's.
    same = [folder(tmp_path / "copy.ckpt"), folder(view_seed=3), folder(store_size=36), folder(batch_size=4)]
    assert set(same) == {found[0]}


def test_views_come_in_turn_and_do_not_depend_on_the_split(tiny_manifest, cache):
    seen = {}
    for index in (0, 1):
        source = tiny.data(tiny_manifest, cache, views=VIEWS, split_index=index)
        source.setup("fit")
        sampler = ViewSampler(source.train_set, seed=0, views=VIEWS)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            drawn = {int(source.train_set.rows[position]): seed for position, seed in sampler}
            assert len(drawn) == len(source.train_set)
            seen[index, epoch] = drawn
    assert seen[0, 0] == seen[0, 2] and seen[0, 1] == seen[0, 3]
    assert not set(seen[0, 0].values()) & set(seen[0, 1].values())
    both = seen[0, 0].keys() & seen[1, 0].keys()
    assert both and all(seen[0, 0][row] == seen[1, 0][row] for row in both)


def test_seeds_of_views_are_spread_evenly():
    rows, numbers = (values.ravel() for values in np.meshgrid(np.arange(2000), np.arange(10)))
    seeds = view_seeds(7, rows, numbers)
    assert len(np.unique(seeds)) == len(seeds) and seeds.min() >= 0 and seeds.max() < 2**32
    assert abs(seeds.mean() / 2**32 - 0.5) < 0.01
    low = np.bincount(seeds % 16, minlength=16)
    assert low.min() > 0.85 * low.mean() and low.max() < 1.15 * low.mean()
    assert not np.array_equal(seeds, view_seeds(8, rows, numbers))
    # A crop's views and a view's crops are drawn independently: flips of neighbours agree half the time.
    flips = np.array([augmented(PICTURE, AugmentSpec(crop=0, translate=0), 2, int(seed))[0, 0, 0] for seed in seeds])
    assert 0.45 < (flips[1:] == 0).mean() * 2 < 0.55


PICTURE = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def test_an_interrupt_loses_nothing_that_was_written(tiny_manifest, cache, tmp_path, teacher_ckpt, monkeypatch, asked):
    plain, calls = FrozenTeacher.__call__, []

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return plain(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenTeacher, "__call__", interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=True)
    asked.clear()
    _, _, source = fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True)
    assert sum(asked) == 1 + VIEWS * len(source.train_set) - sum(calls[1:4])


@pytest.mark.parametrize("harm", ["truncated", "flipped", "foreign"])
def test_damaged_answers_are_made_again(tiny_manifest, cache, tmp_path, teacher_ckpt, asked, harm):
    options = {"feature": False}
    first, _, source = fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=True, **options)
    (file,) = source.crops.folder.parent.glob("teacher/*/*.npy")
    assert file.stat().st_size < 22 * VIEWS * len(source.train_set) + 300  # and a header
    content = bytearray(file.read_bytes())
    if harm == "truncated":
        content = content[:-7]
    elif harm == "flipped":
        content[-3] ^= 1
    else:
        content = b"no array"
    file.write_bytes(content)
    asked.clear()
    again, _, _ = fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True, **options)
    assert sum(asked) == 1 + (1 if harm == "flipped" else VIEWS * len(source.train_set))
    np.testing.assert_allclose(again, first, rtol=1e-5)


def test_damaged_maps_are_an_error_with_a_remedy(tiny_manifest, cache, tmp_path, teacher_ckpt):
    _, _, source = fit(tiny_manifest, cache, tmp_path / "a", teacher_ckpt, stored=True)
    for file in source.crops.folder.parent.glob("teacher/*/*.npy"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    with pytest.raises(CacheError, match=r"damaged[\s\S]*[Dd]elete"):
        fit(tiny_manifest, cache, tmp_path / "b", teacher_ckpt, stored=True)


def test_no_space_is_said_before_any_work(tiny_manifest, cache, tmp_path, teacher_ckpt, monkeypatch, asked):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="60 views need"):
        fit(tiny_manifest, cache, tmp_path, teacher_ckpt, stored=True)
    assert sum(asked) == 1


def test_answers_too_large_for_half_precision_are_refused(tiny_manifest, cache, tmp_path, teacher_ckpt, monkeypatch):
    plain = FrozenTeacher.__call__
    monkeypatch.setattr(FrozenTeacher, "__call__", lambda self, images: Outputs(plain(self, images).logits * 1e9))
    with pytest.raises(CacheError, match="half precision"):
        fit(tiny_manifest, cache, tmp_path, teacher_ckpt, stored=True, objective=Eq5(drop=["feature"]))


def test_unlimited_views_cannot_be_stored(tiny_manifest, cache, tmp_path, teacher_ckpt):
    with pytest.raises(ConfigError, match=r"--data\.loader\.views"):
        fit(tiny_manifest, cache, tmp_path, teacher_ckpt, stored=True, data={"views": None})
