import warnings

import lightning.pytorch as pl
import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, SWIN, data, student, teacher, trainer
from torch import nn
from torch._dynamo.utils import counters

from kd_convnext import DistillModule
from kd_convnext.losses import Eq5
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules import compiled_step as compiled
from kd_convnext.modules.compiled_step import FastPath, plan_compile
from kd_convnext.modules.optim import OptimSpec


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick(monkeypatch):
    """Traces the whole step and its backward pass, but lets torch's own kernels run them: no C compiler."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


class Net(nn.Module):
    """Running statistics, random numbers, and a part that may be frozen."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, images):
        logits = self.head(nn.functional.dropout(self.norm(self.body(images)), 0.5))
        return logits.square().mean(), logits


def run(backend, shapes, monkeypatch, thaw=False):
    """Trains on a few batches; returns weights, statistics, gradients of each step, and warnings."""
    torch.manual_seed(0)
    net = Net()
    net.body.requires_grad_(not thaw)
    batches = [torch.randn(shape) for shape in shapes]
    fast = None if backend is None else FastPath(net)
    monkeypatch.setattr(compiled, "BACKEND", backend)
    gradients = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number, batch in enumerate(batches):
            if thaw and number == 2:
                net.body.requires_grad_(True)
            loss, _ = net(batch) if fast is None else fast(net.forward, batch)
            net.zero_grad()
            loss.backward()
            gradients += [p.grad.clone() for p in net.parameters() if p.grad is not None]
            torch.optim.SGD(net.parameters(), lr=0.1).step()
    return [*net.state_dict().values(), *gradients], [str(one.message) for one in said]


@pytest.mark.parametrize("thaw", [False, True])
def test_rehearsals_leave_no_trace(monkeypatch, thaw):
    shapes = [(8, 4)] * 4
    plain, _ = run(None, shapes, monkeypatch, thaw)
    quick, said = run("aot_eager", shapes, monkeypatch, thaw)
    assert not said
    assert counters["stats"]["unique_graphs"] == 1 + thaw
    for one, other in zip(plain, quick, strict=True):
        assert torch.equal(one, other)


def test_batches_of_another_shape_run_plainly(monkeypatch):
    shapes = [(8, 4), (3, 4), (8, 4), (5, 4)]
    plain, _ = run(None, shapes, monkeypatch)
    quick, _ = run("aot_eager", shapes, monkeypatch)
    assert counters["stats"]["unique_graphs"] == 1
    for one, other in zip(plain, quick, strict=True):
        assert torch.equal(one, other)


def fails_forwards(graph, inputs):
    raise RuntimeError("no compiler here")


def fails_backwards(graph, inputs):
    from torch._dynamo.backends.common import aot_autograd

    def forwards(graph, inputs):
        return graph.forward

    return aot_autograd(fw_compiler=forwards, bw_compiler=fails_forwards)(graph, inputs)


@pytest.mark.parametrize("backend", [fails_forwards, fails_backwards])
def test_what_cannot_be_compiled_runs_plainly_and_says_so_once(monkeypatch, backend):
    shapes = [(8, 4)] * 3
    plain, _ = run(None, shapes, monkeypatch)
    other, said = run(backend, shapes, monkeypatch)
    (text,) = said
    assert "runs plainly instead" in text and "no compiler here" in text
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one, two)


def replayed(graph, inputs, *, mode):
    """As CUDA graphs do: every run of a graph writes its results into the same memory."""
    from torch._dynamo.backends.common import aot_autograd

    assert mode == "reduce-overhead"

    def recorded(graph, inputs):
        memory = []

        def replay(*inputs):
            results = graph.forward(*inputs)
            if not memory:
                memory.extend(None if result is None else torch.empty_like(result) for result in results)
            pairs = zip(memory, results, strict=True)
            return [None if result is None else place.copy_(result).data for place, result in pairs]

        return replay

    return aot_autograd(fw_compiler=recorded, bw_compiler=recorded)(graph, inputs)


def test_results_outlive_the_next_replay_and_gradients_not_the_graphs(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", replayed)
    torch.manual_seed(0)
    net, batches = Net(), torch.randn(3, 8, 4)
    fast = FastPath(net, cuda_graphs=True)
    kept, copies = [], []
    for batch in batches:
        results = fast(net.forward, batch)
        assert all(parameter.grad is None for parameter in net.parameters())
        results[0].backward()
        kept += results
        copies += [result.detach().clone() for result in results]
    for one, copy in zip(kept, copies, strict=True):
        assert torch.equal(one, copy)
    assert not torch.equal(kept[0], kept[2])
    assert any(parameter.grad is not None for parameter in net.parameters())
    fast.close()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_only_long_fits_on_gpus_compile_by_themselves(monkeypatch):
    class Fake:
        accumulate_grad_batches, world_size, callbacks = 1, 1, ()
        estimated_stepping_batches = 5_600

        def __init__(self, device="cuda", batch=32, **given):
            self.strategy = type("Strategy", (), {"root_device": torch.device(device)})
            self.train_dataloader = type("Loader", (), {"batch_size": batch})
            self.__dict__.update(given)

    monkeypatch.setattr(compiled, "_has_triton", lambda device: True)
    assert str(plan_compile("auto", Fake())) == "compile on (GPU with Triton, CUDA graphs)"
    assert str(plan_compile("auto", Fake("cpu"))) == "compile off (no gain in training on a CPU)"
    assert str(plan_compile(True, Fake("cpu"))) == "compile on (as given)"
    assert str(plan_compile(False, Fake())) == "compile off (as given)"
    assert str(plan_compile("auto", Fake(estimated_stepping_batches=500))).startswith("compile off (500 steps")
    # Their gradients outlive the next batch's forward pass, or the batch is work enough.
    for other in (Fake(batch=256), Fake(accumulate_grad_batches=2), Fake(world_size=2)):
        plan = plan_compile("auto", other)
        assert plan.on and not plan.cuda_graphs
    monkeypatch.setattr(compiled, "_has_triton", lambda device: False)
    assert not plan_compile("auto", Fake()).on


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


def teacher_of(source, folder, **options):
    fit = trainer(folder)
    fit.fit(teacher(source, **options), datamodule=source)
    fit.save_checkpoint(folder / "teacher.ckpt")
    return folder / "teacher.ckpt"


@pytest.fixture(scope="module")
def teacher_ckpt(source, tmp_path_factory):
    return teacher_of(source, tmp_path_factory.mktemp("teacher"))


def fitted(make, source, folder, epochs=1, ckpt_path=None, **options):
    """Fits; returns the checkpoint and what was logged."""
    folder.mkdir(exist_ok=True)
    fit = trainer(folder, epochs=epochs, **options)
    torch.manual_seed(3)
    fit.fit(make(), datamodule=source, ckpt_path=ckpt_path)
    fit.save_checkpoint(folder / "end.ckpt")
    checkpoint = torch.load(folder / "end.ckpt", weights_only=True)
    return checkpoint, {name: float(value) for name, value in fit.callback_metrics.items()}


def check_same(plain, quick, tolerance):
    """Compares two checkpoints: names, weights, the optimiser's state; and everything that was logged."""
    (one, logged), (other, logged_other) = plain, quick
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, atol=tolerance, rtol=tolerance, msg=name)
    assert len(one["optimizer_states"][0]["state"]) == len(other["optimizer_states"][0]["state"])
    assert logged.keys() == logged_other.keys()
    for name in (name for name in logged if "loss" in name):
        # The KL divergence is the difference of two values of about 25: it is rounded as they are.
        close = pytest.approx(logged[name], rel=10 * tolerance, abs=5 * tolerance)
        assert logged_other[name] == close, name


@pytest.mark.slow
def test_a_compiled_distillation_equals_a_plain_one(source, teacher_ckpt, tmp_path, quick):
    plain = fitted(lambda: student(source, teacher_ckpt, compile=False), source, tmp_path / "plain")
    fast = fitted(lambda: student(source, teacher_ckpt, compile=True), source, tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    check_same(plain, fast, 1e-6)
    loaded = DistillModule.load_from_checkpoint(tmp_path / "fast" / "end.ckpt")
    assert loaded.compile_asked is True
    (metrics,) = trainer(tmp_path).test(loaded, datamodule=source, verbose=False)
    assert 0 <= metrics["test/f1_macro"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"drop": ["feature"]}, {"stages": "sequential", "stage_epochs": (1, 1)}],
    ids=["no features", "stages"],
)
def test_terms_and_stages(source, teacher_ckpt, tmp_path, quick, options):
    epochs = 3 if "stages" in options else 1
    runs = [
        fitted(
            lambda on=on: student(source, teacher_ckpt, compile=on, objective=Eq5(**options)),
            source,
            tmp_path / str(on),
            epochs=epochs,
            limit_train_batches=2,
        )
        for on in (False, True)
    ]
    assert counters["stats"]["unique_graphs"] == 1
    check_same(*runs, 1e-6)


@pytest.mark.slow
def test_a_teacher_of_another_size_and_normalisation_in_bf16(source, tiny_manifest, tiny_cache, tmp_path, quick):
    # The Inception family of normalisation, and 48 px where the student has 32.
    bigger = data(tiny_manifest, tiny_cache, image_size=48)
    spec = BackboneSpec(name="swin_s3_tiny_224", image_size=48, args={**SWIN, "window_size": (2, 2, 2, 2)})
    ckpt = teacher_of(bigger, tmp_path, backbone=spec)
    runs = [
        fitted(
            lambda on=on: student(source, ckpt, compile=on),
            source,
            tmp_path / str(on),
            limit_train_batches=2,
            precision="bf16-mixed",
        )
        for on in (False, True)
    ]
    assert counters["stats"]["unique_graphs"] == 1
    check_same(*runs, 1e-3)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(source, tmp_path, quick):
    spec = BackboneSpec(name="convnext_tiny", image_size=32, args=CONVNEXT_SPEC.args, drop_path_rate=0.3)

    def make():
        return student(source, student=spec, objective=Eq5(drop=["feature", "soft"]), compile=True)

    whole = fitted(make, source, tmp_path / "whole", epochs=2)
    fitted(make, source, tmp_path / "half", epochs=1)
    resumed = fitted(make, source, tmp_path / "rest", epochs=2, ckpt_path=tmp_path / "half" / "end.ckpt")
    check_same(whole, resumed, 0)


@pytest.mark.slow
def test_a_teacher_compiled_by_the_real_compiler(source, tmp_path):
    def make(on):
        # SGD: AdamW divides by the gradient's size and so turns rounding of a vanishing one into a step.
        return teacher(source, backbone=CONVNEXT_SPEC, compile=on, optim=OptimSpec(name="sgd", lr=1e-2))

    plain = fitted(lambda: make(False), source, tmp_path / "plain")
    fast = fitted(lambda: make(True), source, tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] == 1
    check_same(plain, fast, 1e-6)


@pytest.mark.slow
def test_stored_answers_of_the_teacher(tiny_manifest, tiny_cache, teacher_ckpt, tmp_path, quick):
    runs = []
    for on in (False, True):
        views = data(tiny_manifest, tiny_cache, views=1)
        make = student(views, teacher_ckpt, teacher_cache=True, compile=on)
        runs.append(fitted(lambda module=make: module, views, tmp_path / str(on)))
    assert counters["stats"]["unique_graphs"] == 1
    check_same(*runs, 1e-6)


class Steps(pl.Callback):
    """Keeps the loss of every step, and whether graphs were recorded by its end."""

    def __init__(self):
        self.losses, self.recorded = [], False

    def on_train_batch_end(self, trainer, module, outputs, *rest):
        from torch._inductor.cudagraph_trees import get_manager

        self.losses.append(float(outputs["loss"]))
        manager = get_manager(0, create_if_none_exists=False) if torch.cuda.is_available() else None
        self.recorded = manager is not None and any(manager.roots.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("clip", [None, 0.1])
def test_replayed_graphs_train_as_operation_by_operation(source, teacher_ckpt, tmp_path, monkeypatch, clip):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # SGD: AdamW divides by the gradient's size and so turns rounding of a vanishing one into a step.
    optim = OptimSpec(name="sgd", lr=1e-2, schedule="cosine", warmup_epochs=1)
    runs, watched = [], []
    for on in (False, True):
        steps, module = Steps(), student(source, teacher_ckpt, compile=on, optim=optim)
        options = {"accelerator": "gpu", "devices": 1, "gradient_clip_val": clip, "callbacks": [steps]}
        runs.append(fitted(lambda module=module: module, source, tmp_path / str(on), epochs=3, **options))
        watched.append(steps)
    plain, quick = watched
    assert len(quick.losses) == 12 and quick.recorded and not plain.recorded
    assert not counters["inductor"]["cudagraph_skips"]
    assert quick.losses == pytest.approx(plain.losses, rel=1e-3)
    assert all(parameter.grad is None for parameter in module.parameters())
    check_same(*runs, 1e-3)
