r"""Estimators of the ELBO's parts whose gradients vary less, with the same expectation.

- *Analytic KL*: where guide and model site have a closed Kullback-Leibler divergence, it replaces
  log q - log p of the draw.
- *Local reparametrization* (Kingma, Salimans & Welling, 2015): weights with Gaussian factors that enter through
  ``F.linear`` alone are never drawn. Each data point gets the output's exact distribution instead,

  .. math::
      W h + b \sim N(\mu_W h + \mu_b, \; \sigma_W^2 h^2 + \sigma_b^2),

  independent over points, so that the noise of a batch averages out. The weights stay sample sites of the model.
- *Quadrature over the output's noise*, on top of it: where the last layer's outputs enter the log likelihood one by
  one, its expectation under their Gaussians is a sum of integrals in one dimension, which Gauss-Hermite nodes replace,

  .. math::
      E[\sum_p f_p(m_p + s_p \epsilon_p)] \approx \sum_i w_i \sum_p f_p(m_p + s_p e_i),

  exactly for polynomials of degree 2 I - 1 (Golub & Welsch, 1969). No output is drawn.
- *Enumeration*: discrete sites that the guide marks ``infer={"enumerate": "parallel"}`` are averaged over exactly,
  which is what gives q(y|x) a gradient; see :mod:`amortized_bayes.enumeration`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from amortized_bayes.enumeration import is_enumerated, is_marked
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import PairedTraces, match_traces, sample_sites, trace_pair
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import LogWeights

__all__ = ["check_quadrature", "expected_log_weights"]

NOT_ADDITIVE = (
    "quadrature expected a log likelihood that is a sum over the outputs of the decoder's last layer, each entering a "
    "term of its own, got one that {}; use quadrature_nodes=0"
)


def expected_log_weights(
    model: Model,
    guide: Guide,
    *args: Any,
    plate: str = "data",
    num_data: int | None = None,
    analytic_kl: bool = True,
    local_reparametrization: bool = False,
    quadrature_nodes: int = 0,
    **kwargs: Any,
) -> LogWeights:
    """Log weights of one particle, with parts replaced by their expectations where that is asked for.

    The mean of ``local`` plus ``shared / N`` has the expectation of the plain one; a single value is no longer an
    importance weight, so that this serves the ELBO and its gradient alone.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program that samples every latent site of the model.
        args: arguments of both programs.
        plate: name of the plate over data points.
        num_data: N, where the plate is sized by the batch.
        analytic_kl: use closed KL divergences for latent sites where torch has them.
        local_reparametrization: never draw shared weights with Gaussian factors (implies their analytic KL).
        quadrature_nodes: Gauss-Hermite nodes over the noise of the last layer's outputs, with local reparametrization;
            0 draws it. :func:`check_quadrature` tells whether that is right for a model.
        kwargs: keyword arguments of both programs.

    Returns:
        Parts of shape (1, 1, B) and (1,), in nats.

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`; or local reparametrization of a shared
            site that is not Gaussian, has no closed KL divergence to its prior, or is not used by ``F.linear`` once,
            or with enumerated sites; a site with parameters that cannot be reparametrized, where gradients are taken;
            or quadrature where no such layer comes last, or its outputs do more than enter the observed site.
    """
    if quadrature_nodes and not local_reparametrization:
        raise ValueError(f"expected local reparametrization with quadrature, got quadrature_nodes={quadrature_nodes}")
    if local_reparametrization:
        traces, undrawn = _trace_without_weights(model, guide, args, kwargs, plate, quadrature_nodes)
    else:
        traces, undrawn = trace_pair(model, guide, args, kwargs, plate, expectation=True), frozenset()
    sums, joined = _Sums(traces), traces.summed_out()
    if joined.names:
        sums.add_local("log_likelihood", joined.log_likelihood)
        sums.add_local("log_prior", joined.log_prior)
    twins = {site["name"]: site for site in sample_sites(traces.guide)}
    for site in joined.others(sample_sites(traces.model)):
        if site["is_observed"]:
            sums.add("log_likelihood", site, _over_nodes(traces, site, quadrature_nodes))
            continue
        twin = twins.pop(site["name"])
        log_p, log_q = _latent_parts(traces, site, twin, analytic_kl, undrawn=site["name"] in undrawn)
        sums.add("log_prior", site, log_p)
        sums.add("log_q", twin, _with_gradient(twin, log_q))
    for site in twins.values():  # auxiliary sites and factors of the guide, and latents with an enumerated prior
        sums.add("log_q", site, _with_gradient(site, traces.log_prob(site)))
    return sums.log_weights(num_data)


def _with_gradient(twin: Any, log_q: Tensor) -> Tensor:
    """Refuse what a guide draws from a distribution whose parameters get no gradient through the draw."""
    if not (torch.is_grad_enabled() and log_q.requires_grad) or twin["is_observed"]:
        return log_q
    if twin["fn"].has_rsample or is_enumerated(twin):
        return log_q
    advice = "mark it infer={'enumerate': 'parallel'} in the guide, for an exact expectation, or leave it to the model"
    advice = advice if twin["fn"].has_enumerate_support else "marginalize it"
    raise ValueError(
        f"the guide draws {twin['name']!r} from {type(twin['fn']).__name__}, which cannot be reparametrized: its "
        f"parameters would be trained by a wrong gradient; {advice}"
    )


class _Sums:
    """Sums of site terms, inside and outside the plate."""

    def __init__(self, traces: PairedTraces) -> None:
        self.traces = traces
        self.terms: dict[tuple[str, bool], list[Tensor]] = {}

    def add(self, part: str, site: Any, value: Tensor) -> None:
        local = plate_frame(site, self.traces.plate) is not None
        self.terms.setdefault((part, local), []).append(value)

    def add_local(self, part: str, value: Tensor) -> None:
        self.terms.setdefault((part, True), []).append(value)

    def log_weights(self, num_data: int | None) -> LogWeights:
        batch, full = self.traces.plate_sizes()

        def total(*parts: str, local: bool) -> Tensor:
            terms = [t for part in parts for t in self.terms.get((part, local), [])]
            value = (
                torch.stack(torch.broadcast_tensors(*terms)).sum(0)
                if len(terms) > 1
                else (terms or [torch.zeros(())])[0]
            )
            return value.expand(batch).reshape(1, 1, batch) if local else value.reshape(1)

        return LogWeights(
            log_likelihood=total("log_likelihood", local=True),
            log_prior=total("log_prior", local=True),
            log_q=total("log_q", local=True),
            shared_log_p=total("log_likelihood", "log_prior", local=False),
            shared_log_q=total("log_q", local=False),
            num_data=num_data or full,
        )


def _latent_parts(
    traces: PairedTraces, site: Any, twin: Any, analytic: bool, *, undrawn: bool
) -> tuple[Tensor, Tensor]:
    """Log p and log q of a site, as a draw's or, in closed form, such that their difference is -KL."""
    if (analytic or undrawn) and twin["mask"] is site["mask"] and _equal_scales(traces, site, twin):
        try:
            divergence = kl_divergence(twin["fn"], site["fn"])
            entropy = twin["fn"].entropy()
        except NotImplementedError:
            pass  # no closed form, as for transformed sites: the draw's own log densities serve
        else:
            log_q = traces.reduce(twin, -entropy)
            return log_q - traces.reduce(site, divergence), log_q
    if undrawn:
        raise ValueError(
            f"local reparametrization expected a closed KL divergence at {site['name']!r}, with equal masks and "
            f"scales, got {type(twin['fn']).__name__} against {type(site['fn']).__name__}"
        )
    return traces.log_prob(site), traces.log_prob(twin)


def _equal_scales(traces: PairedTraces, site: Any, twin: Any) -> bool:
    """Whether guide and model weigh a site alike, whatever sizes their plates have."""
    scales = traces.own_scale(site), traces.own_scale(twin)
    return not any(isinstance(s, Tensor) for s in scales) and math.isclose(*scales, rel_tol=1e-9)


class _UndrawnWeights(Messenger):
    """Gives each Gaussian site outside the plate its location as value, and remembers its scale."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.moments: dict[int, tuple[str, Tensor, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        drawn = msg["is_observed"] or msg["value"] is not None or msg["infer"].get("is_auxiliary")
        if drawn or plate_frame(msg, self.plate) is not None or isinstance(msg["fn"], _Subsample):
            return
        base = msg["fn"].base_dist if isinstance(msg["fn"], Independent) else msg["fn"]
        if not isinstance(base, Normal):
            raise ValueError(
                f"local reparametrization expected Gaussian factors, got {type(base).__name__} at {msg['name']!r}"
            )
        value = base.loc.view_as(base.loc)  # an object of its own, by which F.linear knows it
        self.moments[id(value)] = (msg["name"], value, base.scale)
        msg["value"] = value
        msg["done"] = True


def _arguments(given: Any) -> Iterator[Any]:
    """What a function of torch is given, in tuples, lists and dicts: a pytree takes ten times as long to say so."""
    for value in given.values() if isinstance(given, dict) else given:
        if isinstance(value, tuple | list | dict):
            yield from _arguments(value)
        else:
            yield value


class _LinearOnMoments(TorchFunctionMode):
    """Replaces ``F.linear`` on undrawn weights by a draw of its output, and refuses any other use of them.

    A second use is refused too: its output depends on the first one's through the weights.
    """

    def __init__(self, moments: dict[int, tuple[str, Tensor, Tensor]], nodes: Tensor | int = 0) -> None:
        super().__init__()
        self.moments = moments
        self.nodes = nodes
        self.used: set[str] = set()
        self.last_shape: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = [self.moments[id(a)][0] for a in _arguments((args, kwargs)) if id(a) in self.moments]
        if not names:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if func is F.linear and id(args[0] if args else kwargs["input"]) not in self.moments:
            twice = self.used.intersection(names)
            if not twice:
                self.used.update(names)
                return self._linear(*args, **kwargs)
            names, name = sorted(twice), "a second use"
        elif name in ("__get__", "dim", "size", "__len__", "numel", "is_floating_point"):
            found = func(*args, **kwargs)
            if not isinstance(found, Tensor):  # a shape or a type, not `.T`
                return found
        raise ValueError(
            f"local reparametrization expected site {names[0]!r} to be used by torch.nn.functional.linear alone, "
            f"and once, got {name}"
        )

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        w, b = self.moments.get(id(weight)), self.moments.get(id(bias))
        mean = F.linear(input, weight, bias)
        if w is None:
            assert b is not None
            scale = b[2]
        else:
            variance = F.linear(input.square(), w[2].square(), None if b is None else b[2].square())
            scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + scale * self._noise(mean)

    def _noise(self, mean: Tensor) -> Tensor:
        """Standard normal draws; of the last layer the nodes, which get a dimension in front."""
        if len(self.used) < len(self.moments):
            return torch.randn_like(mean)
        self.last_shape = mean.shape
        if isinstance(self.nodes, Tensor):
            return self.nodes
        if self.nodes == 0:
            return torch.randn_like(mean)
        nodes = torch.tensor(gauss_hermite(self.nodes)[0], dtype=mean.dtype, device=mean.device)
        return nodes.reshape(-1, *[1] * mean.dim())


def _trace_without_weights(
    model: Model,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str,
    nodes: Tensor | int = 0,
) -> tuple[PairedTraces, frozenset[str]]:
    undrawn = _UndrawnWeights(plate)
    with _LinearOnMoments(undrawn.moments, nodes) as linear:
        with undrawn:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    marked = [s["name"] for trace in (guide_trace, model_trace) for s in sample_sites(trace) if is_marked(s, plate)]
    if marked:
        raise ValueError(
            f"local reparametrization would draw other weights for each value of the enumerated site {marked[0]!r}; "
            "use local_reparametrization=False"
        )
    traces = PairedTraces(guide_trace, model_trace, plate)
    match_traces(traces)
    if (isinstance(nodes, Tensor) or nodes) and linear.last_shape is None:
        raise ValueError("quadrature expected a last layer with latent weights, all of which are used, got none")
    return traces, frozenset(name for name, _, _ in undrawn.moments.values())


def _over_nodes(traces: PairedTraces, site: Any, nodes: int) -> Tensor:
    """Log density of an observed site; its mean over quadrature nodes, where they are a dimension in front."""
    if not nodes or plate_frame(site, traces.plate) is None:
        return traces.log_prob(site)
    values = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    expected = max((frame.dim for frame in site["cond_indep_stack"]), key=abs)
    if values.dim() != abs(expected) + 1 or len(values) != nodes:
        return traces.reduce(site, values)  # a site that the last layer does not enter
    weights = torch.tensor(gauss_hermite(nodes)[1], dtype=values.dtype, device=values.device)
    return traces.reduce(site, torch.tensordot(weights, values, 1))


@cache
def gauss_hermite(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights such that the weighted sum over nodes is the expectation under N(0, 1).

    Example:
        >>> nodes, weights = gauss_hermite(3)
        >>> [round(node**2, 6) for node in nodes], [round(weight, 6) for weight in weights]
        ([3.0, 0.0, 3.0], [0.166667, 0.666667, 0.166667])
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes.tolist(), (weights / weights.sum()).tolist()


@torch.no_grad()
def check_quadrature(model: Model, guide: Guide, *args: Any, plate: str = "data", **kwargs: Any) -> None:
    """Refuse quadrature over the outputs' noise where it would be wrong.

    It is right if the log likelihood is a sum of functions of one output each. Then exchanging the noise of any half of
    the outputs between two evaluations leaves the sum of both unchanged, which is tried for random noise and halves.
    Arguments as :func:`expected_log_weights`.

    Raises:
        ValueError: the log likelihood of a point is no such sum, or other sites depend on the outputs.
    """
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        shape = _last_shape(model, guide, args, kwargs, plate)

        def log_p(noise: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)  # the same z, and the same noise of the layers before
            traces, _ = _trace_without_weights(model, guide, args, kwargs, plate, noise)
            observed = [traces.log_prob(site) for site in traces.local_sites(traces.model, observed=True)]
            latent = [traces.log_prob(site) for site in traces.local_sites(traces.model, observed=False)]
            return torch.stack(observed).sum(0), torch.stack(latent).sum(0)

        generator = torch.Generator().manual_seed(0)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tensor = next((t for t in tensors if t.is_floating_point()), tensors[0])
        dtype = tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
        size, like = 1.0, torch.empty(shape, device=tensor.device, dtype=dtype)
        precision = 1e-9 if dtype == torch.float64 else 1e-4
        for _ in range(3):
            a, b = (torch.randn(shape, generator=generator).to(tensor.device, dtype) for _ in range(2))
            half = (torch.rand(shape, generator=generator) < 0.5).to(tensor.device)
            values = [log_p(noise) for noise in (a, b, torch.where(half, a, b), torch.where(half, b, a))]
            (of_a, prior_a), (of_b, prior_b), (mixed, _), (other, _) = values
            size = max(1.0, float(torch.stack([v for v, _ in values]).abs().max()))
            if not torch.allclose(prior_a, prior_b, equal_nan=True):
                raise ValueError(
                    "quadrature expected outputs of the last layer that enter observed sites alone, got some that "
                    "latent sites depend on; use quadrature_nodes=0"
                )
            if (of_a + of_b - mixed - other).abs().max() > precision * size:
                raise ValueError(NOT_ADDITIVE.format("mixes them"))
        by_node = [w * log_p(torch.full_like(like, node))[0] for node, w in zip(*gauss_hermite(3), strict=True)]
        torch.manual_seed(0)
        traces, _ = _trace_without_weights(model, guide, args, kwargs, plate, 3)
        try:
            at_once = [_over_nodes(traces, site, 3) for site in traces.local_sites(traces.model, observed=True)]
        except (RuntimeError, ValueError) as error:
            raise ValueError(NOT_ADDITIVE.format(f"takes no dimension in front of them ({error})")) from error
        if (torch.stack(at_once).sum(0) - sum(by_node)).abs().max() > precision * size:
            raise ValueError(NOT_ADDITIVE.format("takes no dimension in front of them"))


def _last_shape(model: Model, guide: Guide, args: Any, kwargs: Any, plate: str) -> torch.Size:
    """Shape of the last layer's outputs."""
    undrawn = _UndrawnWeights(plate)
    with _LinearOnMoments(undrawn.moments, 1) as linear:
        with undrawn:
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.replay(model, trace=trace)(*args, **kwargs)
    if linear.last_shape is None:
        raise ValueError("quadrature expected a last layer with latent weights, all of which are used, got none")
    return linear.last_shape
