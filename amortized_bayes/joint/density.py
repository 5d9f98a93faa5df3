r"""The twin of the seam for samplers: log p(x, z) of any Pyro model on the unconstrained space.

For a local latent with constrained value :math:`v_b` and support-given bijection :math:`v_b = t(z_b)`,

.. math:: \log p(x_b, z_b) = \log p(x_b \mid t(z_b)) + \log p(t(z_b)) + \log |\det J_t(z_b)|,

one value a data point and chain, in nats. All local latents of a point are laid side by side in one vector of size D.
Chains are made by tiling the data along the plate, as in :mod:`amortized_bayes.weights`. Latents outside the plate
(decoder weights) are held at values given, so that every point stands alone. Discrete latents that the model marks
``infer={"enumerate": "parallel"}`` are summed out. Where all latents of a point are Bernoulli and drawn, z is made of
their values, 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import identity_transform
from torch.utils import _pytree as pytree

from amortized_bayes.enumeration import enumerated_trace
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.supports import support_of
from amortized_bayes.tiling import at_places
from amortized_bayes.traces import PairedTraces
from amortized_bayes.types import Model

__all__ = ["LocalSite", "LogJoint", "are_bits", "bijection_to", "plate_to_front", "site_support"]


class LocalSite(NamedTuple):
    """Where a local latent lies in the vector z of a point.

    Args:
        name: its name in the model.
        shape: shape of its constrained value for one point.
        free_shape: shape of its unconstrained value for one point.
        support: its support.
        place: its entries among the D of z.
    """

    name: str
    shape: Size
    free_shape: Size
    support: Constraint
    place: slice


class LogJoint:
    """log p(x, z) of B data points in nats, as :func:`~amortized_bayes.joint.layout.log_joint` makes it.

    Call it with z of shape ``(..., B, D)``.
    """

    def __init__(
        self,
        model: Model,
        arguments: tuple[Sequence[Any], Any, Sequence[bool]],
        index: Tensor,
        plate: str,
        fixed: Mapping[str, Tensor],
    ) -> None:
        self.plate, self.fixed, self.index = plate, dict(fixed), index
        self.leaves, self._spec, self.is_data = arguments
        self.model = model
        self._model = poutine.condition(model, data=self.fixed) if fixed else model
        self.sites: tuple[LocalSite, ...] = ()
        self.num_values = 1  # of enumerated sites, computed at once for a point: the most that one site's density has
        self.dtype, self.device = torch.get_default_dtype(), index.device

    @property
    def num_points(self) -> int:
        """B."""
        return len(self.index)

    @property
    def dim(self) -> int:
        """D."""
        return self.sites[-1].place.stop

    @property
    def is_bits(self) -> bool:
        """Whether z is made of bits: all local latents are Bernoulli."""
        return all(are_bits(site.support) for site in self.sites)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model for these B points."""
        return pytree.tree_unflatten(list(self.leaves), self._spec)

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x, z) with Jacobians, ``(..., B, D) -> (..., B)``."""
        log_prior, log_likelihood = self._split(z)
        return log_prior + log_likelihood

    def log_prior(self, z: Tensor) -> Tensor:
        """Log p(z) with Jacobians, ``(..., B, D) -> (..., B)``."""
        return self._split(z)[0]

    def terms(self, z: Tensor, index: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(z) with Jacobians and log p(x|z) of rows: ``(R, D)`` and :meth:`inputs` in, two ``(R,)`` out."""
        trace, jacobians = self._run(z, index, data)
        traces = PairedTraces(poutine.Trace(), trace, self.plate)
        with pyro.validation_enabled(False):
            log_prior, log_likelihood = traces.log_prior_and_likelihood()
            for name, jacobian in jacobians.items():  # no scale or mask is the Jacobian's
                log_prior = log_prior + traces.sum_to_plate(trace.nodes[name], jacobian)
        return log_prior.expand(len(z)), log_likelihood.expand(len(z))

    def inputs(self, num_chains: int) -> tuple[Tensor, ...]:
        """The plate's index and the data, repeated for each chain: ``(C·B, ...)`` each."""
        data = (leaf for leaf, is_data in zip(self.leaves, self.is_data, strict=True) if is_data)
        return tuple(t.repeat(num_chains, *(1 for _ in t.shape[1:])) for t in (self.index, *data))

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draw z from the prior by torch's global generator, ``(S, B, D)``."""
        return self.ancestral(num_samples)[0]

    def ancestral(self, num: int, handler: Messenger | None = None) -> tuple[Tensor, poutine.Trace, list[Tensor]]:
        """Run the model once, under ``handler``: latents as z ``(S, B, D)``, a trace of S·B rows, and data it saw."""
        index, *data = self.inputs(num)
        with torch.no_grad():
            trace = self._trace(handler(self._model) if handler else self._model, index, data)
            return self.pack(trace).reshape(num, self.num_points, -1), trace, data

    def unpack(self, z: Tensor) -> dict[str, Tensor]:
        """Constrained value of each site, ``(..., B, *shape)``, for z of shape ``(..., B, D)``."""
        trace, _ = self._run(*self._rows(z))
        nodes: Any = trace.nodes
        values = {s.name: plate_to_front(nodes[s.name], self.plate, nodes[s.name]["value"]) for s in self.sites}
        return {s.name: values[s.name].reshape(*z.shape[:-1], *s.shape) for s in self.sites}

    def pack(self, trace: poutine.Trace) -> Tensor:
        """Unconstrained z, ``(R, D)``, of the values in a trace of this model (for a guide's: replayed on them)."""
        columns = []
        for site in self.sites:
            node: Any = trace.nodes[site.name]
            free = bijection_to(site_support(node)).inv(node["value"])
            columns.append(plate_to_front(node, self.plate, free).flatten(1) if free.dim() > 1 else free[:, None])
        return torch.cat(columns, -1)

    def indexed(self) -> Messenger:
        """A handler under which model and guide, run on :attr:`arguments`, see these points' own indices."""
        return at_places(self.plate, self.index)

    def select(self, points: Tensor) -> LogJoint:
        """The joint density of some of the points, given by their places ``(b,)`` among the B."""
        leaves = [
            leaf[points.to(leaf.device)] if d else leaf for leaf, d in zip(self.leaves, self.is_data, strict=True)
        ]
        return self.replace(leaves, self.index[points.to(self.index.device)])

    def replace(self, leaves: Sequence[Any], index: Tensor) -> LogJoint:
        """The same density of other data: flattened arguments ``leaves`` and the plate's ``index``."""
        twin = LogJoint(self.model, (leaves, self._spec, self.is_data), index, self.plate, self.fixed)
        twin.sites, twin.dtype, twin.device, twin.num_values = self.sites, self.dtype, self.device, self.num_values
        return twin

    def _split(self, z: Tensor) -> list[Tensor]:
        rows, index, data = self._rows(z)
        return [part.reshape(z.shape[:-1]) for part in self.terms(rows, index, *data)]

    def _rows(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if z.dim() < 2 or z.shape[-2:] != (self.num_points, self.dim):
            raise ValueError(f"expected z of shape (..., {self.num_points}, {self.dim}), got {tuple(z.shape)}")
        rows = z.reshape(-1, self.dim)
        index, *data = self.inputs(len(rows) // self.num_points)
        return rows, index, tuple(data)

    def _run(self, z: Tensor, index: Tensor, data: Sequence[Tensor]) -> tuple[poutine.Trace, dict[str, Tensor]]:
        """Trace the model with the latents put to ``z``. Validation off: a diverging chain must not raise."""
        put = _Put(self.sites, z, self.plate)
        with pyro.validation_enabled(False):
            return self._trace(put(self._model), index, data, enumerated=True), put.jacobians

    def _trace(
        self, model: Callable[..., Any], index: Tensor, data: Sequence[Tensor], *, enumerated: bool = False
    ) -> poutine.Trace:
        rest = iter(data)
        leaves = [next(rest) if d else leaf for leaf, d in zip(self.leaves, self.is_data, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        with at_places(self.plate, index):
            if enumerated:
                return enumerated_trace(model, args, kwargs, self.plate, self.model)
            return poutine.trace(model).get_trace(*args, **kwargs)


class _Put(Messenger):
    """Puts the local latents to given unconstrained values ``(R, D)`` and keeps their log Jacobians."""

    def __init__(self, sites: Sequence[LocalSite], z: Tensor, plate: str) -> None:
        super().__init__()
        self.sites, self.z, self.plate = {s.name: s for s in sites}, z, plate
        self.jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        site = self.sites.get(msg["name"])
        if site is None:
            return
        batch = 1 + len(site.shape) - msg["fn"].event_dim  # without dimensions of enumerated sites it depends on
        axis, transform = batch + plate_frame(msg, self.plate).dim, bijection_to(site_support(msg))
        free = self.z[:, site.place].reshape(-1, *site.free_shape).movedim(0, axis)
        msg["value"], msg["done"] = transform(free), True
        if msg["value"].dim() > 1 + len(site.shape):
            raise ValueError(f"the support of latent {site.name!r} depends on an enumerated site; expected one support")
        jacobian = transform.log_abs_det_jacobian(free, msg["value"])
        self.jacobians[site.name] = jacobian.flatten(batch).sum(-1) if jacobian.dim() > batch else jacobian


def are_bits(support: Any) -> bool:
    """Whether values are 0 or 1."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.boolean))


def site_support(node: Any) -> Constraint:
    """The support of a latent site in the form that :func:`bijection_to` knows; errors as ``support_of``."""
    support = node["fn"].support
    return support if are_bits(support) else support_of(node)


def bijection_to(support: Constraint) -> Any:
    """From all reals, or from bits to bits."""
    return identity_transform if are_bits(support) else biject_to(support)


def plate_to_front(node: Any, plate: str, value: Tensor) -> Tensor:
    """Move the plate's dimension of a site's value to the front."""
    batch = len(node["fn"].batch_shape)
    if not node["is_observed"]:  # its distribution may have dimensions of enumerated sites too
        batch = node["value"].dim() - node["fn"].event_dim
    return value.movedim(batch + plate_frame(node, plate).dim, 0)
