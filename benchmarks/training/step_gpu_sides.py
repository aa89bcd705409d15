"""The sides of the GPU step benchmark: one training step each, on one batch in pinned memory, in bf16."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timm.task.distillation import FeatureDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F

from kd_convnext import DistillModule
from kd_convnext.losses.objective import Losses
from kd_convnext.models.backbones import Backbone, BackboneSpec, build_backbone
from kd_convnext.modules.compiled_step import LAUNCH_BOUND, FastPath
from kd_convnext.modules.optim import OptimSpec, build_optimizer

Step = Callable[[], object]


def wait(device: str) -> None:
    """Lets the device finish its queue."""
    if device == "cuda":
        torch.cuda.synchronize()


def drawn(batch: int, size: int, *, pinned: bool) -> dict[str, Tensor]:
    """Random images as the loader gives them."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, 5, (batch,), generator=source)
    values = {"image": images, "label": labels, "index": torch.arange(batch)}
    return {name: value.pin_memory() for name, value in values.items()} if pinned else values


class OneBatch:
    """A loader that gives one batch again and again."""

    def __init__(self, batch: int, size: int, count: int) -> None:
        """Draws the batch."""
        self.batch_size, self._count = batch, count
        self._batch = drawn(batch, size, pinned=torch.cuda.is_available())

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Gives the batch."""
        return (self._batch for _ in range(self._count))


@dataclass(frozen=True)
class Parts:
    """What all sides are made of.

    Attributes:
        teacher: timm name.
        student: timm name.
        size: Side of the images in pixels.
        batch: Images a step.
        device: ``cuda`` or ``cpu``.
    """

    teacher: str
    student: str
    size: int
    batch: int
    device: str

    @property
    def recorded(self) -> bool:
        """Whether our step is recorded and replayed at this batch."""
        return self.device == "cuda" and self.batch <= LAUNCH_BOUND

    def networks(self) -> tuple[Backbone, Backbone]:
        """Teacher, frozen, and student, always with the same random weights."""
        torch.manual_seed(0)
        teacher, student = (
            build_backbone(BackboneSpec(name=name, image_size=self.size), 5).to(self.device)
            for name in (self.teacher, self.student)
        )
        return teacher.eval().requires_grad_(False), student.train()

    def batches(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """A function that brings the batch to the device, as each step must."""
        held = drawn(self.batch, self.size, pinned=self.device == "cuda")

        def fetch() -> tuple[Tensor, Tensor]:
            moved = [held[name].to(self.device, non_blocking=True) for name in ("image", "label")]
            return moved[0], moved[1]

        return fetch

    def autocast(self) -> torch.autocast:
        """The arithmetic of all sides."""
        return torch.autocast(self.device, torch.bfloat16, cache_enabled=False)

    def teacher_forward(self) -> Step:
        """A teacher's forward pass, eager."""
        (teacher, _), fetch = self.networks(), self.batches()

        @torch.no_grad()
        def step() -> None:
            images, _ = fetch()
            with self.autocast():
                teacher(images)

        return step


def tapped(network: Backbone) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """A forward pass that returns the four stages' maps too, by hooks of our own."""
    caught: list[Tensor] = []
    for stage in network.stages:
        last = stage.channels_last
        network.network.get_submodule(stage.name).register_forward_hook(
            lambda _, __, out, last=last: caught.append(out.permute(0, 3, 1, 2) if last else out)
        )

    def run(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        caught.clear()
        logits = network(images)
        maps = list(caught)
        caught.clear()
        return logits, maps

    return run


def regressors_between(teacher: Backbone, student: Backbone, device: str) -> nn.ModuleList:
    """1x1 convolutions from the student's stages to the teacher's."""
    stages = zip(student.stages, teacher.stages, strict=True)
    return nn.ModuleList(nn.Conv2d(mine.channels, other.channels, 1) for mine, other in stages).to(device)


def feature_loss(regressors: nn.ModuleList, mine: list[Tensor], other: list[Tensor]) -> Tensor:
    """Mean squared difference of the stages after the regressors."""
    pairs = zip(regressors, mine, other, strict=True)
    return torch.stack([F.mse_loss(layer(a).float(), b.float()) for layer, a, b in pairs]).mean()


def by_hand(parts: Parts, *, beside: bool = False) -> Step:
    """An eager loop with four taps, three losses and a fused optimiser, nothing kept for a dashboard.

    Args:
        parts: Networks and batch.
        beside: The teacher runs on a stream of its own, beside the student's forward pass; on a CPU there is none.
    """
    (teacher, student), fetch = parts.networks(), parts.batches()
    regressors = regressors_between(teacher, student, parts.device)
    ask, answer = tapped(teacher), tapped(student)
    optimizer = build_optimizer(OptimSpec(lr=1e-5), student.parameters(), regressors.parameters())
    stream = torch.cuda.Stream() if beside and parts.device == "cuda" else None

    def step() -> None:
        images, labels = fetch()
        with parts.autocast():
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream())  # for the batch, and for what the last step still reads
            with torch.no_grad(), torch.cuda.stream(stream):
                said, targets = ask(images)
            logits, maps = answer(images)
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)
            feature = feature_loss(regressors, maps, targets)
            logits = logits.float()
            soft = F.cross_entropy(logits / 4, (said.float() / 4).softmax(1)) * 16
            log_p = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
            loss = 0.5 * feature + 0.5 * soft - ((1 - log_p.exp()) ** 2 * log_p).mean()
        _update(loss, optimizer)

    return step


def ours_by_hand(parts: Parts, module: DistillModule, layout: torch.memory_format) -> Step:
    """Our compiled step in a loop without Lightning, metrics and logging, the networks in a memory layout.

    Args:
        parts: Batch and device.
        module: Set up for a fit; changed.
        layout: Of the networks' kernels and of the batch.
    """
    assert module.staff is not None
    module.to(parts.device, memory_format=layout).train()
    module.staff.to(module.device, torch.float32)
    for teacher in module.staff.live.values():
        teacher.backbone.to(memory_format=layout)
    optimizer = build_optimizer(OptimSpec(lr=1e-5), module.student.parameters(), module.fresh_parameters())
    weights = module.objective.weights(0, module.device)
    fast, fetch = FastPath(module, cuda_graphs=parts.recorded), parts.batches()

    def distil(images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Losses, Tensor]:
        return module.distil(images, labels, weights)  # a function of its own: it shares no compiled code with a fit

    def step() -> None:
        images, labels = fetch()
        with parts.autocast():
            losses, _ = fast(distil, images.contiguous(memory_format=layout), labels, weights)
        _update(losses.total, optimizer)

    return step


def timm_task(parts: Parts) -> Step:
    """Timm's feature distillation, eager, in a loop: one pooled vector, cross-entropy and MSE."""
    (teacher, student), fetch = parts.networks(), parts.batches()
    device = torch.device(parts.device)
    task = FeatureDistillationTask(
        student.network, teacher.network, criterion=nn.CrossEntropyLoss(), device=device, verbose=False
    ).train()
    optimizer = build_optimizer(OptimSpec(lr=1e-5), task.trainable_module.parameters(), [])

    def step() -> None:
        images, labels = fetch()
        with parts.autocast():
            loss = task(student.normalise(images), labels)["loss"]
        _update(loss, optimizer)

    return step


def student_alone(parts: Parts, backend: str | None = None) -> Step:
    """The student's training step; compiled where a compiler is named."""
    (_, student), fetch = parts.networks(), parts.batches()
    optimizer = build_optimizer(OptimSpec(lr=1e-5), student.parameters(), [])
    network = student if backend is None else torch.compile(student, dynamic=False, backend=backend)

    def step() -> None:
        images, labels = fetch()
        with parts.autocast():
            loss = F.cross_entropy(network(images), labels)
        _update(loss, optimizer)

    return step


def separate(parts: Parts, backend: str) -> dict[str, Step]:
    """Teacher's forward pass, student's step, and the regressors' with the feature loss, each compiled alone."""
    (teacher, student), fetch = parts.networks(), parts.batches()
    regressors = regressors_between(teacher, student, parts.device)
    images, _ = fetch()
    with torch.no_grad(), parts.autocast():
        maps, targets = tapped(student)(images)[1], tapped(teacher)(images)[1]
    maps = [values.detach().requires_grad_() for values in maps]
    optimizer = build_optimizer(OptimSpec(lr=1e-5), [], regressors.parameters())
    asked, _ = parts.networks()
    network = torch.compile(asked, dynamic=False, backend=backend)
    compare = torch.compile(feature_loss, dynamic=False, backend=backend)

    @torch.no_grad()
    def forward() -> None:
        images, _ = fetch()
        with parts.autocast():
            network(images)

    def regress() -> None:
        with parts.autocast():
            loss = compare(regressors, maps, targets)
        _update(loss, optimizer)
        for values in maps:
            values.grad = None

    steps = {"part: teacher": forward, "part: student": student_alone(parts, backend), "part: regressors": regress}
    return steps


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
