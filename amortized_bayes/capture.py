"""A Pyro program traced once into a graph of tensor operations, and replayed.

Pyro's effect handlers run in Python at every step and do the same thing each time. ``make_fx`` traces through them and
leaves the tensor operations alone, forward and backward. Of that graph

- tensors that the program closes over (parameters, buffers) become inputs by reference, so an optimiser that changes
  them in place is seen by the next replay;
- operations that depend on nothing are computed once, equal operations once a replay, and those that change nothing
  not at all, which leaves every number as it was;
- random draws that depend on nothing are made outside, in the order of the program and from torch's global generator,
  so that a replay gives the numbers of the plain program for the same seed.

What stays frozen is Python: floats, flags and shapes at the time of tracing. Schedules therefore enter as tensors, and
a captured program serves one set of shapes. :func:`capture` compares its graph with the plain program on a second
set of inputs and refuses to return one that differs.

On a GPU the replay is put into a CUDA graph; on request the graph is compiled by Inductor, which takes seconds and pays
only in long runs. Bernoulli likelihoods of a compiled graph go to a kernel of our own.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
import torch._inductor
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from amortized_bayes.bernoulli_fusion import fuse_bernoulli
from amortized_bayes.graphs import (
    classify,
    compute_once,
    draw_by_shape,
    fill_by_shape,
    fold_signs,
    lift_closed_tensors,
    replace_by_inputs,
    some_outputs,
    subgraph,
    write_outputs,
)
from amortized_bayes.kernels import mkl_lags, multiply_by_onednn

__all__ = ["CAPTURED_FROM", "CaptureError", "Captured", "capture", "compiler_available", "is_worth"]

logger = logging.getLogger(__name__)

Program = Callable[..., Sequence[Tensor]]


CAPTURED_FROM = 200
"""Calls from which capturing pays: it takes about as long as they do, and saves most of each. A count and no timing: a
run is the same every time."""


def is_worth(calls: int) -> bool:
    """Whether to capture a program that is called about so often."""
    return calls >= CAPTURED_FROM


class CaptureError(RuntimeError):
    """The program cannot be captured, or its graph does not give the program's numbers."""


class Captured(NamedTuple):
    """A captured program. Call it with the inputs of the program, of the shapes it was captured with.

    Args:
        draw: makes the random draws, outside the graph.
        replay: runs the graph on closed-over tensors, draws and inputs.
        closed: tensors that the program closed over.
        seconds: time that capturing and compiling took.
        backend: ``"replay"``, ``"inductor"`` or ``"cuda graph"``.
        num_operations: tensor operations in the graph.
        into: tensors that the graph writes to instead of returning them.
    """

    draw: Callable[[], Sequence[Tensor]]
    replay: Callable[..., Sequence[Tensor]]
    closed: list[Tensor]
    seconds: float
    backend: str
    num_operations: int
    into: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Outputs of the program; tensors of a CUDA graph are overwritten by the next call."""
        with torch.no_grad():
            return self.replay(*self.closed, *self.draw(), *inputs)

    def only(self, places: Sequence[int]) -> Captured:
        """The same program with some of its outputs, given by their places; the rest is not computed.

        Raises:
            CaptureError: the graph is compiled.
        """
        replay = self.replay
        on_gpu = isinstance(replay, _CudaGraph)
        graph = replay.module if on_gpu else replay
        if not isinstance(graph, fx.GraphModule):
            raise CaptureError("a compiled graph keeps its outputs; expected backend 'replay'")
        fewer = some_outputs(graph, places)
        return self._replace(replay=_CudaGraph(fewer, len(self.closed)) if on_gpu else fewer)


def compiler_available() -> bool:
    """Whether Inductor finds a C++ compiler."""
    return shutil.which("g++") is not None or shutil.which("clang++") is not None


def capture(
    program: Program,
    inputs: Sequence[Tensor],
    check_inputs: Sequence[Tensor],
    *,
    backend: str = "replay",
    restore: Sequence[Tensor] = (),
    into: Sequence[Tensor] = (),
    compared: int | None = None,
    tolerance: float | None = None,
) -> Captured:
    """Trace ``program`` on ``inputs`` and return a replay that was seen to agree with it on ``check_inputs``.

    Args:
        program: takes tensors, returns a sequence of tensors, and may take gradients inside.
        inputs: tensors of the shapes, types and device that the replay will serve.
        check_inputs: other values of the same shapes, on which graph and program are compared from the same seed.
        backend: ``"replay"`` (any device; a CUDA graph on a GPU) or ``"inductor"``.
        restore: tensors that running the program changes (batch-norm statistics), put back after each run here.
        into: tensors that the program reads, into which the graph writes the program's last outputs, one each,
            instead of returning them.
        compared: how many outputs, from the first, graph and program are compared on; by default all.
        tolerance: largest relative difference allowed; by default 1e-10 in float64 and 1e-3 in float32.

    Raises:
        CaptureError: tracing fails or the numbers differ.
        ValueError: unknown backend.
    """
    if backend not in ("replay", "inductor"):
        raise ValueError(f"expected backend 'replay' or 'inductor', got {backend!r}")
    start = time.perf_counter()
    validation = Distribution._validate_args
    restore = [*restore, *into]
    before = [t.detach().clone() for t in restore]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in zip(restore, before, strict=True):
                if not torch.equal(tensor, value):  # an expanded view cannot be written to
                    tensor.copy_(value)

    try:
        with pyro.validation_enabled(
            False
        ):  # of the check too: grey pixels under a Bernoulli give numbers all the same
            module = make_fx(program)(*inputs)
            put_back()
            captured = _assemble(module, inputs, into, backend)
            worst = _difference(program, captured, check_inputs, into, compared, put_back)
    except CaptureError:
        raise
    except Exception as error:  # what a user's program or the compiler does ends here, with the reason kept
        put_back()
        raise CaptureError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    finally:
        Distribution.set_default_validate_args(validation)  # torch.compile turns it off for the whole process
    allowed = tolerance if tolerance is not None else _tolerance(inputs, captured.closed)
    if not worst <= allowed:
        raise CaptureError(
            f"the graph differs from the program by {worst:.1e} (relative); expected at most {allowed:.0e}"
        )
    return captured._replace(seconds=time.perf_counter() - start)


def _assemble(module: fx.GraphModule, inputs: Sequence[Tensor], into: Sequence[Tensor], backend: str) -> Captured:
    closed = lift_closed_tensors(module, len(inputs))
    draw_by_shape(module)
    if backend == "replay":
        fill_by_shape(module)  # Inductor would read from memory what it now writes into its kernels
    draws, constants = classify(module)
    draw = subgraph(module, draws)
    constant_values = subgraph(module, constants)()
    graph = replace_by_inputs(module, len(closed), draws=draws, constants=constants)
    compute_once(graph.graph)
    if backend == "replay":
        fold_signs(graph.graph, constant_values, len(closed))
    elif compiler_available():
        fuse_bernoulli(graph)
    if mkl_lags():
        multiply_by_onednn(graph.graph, compiled=backend == "inductor")
    if into:
        write_outputs(graph.graph, closed, into)
    graph.recompile()
    closed = [*closed, *constant_values]
    replay: Callable[..., Any] = graph
    name = "replay"
    if backend == "inductor":
        replay, name = _compile(graph), "inductor"
    elif any(t.is_cuda for t in (*inputs, *closed)):
        replay, name = _CudaGraph(graph, len(closed)), "cuda graph"
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    return Captured(draw, replay, closed, 0.0, name, operations, into)


def _compile(graph: fx.GraphModule) -> Callable[..., Any]:
    if not compiler_available():
        raise CaptureError("no C++ compiler found")
    compiled: list[Callable[..., Any]] = []

    def replay(*inputs: Tensor) -> Any:
        if not compiled:  # without Dynamo, whose guards take 0.1 to 0.2 ms a call: all shapes are fixed
            # Inductor caches only what has a shape environment, though all shapes are fixed: 3 seconds instead of 11
            # Draws that stayed inside (see `classify`) are made as the program makes them, not by Inductor's generator.
            # Layouts of convolutions are left alone: kernels of some processors do not return those that are asked for.
            options = {"fallback_random": True, "layout_optimization": any(t.is_cuda for t in inputs)}
            fake = FakeTensorMode(shape_env=ShapeEnv(assume_static_by_default=True))
            with tracing(TracingContext(fake)):
                done: Any = torch._inductor.compile(graph, list(inputs), options)
            compiled.append(done)
        return compiled[0](*inputs)

    return replay


class _CudaGraph:
    """Replays a graph module as one CUDA graph over static input buffers."""

    def __init__(self, graph: fx.GraphModule, num_closed: int) -> None:
        self.module = graph
        self.num_closed = num_closed
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self.graph is None:
            self._record(inputs)
        assert self.graph is not None
        for static, value in zip(self.inputs, inputs, strict=True):
            if static.data_ptr() != value.data_ptr():
                static.copy_(value)
        self.graph.replay()
        return self.outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        # Closed-over tensors stay where they are; draws and data are copied into buffers of the graph's own.
        self.inputs = [t if i < self.num_closed else t.clone() for i, t in enumerate(inputs)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.module(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self.module(*self.inputs)


def _tolerance(inputs: Sequence[Tensor], closed: Sequence[Tensor]) -> float:
    floating = [t.dtype for t in (*inputs, *closed) if t.is_floating_point()]
    return 1e-10 if floating and all(d == torch.float64 for d in floating) else 1e-3


def _difference(
    program: Program,
    captured: Captured,
    inputs: Sequence[Tensor],
    into: Sequence[Tensor],
    compared: int | None,
    put_back: Callable[[], None],
) -> float:
    """Largest difference of any output, relative to that output's largest entry, from one seed."""
    state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    plain = [t.detach().clone() for t in program(*inputs)]
    put_back()
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    replayed = [t.detach().clone() for t in (*captured(*inputs), *into)]
    put_back()
    if len(plain) != len(replayed):
        raise CaptureError(f"the graph returns {len(replayed)} tensors, the program {len(plain)}")
    worst = 0.0
    for a, b in list(zip(plain, replayed, strict=True))[:compared]:
        if a.shape != b.shape:
            raise CaptureError(f"the graph returns shape {tuple(b.shape)}, the program {tuple(a.shape)}")
        if a.numel():
            size = max(a.abs().max().item(), 1e-30)
            difference = ((a.double() - b.double()).abs().max() / size).item()
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst
