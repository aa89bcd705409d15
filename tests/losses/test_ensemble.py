"""The average of several teachers: its value by SciPy, what it refuses, and fits that learn from it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.command_line import TINY, convnext
from helpers.tiny import CONVNEXT_SPEC, data, teacher, trainer
from scipy.special import log_softmax, softmax

from kd_convnext.checkpoints.format import KEY, read_checkpoint
from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.losses import CosineEmbedding, Ensemble, Focal, Needs, Objective, Outputs, SoftTargets, Widths
from kd_convnext.losses.described import built


def test_averages_are_those_of_scipy_and_one_teacher_stays_what_it_is():
    one, other = np.random.default_rng(0).normal(0, 4, (2, 6, 5))
    tensors = [torch.from_numpy(one), torch.from_numpy(other)]
    mean = Ensemble(["a", "b"]).logits(tensors)
    np.testing.assert_allclose(mean.exp(), (softmax(one, axis=1) + softmax(other, axis=1)) / 2)
    geometric = Ensemble(["a", "b"], "logits").logits(tensors).log_softmax(1)
    np.testing.assert_allclose(geometric, log_softmax((one + other) / 2, axis=1))
    sure = torch.tensor([[2e4, -2e4]], dtype=torch.float16)
    assert Ensemble(["a", "b"]).logits([sure, -sure]).softmax(1).tolist() == [[0.5, 0.5]]
    same = Ensemble(["a", "b"]).logits(tensors[:1] * 2).softmax(1)
    np.testing.assert_allclose(same, softmax(one, axis=1))


def test_terms_learn_from_the_average_beside_terms_of_its_members():
    objective = Objective(
        {
            "soft": SoftTargets(teacher="both", temperature=2.0),
            "embedding": CosineEmbedding(teacher="swin", projector="linear"),
            "labels": Focal(),
        },
        {"both": Ensemble(["vit", "swin"])},
    )
    assert objective.teachers == ("vit", "swin")
    assert objective.needs("vit") == Needs.LOGITS and objective.needs("swin") == Needs.LOGITS | Needs.EMBEDDING
    again = built(json.loads(json.dumps(objective.description)), Objective)
    for each in (objective, again):
        torch.manual_seed(0)
        each.build(Widths(5, (), 4), {"vit": Widths(5), "swin": Widths(5, (), 7)})
        torch.manual_seed(1)
        outputs = [Outputs(torch.randn(6, 5), None, torch.randn(6, width)) for width in (4, 3, 7)]
        found = each(outputs[0], {"vit": outputs[1], "swin": outputs[2]}, torch.zeros(6).long(), each.weights(0))
        target = (outputs[1].logits.softmax(1) + outputs[2].logits.softmax(1)) / 2
        alone = SoftTargets(temperature=2.0)(outputs[0], Outputs(target.log()), torch.zeros(6).long())
        torch.testing.assert_close(found.values[0], alone)


def test_what_cannot_be_an_ensemble_is_refused_together():
    terms = {"soft": SoftTargets(teacher="both"), "embedding": CosineEmbedding(teacher="both")}
    ensembles = {
        "both": Ensemble(["swin", "vit"]),
        "of all": Ensemble(["both", "vit"]),
    }
    with pytest.raises(ConfigError) as caught:
        Objective(terms, ensembles)
    assert [finding.where for finding in caught.value.findings] == [
        "objective.terms.embedding",
        *["objective.ensembles.of all"] * 3,
    ]
    for members in ([], ["swin"], ["swin", "swin"], ["swin", "vit", "vit"]):
        with pytest.raises(ConfigError, match="Name at least two, each once"):
            Ensemble(members)
    with pytest.raises(ConfigError, match="Choose one of probabilities, logits"):
        Ensemble(["swin", "vit"], "votes")


@pytest.fixture(scope="module")
def teachers(tiny_manifest, tiny_cache, tmp_path_factory):
    """A Swin, its copy, and a ConvNeXt."""
    folder, source = tmp_path_factory.mktemp("teachers"), data(tiny_manifest, tiny_cache)
    for name, options in {"swin": {}, "convnext": {"backbone": CONVNEXT_SPEC}}.items():
        fit = trainer(folder, limit_train_batches=2)
        fit.fit(teacher(source, **options), datamodule=source)
        fit.save_checkpoint(folder / f"{name}.ckpt")
    shutil.copy(folder / "swin.ckpt", folder / "copy.ckpt")
    return folder


@pytest.fixture
def losses(tiny_manifest, teachers, tmp_path, monkeypatch):
    """Fits a student by the command line and returns its losses of soft targets."""
    monkeypatch.chdir(tmp_path)

    def fitted(folder, files, teacher, ensembles=None, cache="false"):
        terms = {
            "soft": {"class_path": "kd_convnext.losses.SoftTargets", "init_args": {"teacher": teacher}},
            "labels": {"class_path": "kd_convnext.losses.Focal"},
        }
        objective = {"terms": terms, "ensembles": ensembles}
        init = {"objective": {"class_path": "kd_convnext.losses.Objective", "init_args": objective}}
        init["teachers"] = {name: str(teachers / f"{name}.ckpt") for name in files}
        config = {"seed_everything": 0, "model": {"class_path": "kd_convnext.DistillModule", "init_args": init}}
        (tmp_path / f"{folder}.yaml").write_text(yaml.safe_dump(config))
        words = ["fit", f"--config={folder}.yaml", *convnext("student"), *TINY, f"--data.manifest={tiny_manifest}"]
        words += ["--data.cache_dir=cache", "--data.loader.views=2", f"--model.teacher_cache={cache}"]
        words += ["--trainer.max_epochs=2", "--trainer.precision=32-true", f"--trainer.default_root_dir={folder}"]
        assert main(words) == 0
        return pd.read_csv(tmp_path / folder / "metrics.csv")["train/loss_soft"].dropna().to_numpy()

    return fitted


def test_a_student_learns_from_two_teachers_live_and_stored(losses, tmp_path):
    swin, convnext_alone = losses("swin", ["swin"], "swin"), losses("convnext", ["convnext"], "convnext")
    # Twice the same teacher is that teacher.
    for average in ("probabilities", "logits"):
        twins = {"both": {"members": ["swin", "copy"], "average": average}}
        assert losses(f"twins_{average}", ["swin", "copy"], "both", twins) == pytest.approx(swin, rel=1e-4)
    both = {"both": {"members": ["swin", "convnext"]}}
    live = losses("live", ["swin", "convnext"], "both", both)
    assert all(live != pytest.approx(alone, rel=1e-3) for alone in (swin, convnext_alone))
    assert losses("stored", ["swin", "convnext"], "both", both, "true") == pytest.approx(live, rel=5e-3)
    assert len(list((tmp_path / "cache" / "teacher").iterdir())) == 2  # each answers for itself, for other fits too
    assert np.isfinite(losses("still", ["swin", "convnext"], "both", both, "still")).all()
    checkpoint = read_checkpoint(tmp_path / "stored/checkpoints/best.ckpt")
    assert set(checkpoint[KEY]["teachers"]) == {"swin", "convnext"}
    assert main(["test", "--config=stored/config.yaml", "--ckpt_path=stored/checkpoints/best.ckpt"]) == 0


def test_a_member_without_a_checkpoint_is_named(losses, capsys):
    with pytest.raises(AssertionError):
        losses("refused", ["swin"], "both", {"both": {"members": ["swin", "vit"]}})
    assert "--model.teachers.vit" in capsys.readouterr().err
