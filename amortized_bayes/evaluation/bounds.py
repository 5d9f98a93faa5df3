r"""Bounds on the log evidence, a data point at a time, in nats.

With shared latents theta and N training points (a Bayesian decoder):

.. math::
    \text{ELBO}_b &= E[\text{local}_b] + E[\text{shared}] / N \\
    \text{IWAE}_b &= E_\theta \log \tfrac1S \sum_s e^{\text{local}_{sb}} + E[\text{shared}] / N
    \quad \text{(Burda, Grosse \& Salakhutdinov, 2016)} \\
    \text{log predictive}_b &= \log E_{q(\theta)} p(x_b \mid \theta)
    \approx \log \tfrac{1}{TS} \sum_{ts} e^{\text{local}_{tsb}}

The first two are bounds on log p(x_1, ..., x_N) / N and serve training points. The third is for test
points; it is no ELBO and is not comparable with one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.evaluation.chunking import PointChunk, point_chunks
from amortized_bayes.evaluation.streaming import LogMeanExp, weight_blocks
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.joint import log_joint
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import LogWeights, log_weights, plate_frame, sample_sites

__all__ = ["Elbo", "Estimate", "elbo", "iwae", "log_predictive"]

MAX_ROWS = 20_000
"""Particles times points that are evaluated at once: memory stays near 1 GB for 784 pixels in float32."""
STREAM_ABOVE = 1_000
"""Particles above which IWAE takes them in blocks."""
POINTS_STREAMED = 200
"""Points at once then."""


class Estimate(NamedTuple):
    """A value per data point, ``(B,)``, in nats, and its Monte Carlo standard error, ``(B,)``."""

    value: Tensor
    standard_error: Tensor

    def mean(self) -> tuple[float, float]:
        """Mean over points, and its standard error over points."""
        return mean_over_points(self.value)


class Elbo(NamedTuple):
    """An ELBO and its terms, each per data point, ``(B,)``, in nats.

    Args:
        value: log likelihood - KL + shared / N.
        standard_error: Monte Carlo error of ``value``.
        log_likelihood: E log p(x|z, theta).
        kl: KL(q(z|x) || p(z)).
        shared: shared / N, the same for all points, ``()``: minus the KL of q(theta) a data point.
    """

    value: Tensor
    standard_error: Tensor
    log_likelihood: Tensor
    kl: Tensor
    shared: Tensor

    def mean(self) -> tuple[float, float]:
        """Mean over points, and its standard error over points."""
        return mean_over_points(self.value)


@torch.no_grad()
def elbo(
    model: Model,
    guide: Guide,
    *args: Any,
    num_draws: int = 20,
    plate: str = "data",
    num_data: int | None = None,
    analytic_kl: bool = True,
    local_reparametrization: bool = False,
    chunk_size: int = MAX_ROWS,
    **kwargs: Any,
) -> Elbo:
    """ELBO of each point, from ``num_draws`` draws of all latents.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program that samples every latent site of the model.
        args: arguments of both programs, the data first; tensors of as many rows are taken in chunks with them.
        num_draws: draws of local and shared latents.
        plate: name of the plate over data points.
        num_data: N, where the plate is sized by the batch.
        analytic_kl: see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        chunk_size: points at once.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> found = ab.elbo(model, guide, x, num_draws=200)
        >>> bool((found.value < model.log_evidence(x)).all())
        True
    """
    options = {"analytic_kl": analytic_kl, "local_reparametrization": local_reparametrization}
    parts: list[list[Tensor]] = []
    for chunk in point_chunks(args, kwargs, chunk_size, plate):
        draws = [
            chunk.weights(expected_log_weights, model, guide, num_data=num_data, **options) for _ in range(num_draws)
        ]
        likelihood = torch.stack([w.log_likelihood[0, 0] for w in draws])
        divergence = torch.stack([(w.log_q - w.log_prior)[0, 0] for w in draws])
        shared = torch.stack([w.shared[0] / w.num_data for w in draws])
        values = likelihood - divergence + shared[:, None]
        error = values.std(0) / math.sqrt(num_draws) if num_draws > 1 else torch.full_like(values[0], math.nan)
        means = [values.mean(0), error, likelihood.mean(0), divergence.mean(0)]
        parts.append([*means, shared.mean().expand_as(error)])  # a value per point: chunks differ in size
    value, error, likelihood, divergence, shared = (torch.cat(p) for p in zip(*parts, strict=True))
    return Elbo(value, error, likelihood, divergence, shared.mean())


@torch.no_grad()
def iwae(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: int = 100,
    num_shared: int = 1,
    plate: str = "data",
    num_data: int | None = None,
    max_rows: int = MAX_ROWS,
    **kwargs: Any,
) -> Estimate:
    """Importance-weighted bound of each point from S = ``num_particles``, averaged over T = ``num_shared`` draws.

    Arguments as :func:`elbo`; ``max_rows`` bounds particles times points at once. The error comes from the
    spread over T where T is above 1, else from the spread of the weights (delta method). More particles than 1,000 are
    taken in blocks whose sums are kept as logarithms, so that any number needs no more memory.

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`; above 1,000 particles also as
            :func:`~amortized_bayes.joint.log_joint`.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.iwae(model, guide, x, num_particles=50).value.shape
        torch.Size([4])
    """
    if num_particles > STREAM_ABOVE:
        chunks = point_chunks(args, kwargs, POINTS_STREAMED, plate)
        sizes = (num_particles, num_shared, num_data, max_rows)
        found = [_iwae_streamed(chunk, model, guide, *sizes) for chunk in chunks]
    else:
        options = {"num_particles": num_particles, "num_shared": num_shared, "num_data": num_data}
        chunks = point_chunks(args, kwargs, max_rows // num_particles, plate)
        found = [_iwae_of(chunk.weights(log_weights, model, guide, **options)) for chunk in chunks]
    return Estimate(*(torch.cat(part) for part in zip(*found, strict=True)))


@torch.no_grad()
def log_predictive(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: int = 16,
    num_shared: int = 8,
    plate: str = "data",
    max_rows: int = MAX_ROWS,
    **kwargs: Any,
) -> Estimate:
    """Log predictive density of each test point, ``log E_q(theta) p(x|theta)``, from T times S draws.

    A lower bound in expectation, tighter with more draws. Arguments as :func:`iwae`; the error is by the delta method
    over the T draws of theta (over all weights where T is 1).

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.log_predictive(model, guide, x, num_particles=50, num_shared=1).value.shape
        torch.Size([4])
    """
    options = {"num_particles": num_particles, "num_shared": num_shared, "num_data": None}
    chunks = point_chunks(args, kwargs, max_rows // num_particles, plate)
    found = [_predictive_of(chunk.weights(log_weights, model, guide, **options)) for chunk in chunks]
    return Estimate(*(torch.cat(part) for part in zip(*found, strict=True)))


def _iwae_streamed(
    chunk: PointChunk,
    model: Model,
    guide: Guide,
    num_particles: int,
    num_shared: int,
    num_data: int | None,
    max_rows: int,
) -> tuple[Tensor, Tensor]:
    """IWAE of some points, and its error, with particles in blocks for each draw of the shared latents."""
    bounds, error = [], torch.empty(0)
    for _ in range(num_shared):
        with chunk:
            sites = sample_sites(poutine.trace(guide).get_trace(*chunk.args, **chunk.kwargs))
        shared = [s for s in sites if plate_frame(s, chunk.plate) is None and not s["is_observed"]]
        theta = poutine.Trace()
        for site in shared:
            theta.add_node(site["name"], **site)
        one = chunk.weights(log_weights, model, poutine.replay(guide, trace=theta), num_data=num_data)
        fixed = {s["name"]: s["value"] for s in shared if not s["infer"].get("is_auxiliary")}
        with chunk:
            joint = log_joint(model, *chunk.args, plate=chunk.plate, fixed=fixed, **chunk.kwargs)
        mean = LogMeanExp()
        for block in weight_blocks(joint, guide, num_particles, max_rows):
            mean.add(block)
        bounds.append(mean.value + one.shared[0] / one.num_data)
        error = mean.standard_error
    total = torch.stack(bounds)
    return total.mean(0), total.std(0) / math.sqrt(num_shared) if num_shared > 1 else error


def _iwae_of(weights: LogWeights) -> tuple[Tensor, Tensor]:
    draws, particles, _ = weights.local.shape
    bound = weights.local.logsumexp(1) - math.log(particles)  # (T, B)
    total = bound + weights.shared[:, None] / weights.num_data
    if draws > 1:
        return total.mean(0), total.std(0) / math.sqrt(draws)
    return total[0], _delta_error(weights.local[0])


def _predictive_of(weights: LogWeights) -> tuple[Tensor, Tensor]:
    draws, particles, _ = weights.local.shape
    of_theta = weights.local.logsumexp(1) - math.log(particles)  # (T, B)
    value = of_theta.logsumexp(0) - math.log(draws)
    return value, _delta_error(of_theta if draws > 1 else weights.local[0])


def _delta_error(log_terms: Tensor) -> Tensor:
    """Standard error of a log-mean-exp over the first dimension: spread of the terms over their mean."""
    count = len(log_terms)
    if count < 2:
        return torch.full_like(log_terms[0], math.nan)
    relative = (log_terms - (log_terms.logsumexp(0) - math.log(count))).exp()
    return relative.std(0) / math.sqrt(count)
