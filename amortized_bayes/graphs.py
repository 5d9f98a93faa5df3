"""Surgery on the graph of a captured program: what it closes over, draws, and computes twice.

No number changes: float64 results stay equal to the last bit.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = [
    "GraphError",
    "classify",
    "compute_once",
    "draw_by_shape",
    "fill_by_shape",
    "fold_signs",
    "lift_closed_tensors",
    "replace_by_inputs",
    "some_outputs",
    "subgraph",
    "write_outputs",
]

aten = torch.ops.aten


class GraphError(RuntimeError):
    """The graph is not one of the program that was traced."""


def is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def has_effect(node: fx.Node) -> bool:
    """Nodes that stay though nobody reads them: a draw left out would shift all later ones."""
    return node.op in ("placeholder", "output") or is_random(node) or mutates(node)


def lift_closed_tensors(module: fx.GraphModule, num_inputs: int) -> list[Tensor]:
    """Turn every ``get_attr`` into a leading placeholder and return the tensors in that order."""
    tensors: list[Tensor] = []
    placeholders: dict[int, fx.Node] = {}
    first = next(iter(module.graph.nodes))
    for node in [n for n in module.graph.nodes if n.op == "get_attr"]:
        value = operator.attrgetter(str(node.target))(module)
        if id(value) not in placeholders:
            with module.graph.inserting_before(first):
                placeholders[id(value)] = module.graph.placeholder(f"closed_{len(tensors)}")
            placeholders[id(value)].meta["val"] = value.detach()
            tensors.append(value)
        node.replace_all_uses_with(placeholders[id(value)])
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code(is_impure_node=has_effect)
    if sum(n.op == "placeholder" for n in module.graph.nodes) != num_inputs + len(tensors):
        raise GraphError("the graph lost an input")
    return tensors


def draw_by_shape(module: fx.GraphModule) -> None:
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


def fill_by_shape(module: fx.GraphModule) -> None:
    """Replace ``ones_like(x)`` and its like by ``full(shape)``, so that what depends on them alone is computed once."""
    ones, zeros = (aten.ones_like.default, aten.new_ones.default), (aten.zeros_like.default, aten.new_zeros.default)
    for node in [n for n in module.graph.nodes if n.target in (*ones, *zeros, aten.new_full.default)]:
        value = node.meta["val"]
        if not value.is_contiguous():
            continue
        fill = node.args[2] if node.target is aten.new_full.default else int(node.target in ones)
        options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
        with module.graph.inserting_before(node):
            new = module.graph.call_function(aten.full.default, (list(value.shape), fill), options)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)


def classify(module: fx.GraphModule) -> tuple[list[fx.Node], list[fx.Node]]:
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
        if node.op != "call_function" or depends or is_random(node) or mutates(node):
            varying.add(node)
        else:
            constants.append(node)
        if is_random(node):
            draws.append(node)
            in_order = in_order and not depends
        elif mutates(node):
            foldable = False
    if not in_order:
        draws = []
    changed = {a for n in draws if mutates(n) for a in n.all_input_nodes}
    kept = set(constants)
    used = [n for n in constants if n not in changed and any(u not in kept and u not in draws for u in n.users)]
    return draws, used if foldable and (in_order or not changed) else []


def subgraph(module: fx.GraphModule, outputs: list[fx.Node]) -> fx.GraphModule:
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


def replace_by_inputs(
    module: fx.GraphModule, num_closed: int, *, draws: list[fx.Node], constants: list[fx.Node]
) -> fx.GraphModule:
    """The graph with constants and draws as inputs, in the order closed, constants, draws, inputs."""
    graph = module.graph
    after_closed = list(graph.nodes)[num_closed]
    for node in (*constants, *draws):
        with graph.inserting_before(after_closed):
            new = graph.placeholder(f"outside_{node.name}")
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    graph.lint()
    return fx.GraphModule(module, graph)


def some_outputs(module: fx.GraphModule, places: Sequence[int]) -> fx.GraphModule:
    """The graph with some of its outputs alone, and without what only the others need."""
    graph = fx.Graph()
    outputs: Any = graph.graph_copy(module.graph, {})
    graph.output(tuple(outputs[place] for place in places))
    graph.eliminate_dead_code(is_impure_node=has_effect)
    return fx.GraphModule(module, graph)


def write_outputs(graph: fx.Graph, closed: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Write the last outputs into closed-over tensors, when all is computed, instead of returning them.

    Raises:
        GraphError: the graph does not read one of the tensors.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    place = {id(tensor): node for tensor, node in zip(closed, placeholders, strict=False)}
    output = next(iter(reversed(graph.nodes)))
    results: Any = output.args[0]
    returned = len(results) - len(into)
    with graph.inserting_before(output):
        for tensor, result in zip(into, results[returned:], strict=True):
            if id(tensor) not in place:
                raise GraphError(f"the graph does not read the tensor of shape {tuple(tensor.shape)} it is to write to")
            graph.call_function(aten.copy_.default, (place[id(tensor)], result))
    output.args = (tuple(results[:returned]),)


def fold_signs(graph: fx.Graph, constants: Sequence[Tensor], first: int) -> None:
    """Multiply by nothing that is 1 or -1 all over, as autograd does, and change signs where there is least to change.

    Args:
        graph: with ``constants`` among its placeholders, from place ``first``.
        constants: values computed once.
        first: place of the first of them.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    signs = {placeholders[first + i]: sign for i, value in enumerate(constants) if (sign := _sign(value))}
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and node.args[1] in signs and _alike(node.args[0], node):
            if signs[node.args[1]] == 1:
                node.replace_all_uses_with(node.args[0])
            else:
                node.target, node.args = aten.neg.default, node.args[:1]
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) > 1 or source.kwargs or node.kwargs:
            continue
        if node.target is aten.neg.default and source.target is aten.sub.Tensor:  # -(a - b) is b - a
            if all(_alike(term, node) for term in source.args):
                node.target, node.args = aten.sub.Tensor, (source.args[1], source.args[0])
        elif node.target is aten.sum.dim_IntList and source.target is aten.neg.default:  # the negative of a sum
            node.args = (source.args[0], *node.args[1:])
            with graph.inserting_after(node):
                negative = graph.call_function(aten.neg.default, (node,))
            negative.meta = dict(node.meta)
            node.replace_all_uses_with(negative, delete_user_cb=lambda user, new=negative: user is not new)
    graph.eliminate_dead_code(is_impure_node=has_effect)


def _sign(value: Tensor) -> int:
    """1 or -1 where that is all that ``value`` holds, else 0."""
    if not value.is_floating_point() or not value.numel():
        return 0
    return next((sign for sign in (1, -1) if bool((value == sign).all())), 0)


def _alike(term: Any, node: fx.Node) -> bool:
    """Whether a term is a tensor of the shape, strides and type of ``node``."""
    value, own = (n.meta.get("val") if isinstance(n, fx.Node) else None for n in (term, node))
    if not isinstance(value, Tensor) or not isinstance(own, Tensor):
        return False
    return (value.shape, value.stride(), value.dtype) == (own.shape, own.stride(), own.dtype)


def compute_once(graph: fx.Graph) -> None:
    """Share equal operations, and leave out those that repeat their input."""
    if any(is_random(node) or mutates(node) for node in graph.nodes):
        return  # equal operations may then give different values
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        twin = _repeated(node) or seen.setdefault(_as_key((node.target, node.args, node.kwargs)), node)
        if twin is not node:
            node.replace_all_uses_with(twin)
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=has_effect)


def _as_key(value: Any) -> Any:
    """A node's target and arguments as something to look up, in which 2, 2.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return tuple(_as_key(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _as_key(v)) for k, v in value.items())
    return type(value), value


_VIEWS = (aten.view.default, aten.expand.default, aten.alias.default, aten.detach.default)
_INVOLUTIONS = (aten.t.default, aten.neg.default)


def _repeated(node: fx.Node) -> fx.Node | None:
    """The earlier node whose numbers, shape and strides this one repeats."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    if node.target in _INVOLUTIONS and source.target is node.target and isinstance(source.args[0], fx.Node):
        return source.args[0]
    first_power = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1
    if not first_power and node.target not in _VIEWS and not _permutes_nothing(node):
        return None
    old, new = source.meta["val"], node.meta["val"]
    return source if (old.shape, old.stride(), old.dtype) == (new.shape, new.stride(), new.dtype) else None


def _permutes_nothing(node: fx.Node) -> bool:
    if node.target is not aten.permute.default:
        return False
    order: Any = node.args[1]
    return list(order) == sorted(order)
