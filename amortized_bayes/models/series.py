r"""Models of which it is known what f must see for A-VI to reach the optimum of F-VI (Margossian & Blei, UAI 2024).

========================  =====================================================================  =====================
model                     density                                                                f must see
========================  =====================================================================  =====================
:class:`Linear`           z_n ~ N(0, 1), x_n ~ N(theta + tau z_n, sigma^2)                        x_n, and is linear
:class:`Nonlinear`        z_n ~ N(0, 1), x_n ~ N(theta + z_n sin z_n + z_n, exp(cos z_n)^2)       x_n
:class:`TwoLevels`        eta_n ~ N(mu, 1), z_nj ~ N(eta_n, 1), x_nj ~ N(z_nj, 1)                 x_n1, ..., x_nJ
:class:`Saw`              z_n ~ N(x_n, 1), x_(n+1) ~ N(a (z_n + theta), 1)                        x_n and x_(n+1)
:class:`RandomWalk`       z_n ~ N(z_(n-1), 1), x_n ~ N(z_n, 1)                                    the whole series
:class:`GaussianProcess`  z ~ GP(0, k) at 1, ..., N, x_n ~ N(z_n, s^2)                            the whole series
========================  =====================================================================  =====================

Theta and mu have priors N(0, 10^2), where the paper's are flat. Settings are those of its code; the nonlinear density
has its term -log sigma(z), which is missing there, and the saw series is drawn from its model. All but the nonlinear
one are jointly Gaussian: :meth:`SeriesModel.exact` gives posterior, evidence and the optimum of F-VI; of that one
:meth:`SeriesModel.truth` gives ELBO and optimum by quadrature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortized_bayes.limits import Natural, NotNegative, Positive, Seed, limited
from amortized_bayes.models.gaussian_joint import GaussianJoint, gaussian_joint
from amortized_bayes.models.independent_joint import IndependentJoint
from amortized_bayes.models.walk import Walk
from amortized_bayes.seeding import torch_generator

__all__ = [
    "SERIES",
    "GaussianProcess",
    "Linear",
    "Nonlinear",
    "RandomWalk",
    "Saw",
    "SeriesModel",
    "TwoLevels",
]

PRIOR_SCALE = 10.0
"""Of theta and mu."""


class SeriesModel(ABC):
    """A Pyro program over the plate ``data`` of N points, called with their data; and what is known of it.

    Example:
        >>> from amortized_bayes.models import RandomWalk
        >>> walk = RandomWalk()
        >>> exact = walk.exact(torch.ones(50, dtype=torch.float64))
        >>> [round(mean, 2) for mean in exact.best().mean[:3].tolist()]
        [0.62, 0.85, 0.94]
    """

    local: ClassVar[tuple[str, ...]] = ("z",)
    """Sites of points, with the points along dimension 0."""
    bandwidth: int | None = 0
    """How far apart local latents may be that are tied by the density, ``None`` where all are."""

    @abstractmethod
    def __call__(self, x: Tensor) -> None:
        """Sample the latents, and score the data."""

    @abstractmethod
    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw data of N points, in float64."""

    def exact(self, x: Tensor) -> GaussianJoint:
        """Exact posterior, evidence and optimum of F-VI, of float64 data.

        Raises:
            ValueError: a model that is not jointly Gaussian, or data of another type or not finite.
        """
        return gaussian_joint(self, _finite(x), local=self.local, bandwidth=self.bandwidth)

    def truth(self, x: Tensor) -> GaussianJoint | IndependentJoint:
        """What is known of the model at float64 data: its exact form, or quadrature where it has none.

        Raises:
            ValueError: data of another type or not finite.
        """
        return self.exact(x)

    def draws(self, seed: int, *shape: int) -> Tensor:
        """Standard normal draws in float64, the same for a seed."""
        generator = torch_generator(seed, "series", type(self).__name__)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def _finite(x: Tensor) -> Tensor:
    if x.dtype != torch.float64 or not x.isfinite().all():
        raise ValueError(f"expected finite data in float64, got {x.dtype}, {int((~x.isfinite()).sum())} not finite")
    return x


def _normal(loc: Tensor, scale: float | Tensor = 1.0) -> dist.Normal:
    return dist.Normal(loc, loc.new_full((), scale) if isinstance(scale, float) else scale)


@limited
@dataclass(frozen=True)
class Linear(SeriesModel):
    """Data x (N,).

    Args:
        tau: slope of the mean.
        sigma: scale of the data.
        theta: what data are drawn with.
    """

    tau: float = 1.155
    sigma: Positive = 2.43
    theta: float = 0.0

    def __call__(self, x: Tensor) -> None:
        """Sample ``theta`` and ``z`` (N,), and score ``x`` (N,)."""
        theta = pyro.sample("theta", _normal(x.new_zeros(()), PRIOR_SCALE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", _normal(x.new_zeros(())))
            pyro.sample("x", _normal(theta + self.tau * z, self.sigma), obs=x)

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N,)."""
        z, rest = self.draws(seed, 2, num_data)
        return self.theta + self.tau * z + self.sigma * rest


@limited
@dataclass(frozen=True)
class Nonlinear(SeriesModel):
    """Data x (N,).

    Args:
        theta: what data are drawn with.
    """

    theta: float = 0.0

    def __call__(self, x: Tensor) -> None:
        """Sample ``theta`` and ``z`` (N,), and score ``x`` (N,)."""
        theta = pyro.sample("theta", _normal(x.new_zeros(()), PRIOR_SCALE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", _normal(x.new_zeros(())))
            pyro.sample("x", _normal(theta + z * z.sin() + z, z.cos().exp()), obs=x)

    def truth(self, x: Tensor) -> IndependentJoint:
        """ELBO by quadrature, and the optimum of F-VI that it gives."""
        return IndependentJoint(self, _finite(x))

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N,)."""
        z, rest = self.draws(seed, 2, num_data)
        return self.theta + z * z.sin() + z + z.cos().exp() * rest


@limited
@dataclass(frozen=True)
class TwoLevels(SeriesModel):
    """Data x (N, J): a point is a group of J members.

    Args:
        members: J.
        mu: what data are drawn with.
    """

    members: Natural = 5
    mu: float = 1.0

    local = ("eta", "z")

    @property
    def bandwidth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """From eta_n to the last z of its group."""
        return self.members

    def __call__(self, x: Tensor) -> None:
        """Sample ``mu``, ``eta`` (N, 1) and ``z`` (N, J), and score ``x`` (N, J)."""
        mu = pyro.sample("mu", _normal(x.new_zeros(()), PRIOR_SCALE))
        with pyro.plate("data", len(x), dim=-2):
            eta = pyro.sample("eta", _normal(mu))
            with pyro.plate("members", self.members, dim=-1):
                z = pyro.sample("z", _normal(eta))
                pyro.sample("x", _normal(z), obs=x)

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N, J)."""
        draws = self.draws(seed, num_data, 1 + 2 * self.members)
        return self.mu + draws[:, :1] + draws[:, 1 : 1 + self.members] + draws[:, 1 + self.members :]


@limited
@dataclass(frozen=True)
class Saw(SeriesModel):
    """Data x (N + 1,), x_1 = 0 where they are drawn.

    Args:
        a: what is kept of z_n + theta.
        theta: what data are drawn with.
    """

    a: float = 0.75
    theta: float = 3.4159

    def __call__(self, x: Tensor) -> None:
        """Sample ``theta`` and ``z`` (N,), and score ``x`` (N,), the rows of x after the first."""
        theta = pyro.sample("theta", _normal(x.new_zeros(()), PRIOR_SCALE))
        with pyro.plate("data", len(x) - 1):
            z = pyro.sample("z", _normal(x[:-1]))
            pyro.sample("x", _normal(self.a * (z + theta)), obs=x[1:])

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N + 1,)."""
        x = [torch.zeros(()).double()]
        for drawn, rest in self.draws(seed, num_data, 2):
            x.append(self.a * (x[-1] + drawn + self.theta) + rest)
        return torch.stack(x)


@limited
@dataclass(frozen=True)
class RandomWalk(SeriesModel):
    """A hidden Markov model: a walk that starts at 0, seen with unit variance. Data x (N,)."""

    bandwidth = 1

    def __call__(self, x: Tensor) -> None:
        """Sample ``z`` (N,), all of it in one site, and score ``x`` (N,)."""
        z = pyro.sample("z", Walk(x.new_zeros(len(x))))
        with pyro.plate("data", len(x)):
            pyro.sample("x", _normal(z), obs=x)

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N,)."""
        steps, rest = self.draws(seed, 2, num_data)
        return steps.cumsum(0) + rest


@limited
@dataclass(frozen=True)
class GaussianProcess(SeriesModel):
    """One latent per point at times 1, ..., N, of a squared exponential kernel of variance 1. Data x (N,).

    Args:
        length: length of the kernel.
        nugget: variance of z_n that it shares with no other point, part of the kernel.
        scale: s, of the data.
    """

    length: Positive = 2.0
    nugget: NotNegative = 0.01
    scale: Positive = 1.0

    bandwidth = None

    def kernel(self, num_data: int) -> Tensor:
        """Covariance of z, (N, N)."""
        times = torch.arange(num_data, dtype=torch.float64)
        near = torch.exp(-0.5 * ((times[:, None] - times) / self.length) ** 2)
        return near + self.nugget * torch.eye(num_data, dtype=torch.float64)

    def __call__(self, x: Tensor) -> None:
        """Sample ``z`` (N,), all of it in one site, and score ``x`` (N,)."""
        z = pyro.sample("z", dist.MultivariateNormal(x.new_zeros(len(x)), self.kernel(len(x)).to(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", _normal(z, self.scale), obs=x)

    def simulate(self, num_data: Natural, seed: Seed) -> Tensor:
        """Draw x, (N,)."""
        latent, rest = self.draws(seed, 2, num_data)
        return torch.linalg.cholesky(self.kernel(num_data)) @ latent + self.scale * rest


SERIES: Mapping[str, type[SeriesModel]] = {
    "linear": Linear,
    "nonlinear": Nonlinear,
    "two-levels": TwoLevels,
    "saw": Saw,
    "random-walk": RandomWalk,
    "gaussian-process": GaussianProcess,
}
"""By the names that commands give them."""
