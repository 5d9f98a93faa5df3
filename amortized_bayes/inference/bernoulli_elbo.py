r"""The ELBO of guides that draw bits, as an ``ELBO`` of Pyro: its value, and a surrogate with the estimator's gradient.

The guide is run once and the model once for each code (:mod:`~amortized_bayes.inference.bit_gradients`): two runs with
DisARM and one pair, however many bits there are. What the guide draws beside its bits, and can be reparametrized, has
its path gradient; parameters of the model have the mean of theirs over the codes, each of which is a draw of q.

Bits of a point are independent in q, given what is drawn before them: nothing in the guide may depend on a bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Independent

from amortized_bayes.inference.bit_gradients import Bits, Codes, Estimator, draw_codes
from amortized_bayes.inference.importance import unmasked
from amortized_bayes.inference.options import check_particles
from amortized_bayes.joint import FilledBits, first_dependent
from amortized_bayes.limits import Count, Positive, limited
from amortized_bayes.snapshots import snapshot
from amortized_bayes.traces import checked_frame, pair_with, sample_sites, trace_guide, trace_pair
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import LogWeights, score_pair

__all__ = ["BernoulliELBO"]


class Estimate(NamedTuple):
    """An estimate of the ELBO of a batch, in nats.

    Args:
        local: local term of each point, (B,).
        surrogate: whose gradient is that of ``local``, (B,).
        shared: log p - log q of what all points share, ().
        num_data: N.
    """

    local: Tensor
    surrogate: Tensor
    shared: Tensor
    num_data: int

    def per_point(self, *, surrogate: bool = False, num_data: int | None = None) -> Tensor:
        """The ELBO per point, or what has its gradient, ()."""
        return (self.surrogate if surrogate else self.local).mean() + self.shared / (num_data or self.num_data)


class BernoulliELBO(ELBO):
    """The ELBO, with gradients for Bernoulli latents of the guide.

    ``pyro.infer.SVI`` takes it as its loss; ``FitOptions(objective="disarm")`` has ``fit`` use it. Bits of any shape
    inside the plate, on several sites, are taken together; those that are marked for enumeration are drawn as well.

    Args:
        estimator: ``disarm``, ``arm``, ``reinforce`` (each draw's baseline is the mean of the others; those of Pyro's
            ``TraceGraph_ELBO`` are learned or decay), ``straight-through`` (biased) or ``enumerated`` (exact, of 8
            bits or fewer per point). See :mod:`~amortized_bayes.inference.bit_gradients`.
        num_particles: K, draws of the bits of each point (2 or more with ``reinforce``), or pairs of draws with
            ``disarm`` and ``arm``.
        plate: name of the plate over data points.
        temperature: temperature of the relaxed draws of ``straight-through``.

    Raises:
        ValueError: a number of particles that the estimator does not have; in use, a guide without Bernoulli latents,
            with bits outside the plate or that depend on each other, with other draws that cannot be reparametrized,
            or a model that passes no gradient to relaxed bits.

    Example:
        >>> import pyro
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.guides import AmortizedBits
        >>> from amortized_bayes.models import TwoBitMixture
        >>> model = TwoBitMixture(torch.randn(2, 2, 3), 1.0)
        >>> guide = AmortizedBits(("first", "second"), torch.nn.Linear(3, 2))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ab.BernoulliELBO("disarm"))
        >>> svi.step(torch.randn(5, 3)) > 0
        True
    """

    @limited
    def __init__(
        self,
        estimator: Estimator = "disarm",
        num_particles: Count = 1,
        plate: str = "data",
        temperature: Positive = 1.0,
    ) -> None:
        check_particles(estimator, num_particles)
        super().__init__(num_particles=num_particles)
        self.estimator: Estimator = estimator
        self.plate, self.temperature = plate, temperature
        self._settled: tuple[Any, Any] | None = None

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO of all N points, in nats."""
        with torch.no_grad():
            found = self.estimate(model, guide, *args, **kwargs)
        return self._total(-found.num_data * found.per_point())

    def differentiable_loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Tensor:
        """The same with the estimator's gradient."""
        found = self.estimate(model, guide, *args, **kwargs)
        value, surrogate = (found.per_point(surrogate=which) for which in (False, True))
        return -found.num_data * (value.detach() + surrogate - surrogate.detach())

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The same, with its gradients added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return self._total(loss)

    def _get_trace(self, model: Model, guide: Guide, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        """A trace of the model, and that of the guide it is replayed on, with one draw of all latents."""
        pair = trace_pair(model, guide, tuple(args), dict(kwargs), self.plate)
        return pair.model, pair.guide

    def _total(self, loss: Tensor) -> float:
        warn_if_nan(loss.detach(), "loss")
        return float(loss.detach())

    def estimate(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Estimate:
        """The ELBO of each point of a batch, and what has its gradient."""
        if self._settled is None or self._settled[0] is not model or self._settled[1] is not guide:
            self._settle(model, guide, args, kwargs)
        return self._estimate(model, guide, args, kwargs)

    def _estimate(
        self, model: Model, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], *, check: bool = False
    ) -> Estimate:
        with FilledBits(0.0) as filling:
            trace, bits = self._bits_of(guide, args, kwargs, filling)
        codes = draw_codes(bits, self.estimator, self.num_particles, self.temperature)
        traces = (_with_values(trace, codes.at(run)) for run in range(len(codes)))
        runs = [score_pair(pair_with(model, one, args, kwargs, self.plate)) for one in traces]
        if check and self.estimator == "straight-through":
            _check_passes(runs[0], codes)
        f = torch.cat([run.local for run in runs])
        return Estimate(codes.mean(f), codes.surrogate(f), runs[0].shared, runs[0].num_data)

    def _bits_of(
        self, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], filling: FilledBits
    ) -> tuple[poutine.Trace, dict[str, Bits]]:
        """A guide's trace, in which ``filling``, that is on, gives the bits, and the bits."""
        trace = trace_guide(guide, args, kwargs, self.plate)
        wanted, bits = f"objective {self.estimator!r} expected", {}
        for site in sample_sites(trace):
            name, fn, frame = site["name"], unmasked(site["fn"]), checked_frame(site, self.plate)
            if name in filling.names:
                if frame is None:
                    raise ValueError(f"{wanted} bits inside plate {self.plate!r}, got {name!r} outside of it")
                bits[name] = Bits(fn.logits, frame.dim - len(site["fn"].event_shape))
            elif not (site["is_observed"] or isinstance(fn, (Delta, Unit)) or fn.has_rsample):
                raise ValueError(
                    f"{wanted} Bernoulli latents, and others that can be reparametrized, got {name!r} from "
                    f"{type(fn).__name__}; use objective 'rws'"
                )
        if not bits:
            raise ValueError(f"{wanted} a guide with Bernoulli latents, got one without; use objective 'elbo'")
        return trace, bits

    def _settle(self, model: Model, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run programs once on the side, and refuse those whose gradients would be wrong."""
        put_back = snapshot(model, guide)
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=_cuda_devices()), poutine.block():
                self._check_independent(guide, args, kwargs)
                self._estimate(model, guide, args, kwargs, check=True)
        finally:
            put_back()
        self._settled = model, guide

    def _check_independent(self, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a guide in which anything changes with the value of a bit."""

        def run(filling: FilledBits) -> dict[str, Tensor]:
            trace, bits = self._bits_of(guide, args, kwargs, filling)
            others = {site["name"]: site["value"] for site in sample_sites(trace) if site["name"] not in bits}
            return others | {name: one.logits for name, one in bits.items()}

        _, moved = first_dependent(run)
        if moved is not None:
            raise ValueError(
                f"objective {self.estimator!r} expected a guide in which nothing depends on a bit, got {moved!r}, "
                "which changes with one; use objective 'rws'"
            )


def _with_values(trace: poutine.Trace, values: dict[str, Tensor]) -> poutine.Trace:
    """A copy of a guide's trace with other bits, in which log q of bits is a function of these alone."""
    found = trace.copy()
    nodes: Any = found.nodes
    for name, node in trace.nodes.items():
        changed = {"value": values[name], "fn": _held(node["fn"])} if name in values else {}
        nodes[name] = {**node, **changed}
    return found


def _held(fn: Any) -> Any:
    if isinstance(fn, Independent):
        return _held(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return _held(fn.base_dist).mask(fn._mask)
    return dist.Bernoulli(logits=fn.logits.detach(), validate_args=False)


def _check_passes(run: LogWeights, codes: Codes) -> None:
    """Refuse a model through which no gradient comes to relaxed bits, such as one that takes rows by them."""
    likelihood = run.log_likelihood.sum()
    for name, values in codes.values.items():
        if not values.requires_grad:  # log odds that are not fitted
            continue
        if not likelihood.requires_grad or (
            torch.autograd.grad(likelihood, values, allow_unused=True, retain_graph=True)[0] is None
        ):
            raise ValueError(
                f"objective 'straight-through' expected a log likelihood that can be differentiated by {name!r}, got a "
                "model that takes it without a gradient; use objective 'disarm'"
            )


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count()))
