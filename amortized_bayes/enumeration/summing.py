r"""Enumerated sites summed out of a model's trace, for each data point on its own.

Variables are eliminated one at a time, in logarithms, with plates inside a data point as products (Obermeyer et al.,
*Tensor Variable Elimination for Plated Factor Graphs*, ICML 2019; ``pyro.ops.contract``). As in Pyro, a mask leaves out
what depends on an enumerated site but never its own probabilities, which sum to 1, and a scale multiplies the logarithm
of the sum.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import MaskedDistribution
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from amortized_bayes.enumeration.marks import OTHERWISE, is_enumerated
from amortized_bayes.masks import scored_value
from amortized_bayes.shared_draw import plate_frame

__all__ = ["SummedOut", "own_log_prob", "sum_out"]


class SummedOut(NamedTuple):
    """What a model's enumerated sites, and all that depends on them, come to; without any, 0.

    Args:
        names: those sites.
        log_likelihood: log p(x|z) of them in nats, with the plate at its own dimension; dimensions that the guide
            enumerates are on its left.
        log_prior: log p(z), likewise; 0 where no continuous latent depends on an enumerated site.
    """

    names: frozenset[str]
    log_likelihood: Tensor
    log_prior: Tensor

    def others(self, sites: Iterable[Any]) -> Iterator[Any]:
        """Those of ``sites`` that do not depend on an enumerated one."""
        return (site for site in sites if site["name"] not in self.names)


class _Term(NamedTuple):
    """A site's log density with a letter for each of its dimensions, masked and unscaled."""

    name: str
    value: Any
    plates: frozenset[str]
    observed: bool
    enumerates: bool

    def of(self, symbols: set[str]) -> set[str]:
        """The enumerated dimensions it has."""
        return symbols.intersection(self.value._pyro_dims)


def sum_out(
    trace: poutine.Trace,
    plate: str,
    own_scale: Callable[[Any], Any],
    guide: poutine.Trace,
) -> SummedOut:
    """Sum the sites that a model enumerates out of its trace.

    Args:
        trace: the model's.
        plate: name of the plate over data points.
        own_scale: scale of a site without the plate's.
        guide: the guide's trace, whose own enumerated sites stay.

    Raises:
        ValueError: points that depend on each other through an enumerated site, sites of different scales, or shapes
            with dimensions that are neither plates nor enumerated.
    """
    nodes: list[Any] = [node for node in trace.nodes.values() if node["type"] == "sample"]
    sites = [node for node in nodes if not isinstance(node["fn"], _Subsample)]
    enumerated = [s for s in sites if is_enumerated(s) and s["name"] not in guide.nodes]
    if not enumerated:
        return SummedOut(frozenset(), torch.zeros(()), torch.zeros(()))
    trace.symbolize_dims()
    symbols = {s["infer"]["_enumerate_symbol"] for s in enumerated}
    of_model = {s["name"] for s in enumerated}
    terms = [_term(s, trace, s["name"] in of_model) for s in sites]
    log_p, log_prior = [], []
    groups = list(_connected([t for t in terms if t.enumerates or t.of(symbols)], symbols))
    for group in groups:
        for term in group:
            if trace.plate_to_symbol[plate] not in term.plates:
                raise ValueError(
                    f"site {term.name!r} is outside plate {plate!r} and depends on a site that is enumerated inside: "
                    f"points depend on each other; marginalize that site or observe it"
                )
        scale = _common_scale([(t.name, own_scale(trace.nodes[t.name])) for t in group])
        size = max(plate_frame(trace.nodes[term.name], plate).size for term in group)
        joint = _contract(group, symbols, trace, plate, size)
        latents = [t for t in group if not t.observed]
        given = not all(t.enumerates for t in latents)
        own = _contract(latents, symbols, trace, plate, size) if given else torch.zeros_like(joint)
        log_p.append(joint * scale)
        log_prior.append(own * scale)
    names = frozenset(t.name for group in groups for t in group)
    prior = sum(log_prior[1:], start=log_prior[0])
    return SummedOut(names, sum(log_p[1:], start=log_p[0]) - prior, prior)


def own_log_prob(site: Any) -> Tensor:
    """Log probability of an enumerated site's values, without its mask: they sum to 1."""
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn.log_prob(scored_value(site), *site["args"], **site["kwargs"])


def _term(site: Any, trace: poutine.Trace, enumerates: bool) -> _Term:
    if enumerates:
        values = own_log_prob(site)
    else:
        values = site["fn"].log_prob(scored_value(site), *site["args"], **site["kwargs"])
        if site["mask"] is not None:
            values = torch.where(torch.as_tensor(site["mask"]), values, values.new_zeros(()))
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    for frame in frames:
        size = max(plate_frame(site, frame.name).size, 1)  # a plate without a size, and a site without rows: 1
        values = values.expand(torch.broadcast_shapes(values.shape, (size,) + (1,) * (-frame.dim - 1)))
    try:
        value = packed.pack(values, site["infer"]["_dim_to_symbol"])
    except ValueError as error:
        raise ValueError(
            f"site {site['name']!r} has a log density of shape {tuple(values.shape)}; expected the dimensions of its "
            f"plates {[f.name for f in frames]}, and of enumerated sites that it depends on, alone: check .to_event(), "
            f"and what it depends on inside other plates; or {OTHERWISE.replace('it', 'the enumerated site', 1)}"
        ) from error
    plates = frozenset(trace.plate_to_symbol[f.name] for f in frames)
    return _Term(site["name"], value, plates, site["is_observed"], enumerates)


def _connected(terms: Iterable[_Term], symbols: set[str]) -> Iterator[list[_Term]]:
    """Terms in groups that share no enumerated dimension."""
    groups: list[tuple[set[str], list[_Term]]] = []
    for term in terms:
        dims, members = term.of(symbols), [term]
        for group in [g for g in groups if g[0] & dims]:
            groups.remove(group)
            dims, members = dims | group[0], group[1] + members
        groups.append((dims, members))
    return (members for _, members in groups)


def _common_scale(scales: Sequence[tuple[str, Any]]) -> Any:
    """The one scale of sites that are summed together: of several, no log density comes out."""
    (first, scale), *rest = scales
    if get_proxy_mode() is None:  # a captured step was run before
        if not all(isinstance(s, (int, float)) or s.numel() == 1 for _, s in scales):
            raise ValueError(f"expected one scale for {first!r} and all that is summed with it, got one for each entry")
        for name, other in rest:
            if not math.isclose(float(scale), float(other), rel_tol=1e-6):
                raise ValueError(
                    f"expected sites that depend on the same enumerated site to have the same scale, got "
                    f"{float(scale):g} at {first!r} and {float(other):g} at {name!r}: put poutine.scale around all"
                )
    return scale.reshape(()) if isinstance(scale, Tensor) else scale


def _contract(terms: Sequence[_Term], symbols: set[str], trace: poutine.Trace, plate: str, size: int) -> Tensor:
    """Log of the sum over enumerated dimensions of the product of terms, a value a point."""
    tree: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for term in terms:
        tree.setdefault(term.plates, []).append(term.value)
    target = trace.plate_to_symbol[plate]
    ring = _StableRing(dim_to_size={target: size})
    found = contract_to_tensor(tree, set(symbols), target_ordinal=frozenset(target), ring=ring)
    return packed.unpack(found, trace.symbol_to_dim)


class _StableRing(LogRing):
    """Sums of products in logarithms, one variable after the other.

    Pyro's own exponentiates each factor apart from the others, and finds log 0 where two factors contradict each other
    by more than a float32 holds, 88 nats, as images and their labels do.
    """

    def sumproduct(self, terms: Sequence[Any], dims: Iterable[str]) -> Any:
        terms, left = list(terms), set(dims)

        def having(dim: str) -> list[Any]:
            return [t for t in terms if dim in t._pyro_dims]

        while left:
            dim = min(sorted(left), key=lambda d: len({*"".join(t._pyro_dims for t in having(d))}))
            left.remove(dim)
            whole = _multiply(having(dim))
            total: Any = whole.logsumexp(whole._pyro_dims.index(dim))
            total._pyro_dims = whole._pyro_dims.replace(dim, "")
            terms = [*(t for t in terms if dim not in t._pyro_dims), total]
        return _multiply(terms)


def _multiply(terms: Sequence[Any]) -> Any:
    if len(terms) == 1:
        return terms[0]
    first, *rest = packed.broadcast_all(*terms)
    total = sum(rest, start=first)
    total._pyro_dims = first._pyro_dims
    return total
