r"""The seam: a model and a guide in, their log weights out.

Every estimator of the package is arithmetic on the parts returned here. For local latents z (inside the plate over
data points), shared latents theta (outside it), particles s = 1..S and shared draws t = 1..T,

.. math::
    \theta_t \sim q(\theta), \quad z_{tsb} \sim q(z \mid x_b), \qquad
    \text{local}_{tsb} = \log p(x_b \mid z_{tsb}, \theta_t) + \log p(z_{tsb}) - \log q(z_{tsb} \mid x_b),
    \qquad \text{shared}_t = \log p(\theta_t) - \log q(\theta_t).

Local particles are made by tiling the data S times along the plate, which works where an outer particle plate fails:
convolutions, ``PyroSample`` weights, and guides that look up a row for each point.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized_bayes.enumeration import Expectation, SummedOut, enumerated_trace, is_enumerated, sum_out, without
from amortized_bayes.guides.autoguides import as_per_point
from amortized_bayes.guides.easyguides import forget_plates
from amortized_bayes.masks import adopt_mask, adopt_scale, scored_value
from amortized_bayes.program_errors import said_of
from amortized_bayes.shared_draw import SharedDraw, plate_frame
from amortized_bayes.trees import leaves_of, map_leaves
from amortized_bayes.types import Guide, Model

__all__ = [
    "LogWeights",
    "PairedTraces",
    "at_places",
    "log_weights",
    "match_traces",
    "no_plate_error",
    "plate_frame",
    "sample_sites",
    "trace_pair",
]


logger = logging.getLogger(__name__)


class LogWeights(NamedTuple):
    """Log densities of T shared draws and S particles of B data points, in nats, subsampling undone.

    Args:
        log_likelihood: log p(x|z, theta), shape (T, S, B).
        log_prior: log p(z), shape (T, S, B).
        log_q: log q(z|x), shape (T, S, B).
        shared_log_p: log p(theta) of the sites outside the plate, shape (T,), 0 where there are none.
        shared_log_q: log q(theta), shape (T,).
        num_data: N, the full size of the plate.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> weights = ab.log_weights(model, guide, x, num_particles=5)
        >>> torch.equal(weights.local, weights.log_likelihood + weights.log_prior - weights.log_q)
        True
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    shared_log_p: Tensor
    shared_log_q: Tensor
    num_data: int

    @property
    def local(self) -> Tensor:
        """Log weight of each particle of each point, ``(T, S, B)``."""
        return self.log_likelihood + self.log_prior - self.log_q

    @property
    def shared(self) -> Tensor:
        """Log weight of each draw of the shared latents, ``(T,)``."""
        return self.shared_log_p - self.shared_log_q


class PairedTraces(NamedTuple):
    """A guide's trace, the model's trace replayed on it, and the plate over data points they share.

    ``expectation`` averages over the sites that the guide enumerates, ``None`` where it draws all.
    """

    guide: poutine.Trace
    model: poutine.Trace
    plate: str
    expectation: Expectation | None = None

    def local_sites(self, trace: poutine.Trace, *, observed: bool) -> Iterator[Any]:
        """Sample sites inside the plate."""
        return (
            s for s in sample_sites(trace) if s["is_observed"] == observed and plate_frame(s, self.plate) is not None
        )

    def shared_sites(self, trace: poutine.Trace) -> Iterator[Any]:
        """Sample sites outside the plate, observed or not."""
        return (s for s in sample_sites(trace) if plate_frame(s, self.plate) is None)

    def log_prob(self, site: Any) -> Tensor:
        """Log density of a site: ``(S·B,)`` inside the plate, ``()`` outside, the plate's subsampling undone."""
        with said_of(f"density of {site['name']!r}", (site["value"],), {}):
            return self.reduce(site, site["fn"].log_prob(scored_value(site), *site["args"], **site["kwargs"]))

    def reduce(self, site: Any, values: Tensor) -> Tensor:
        """Mask, scale and sum a site's ``values`` (of its batch shape) over every dimension but the plate's.

        Masks and scales set by the user stay in. Only the scale of our own plate is divided out, which
        ``unscaled_log_prob`` cannot do: it drops masks too.
        """
        scale = self.own_scale(site)
        if site["mask"] is not None:
            values = torch.where(torch.as_tensor(site["mask"]), values, values.new_zeros(()))
        if not (isinstance(scale, float) and math.isclose(scale, 1.0, rel_tol=1e-12)):
            values = values * scale
        return self.sum_to_plate(site, values)

    def sum_to_plate(self, site: Any, values: Tensor) -> Tensor:
        """Sum ``values`` of a site's batch shape over every dimension but the plate's, or over all outside it."""
        plates = (frame.name for frame in site["cond_indep_stack"])
        return self._per_point(values, plate_frame(site, self.plate), site["name"], plates)

    def summed_out(self) -> SummedOut:
        """Log likelihood and log prior of the sites that enumeration joins, ``(S·B,)``; ``()`` where there are none."""
        found = sum_out(self.model, self.plate, self.own_scale, self.guide)
        if not found.names:
            return found
        name = min(found.names)
        frame = plate_frame(self.model.nodes[name], self.plate)
        return SummedOut(found.names, *(self._per_point(part, frame, name, (self.plate,)) for part in found[1:]))

    def log_prior_and_likelihood(self) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z) of the model's sites inside the plate, ``(S·B,)``, or ``()`` where there are none."""
        joined = self.summed_out()
        parts = []
        for observed, own in ((False, joined.log_prior), (True, joined.log_likelihood)):
            sites = joined.others(self.local_sites(self.model, observed=observed))
            terms = [*([own] if joined.names else []), *(self.log_prob(site) for site in sites)]
            parts.append(sum(terms[1:], start=terms[0]) if terms else torch.zeros(()))
        return parts[0], parts[1]

    def _per_point(self, values: Tensor, frame: Any, name: str, plates: Iterable[str]) -> Tensor:
        if self.expectation is not None:
            values = self.expectation(name, values, plates)
        if frame is None:
            return values.sum()
        if values.dim() < -frame.dim or values.shape[frame.dim] != frame.size:
            batch = torch.broadcast_shapes(values.shape, (frame.size,) + (1,) * (-frame.dim - 1))
            values = values.expand(batch)
        return values.movedim(frame.dim, 0).reshape(frame.size, -1).sum(-1)

    def own_scale(self, site: Any) -> Any:
        """Scale of a site without that of our plate: 1, or what the user set."""
        frame = plate_frame(site, self.plate)
        return site["scale"] if frame is None else site["scale"] * (frame.size / frame.full_size)

    def plate_sizes(self) -> tuple[int, int]:
        """Size of the batch and full size N of the plate."""
        for site in sample_sites(self.model):
            frame = plate_frame(site, self.plate)
            if frame is not None:
                return frame.size, frame.full_size
        raise no_plate_error(self.model, self.plate)


def log_weights(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: int = 1,
    num_shared: int = 1,
    plate: str = "data",
    num_data: int | None = None,
    **kwargs: Any,
) -> LogWeights:
    """Draw from the guide, score under model and guide, and return the parts of the log weights.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program that samples every latent site of the model, but discrete ones that the model marks
            ``infer={"enumerate": "parallel"}``: those are summed out. Sites marked ``is_auxiliary`` and factors count
            towards ``log_q``; densities of data that it observes do not.
        args: arguments of both programs. Every tensor whose first dimension is the batch is data and is tiled.
        num_particles: S, draws of the local latents for each shared draw.
        num_shared: T, draws of the shared latents.
        plate: name of the plate over data points.
        num_data: N, where the plate is sized by the batch and not by the whole data set.
        kwargs: keyword arguments of both programs.

    Returns:
        Parts of shape (T, S, B) and (T,), in nats.

    Raises:
        ValueError: no such plate, a sequential plate, a guide that misses a latent site or its plate, or a site marked
            for enumeration that cannot be enumerated for each point on its own.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.log_weights(model, guide, x, num_particles=5, num_shared=2).local.shape
        torch.Size([2, 5, 4])
    """
    if num_particles < 1 or num_shared < 1:
        raise ValueError(f"expected num_particles and num_shared of 1 or more, got {num_particles} and {num_shared}")
    tiling = _Tiling.of(guide, model, args, kwargs, num_particles, plate) if num_particles > 1 else None

    def tiled() -> LogWeights:
        """One draw of the shared latents, with the data repeated S times."""
        assert tiling is not None
        with tiling:
            found = _score(trace_pair(model, guide, *tiling.tile(args, kwargs), plate), num_particles)
        return found._replace(num_data=tiling.full_size)

    def in_turn() -> LogWeights:
        """The same from S runs that share one draw of the latents outside the plate."""
        with SharedDraw(plate):
            runs = [_score(trace_pair(model, guide, args, kwargs, plate), 1) for _ in range(num_particles)]
        log_likelihood, log_prior, log_q = (torch.cat(part) for part in zip(*(run[:3] for run in runs), strict=True))
        return runs[0]._replace(log_likelihood=log_likelihood, log_prior=log_prior, log_q=log_q)

    draws: list[LogWeights] = []
    if tiling is not None and tiling.has_data(args, kwargs):
        try:
            draws.append(tiled())
        except (RuntimeError, ValueError, IndexError) as error:  # on data as they are they ran just now
            forget_plates(guide)
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("particles are drawn in turn, which is slower: programs refuse repeated data (%s)", first)
    draw = tiled if draws else in_turn
    draws += [draw() for _ in range(num_shared - len(draws))]
    parts = [torch.stack(part) for part in zip(*(d[:5] for d in draws), strict=True)]
    return LogWeights(*parts, num_data=num_data or draws[0].num_data)


def trace_pair(
    model: Model,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str = "data",
    *,
    expectation: bool = False,
) -> PairedTraces:
    """Trace the guide, replay the model on it, and check that they fit together.

    Sites that the model enumerates are; those that the guide does are drawn, unless an exact ``expectation`` over them
    is asked for.

    Raises:
        ValueError: as :func:`log_weights`.
    """
    guide = as_per_point(guide, plate)
    with said_of("guide", args, kwargs):
        if expectation:
            guide_trace = enumerated_trace(guide, args, kwargs, plate, guide, model)
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    with said_of("model, with the guide's draws,", args, kwargs):
        model_trace = enumerated_trace(replayed, args, kwargs, plate, model, guide=guide_trace)
    averaged = any(is_enumerated(site) for site in guide_trace.nodes.values())
    traces = PairedTraces(guide_trace, model_trace, plate, Expectation(guide_trace) if averaged else None)
    match_traces(traces)
    return traces


def _score(traces: PairedTraces, num_particles: int) -> LogWeights:
    batch, full = traces.plate_sizes()

    def local(total: Tensor) -> Tensor:
        return total.expand(batch).reshape(num_particles, -1)

    def shared(trace: poutine.Trace) -> Tensor:
        return sum((traces.log_prob(s) for s in traces.shared_sites(trace)), start=torch.zeros(()))

    log_prior, log_likelihood = traces.log_prior_and_likelihood()
    guide_sites = [s for observed in (False, True) for s in traces.local_sites(traces.guide, observed=observed)]
    return LogWeights(
        log_likelihood=local(log_likelihood),
        log_prior=local(log_prior),
        log_q=local(sum((traces.log_prob(s) for s in guide_sites), start=torch.zeros(()))),
        shared_log_p=shared(traces.model),
        shared_log_q=shared(traces.guide),
        num_data=full,
    )


def at_places(plate: str, index: Tensor) -> Messenger:
    """A handler under which the plate's points are those at the places ``index`` (B,), whatever size it is given.

    Programs with a row for each point, in a table that they index by their plate, then find the rows of a batch.
    """
    return _Tiling(plate, index, 1)


class _Tiling(Messenger):
    """Repeats the data, and the indices of the plate over it, S times along the plate."""

    def __init__(self, plate: str, index: Tensor, num_particles: int) -> None:
        super().__init__()
        self.plate = plate
        self.batch = len(index)
        self.full_size = len(index)
        self.num_particles = num_particles
        self.index = index.repeat(num_particles)

    @classmethod
    def of(
        cls, guide: Guide, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int, plate: str
    ) -> _Tiling:
        """Learn the batch from one untiled run."""
        with torch.no_grad():
            traces = trace_pair(model, guide, args, kwargs, plate)
        site = traces.model.nodes.get(plate) or traces.guide.nodes.get(plate)
        if site is None:  # a plate without a size counts the rows that it is given
            (batch, _), value = traces.plate_sizes(), next(sample_sites(traces.model))["value"]
            return cls(plate, torch.arange(batch, device=value.device), num_particles)
        if not isinstance(site["value"], Tensor):
            raise ValueError(f"expected plate {plate!r} to have its points as a tensor, got {type(site['value'])}")
        chosen = site["fn"].subsample_size
        index = site["value"]
        if index.dim() != 1 or index.is_floating_point():  # `subsample=x`: the data stand for their places
            index = torch.arange(len(index), device=index.device)
        tiling = cls(plate, index, num_particles)
        tiling.full_size = site["fn"].size  # where the plate is sized by the batch, tiling would multiply it
        if chosen is not None and chosen < site["fn"].size:
            raise ValueError(
                f"plate {plate!r} draws its own subsample of {chosen} points; expected the batch to be passed as "
                f"arguments (the data and `subsample=index`) so that it can be tiled {num_particles} times"
            )
        return tiling

    def has_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether some argument holds the batch along its first dimension."""
        return any(self._is_data(leaf) for leaf in leaves_of((args, kwargs)))

    def tile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Repeat every tensor that holds the batch along its first dimension."""

        def repeat(leaf: Any) -> Any:
            return leaf.repeat(self.num_particles, *(1 for _ in leaf.shape[1:])) if self._is_data(leaf) else leaf

        return map_leaves(repeat, (args, kwargs))

    def _is_data(self, leaf: object) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == self.batch

    def _pyro_sample(self, msg: Any) -> None:
        # The points keep their own indices, so that a guide with a row per point finds the same row for each particle.
        if msg["name"] == self.plate and isinstance(msg["fn"], _Subsample) and msg["value"] is None:
            msg["value"] = self.index

    def _pyro_post_param(self, msg: Any) -> None:
        # Inside a plate Pyro selects the rows of `pyro.param(..., event_dim=)` and `pyro.subsample` unless the batch
        # has as many points as the whole, which a tiled batch may reach.
        frame, event_dim = plate_frame(msg, self.plate), msg["kwargs"].get("event_dim")
        if frame is None or event_dim is None or any(f.size < f.full_size for f in msg["cond_indep_stack"]):
            return
        dim, value = frame.dim - event_dim, msg["value"]
        if value.dim() >= -dim and value.shape[dim] != 1:
            msg["value"] = value.index_select(dim, self.index)
            if msg["type"] == "param":
                msg["value"]._pyro_unconstrained_param = getattr(value, "_pyro_unconstrained_param", None)
            msg["kwargs"] = {**msg["kwargs"], "event_dim": None}  # or the plate would ask for N rows

    _pyro_post_subsample = _pyro_post_param


def sample_sites(trace: poutine.Trace) -> Iterator[Any]:
    """All sample sites of a trace, latent or observed, without the plates' own and those of ``pyro.deterministic``."""
    return (
        s
        for s in trace.nodes.values()
        if s["type"] == "sample"
        and not isinstance(s["fn"], _Subsample)
        and not (s["infer"] or {}).get("_deterministic")
    )


def match_traces(traces: PairedTraces) -> None:
    """Raise the one error that explains why model and guide do not fit; mask and scale the guide as the model is.

    What a guide observes beside its draws is a density of data (classifiers that are trained with it, say) and no part
    of q: it is taken out of the guide's trace.
    """
    inside = {s["name"] for s in sample_sites(traces.model) if plate_frame(s, traces.plate) is not None}
    if not inside:
        raise no_plate_error(traces.model, traces.plate)
    for site in sample_sites(traces.model):
        frame = plate_frame(site, traces.plate)
        if frame is not None and frame.dim is None:
            raise ValueError(f"plate {traces.plate!r} is sequential; expected `with pyro.plate(...)`, got `for ... in`")
        if frame is not None and frame.size == -1:
            raise ValueError(
                f"plate {traces.plate!r} has no size, and {site['name']!r} in it no row per point; size it"
            )
        if site["is_observed"]:
            continue
        twin = traces.guide.nodes.get(site["name"])
        if twin is None:
            if is_enumerated(site):
                continue
            hint = without(site)
            raise ValueError(f"the guide misses the model's latent site {site['name']!r}" + (hint and f": {hint}"))
        if (plate_frame(twin, traces.plate) is None) != (site["name"] not in inside):
            where = ("outside", "inside") if site["name"] in inside else ("inside", "outside")
            raise ValueError(
                f"site {site['name']!r} is {where[0]} plate {traces.plate!r} in the guide but {where[1]} in the model"
            )
        if frame is not None and frame.dim != (own := plate_frame(twin, traces.plate).dim):
            raise ValueError(
                f"site {site['name']!r} has plate {traces.plate!r} at dim={own} in the guide but dim={frame.dim} "
                "in the model"
            )
        if site["name"] in inside and isinstance(twin["fn"], Delta) and (joint := _joint_draw(traces)) is not None:
            raise ValueError(
                f"the guide draws {site['name']!r} of all points in one site, {joint!r}: a point has no weight of its "
                f"own; expected draws inside plate {traces.plate!r}, as of AutoNormal"
            )
        if not _fits(site):
            raise ValueError(
                f"the guide draws {site['name']!r} of shape {tuple(site['value'].shape)}, all points together; "
                f"expected {tuple(site['fn'].shape())}, as the model has it"
            )
        adopt_mask(site, twin)
        adopt_scale(traces.own_scale(site), traces.own_scale(twin), twin)
    latent = {s["name"] for s in sample_sites(traces.model) if not s["is_observed"]}
    for site in sample_sites(traces.guide):
        if not (site["is_observed"] or site["name"] in latent or site["infer"].get("is_auxiliary")):
            raise ValueError(
                f"the guide samples {site['name']!r}, which the model does not; "
                "expected infer={'is_auxiliary': True} if that is meant"
            )
    _leave_out_data(traces.guide)


def _leave_out_data(guide: poutine.Trace) -> None:
    """Take densities of data out of a guide's trace, and refuse factors that belong to no draw."""
    for site in [s for s in sample_sites(guide) if s["is_observed"]]:
        if not isinstance(site["fn"], (Delta, Unit)):
            guide.remove_node(site["name"])
        elif isinstance(site["fn"], Unit) and not site["fn"].has_rsample:
            name = site["name"]
            raise ValueError(
                f"expected factors of a guide to be log densities of its draws (has_rsample=True), got {name!r}; hide "
                f"a term of the training loss from this call: pyro.poutine.block(guide, hide=[{name!r}])"
            )


def _fits(site: Any) -> bool:
    """Whether a value put into the model has the shape of its site; others broadcast to weights of no point.

    Dimensions that enumeration put to the left of either do not matter.
    """
    shape, drawn = site["fn"].shape(), site["value"].shape
    events = len(site["fn"].event_shape)
    pairs = enumerate(zip(reversed(shape), reversed(drawn), strict=False))
    if is_enumerated(site):
        return True
    return len(drawn) >= events and all(a == b or (a == 1 and place >= events) for place, (a, b) in pairs)


def _joint_draw(traces: PairedTraces) -> str | None:
    """The auxiliary site outside the plate from which a guide's local sites are made, as joint autoguides do."""
    drawn = [s for s in sample_sites(traces.guide) if s["infer"].get("is_auxiliary") and not s["is_observed"]]
    if any(plate_frame(s, traces.plate) is not None for s in drawn):  # what is outside is of the shared latents
        return None
    return next((s["name"] for s in drawn), None)


def no_plate_error(trace: poutine.Trace, plate: str) -> ValueError:
    """The error for a model without the plate, naming the plates that it has."""
    names = sorted({f.name for s in sample_sites(trace) for f in s["cond_indep_stack"]})
    found = ", ".join(map(repr, names)) if names else "none"
    return ValueError(
        f"expected a model with sample sites in a plate {plate!r} over data points, found plates: {found}"
    )
