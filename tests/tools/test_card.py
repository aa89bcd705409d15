import hashlib
import html
import json
import math
import re
import shutil
import struct

import pandas as pd
import pytest
import torch
from helpers import tiny
from helpers.bad_files import cut_short
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from helpers.inference import changed, copy_run
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors import safe_open

from kd_convnext.cli import main
from kd_convnext.errors import CheckpointError
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.publishing.hub import PublishedModel
from kd_convnext.modules.teacher import TeacherModule
from kd_convnext.training.record import RunRecord


@pytest.fixture(scope="module")
def tested_run(tiny_run, tiny_manifest, tiny_cache, tmp_path_factory):
    """The tiny teacher, tested and calibrated."""
    checkpoint = copy_run(tiny_run, tmp_path_factory.mktemp("tested"))
    source = tiny.data(tiny_manifest, tiny_cache)
    trainer = tiny.trainer(checkpoint.parent.parent, callbacks=[RunRecord()])
    trainer.test(TeacherModule.load_from_checkpoint(checkpoint), source, ckpt_path=str(checkpoint), verbose=False)
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--coverage", "0.5"]) == 0
    return checkpoint


@pytest.fixture(scope="module")
def published(tested_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    assert main(["publish", "--ckpt_path", str(tested_run), "--out", str(folder), "--license", "apache-2.0"]) == 0
    return folder


# ---- the card


def test_the_card_of_a_run_says_what_its_files_say(tested_run, capsys):
    run, own = tested_run.parent.parent, "swin_tiny_patch4_window7_224"
    assert main(["card", "--ckpt_path", str(tested_run), "--resamples", "200"]) == 0
    path = run / "MODEL_CARD.md"
    assert str(path) in capsys.readouterr().out
    card = ModelCard.load(path)
    metrics = json.loads((tested_run.parent.parent / "metrics.json").read_text())
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper"):
        assert shown[name] == pytest.approx(metrics[f"test/{name}"], abs=1e-4)
        assert f"| {name} | {metrics[f'test/{name}']:.2f} |" in card.text
    split = pd.read_csv(tested_run.parent.parent / "split.csv")
    mine = split[split["label"] == "AIS"]
    expected = [
        f"{(mine['split'] == part).sum()} ({mine[mine['split'] == part]['lesion_id'].nunique()})"
        for part in ("train", "val", "test")
    ]
    assert f"| AIS | {' | '.join(expected)} |" in card.text
    for words in ("not a medical device", "research-only", "Temperature", "95 %", "Fewer than 10 tested lesions"):
        assert words in card.text or words in str(card.data)
    assert str(tested_run.parent) not in str(card)
    # Of the data at hand, and of the network as it is.
    assert "surgical" not in str(card) and "into 5 classes (Grade 1, Grade 2, Grade 3, AIS, MIA)" in card.text
    assert f"{own}, altered (embed_dim 16, depths 1-1-1-1, num_heads 1-2-2-4, window_size 2) at 32 px" in card.text


def test_none_of_few_is_not_nothing(tested_run, tmp_path):
    """A class that is never found has an interval as wide as its few lesions allow, and no precision."""
    checkpoint = shutil.copytree(tested_run.parent.parent, tmp_path / "run") / "checkpoints" / tested_run.name
    path = tmp_path / "run" / "predictions.csv"
    answers = pd.read_csv(path).replace({"prediction": {"AIS": "MIA"}})
    answers.to_csv(path, index=False)
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "200"]) == 0
    text = (path.parent / "MODEL_CARD.md").read_text().split("| precision (95 % interval) |")[1]
    cells = next(line for line in text.splitlines() if line.startswith("| AIS |")).split(" | ")
    groups = answers.loc[answers["label"] == "AIS", "group"].nunique()
    # Clopper-Pearson of none of so many lesions, all of whose photographs are answered alike.
    assert cells[3:5] == ["-", f"0.00 (0.00 to {1 - 0.025 ** (1 / groups):.2f})"]


def test_a_class_that_nobody_tested_is_named_beside_the_means(tested_run, tmp_path):
    """It counts as 0 among the run's own; means of other photographs are over the classes that occur."""
    checkpoint = shutil.copytree(tested_run.parent.parent, tmp_path / "run") / "checkpoints" / tested_run.name
    run = tmp_path / "run"
    answers = pd.read_csv(run / "predictions.csv")
    answers = answers[answers["label"] != "AIS"].assign(prediction=lambda frame: frame["label"])
    for folder in (run, run / "external" / "clinic"):
        folder.mkdir(parents=True, exist_ok=True)
        answers.to_csv(folder / "predictions.csv", index=False)
        if folder != run:
            shutil.copy(run / "judged.json", folder)
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "50"]) == 0
    own, other = (run / "MODEL_CARD.md").read_text().split("### On other photographs")
    kinds = answers["label"].nunique()
    assert f"| f1_macro | {kinds / 5:.2f} |" in own and "| f1_macro | 1.00 |" in other
    assert "AIS" in own.split("not among these photographs")[0].splitlines()[-1] and "count" in own
    assert f"Macro means are over the {kinds} classes that occur, of 5." in other


def test_the_card_says_where_the_manifest_gave_the_parts(tested_run, tmp_path):
    checkpoint = shutil.copytree(tested_run.parent.parent, tmp_path / "run") / "checkpoints" / tested_run.name
    (tmp_path / "run" / "environment.json").write_text('{"divided": {"given": true, "alike": 1}}')
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "50"]) == 0
    text = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "(the manifest gave the parts)" in text
    assert "**1 set of near-identical photographs in more than one part**" in text


def test_no_promise_is_rounded_up(tested_run, tmp_path, capsys):
    checkpoint = shutil.copytree(tested_run.parent.parent, tmp_path / "run") / "checkpoints" / tested_run.name
    asked = ["--coverage", "0.995", "--gate_false_alarms", "0.004"]
    assert main(["calibrate", "--ckpt_path", str(checkpoint), *asked]) == 0
    assert "Prediction sets at 99.5% coverage" in capsys.readouterr().out
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "50"]) == 0
    text = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "99.5 % coverage" in text and "it stops about 0.4 % of ordinary ones" in text
    told = Predictor.from_checkpoint(checkpoint).calibration.reasons()
    assert "at 99.5% coverage" in told["none"] and "at 99.5% coverage" in told["several"]


def test_what_is_unknown_is_said_to_be(tiny_run, tmp_path):
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(tiny_run.read_bytes())
    assert main(["card", "--ckpt_path", str(moved), "--out", str(tmp_path / "card.md")]) == 0
    card = ModelCard.load(tmp_path / "card.md")
    for words in ("Not tested", "Not calibrated", "counts are unknown"):
        assert words in card.text
    assert not card.data.eval_results
    assert "- Tested neither on the collection it was trained on nor on photographs from elsewhere." in card.text
    assert "Tested on lesions" not in card.text


def test_results_elsewhere_alone_are_no_test_of_the_own_part(tested_run, tmp_path):
    checkpoint, folder = with_external(tested_run, tmp_path)
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "200"]) == 0
    card = ModelCard.load(folder / "MODEL_CARD.md")
    assert "- Tested on lesions of the collection it was trained on and on other photographs; where" in card.text
    (folder / "predictions.csv").unlink()
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "200"]) == 0
    card = ModelCard.load(folder / "MODEL_CARD.md")
    assert "Not tested on its own test part." in card.text and "nothing is known of how often" not in card.text
    assert "- Not tested on the collection it was trained on, only on other photographs; where" in card.text
    assert {row.dataset_name for row in card.data.eval_results} == {"other photographs: hospital"}


@pytest.mark.parametrize("leaked", ["own", "elsewhere"])
def test_leaked_scores_are_no_results_on_the_hub(tested_run, tmp_path, leaked):
    checkpoint, folder = with_external(tested_run, tmp_path)
    path = (folder if leaked == "own" else folder / "external" / "hospital") / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test/leak_allowed": 1.0}))
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "200"]) == 0
    card = ModelCard.load(folder / "MODEL_CARD.md")
    own, other = "test part of the training's own photographs", "other photographs: hospital"
    assert {row.dataset_name for row in card.data.eval_results} == {other if leaked == "own" else own}
    assert card.text.count("**Lesions among them were in training: these results are no test.**") == 1
    assert ("and on other photographs" in card.text) == (leaked == "own")


def with_external(tested_run, tmp_path):
    """A copy of a tested run whose answers stand for those on other photographs too."""
    folder = shutil.copytree(tested_run.parent.parent, tmp_path / "run")
    other = folder / "external" / "hospital"
    other.mkdir(parents=True)
    for name in ("predictions.csv", "metrics.json", "judged.json"):
        shutil.copy(folder / name, other / name)
    return folder / "checkpoints" / tested_run.name, folder


def test_markup_in_names_of_classes_is_shown_as_it_is(tiny_run, tmp_path):
    names = ["<b>A</b>", "B|C", "![D](https://evil.example/d.png)", "*E", "F*"]
    checkpoint = changed(tiny_run, tmp_path / "run" / "checkpoints" / "best.ckpt", class_names=names)
    assert main(["card", "--ckpt_path", str(checkpoint)]) == 0
    text = (checkpoint.parent.parent / "MODEL_CARD.md").read_text().split("\n---", 1)[1]
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert f"Classes, in the order of the outputs: {', '.join(names)}." in html.unescape(shown)
    assert "<b>" not in shown and "<img" not in shown and "<em>" not in shown
    assert "<strong>not a medical device</strong>" in shown  # our own markup is meant


def test_a_leak_is_on_the_card(tested_run, tmp_path):
    leaky = changed(tested_run, tmp_path / "leaky.ckpt", leak_allowed=True)
    assert main(["card", "--ckpt_path", str(leaky), "--out", str(tmp_path / "card.md")]) == 0
    assert "were in its training" in (tmp_path / "card.md").read_text()
    run = shutil.copytree(tested_run.parent.parent, tmp_path / "run")
    checkpoint = changed(tested_run, run / "checkpoints" / tested_run.name, leak_allowed=True)
    (checkpoint.parent / "calibration.json").unlink()
    sha = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    judged = json.loads((run / "judged.json").read_text())
    judged["test"]["checkpoint_sha256"] = sha
    (run / "judged.json").write_text(json.dumps(judged))
    assert main(["card", "--ckpt_path", str(checkpoint), "--resamples", "200"]) == 0
    card = ModelCard.load(run / "MODEL_CARD.md")
    assert "| accuracy |" in card.text and not card.data.eval_results


# ---- the hub


def test_what_is_published_answers_alike(tested_run, published, tiny_manifest):
    names = {path.name for path in published.iterdir()}
    assert names == {"config.json", "model.safetensors", "calibration.json", "calibration.safetensors", "README.md"}
    (published.parent / "other").touch()
    expected = (published.parent / "other").stat().st_mode
    assert {path.stat().st_mode for path in published.iterdir()} == {expected}  # others may read all of them
    pulled = PublishedModel.from_pretrained(str(published))
    before = Predictor.from_checkpoint(tested_run)
    for photo in ("0_0_0.png", "3_2_1.png", "4_5_0.png"):
        one, other = before(tiny_manifest.parent / photo), pulled.predictor(tiny_manifest.parent / photo)
        assert (one.probabilities == other.probabilities).all()
        assert (one.prediction_set, one.abstain, one.reasons) == (other.prediction_set, other.abstain, other.reasons)


def test_nothing_private_is_published(tested_run, published, tiny_manifest):
    text = (published / "config.json").read_text() + (published / "README.md").read_text()
    config = json.loads((published / "config.json").read_text())
    assert "seen_groups" not in config["data"]
    for private in (str(tiny_manifest.parent), str(tested_run.parent), "L0-0"):
        assert private not in text
    with safe_open(published / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    assert ModelCard.load(published / "README.md").data.license == "apache-2.0"


def test_pulled_is_pushed_again_unchanged(published, tmp_path):
    PublishedModel.from_pretrained(str(published)).save_pretrained(tmp_path / "again")
    for path in published.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes().strip() == path.read_bytes().strip(), path.name


def test_pushing_goes_to_the_named_private_repository(tested_run, tmp_path, monkeypatch, capsys):
    calls = []

    class FakeApi:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private))
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **options):
            calls.append({path.name for path in folder_path.iterdir()})
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeApi)
    words = ["publish", "--ckpt_path", str(tested_run), "--out", str(tmp_path / "out"), "--repo_id", "me/student"]
    assert main(words) == 0
    assert calls[0] == ("me/student", True)
    assert {"README.md", "model.safetensors", "config.json"} <= calls[1]
    assert "https://hub/commit" in capsys.readouterr().out
    assert 'from_pretrained("me/student")' in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_none_of_ours_is_refused(published, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="kd-convnext publish"):
        PublishedModel.from_pretrained(str(tmp_path))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in published.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a published model"):
        PublishedModel.from_pretrained(str(damaged))
    newer = json.loads((published / "config.json").read_text()) | {"format_version": 99}
    (damaged / "config.json").write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match="Update kd-convnext"):
        PublishedModel.from_pretrained(str(damaged))


def test_published_weights_that_changed_are_refused(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "changed")
    weights = bytearray((published / "model.safetensors").read_bytes())
    weights[-9] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not what was published"):
        PublishedModel.from_pretrained(str(folder))
    weights[-4:] = struct.pack("<f", math.nan)
    (folder / "model.safetensors").write_bytes(weights)
    # Folders of earlier versions do not name their weights.
    config = json.loads((published / "config.json").read_text())
    del config["weights_sha256"], config["facts_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not finite"):
        PublishedModel.from_pretrained(str(folder))


@pytest.mark.parametrize("name", ["class_names", "image_size"])
def test_a_published_configuration_that_was_edited_is_refused(published, tmp_path, name):
    folder = shutil.copytree(published, tmp_path / "changed")
    config = json.loads((published / "config.json").read_text())
    found = PublishedModel.from_pretrained(str(folder)).predictor.network.card.class_names
    assert [*found] == config["data"]["class_names"]
    edit = {"class_names": config["data"]["class_names"][::-1], "image_size": 96}
    config["data"][name] = edit[name]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: is not what was published: .* were edited"):
        PublishedModel.from_pretrained(str(folder))
    del config["facts_sha256"]  # as earlier versions wrote it
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "calibration.json").unlink()
    read = PublishedModel.from_pretrained(str(folder)).predictor.network.card.to_state()[name]
    assert json.loads(json.dumps(read)) == edit[name]


# ---- a full disk


def test_a_full_disk_leaves_the_earlier_publication(tested_run, published, tmp_path, capsys, monkeypatch):
    from kd_convnext.inference.publishing import hub

    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr(hub, "atomic_write", full)
    words = ["publish", "--ckpt_path", str(tested_run), "--out", str(folder), "--overwrite", "true"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and str(folder) in error and "Traceback" not in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_publishing_again_removes_a_calibration_of_before_and_keeps_other_files(tested_run, published, tmp_path):
    folder, checkpoint = tmp_path / "model", tmp_path / "run" / "checkpoints" / "best.ckpt"
    shutil.copytree(published, folder)
    (folder / "notes.txt").write_text("ours")
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(tested_run, checkpoint)
    assert (folder / "calibration.json").is_file()
    assert main(["publish", "--ckpt_path", str(checkpoint), "--out", str(folder), "--overwrite", "true"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]


# ---- what a reader does with it


def test_the_cards_own_lines_answer(tested_run, published, tiny_manifest, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    shutil.copy(tiny_manifest.parent / "0_0_0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("FOLDER_OR_REPOSITORY", str(published)), {})
    assert capsys.readouterr().out.startswith(Predictor.from_checkpoint(tested_run)("photo.jpg").predicted)


def test_unreadable_photographs_are_counted_nowhere(tiny_manifest, tmp_path, capsys):
    photos = shutil.copytree(tiny_manifest.parent, tmp_path / "photos")
    data = ["--data.manifest", str(photos / "manifest.csv"), "--data.cache_dir", str(tmp_path / "cache")]
    whole = tiny.data(tiny_manifest, str(tmp_path / "cache"))
    of_part = {part: whole.manifest.table["image"].iloc[whole.split.rows(part)].iloc[0] for part in ("train", "test")}
    for name in of_part.values():
        cut_short(photos / name)  # found when its crop is made
    (photos / "4_0_0.png").write_bytes(b"no photograph")  # found when the manifest is read
    run = tmp_path / "run"
    fit = ["fit", "--model", "TeacherModule", *SMALL_SWIN, *OFFLINE, *TINY, *data, "--data.on_error=skip"]
    assert main([*fit, "--trainer.default_root_dir", str(run)]) == 0
    best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    assert main(["test", "--config", str(run / "config.yaml"), *best]) == 0
    gone = pd.read_csv(run / "left_out.csv")
    assert sorted(gone["split"].dropna()) == ["test", "train"] and sorted(gone["image"].dropna()) == sorted(
        of_part.values()
    )
    assert gone["reason"].notna().all() and "4_0_0.png" in gone["reason"].iloc[0]
    assert main(["card", *best]) == 0 and main(["report", str(run)]) == 0
    split_hash = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["kd_convnext"]["card"]["split_hash"]
    told = "2 regions of the division (training 1, test 1) and 1 photograph before it was divided"
    card, page = (run / "MODEL_CARD.md").read_text(), (run / "report.html").read_text()
    split = pd.read_csv(run / "split.csv")
    used = split[~split["image"].isin(of_part.values())]
    for label in split["label"].unique():
        mine = used[used["label"] == label]
        counts = [
            f"{(mine['split'] == part).sum()} ({mine[mine['split'] == part]['lesion_id'].nunique()})"
            for part in ("train", "val", "test")
        ]
        assert f"| {label} | {' | '.join(counts)} |" in card
        assert re.search(r"\s*".join(f"<td[^>]*>{re.escape(count)}</td>" for count in counts), page), label
    assert told in card and told in page and str(photos) not in card
    # One split has one name: in the card, beside the leak check and in the table of cells.
    assert f"split sha256 `{split_hash[:16]}`" in card and page.count(split_hash[:16]) == 2
