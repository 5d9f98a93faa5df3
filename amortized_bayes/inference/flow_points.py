r"""Flows of B data points, each with parameters of its own: where the best flow of a point is searched.

A member draws :math:`z_0 = \mu + \sigma \circ \epsilon`, :math:`\epsilon \sim N(0, I)`, and moves it by the bijections
of the very :class:`~amortized_bayes.guides.flow_layers.Flow` that a guide has, in its plain form:

.. math::
    z = f_K(\cdots f_1(z_0)), \qquad \log q(z) = \log N(z_0; \mu, \sigma^2) - \sum_k \log |\det J_{f_k}| .

For one point x is a constant, and so is the context of a contextual flow: both are absorbed by the biases of a network
that reads more than them, and free numbers do for one that reads nothing else. So a guide with these settings has, at
each point, a member of this family. Every parameter gets a leading dimension B, and ``torch.func.vmap`` runs the
module over it. For an auxiliary flow log q stands for :math:`\log q(z_0) + \log q(v_0 | z_0) - \log |\det J| -
\log r(v_T | z_T)`, whose mean under q is that of the density of z or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides.flow_layers import Flow
from amortized_bayes.joint import Gaussian

__all__ = ["Parameters", "PointFlows", "gaussian_draws", "log_normal"]

Parameters = Mapping[str, Tensor]
"""Parameters of all points by name, ``(B, ...)`` each."""


class PointFlows:
    """The flows of B points, none of which shares a parameter with another.

    Args:
        dim: D.
        settings: which flow; a contextual family is taken in its plain form.
        like: a tensor of the type and on the device of the parameters.

    Example:
        >>> flows = PointFlows(3, FlowSettings("realnvp", num_flows=1, hidden=(8,)), torch.zeros(0))
        >>> base, noise = Gaussian(torch.zeros(4, 3), torch.ones(4, 3)), torch.randn(7, 4, flows.noise_dim)
        >>> z, log_q = flows.sample(flows.init(base, range(4)), base, noise)
        >>> z.shape, log_q.shape
        (torch.Size([7, 4, 3]), torch.Size([7, 4]))
    """

    def __init__(self, dim: int, settings: FlowSettings, like: Tensor) -> None:
        self.dim, self.settings, self.like = dim, settings.plain, like
        self.point = self._make().to(like.device)
        self.noise_dim = self.point.flow.size
        """Standard normals that one draw takes; the first D are those of the Gaussian."""

    def init(self, base: Gaussian, seeds: Iterable[int]) -> dict[str, Tensor]:
        """Parameters by name, ``(B, ...)`` each, from a seed for each point; every member is the Gaussian ``base``.

        Splines start within 0.001 of it (:class:`~amortized_bayes.guides.flow_layers.SplineLayer`).
        """
        rows = zip(seeds, *(part.cpu() for part in base), strict=True)
        found = [dict(self._make(*row).named_parameters()) for row in rows]
        return {name: torch.stack([one[name].detach() for one in found]).to(self.like.device) for name in found[0]}

    def sample(
        self, parameters: Parameters, base: Gaussian, noise: Tensor, *, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draws z ``(S, B, D)``, and log q of each or what stands for it, ``(S, B)`` in nats.

        Args:
            parameters: as from :meth:`init`.
            base: mu and sigma, ``(B, D)`` each.
            noise: epsilon, ``(S, B, noise_dim)``.
            path: let the gradient of log q follow the draws alone. What is left out has mean zero and is most of the
                variance near an optimum (Roeder, Wu & Duvenaud, *Sticking the Landing*, NeurIPS 2017). The values are
                the same. It takes the inverse: planar, Sylvester and spline flows keep the whole gradient.
        """
        kind = self.settings.kind
        own = (dict(parameters), *base)
        held = ({name: value.detach() for name, value in parameters.items()}, *(part.detach() for part in base))

        def one(own: Any, held: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
            state, log_q = functional_call(self.point, own[0], ("draw", *own[1:], noise))
            if path and (kind is None or kind.invertible):
                log_q = functional_call(self.point, held[0], ("score", *held[1:], state))
            if self.point.flow.auxiliary:
                log_q = log_q - functional_call(self.point, own[0], ("reverse", state))
            return state[..., -self.dim :], log_q

        return vmap(one, in_dims=(0, 0, 1), out_dims=1)(own, held, noise)

    def _make(self, seed: int = 0, *base: Tensor) -> _Point:
        """The flow of one point that starts at a Gaussian, drawn on the CPU: the same on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = Flow(self.dim, self.settings).to(self.like.dtype)
            if base:
                flow.start_at(*base)
        return _Point(flow)


class _Point(nn.Module):
    """Flow of one point; ``forward`` calls a method by name, so that ``functional_call`` reaches all of them."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, method: str, *args: Tensor) -> Any:
        return getattr(self, method)(*args)

    def draw(self, loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z_T, or (v_T, z_T), ``(S, W)``, and its log density, ``(S,)``, from noise ``(S, W)``."""
        state, log_q = gaussian_draws(Gaussian(loc, scale), noise[..., : len(loc)])
        if self.flow.auxiliary:
            white = noise[..., len(loc) :]
            mean, log_scale = self.flow.draw_model(state)
            state = torch.cat([mean + log_scale.exp() * white, state], -1)
            log_q = log_q + log_normal(white) - log_scale.sum(-1)
        state, log_det = self.flow.push(state)
        return state, log_q - log_det

    def score(self, loc: Tensor, scale: Tensor, state: Tensor) -> Tensor:
        """The log density of :meth:`draw` by the way back, ``(S,)``."""
        start, log_det = self.flow.pull(state)
        z = start[..., -len(loc) :]
        log_q = log_normal((z - loc) / scale) - scale.log().sum(-1)
        if self.flow.auxiliary:
            log_q = log_q + self._log_auxiliary(start, self.flow.draw_model(z))
        return log_q - log_det

    def reverse(self, state: Tensor) -> Tensor:
        """Log r(v_T|z_T), ``(S,)``."""
        return self._log_auxiliary(state, self.flow.score_model(state.chunk(2, -1)[1]))

    def _log_auxiliary(self, state: Tensor, gaussian: tuple[Tensor, Tensor]) -> Tensor:
        mean, log_scale = gaussian
        v = state.chunk(2, -1)[0]
        return log_normal((v - mean) * (-log_scale).exp()) - log_scale.sum(-1)


def gaussian_draws(base: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws ``(..., D)`` of a Gaussian from noise, and their log density ``(...,)``."""
    return base.loc + base.scale * noise, log_normal(noise) - base.scale.log().sum(-1)


def log_normal(x: Tensor) -> Tensor:
    """Log density of independent standard normals, ``(..., W) -> (...)``."""
    return -0.5 * x.square().sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]
