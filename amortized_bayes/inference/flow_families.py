r"""Families of flows with parameters of each data point's own: where to look for q* beyond a factorized Gaussian.

A member draws :math:`\epsilon \sim N(0, I)`, moves it by bijections, and puts it in place by a location and a scale:

.. math::
    z = \mu + \sigma \circ f_T(\cdots f_1(\epsilon)), \qquad
    \log q(z) = \log N(\epsilon) - \sum_t \log |\det J_{f_t}| - \sum_d \log \sigma_d .

So the bijections work in units of the Gaussian that they start from, whatever the units of the latents. Planar flows
are those of Rezende & Mohamed (*Variational Inference with Normalizing Flows*, ICML 2015), affine couplings those of
Dinh, Sohl-Dickstein & Bengio (*Density Estimation Using Real NVP*, ICLR 2017). The auxiliary flow of Cremer, Li &
Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018) couples z with a vector v of the same size,

.. math::
    v_0 \sim q(v_0 | z_0), \qquad z_t = z_{t-1} \circ \sigma_1(v_{t-1}) + \mu_1(v_{t-1}), \qquad
    v_t = v_{t-1} \circ \sigma_2(z_t) + \mu_2(z_t),

and log q(z) is replaced by :math:`\log q(z_T, v_T) - \log r(v_T | z_T)`, whose mean is that of log q(z) and a KL
divergence more, so that the bound stays one. Every family starts at the Gaussian itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions.transforms.affine_coupling import AffineCoupling
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Generator, Tensor

from amortized_bayes.inference.flow_networks import (
    Parameters,
    affine,
    couple,
    init_couplings,
    init_network,
    log_affine,
    log_normal,
    make_couplings,
    uncouple,
)

__all__ = ["FAMILIES", "AuxiliaryFamily", "FamilyName", "FlowFamily", "GaussianFamily", "PlanarFamily", "RealNVPFamily"]

FamilyName = Literal["gaussian", "planar", "realnvp", "auxiliary"]

AUXILIARY_GAIN = 0.35
"""Share of z_0 in v_0 at the start, in scales of v."""


class FlowFamily(ABC):
    """Densities of z in R^D, one for each of B points, none of which shares a parameter with another.

    Args:
        num_flows: T, bijections; an affine one moves both halves of its vector in turn.
        hidden: width of the networks inside.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> import torch
        >>> from amortized_bayes.inference.flow_families import FAMILIES
        >>> family = FAMILIES["realnvp"](num_flows=1, hidden=8)
        >>> parameters = family.init(4, 3, torch.Generator().manual_seed(0))
        >>> loc, scale, noise = torch.zeros(4, 3), torch.ones(4, 3), torch.randn(7, 4, family.noise_dim(3))
        >>> z, log_q = family.sample(parameters, loc, scale, noise)
        >>> z.shape, log_q.shape
        (torch.Size([7, 4, 3]), torch.Size([7, 4]))
    """

    min_dim: ClassVar[int] = 1
    invertible: ClassVar[bool] = True

    def __init__(self, num_flows: int = 2, hidden: int = 32) -> None:
        if num_flows < 1 or hidden < 1:
            raise ValueError(f"expected num_flows and hidden of 1 or more, got {num_flows} and {hidden}")
        self.num_flows, self.hidden = num_flows, hidden

    def noise_dim(self, dim: int) -> int:
        """Standard normals that one draw takes; the first D are those of the Gaussian it starts from."""
        return dim

    def init(
        self, num_points: int, dim: int, generator: Generator, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Parameters by name, ``(B, ...)`` each, with which every member is the Gaussian.

        Raises:
            ValueError: too few latents for the family.
        """
        if dim < self.min_dim:
            raise ValueError(f"expected a latent size D of {self.min_dim} or more for this family, got {dim}")
        return self._init(dim, partial(_normal, num_points, generator, dtype))

    def sample(
        self, parameters: Parameters, loc: Tensor, scale: Tensor, noise: Tensor, *, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draws z ``(S, B, D)``, and log q of each or what stands for it, ``(S, B)`` in nats.

        Args:
            parameters: as from :meth:`init`.
            loc: mu, ``(B, D)``.
            scale: sigma, ``(B, D)``.
            noise: epsilon, ``(S, B, noise_dim(D))``.
            path: let the gradient of log q follow the draws alone. What is left out has mean zero and is most of the
                variance near an optimum (Roeder, Wu & Duvenaud, *Sticking the Landing*, NeurIPS 2017). The values are
                the same. Planar flows have no inverse to do it with, and keep the whole gradient.
        """
        # Points come first inside: one batched product of matrices is then one small product a point.
        state, log_q = self._move(parameters, noise.transpose(0, 1))
        loc, scale, dim = loc[:, None], scale[:, None], loc.shape[-1]
        z = loc + scale * state[..., :dim]
        if path and self.invertible:
            held = {name: value.detach() for name, value in parameters.items()}
            loc, scale = loc.detach(), scale.detach()
            log_q = self._log_density(held, torch.cat([(z - loc) / scale, state[..., dim:]], -1))
        log_q = log_q - scale.log().sum(-1) - self._log_reverse(parameters, state)
        return z.transpose(0, 1), log_q.transpose(0, 1)

    @abstractmethod
    def _init(self, dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Parameters from draws ``normal(*shape)`` of shape ``(B, *shape)``."""

    @abstractmethod
    def _move(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Moved noise, z in its first D entries, and its log density: ``(B, S, W)`` to ``(B, S, W)``, ``(B, S)``."""

    def _log_density(self, parameters: Parameters, state: Tensor) -> Tensor:
        """Log density of moved noise, by the way back, ``(B, S)``."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def _log_reverse(self, parameters: Parameters, state: Tensor) -> Tensor:
        """Log density of the part of ``state`` beyond z, given z, ``(B, S)``."""
        return state.new_zeros(())


class GaussianFamily(FlowFamily):
    """The factorized Gaussian alone, to compare with; ``num_flows`` and ``hidden`` do nothing."""

    def _init(self, dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        return {}

    def _move(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        return noise, log_normal(noise)

    def _log_density(self, parameters: Parameters, state: Tensor) -> Tensor:
        return log_normal(state)


class PlanarFamily(FlowFamily):
    """Planar flows z + u tanh(w·z + b); ``hidden`` does nothing."""

    invertible = False

    def _init(self, dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        found = {}
        for t in range(self.num_flows):
            w = normal(1, dim) / math.sqrt(dim)
            # Pyro moves u along w until u·w = softplus(u·w) - 1, to stay invertible. This u it moves to 0.
            u = math.log(math.e - 1) * w / w.square().sum(-1, keepdim=True)
            found |= {f"{t}.bias": normal(1, 1), f"{t}.u": u, f"{t}.w": w}
        return found

    def _move(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = noise, log_normal(noise)
        for t in range(self.num_flows):
            flow: Any = ConditionedPlanar([parameters[f"{t}.{name}"] for name in ("bias", "u", "w")])
            moved = flow(z)
            log_q = log_q - flow.log_abs_det_jacobian(z, moved)
            z = moved
        return z, log_q


class RealNVPFamily(FlowFamily):
    """Affine couplings of the two halves of z."""

    min_dim = 2

    def _init(self, dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        return init_couplings(self.num_flows, (dim - dim // 2, dim // 2), self.hidden, normal)

    def _move(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        state, log_det = couple(self._couplings(parameters, noise), noise)
        return state, log_normal(noise) - log_det

    def _log_density(self, parameters: Parameters, state: Tensor) -> Tensor:
        noise, log_det = uncouple(self._couplings(parameters, state), state)
        return log_normal(noise) - log_det

    def _couplings(self, parameters: Parameters, state: Tensor) -> list[AffineCoupling]:
        dim = state.shape[-1]
        return make_couplings(parameters, self.num_flows, (dim - dim // 2, dim // 2))


class AuxiliaryFamily(FlowFamily):
    """Affine couplings of z with an auxiliary v, and two networks of two hidden layers for q(v_0|z_0), r(v_T|z_T).

    At the start q and r are one and the same conditional density, by which v depends on z. Their terms cancel, so that
    the bound is that of the Gaussian. With v independent of z they would too, but at the best Gaussian each gradient
    would then be zero: v would tell nothing of z, and there would be no dependence for r to see.
    """

    def noise_dim(self, dim: int) -> int:
        """Standard normals of z_0 and of v_0."""
        return 2 * dim

    def _init(self, dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        q = init_network("q", [dim, self.hidden, self.hidden, 2 * dim], normal)
        q["q.2.weight"][..., :dim] = AUXILIARY_GAIN * normal(self.hidden, dim) / math.sqrt(self.hidden)
        r = {name.replace("q", "r", 1): value.clone() for name, value in q.items()}
        return q | r | init_couplings(self.num_flows, (dim, dim), self.hidden, normal)

    def _move(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, white = noise.chunk(2, -1)
        loc, log_scale = affine(parameters, "q", z)
        v = loc + log_scale.exp() * white
        moved, log_det = couple(self._couplings(parameters, noise), torch.cat([v, z], -1))
        return _swap(moved), log_normal(noise) - log_scale.sum(-1) - log_det

    def _log_density(self, parameters: Parameters, state: Tensor) -> Tensor:
        start, log_det = uncouple(self._couplings(parameters, state), _swap(state))
        v, z = start.chunk(2, -1)
        return log_normal(z) + log_affine(parameters, "q", z, v) - log_det

    def _couplings(self, parameters: Parameters, state: Tensor) -> list[AffineCoupling]:
        dim = state.shape[-1] // 2
        return make_couplings(parameters, self.num_flows, (dim, dim))

    def _log_reverse(self, parameters: Parameters, state: Tensor) -> Tensor:
        z, v = state.chunk(2, -1)
        return log_affine(parameters, "r", z, v)


FAMILIES: dict[FamilyName, type[FlowFamily]] = {
    "gaussian": GaussianFamily,
    "planar": PlanarFamily,
    "realnvp": RealNVPFamily,
    "auxiliary": AuxiliaryFamily,
}
"""The families by name."""


def _normal(num_points: int, generator: Generator, dtype: torch.dtype | None, *shape: int) -> Tensor:
    return torch.randn(num_points, *shape, generator=generator, dtype=dtype, device=generator.device)


def _swap(pair: Tensor) -> Tensor:
    """The two halves of a vector in the other order."""
    return pair.roll(pair.shape[-1] // 2, -1)
