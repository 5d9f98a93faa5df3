"""Bernoulli log likelihoods in a captured graph, found where autograd wrote them and given to one kernel.

Autograd reads logits and targets twice, for the sum of the log probabilities and for its gradient, and Inductor makes
two loops of that. Where the logits are means and scales of a layer at quadrature nodes, it writes all nodes' gradients
to memory as well.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from amortized_bayes.bernoulli_kernel import kernel_available
from amortized_bayes.graphs import fill_by_shape, has_effect

__all__ = ["fuse_bernoulli"]

aten = torch.ops.aten


def fuse_bernoulli(module: fx.GraphModule) -> None:
    """Replace each sum of float32 Bernoulli log probabilities over the last dimension, and its gradient, on a CPU.

    Those that do not look as autograd writes them stay as they are, and so do all in a graph with draws inside.
    """
    graph = module.graph
    plain = not any(has_effect(node) for node in graph.nodes if node.op == "call_function")
    if not plain or not any(node.target is aten.binary_cross_entropy_with_logits.default for node in graph.nodes):
        return
    fill_by_shape(module)  # ones_like(loss), where gradients begin, does not depend on the loss
    for node in list(graph.nodes):
        if node.target is aten.binary_cross_entropy_with_logits.default:
            terms = _terms_of(node)
            if terms is not None and kernel_available():
                _replace(graph, node, terms)
    graph.eliminate_dead_code(is_impure_node=has_effect)


class _Spread(NamedTuple):
    """Logits ``mean + scale * nodes`` (I, ..., P), and the two sums over nodes that their gradient goes into."""

    mean: fx.Node
    scale: fx.Node
    nodes: fx.Node
    sums: tuple[fx.Node, fx.Node]


class _Terms(NamedTuple):
    """What autograd makes of a sum of Bernoulli log probabilities.

    Args:
        logits: (..., P).
        target: tensor of the shape of the last dimensions of the logits.
        upstream: gradient of the loss with respect to the sum, (..., 1) or less.
        sign: sign of the upstream, in the gradient that is ``sign * upstream * (sigmoid(logits) - target)``.
        total: the sum; of their negatives, where ``negative``.
        negative: which it is.
        gradient: with respect to the logits.
        spread: how the logits depend on nodes of quadrature.
    """

    logits: fx.Node
    target: fx.Node
    upstream: fx.Node
    sign: int
    total: fx.Node
    negative: bool
    gradient: fx.Node
    spread: _Spread | None


def _terms_of(entropy: fx.Node) -> _Terms | None:
    arguments: Any = entropy.args
    logits, target, *options = arguments
    log_p = _only_user(entropy, aten.neg.default)
    total = _only_user(log_p or entropy, aten.sum.dim_IntList)
    sigmoids = [user for user in logits.users if user.target is aten.sigmoid.default]
    if options != [None, None, 0] or total is None or total.args[1:] != ([-1],) or len(sigmoids) != 1:
        return None
    residual = _only_user(sigmoids[0], aten.sub.Tensor)
    gradient = _only_user(residual, aten.mul.Tensor)
    if residual is None or gradient is None or residual.args != (sigmoids[0], target):
        return None
    upstream: Any = next(a for a in gradient.args if a is not residual)
    sign = 1
    while isinstance(upstream, fx.Node) and upstream.target in (aten.neg.default, aten.expand.default):
        sign = -sign if upstream.target is aten.neg.default else sign
        upstream = upstream.args[0]
    if not isinstance(upstream, fx.Node) or entropy in _ancestors([upstream]):
        return None
    shape, own = _shape(logits), _shape(upstream)
    if not all(_is_plain(node) for node in (logits, target, upstream)) or len(own) != len(shape) or own[-1] != 1:
        return None
    if target.target is aten.expand.default and shape[-len(_shape(target.args[0])) :] == _shape(target.args[0]):
        target = target.args[0]
    return _Terms(logits, target, upstream, sign, total, log_p is None, gradient, _spread_of(logits, gradient))


def _spread_of(logits: fx.Node, gradient: fx.Node) -> _Spread | None:
    if logits.target is not aten.add.Tensor or logits.kwargs or len(logits.users) != 2:
        return None
    both: Any = logits.args
    for mean, product in (both, both[::-1]):
        if not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor or len(product.users) != 1:
            continue
        factors: Any = product.args
        for scale, nodes in (factors, factors[::-1]):
            shape, parts = _shape(logits), (mean, scale, nodes)
            if not all(isinstance(part, fx.Node) and _is_plain(part) for part in parts):
                continue
            of_node = (shape[0], *[1] * (len(shape) - 1))
            if (_shape(mean), _shape(scale), _shape(nodes)) != (shape[1:], shape[1:], of_node):
                continue
            sums = [user for user in gradient.users if _is_sum_over_nodes(user)]
            moments = [u for u in gradient.users if u.target is aten.mul.Tensor and set(u.args) == {gradient, nodes}]
            of_scale = _only_user(moments[0], aten.sum.dim_IntList) if len(moments) == 1 else None
            if of_scale is not None and _is_sum_over_nodes(of_scale) and len(sums) == 1 and len(gradient.users) == 2:
                return _Spread(mean, scale, nodes, (sums[0], of_scale))
    return None


def _is_sum_over_nodes(node: fx.Node) -> bool:
    return node.target is aten.sum.dim_IntList and node.args[1:] == ([0], True)


def _replace(graph: fx.Graph, entropy: fx.Node, terms: _Terms) -> None:
    spread = terms.spread
    inputs = (terms.logits,) if spread is None else (spread.mean, spread.scale, spread.nodes)
    needed = _ancestors([*inputs, terms.target, terms.upstream])
    earlier = True
    for node in list(graph.nodes):  # the gradient is computed with the sum, so that what it rests on comes first
        earlier = earlier and node is not entropy
        if not earlier and node in needed:
            entropy.prepend(node)
    with graph.inserting_before(entropy):
        upstream = graph.call_function(aten.expand.default, (terms.upstream, [*_shape(terms.logits)[:-1], 1]))
        if terms.sign < 0:
            upstream = graph.call_function(aten.neg.default, (upstream,))
        mean, scale, nodes = (*inputs, None, None)[:3]
        arguments = (mean, scale, nodes, terms.target, upstream)
        both = graph.call_function(torch.ops.amortized_bayes.bernoulli.default, arguments)
        total, *gradients = (
            graph.call_function(operator.getitem, (both, i)) for i in range(2 if spread is None else 3)
        )
        if terms.negative:
            total = graph.call_function(aten.neg.default, (total,))
        if spread is not None:
            gradients = [graph.call_function(aten.unsqueeze.default, (g, 0)) for g in gradients]
    old = (terms.total, terms.gradient) if spread is None else (terms.total, *spread.sums)
    for node, new in zip(old, (total, *gradients), strict=True):
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)


def _only_user(node: fx.Node | None, target: object) -> fx.Node | None:
    """The only node that reads this one, if it is a call of ``target``."""
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _ancestors(nodes: list[Any]) -> set[fx.Node]:
    """All that these nodes rest on, themselves included."""
    found: set[fx.Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in found:
            found.add(node)
            nodes.extend(node.all_input_nodes)
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _is_plain(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type == "cpu" and value.dim() > 0
