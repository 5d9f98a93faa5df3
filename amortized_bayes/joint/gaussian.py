"""What is read off a guide: its q as a factorized Gaussian on the unconstrained space, and draws of shared latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta
from torch import Generator, Tensor
from torch.distributions import Normal

from amortized_bayes.calls import only_plate
from amortized_bayes.joint.bits import Bernoullis, first_dependent, fitted_bits, logits_by_site
from amortized_bayes.joint.checks import check_guide
from amortized_bayes.joint.density import LogJoint, plate_to_front
from amortized_bayes.joint.factors import Factor, read_factors
from amortized_bayes.joint.whitening import Whitening
from amortized_bayes.limits import Count, limited
from amortized_bayes.points import as_tensors
from amortized_bayes.seeding import torch_seed
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.signatures import check_keywords
from amortized_bayes.traces import PairedTraces, sample_sites, trace_pair, unwrapped
from amortized_bayes.types import Guide

__all__ = [
    "Gaussian",
    "Product",
    "bits_of",
    "draw",
    "draw_shared",
    "gaussian_start",
    "global_seed",
    "guide_start",
    "read_family",
    "read_start",
    "run_pair",
    "same_at_all_points",
    "whitened_start",
]


class Gaussian(NamedTuple):
    """A factorized Gaussian for each point, on the unconstrained space: ``loc`` and ``scale``, ``(B, D)``."""

    loc: Tensor
    scale: Tensor

    @property
    def inverse_mass(self) -> Tensor:
        """Of chains that walk here, ``(B, D)``."""
        return self.scale.square()

    def widened(self, factor: float) -> Gaussian:
        """With scales so many times larger."""
        return Gaussian(self.loc, self.scale * factor)

    def sample(self, num: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(S, B, D)`` and their log densities ``(S, B)``."""
        noise = torch.empty(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        noise.normal_(generator=generator)
        log_q = -(0.5 * noise.square() + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return self.loc + self.scale * noise, log_q

    @staticmethod
    def score(z: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Log density at z, ``(C, B, D)``, and its gradient."""
        white = (z - loc) / scale
        return -(0.5 * white.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1), -white / scale


Product = Gaussian | Bernoullis
"""A product for each point that chains can start at, of what its latents are."""


def guide_start(joint: LogJoint, guide: Guide, num_fit: int) -> Product:
    """The guide's q as a factorized Gaussian, or as a product of Bernoullis where the latents are bits.

    Bits that depend on each other in q have their frequencies in ``num_fit`` draws; errors as :func:`gaussian_start`.
    """
    if not joint.is_bits:
        return gaussian_start(joint, guide, num_fit)
    found = bits_of(joint, guide)
    if found is None:
        found = fitted_bits(torch.stack([joint.pack(run_pair(joint, guide).model) for _ in range(num_fit)]))
    bad = found.logits.isnan().any(-1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the guide's log odds are not numbers at point {bad[0]} of this chunk")
    return found


def bits_of(joint: LogJoint, guide: Guide) -> Bernoullis | None:
    """The guide's q where it is a product of Bernoullis over the bits of each point; else ``None``.

    Raises:
        ValueError: the guide misses a site.
    """
    with global_seed(0, "bits"):
        logits, moved = first_dependent(lambda _: logits_by_site(joint.sites, run_pair(joint, guide)))
    return Bernoullis(torch.cat(list(logits.values()), -1)) if logits and moved is None else None


def gaussian_start(joint: LogJoint, guide: Guide, num_fit: int) -> Gaussian:
    """The guide's q as a factorized Gaussian on the unconstrained space, with the means and variances of q.

    Read off where q is Gaussian, of full covariance too, and else fitted to ``num_fit`` draws by their moments: planar
    flows and auxiliary variables have no density off their own samples, and a start needs one everywhere.

    Raises:
        ValueError: the guide misses a site, or its draws are not finite.
    """
    return whitened_start(joint, guide, num_fit)[0]


def whitened_start(joint: LogJoint, guide: Guide, num_fit: int) -> tuple[Gaussian, Whitening | None]:
    """As :func:`gaussian_start`; and where q is Gaussian with correlations, the coordinates in which it has none."""
    factors, traces = _read_twice(joint, guide)
    white = None
    if factors is not None and all(factor.gaussian for factor in factors):
        q, white = _moments(factors), Whitening.of(factors)
    else:
        more = (run_pair(joint, guide) for _ in range(num_fit - 2))
        draws = torch.stack([joint.pack(t.model) for t in (*traces, *more)])
        q = Gaussian(draws.mean(0), draws.std(0))
    bad = (~(q.loc.isfinite() & q.scale.isfinite() & (q.scale > 0)).all(-1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the guide's draws have no finite mean and positive scale at point {bad[0]} of this chunk")
    return q, white


def read_start(joint: LogJoint, guide: Guide) -> Product | None:
    """The guide's q where it is a factorized Gaussian on the unconstrained space, or a product of Bernoullis over bits,
    the same at each run; else ``None``.

    Raises:
        ValueError: the guide misses a site.
    """
    return bits_of(joint, guide) if joint.is_bits else _gaussian(read_family(joint, guide))


def read_family(joint: LogJoint, guide: Guide) -> list[Factor] | None:
    """The guide's q as a product of named factors, the same at each run; else ``None``.

    Raises:
        ValueError: the guide misses a site.
    """
    return _read_twice(joint, guide)[0]


def same_at_all_points(joint: LogJoint, guide: Guide) -> bool:
    """Whether a guide has one q for all points: draws of the first have the same density at every other.

    False where it cannot tell the density of other draws than its own, as with planar flows.
    """
    args, kwargs = joint.arguments
    guide = poutine.condition(guide, data=joint.fixed) if joint.fixed else guide
    given = {}
    traces = run_pair(joint, guide)
    for site in traces.local_sites(traces.guide, observed=False):
        if not isinstance(unwrapped(site["fn"]), Delta):  # what is made of others is made anew
            rows = plate_to_front(site, joint.plate, site["value"])
            first, dim = rows[:1].expand_as(rows), plate_frame(site, joint.plate).dim - site["fn"].event_dim
            given[site["name"]] = first.movedim(0, dim)
    with torch.no_grad(), joint.indexed():
        trace = poutine.trace(poutine.condition(guide, data=given)).get_trace(*args, **kwargs)
    again = PairedTraces(trace, trace, joint.plate)
    for site in sample_sites(trace):
        if plate_frame(site, joint.plate) is None:
            continue
        try:
            rows = again.log_prob(site)
        except (KeyError, NotImplementedError):  # what torch and Pyro raise for transforms without an inverse
            return False
        if isinstance(unwrapped(site["fn"]), Delta):
            made = plate_to_front(site, joint.plate, site["value"]).reshape(len(rows), -1)
            rows = torch.cat([rows[:, None], made], -1)
        if not torch.allclose(rows, rows[:1].expand_as(rows)):
            return False
    return True


@limited
def draw_shared(
    guide: Guide, *args: Any, num_draws: Count = 1, plate: str | None = None, **kwargs: Any
) -> list[dict[str, Tensor]]:
    """Draw the latents outside the plate from a guide: values for ``fixed``, one dict a draw.

    Args:
        guide: Pyro program.
        args: its arguments, numpy arrays among them.
        num_draws: how many.
        plate: name of the plate over data points; by default the only one of the guide, or the one called ``data``.
        kwargs: keyword arguments of the guide.

    Raises:
        ValueError: several plates, none of them ``data``, and none named.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import amortized_bayes as ab
        >>> def guide(x):
        ...     pyro.sample("slope", dist.Normal(1.0, 0.1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> [sorted(draw) for draw in ab.draw_shared(guide, torch.zeros(4), num_draws=2)]
        [['slope'], ['slope']]
    """
    check_keywords(draw_shared, guide, kwargs, "guide")
    args, kwargs = as_tensors((args, kwargs))
    draws = []
    for _ in range(num_draws):
        with torch.no_grad():
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            if plate is None and any(site["cond_indep_stack"] for site in sample_sites(trace)):
                plate = only_plate(trace)
            outside = (
                s for s in sample_sites(trace) if not s["is_observed"] and plate_frame(s, plate or "data") is None
            )
            draws.append({s["name"]: s["value"] for s in outside if not s["infer"].get("is_auxiliary")})
    return draws


def draw(start: Gaussian, num_chains: int, generator: Generator) -> Tensor:
    """Draws of a Gaussian, ``(C, B, D)``."""
    return start.sample(num_chains, generator)[0]


@contextmanager
def global_seed(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators, from which Pyro draws, and put them back after."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, *names))
        yield


def _read_twice(joint: LogJoint, guide: Guide) -> tuple[list[Factor] | None, tuple[PairedTraces, PairedTraces]]:
    """Factors on which two runs of the guide agree, and those runs."""
    traces = (run_pair(joint, guide), run_pair(joint, guide))
    first, second = (read_factors(joint.sites, t) for t in traces)
    if first is None or second is None or len(first) != len(second):
        return None, traces
    return first if all(map(Factor.equals, first, second)) else None, traces


def run_pair(joint: LogJoint, guide: Guide) -> PairedTraces:
    """Traces of both programs at the points of ``joint``, with one draw of the guide, which is checked."""
    args, kwargs = joint.arguments
    model, guide = (poutine.condition(p, data=joint.fixed) if joint.fixed else p for p in (joint.model, guide))
    with torch.no_grad(), joint.indexed():
        traces = trace_pair(model, guide, args, kwargs, joint.plate)
        check_guide(traces, guide, args, kwargs)
    known = {site.name for site in joint.sites}
    for site in traces.local_sites(traces.model, observed=False):
        if site["name"] in traces.guide.nodes and site["name"] not in known:
            raise ValueError(
                f"the guide draws {site['name']!r}, which the model enumerates: log p(x, z) is without it; leave it "
                "out of the guide, so that both are of z alone"
            )
    return traces


def _gaussian(factors: list[Factor] | None) -> Gaussian | None:
    """Location and scale of q where every site of it is a factorized Gaussian, ``None`` elsewhere."""
    if factors is None or any(factor.kind is not Normal for factor in factors):
        return None
    return _moments(factors)


def _moments(factors: list[Factor]) -> Gaussian:
    """Means and standard deviations of Gaussian factors, in the order of z."""
    order = torch.cat([factor.places for factor in factors]).argsort()
    loc = [f.parameters["loc"].flatten(1) for f in factors]
    rows = [f.parameters["scale_tril"] for f in factors]
    scale = [(r if r.shape[-1] == 1 else r.square().sum(-1).sqrt()).flatten(1) for r in rows]
    return Gaussian(torch.cat(loc, -1)[:, order], torch.cat(scale, -1)[:, order])
