"""Compiles the training step: networks, projectors and losses as one graph, where that pays.

The teacher's and the student's passes, the maps between them and the losses become one graph whose only outputs are
the losses and the logits. At small batches a GPU waits for the launches of its kernels; there the graph is also
recorded once and replayed (CUDA graphs). Metrics and logging stay outside.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Compile = bool | Literal["auto"]
"""Whether a fit compiles its steps; ``auto`` where it should pay."""

PAYS_AFTER = 2_000
"""Steps below which ``auto`` does not compile: a minute or two for the compiler, tens of milliseconds saved a step."""

LAUNCH_BOUND = 64
"""Images a batch up to which launches, not arithmetic, limit a modern GPU (networks of the Tiny size, 224 px)."""

BACKEND = "inductor"
"""Compiler; tests name a quicker one."""


@dataclass(frozen=True)
class CompilePlan:
    """Describes how a fit runs its steps.

    Attributes:
        on: Compiled, or operation by operation.
        cuda_graphs: Recorded once and replayed; only on one GPU, at small batches.
        reason: Why, in a few words.
    """

    on: bool
    cuda_graphs: bool
    reason: str

    def __str__(self) -> str:
        """Formats the choice for the header of a run."""
        graphs = ", CUDA graphs" if self.cuda_graphs else ""
        return f"compile {'on' if self.on else 'off'} ({self.reason}{graphs})"


def plan_compile(asked: Compile, trainer: Trainer) -> CompilePlan:
    """Decides how a fit runs its steps.

    Args:
        asked: ``True``, ``False``, or ``auto``: on an NVIDIA GPU with Triton, where the fit is long enough.
        trainer: At the start of a fit.

    Returns:
        The plan.
    """
    on_cuda = trainer.strategy.root_device.type == "cuda"
    steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    if asked != "auto":
        on, reason = asked, "as given"
    elif not on_cuda:
        on, reason = False, "no gain in training on a CPU" if _on_cpu(trainer) else "only for NVIDIA GPUs"
    elif not _has_triton(trainer.strategy.root_device):
        on, reason = False, "Triton is missing or the GPU too old for it"
    elif steps < PAYS_AFTER:
        on, reason = False, f"{steps:.0f} steps are too few to pay for it"
    else:
        on, reason = True, "GPU with Triton"
    return CompilePlan(on, on and on_cuda and _may_record(trainer), reason)


_COMPILED: "weakref.WeakSet[FastPath]" = weakref.WeakSet()
"""Those with compiled code in this process."""


class FastPath:
    """Runs a function compiled, and plainly what does not suit it.

    The first inputs are rehearsed, forwards and backwards, without a trace in weights, statistics or random numbers:
    whatever cannot be compiled shows there, and training goes on plainly with one warning. Inputs of another shape (an
    epoch's last batch) run plainly: they are too rare to be worth a compilation of their own.
    """

    def __init__(self, module: nn.Module, *, cuda_graphs: bool = False) -> None:
        """Remembers the module; the first step compiles.

        Args:
            module: Whose parameters the function uses and whose buffers it may change.
            cuda_graphs: Record and replay; outputs are copied, so that they outlive the next step.
        """
        self._module = module
        self._cuda_graphs = cuda_graphs
        self._compiled: Callable[..., Any] | None = None
        self._shapes: list[Any] | None = None
        self._parameters: list[nn.Parameter] = []
        self._learning = -1
        self._given_up = False

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Runs the function.

        Args:
            function: From ``inputs`` to tensors in tuples and lists, the objective first; the same at every call.
            *inputs: Tensors, in tuples and lists, or None.

        Returns:
            What the function returns.
        """
        if self._given_up:
            return function(*inputs)
        shapes = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(inputs)]
        if self._shapes is None:
            self._shapes, self._parameters = shapes, list(self._module.parameters())
        if shapes != self._shapes:
            return function(*inputs)
        learning = sum(parameter.requires_grad for parameter in self._parameters)
        if learning != self._learning:
            # Another backward pass, which is compiled when first run: at the start, and when a body is thawed.
            self._learning = learning
            if not self._rehearsed(function, inputs):
                return function(*inputs)
        return self._run(inputs)

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        assert self._compiled is not None
        if not self._cuda_graphs:
            return self._compiled(*inputs)
        # The last step's, no longer needed, lie in memory that is about to be written.
        self._forget_gradients()
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # The next replay writes into the same memory.
        return tree_map_only(Tensor, torch.clone, self._compiled(*inputs))

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _rehearsed(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
        """Compiles; returns whether that works."""
        if self._compiled is None:
            mode = "reduce-overhead" if self._cuda_graphs else None
            self._compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode, backend=BACKEND)
            _COMPILED.add(self)
        else:
            # Torch 2.6 does not see that other parameters learn now: it would run the old backward pass, without them.
            torch.compiler.reset()
        learning = [parameter for parameter in self._parameters if parameter.requires_grad]
        try:
            with _leaving_no_trace(self._module):
                # CUDA graphs are recorded in the second pass.
                for _ in range(2 if self._cuda_graphs else 1):
                    objective = next(leaf for leaf in tree_leaves(self._run(inputs)) if leaf.requires_grad)
                    torch.autograd.grad(objective, learning, allow_unused=True)
                    del objective
        except Exception as error:
            # Compilers fail in many ways: no C compiler, an operation they do not know, too little memory.
            said = " ".join(f"{type(error).__name__}: {error}".split("\n\n")[0].split())[:200]
            text = f"the training step cannot be compiled and runs plainly instead ({said}); compile: off does not try"
            warnings.warn(text, stacklevel=2)
            self.close()
        return not self._given_up

    def close(self) -> None:
        """Releases compiled graphs, their memory, and the gradients in it.

        Compiled code hangs on the function's code, which all modules of this process share: it is dropped for all
        when the last of those that have compiled is closed.
        """
        if self._compiled is not None:
            self._compiled, self._given_up = None, True
            _COMPILED.discard(self)
            if self._cuda_graphs:
                self._forget_gradients()
            if not _COMPILED:
                torch.compiler.reset()


@contextmanager
def _leaving_no_trace(module: nn.Module) -> Iterator[None]:
    """Restores random states and buffers (running statistics) after the block."""
    buffers = list(module.buffers())
    kept = [buffer.clone() for buffer in buffers]
    devices = {buffer.device for buffer in module.parameters() if buffer.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        with torch.no_grad():
            for buffer, values in zip(buffers, kept, strict=True):
                buffer.copy_(values)


def _may_record(trainer: Trainer) -> bool:
    """Whether CUDA graphs suit a fit: gradients live in their memory, which the next batch's forward pass reuses."""
    batch = getattr(trainer.train_dataloader, "batch_size", None)
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1 and not scheduled
    return alone and batch is not None and batch <= LAUNCH_BOUND


def _on_cpu(trainer: Trainer) -> bool:
    return bool(trainer.strategy.root_device.type == "cpu")


def _has_triton(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)
