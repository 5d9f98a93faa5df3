"""A Pyro program traced once into a graph of tensor operations, and replayed.

Pyro's effect handlers run in Python at every step and do the same thing each time. ``make_fx`` traces through them and
leaves the tensor operations alone, forward and backward. Of that graph

- tensors that the program closes over (parameters, buffers) become inputs by reference, so an optimiser that changes
  them in place is seen by the next replay;
- operations that depend on nothing are computed once;
- random draws that depend on nothing are made outside, in the order of the program and from torch's global generator,
  so that a replay gives the numbers of the plain program for the same seed.

What stays frozen is Python: floats, flags and shapes at the time of tracing. Schedules therefore enter as tensors, and
a captured program serves one set of shapes. :func:`capture` compares its graph with the plain program on a second
set of inputs and refuses to return one that differs.

On a GPU the replay is put into a CUDA graph; on request the graph is compiled by Inductor, which takes seconds and pays
only in long runs.
"""

from __future__ import annotations

import logging
import operator
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["CaptureError", "Captured", "capture", "compiler_available"]

logger = logging.getLogger(__name__)

Program = Callable[..., Sequence[Tensor]]
aten = torch.ops.aten


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
    """

    draw: Callable[[], Sequence[Tensor]]
    replay: Callable[..., Sequence[Tensor]]
    closed: list[Tensor]
    seconds: float
    backend: str
    num_operations: int

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Outputs of the program; tensors of a CUDA graph are overwritten by the next call."""
        with torch.no_grad():
            return self.replay(*self.closed, *self.draw(), *inputs)


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
    tolerance: float | None = None,
) -> Captured:
    """Trace ``program`` on ``inputs`` and return a replay that was seen to agree with it on ``check_inputs``.

    Args:
        program: takes tensors, returns a sequence of tensors, and may take gradients inside.
        inputs: tensors of the shapes, types and device that the replay will serve.
        check_inputs: other values of the same shapes, on which graph and program are compared from the same seed.
        backend: ``"replay"`` (any device; a CUDA graph on a GPU) or ``"inductor"``.
        restore: tensors that running the program changes (batch-norm statistics), put back after each run here.
        tolerance: largest relative difference allowed; by default 1e-10 in float64 and 1e-3 in float32.

    Raises:
        CaptureError: tracing fails or the numbers differ.
        ValueError: unknown backend.
    """
    if backend not in ("replay", "inductor"):
        raise ValueError(f"expected backend 'replay' or 'inductor', got {backend!r}")
    start = time.perf_counter()
    validation = Distribution._validate_args
    before = [t.detach().clone() for t in restore]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in zip(restore, before, strict=True):
                if not torch.equal(tensor, value):  # an expanded view cannot be written to
                    tensor.copy_(value)

    try:
        with pyro.validation_enabled(False):
            module = make_fx(program)(*inputs)
        put_back()
        captured = _assemble(module, inputs, backend)
        worst = _difference(program, captured, check_inputs, put_back)
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


def _assemble(module: fx.GraphModule, inputs: Sequence[Tensor], backend: str) -> Captured:
    closed = _lift_closed_tensors(module, len(inputs))
    _draw_by_shape(module)
    draws, constants = _classify(module)
    draw = _subgraph(module, draws)
    constant_values = _subgraph(module, constants)()
    graph = _replace_by_inputs(module, len(closed), draws=draws, constants=constants)
    closed = [*closed, *constant_values]
    replay: Callable[..., Any] = graph
    name = "replay"
    if backend == "inductor":
        replay, name = _compile(graph), "inductor"
    elif any(t.is_cuda for t in (*inputs, *closed)):
        replay, name = _CudaGraph(graph, len(closed)), "cuda graph"
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    return Captured(draw, replay, closed, 0.0, name, operations)


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _has_effect(node: fx.Node) -> bool:
    """Nodes that stay though nobody reads them: a draw left out would shift all later ones."""
    return node.op in ("placeholder", "output") or _is_random(node) or _mutates(node)


def _lift_closed_tensors(module: fx.GraphModule, num_inputs: int) -> list[Tensor]:
    """Turn every ``get_attr`` into a leading placeholder and return the tensors in that order."""
    tensors: list[Tensor] = []
    placeholders: dict[int, fx.Node] = {}
    first = next(iter(module.graph.nodes))
    for node in [n for n in module.graph.nodes if n.op == "get_attr"]:
        value = operator.attrgetter(str(node.target))(module)
        if id(value) not in placeholders:
            with module.graph.inserting_before(first):
                placeholders[id(value)] = module.graph.placeholder(f"closed_{len(tensors)}")
            tensors.append(value)
        node.replace_all_uses_with(placeholders[id(value)])
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code(is_impure_node=_has_effect)
    if sum(n.op == "placeholder" for n in module.graph.nodes) != num_inputs + len(tensors):
        raise CaptureError("the graph lost an input")
    return tensors


def _draw_by_shape(module: fx.GraphModule) -> None:
    """Replace ``randn_like(x)`` by ``randn(shape)``: the draw needs the shape of x, not its values."""
    by_shape = {aten.randn_like.default: aten.randn.default, aten.rand_like.default: aten.rand.default}
    for node in [n for n in module.graph.nodes if n.target in by_shape]:
        value = node.meta["val"]
        options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
        with module.graph.inserting_before(node):
            new = module.graph.call_function(by_shape[node.target], (list(value.shape),), options)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)


def _classify(module: fx.GraphModule) -> tuple[list[fx.Node], list[fx.Node]]:
    """Nodes to draw outside the graph, and nodes to compute once.

    If some draw depends on an input, all draws stay inside, or their order would change. If anything but a draw
    changes a tensor in place, nothing is computed once, since what it changes could be a view of it.
    """
    varying: set[fx.Node] = set()
    draws: list[fx.Node] = []
    constants: list[fx.Node] = []
    in_order = True
    foldable = True
    for node in module.graph.nodes:
        depends = any(a in varying for a in node.all_input_nodes)
        if node.op != "call_function" or depends or _is_random(node) or _mutates(node):
            varying.add(node)
        else:
            constants.append(node)
        if _is_random(node):
            draws.append(node)
            in_order = in_order and not depends
        elif _mutates(node):
            foldable = False
    if not in_order:
        draws = []
    changed = {a for n in draws if _mutates(n) for a in n.all_input_nodes}
    kept = set(constants)
    used = [n for n in constants if n not in changed and any(u not in kept and u not in draws for u in n.users)]
    return draws, used if foldable and (in_order or not changed) else []


def _subgraph(module: fx.GraphModule, outputs: list[fx.Node]) -> fx.GraphModule:
    """A module without inputs that computes ``outputs``, in the order of the program."""
    wanted: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[n] for n in outputs))
    return fx.GraphModule(torch.nn.Module(), graph)


def _replace_by_inputs(
    module: fx.GraphModule, num_closed: int, *, draws: list[fx.Node], constants: list[fx.Node]
) -> fx.GraphModule:
    """The graph with constants and draws as inputs, in the order closed, constants, draws, inputs."""
    graph = module.graph
    after_closed = list(graph.nodes)[num_closed]
    for node in (*constants, *draws):
        with graph.inserting_before(after_closed):
            new = graph.placeholder(f"outside_{node.name}")
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=_has_effect)
    graph.lint()
    return fx.GraphModule(module, graph)


def _compile(graph: fx.GraphModule) -> Callable[..., Any]:
    if not compiler_available():
        raise CaptureError("no C++ compiler found")
    # Draws that stayed inside (see `_classify`) are made as the program makes them, not by Inductor's own generator.
    return torch.compile(graph, dynamic=False, fullgraph=True, options={"fallback_random": True})


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


def _difference(program: Program, captured: Captured, inputs: Sequence[Tensor], put_back: Callable[[], None]) -> float:
    """Largest difference of any output, relative to that output's largest entry, from one seed."""
    state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    plain = [t.detach().clone() for t in program(*inputs)]
    put_back()
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    replayed = [t.detach().clone() for t in captured(*inputs)]
    put_back()
    if len(plain) != len(replayed):
        raise CaptureError(f"the graph returns {len(replayed)} tensors, the program {len(plain)}")
    worst = 0.0
    for a, b in zip(plain, replayed, strict=True):
        if a.shape != b.shape:
            raise CaptureError(f"the graph returns shape {tuple(b.shape)}, the program {tuple(a.shape)}")
        if a.numel():
            size = max(a.abs().max().item(), 1e-30)
            difference = ((a.double() - b.double()).abs().max() / size).item()
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst
