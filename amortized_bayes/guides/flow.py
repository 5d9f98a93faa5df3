r"""Amortized flows: a Gaussian from an encoder, moved by a flow.

.. math::
    z_0 \sim N(\mu(x), \operatorname{diag}\, \sigma(x)^2), \quad z = f(z_0; c(x)), \qquad
    \log q(z \mid x) = \log N(z_0) - \log \left| \det \partial f / \partial z_0 \right|

(Rezende & Mohamed, 2015). Draw and density are made together: planar and Sylvester flows have no inverse, and can
score a draw only while it is known where it came from. Pyro's transforms remember that for the very tensor they made,
and every call of the guide makes transforms of its own.

An auxiliary flow moves z together with auxiliary variables v,

.. math::
    v_0 \sim q(v_0 \mid z_0), \quad (z_T, v_T) = f(z_0, v_0), \qquad
    z' = z \circ \sigma_1(v) + \mu_1(v), \quad v' = v \circ \sigma_2(z') + \mu_2(z'),

.. math::
    \log p(x) \ge E\left[\log p(x, z_T) + \log r(v_T \mid x, z_T) - \log q(z_0 \mid x) - \log q(v_0 \mid z_0)
    + \log \left| \det \frac{\partial (z_T, v_T)}{\partial (z_0, v_0)} \right| \right]

(Cremer, Li & Duvenaud, 2018, after Ranganath, Tran & Blei and Maaloe et al., 2016). What q(z_T|x) is remains unknown;
r(v|x, z) takes the place of q(v|x, z), and the bound loses the divergence between the two. The terms enter the guide's
log density as follows: z_0 and v_0 are auxiliary sites, the reverse model and the determinant one factor for each
point, and the sites of the model point masses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import ReshapeTransform, biject_to

from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides.flow_layers import Flow
from amortized_bayes.guides.local import (
    INITIAL_LOG_SCALE,
    LocalGuide,
    each_in_its_plates,
    initial_parameters,
    is_real,
    placed,
)
from amortized_bayes.guides.transforms import softclip
from amortized_bayes.limits import Depth, Natural, check_names, limited
from amortized_bayes.networks import MLP, FlatPoints, start_at
from amortized_bayes.types import LatentSite

__all__ = ["Encoded", "FlowGuide", "pass_on"]

LATENT_NAME = "_latent"
"""Auxiliary site of the whole unconstrained vector, where that is not a site of the model itself."""
BASE_NAME, AUXILIARY_NAME, REVERSE_NAME = "_base", "_auxiliary", "_reverse"
"""Sites of z_0 and v_0, and the factor -log r - log |det|."""
LOG_SCALE_RANGE = 8.0
"""How far, in nats, the base Gaussian's log scale may go from its start: scales from 1e-4 to 1e3."""


class Encoded(NamedTuple):
    """What an encoder gives for B points: ``loc`` and ``log_scale``, ``(B, D)``, ``context``, ``(B, C)`` or None.

    Example:
        >>> Encoded(torch.zeros(4, 2), torch.zeros(4, 2), None).loc.shape
        torch.Size([4, 2])
    """

    loc: Tensor
    log_scale: Tensor
    context: Tensor | None


class FlowGuide(LocalGuide):
    """A flow for the local sites of each data point, after the Gaussian of an encoder P -> k -> ... -> k -> 2 D + C.

    At the start it is the Gaussian of every other guide (auxiliary flows: near it). Several sites share one flow over
    all their dimensions; a site with constraints gets the flow's value through the transform to its support. Both go
    through an auxiliary site that holds the whole vector.

    Args:
        sites: local latent sites of the model; D is their total size on the unconstrained space.
        num_data: N.
        observed: size P of one data point, flattened, of which r(v|x, z) of an auxiliary flow reads all.
        settings: which flow; ``family="gaussian"`` is none.
        width: k, width of each hidden layer of the encoder.
        depth: number of its hidden layers; 0 makes it linear.
        encoder: a network ``(B, ...) -> (B, 2 D + C)`` to use instead, C being ``settings.context_dim``; ``width`` and
            ``depth`` are then ignored.
        options: ``encoder_input``, ``shared`` and ``plate``, as in :class:`~amortized_bayes.guides.local.LocalGuide`.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: no sites, sizes out of range, or a network that does not fit into memory.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = FlowGuide(sites, num_data=4, observed=3, settings=FlowSettings("spline-contextual"), width=8)
        >>> ab.log_weights(model, guide, x, num_particles=5).local.shape
        torch.Size([1, 5, 4])
    """

    @limited
    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: Natural,
        observed: Natural,
        settings: FlowSettings | None = None,
        width: Natural = 64,
        depth: Depth = 1,
        *,
        encoder: nn.Module | None = None,
        **options: Any,
    ) -> None:
        check_names("FlowGuide", options, ("settings", "width", "depth", "encoder", "encoder_input", "shared", "plate"))
        super().__init__(sites, num_data, **options)
        self.settings, self.observed = settings or FlowSettings(), observed
        self.encoder = encoder or _encoder([observed, *[width] * depth], self.latent_dim, self.settings.context_dim)
        self.flow = Flow(self.latent_dim, self.settings, observed)

    def encode(self, x: Tensor) -> Encoded:
        """Base Gaussian and context of data ``x`` (B, ...).

        Log scales and contexts are bounded, smoothly and far outside what training data reach: a point unlike any of
        those would otherwise get a scale of e^100 or a flow with parameters to match, and one such point ruins a mean.
        """
        out = self.encoder(x)
        sizes = [self.latent_dim, self.latent_dim, self.settings.context_dim]
        if out.shape != (len(x), sum(sizes)):
            raise ValueError(f"expected an encoder that gives {(len(x), sum(sizes))}, got {tuple(out.shape)}")
        loc, log_scale, context = out.split(sizes, -1)
        log_scale = INITIAL_LOG_SCALE + softclip(log_scale - INITIAL_LOG_SCALE, LOG_SCALE_RANGE)
        return Encoded(loc, log_scale, torch.tanh(context) if self.settings.context_dim else None)

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Locations and log scales of the base Gaussian, ``(B, 2 D)``."""
        encoded = self.encode(x)
        return torch.cat([encoded.loc, encoded.log_scale], -1)

    def sample(self, x: Tensor, index: Tensor) -> None:
        """Sample every local site, inside the plate."""
        if not self.flow.layers:
            super().sample(x, index)
            return
        loc, log_scale, context = (None if part is None else self._in_plate(part) for part in self.encode(x))
        assert loc is not None
        assert log_scale is not None
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        only = self.sites[0] if len(self.sites) == 1 else None
        if self.flow.auxiliary:
            pass_on(self.sites, self.sizes, self._sample_with_auxiliary(x, base, context).reshape(len(x), -1))
        elif only and is_real(only.support) and only.dim == -1 and not only.around:
            pyro.sample(only.name, self._moved(base, context, only.event_shape))
        else:
            joint = self._moved(base, context, Size([self.latent_dim]))
            flat = pyro.sample(LATENT_NAME, joint, infer={"is_auxiliary": True})
            pass_on(self.sites, self.sizes, flat.reshape(len(x), -1))

    def _in_plate(self, rows: Tensor) -> Tensor:
        """Rows ``(B, M)`` with B at the plate's dimension, ``(B, 1, ..., 1, M)``."""
        return rows.reshape(len(rows), *[1] * (-self.sites[0].dim - 1), rows.shape[-1])

    def _moved(self, base: dist.TorchDistribution, context: Tensor | None, shape: Size) -> dist.TorchDistribution:
        transforms = self.flow(context)
        if len(shape) != 1:
            transforms.append(ReshapeTransform(Size([self.latent_dim]), shape, cache_size=1))
        return dist.TransformedDistribution(base, transforms)

    def _sample_with_auxiliary(self, x: Tensor, base: dist.TorchDistribution, context: Tensor | None) -> Tensor:
        """Sample z_0 and v_0, count what else the bound has, and give z_T, ``(B, 1, ..., 1, D)``."""
        if x[0].numel() != self.observed:
            raise ValueError(f"expected data points of size {self.observed}, which r(v|x, z) reads, got {x[0].numel()}")
        z = pyro.sample(BASE_NAME, base, infer={"is_auxiliary": True})
        v = pyro.sample(AUXILIARY_NAME, _normal(*self.flow.draw_model(z)), infer={"is_auxiliary": True})
        state, log_det = self.flow.push(torch.cat([v, z], -1), context)
        v, z = state.chunk(2, -1)
        reverse = _normal(*self.flow.score_model(z, self._in_plate(x.reshape(len(x), -1)))).log_prob(v)
        pyro.factor(REVERSE_NAME, -reverse - log_det, has_rsample=True)
        return z


def pass_on(sites: Sequence[LatentSite], sizes: Sequence[int], flat: Tensor) -> None:
    """Give each site its part of a vector ``(B, D)`` that has been drawn and scored, on the site's own support.

    The sites are point masses whose log density is that of the move to the support alone, so that together with what
    the vector itself counts they have the log density of the values.

    Example:
        >>> from torch.distributions import constraints
        >>> site = LatentSite("z", Size([]), constraints.positive)
        >>> with pyro.poutine.trace() as tracer:
        ...     pass_on([site], [1], torch.zeros(4, 1))
        >>> tracer.trace.nodes["z"]["value"]
        tensor([1., 1., 1., 1.])
    """
    for site, part in zip(each_in_its_plates(sites), flat.split(list(sizes), -1), strict=True):
        transform = biject_to(site.support)
        unconstrained, batch = placed(site, part), 1 + len(site.around)
        value = transform(unconstrained)
        moved = transform.log_abs_det_jacobian(unconstrained, value)
        moved = moved.flatten(batch).sum(-1) if moved.dim() > batch else moved
        pyro.sample(site.name, dist.Delta(value, log_density=-moved, event_dim=len(site.event_shape)))


def _normal(loc: Tensor, log_scale: Tensor) -> dist.TorchDistribution:
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def _encoder(sizes: list[int], latent_dim: int, context_dim: int) -> nn.Module:
    """Network to locations and log scales, constant at the start, and to a context, which is not."""
    network = MLP([*sizes, 2 * latent_dim + context_dim])
    last = network[-1]
    assert isinstance(last, nn.Linear)
    start_at(last, initial_parameters(latent_dim))
    return nn.Sequential(FlatPoints(sizes[0]), network)
