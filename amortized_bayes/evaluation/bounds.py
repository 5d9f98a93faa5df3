r"""Bounds on the log evidence, a data point at a time, in nats.

With shared latents theta and N training points (a Bayesian decoder):

.. math::
    \text{ELBO}_b &= E[\text{local}_b] + E[\text{shared}] / N \\
    \text{IWAE}_b &= E_\theta \log \tfrac1S \sum_s e^{\text{local}_{sb}} + E[\text{shared}] / N
    \quad \text{(Burda, Grosse \& Salakhutdinov, 2016)} \\
    \text{log predictive}_b &= \log E_{q(\theta)} p(x_b \mid \theta)
    \approx \log \tfrac{1}{TS} \sum_{ts} e^{\text{local}_{tsb}}

The first two are bounds on log p(x_1, ..., x_N) / N and serve training points. The third is for test
points; it is no ELBO and is not comparable with one. All points share the T draws of theta, here as in reality, so that
the mean over points has an error from them that does not fall with the number of points: ``shared_error``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import Entered, enter
from amortized_bayes.evaluation.chunking import PointChunk, SharedDraw, check_reach_of, point_chunks
from amortized_bayes.evaluation.psis import MIN_DRAWS, khat_threshold, psis_khat
from amortized_bayes.evaluation.streaming import ROWS_AT_ONCE, LogMeanExp, blocks, streamed_mean
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.joint.auxiliary import check_auxiliary
from amortized_bayes.joint.checks import check_guide, check_masses, check_outside, check_terms
from amortized_bayes.limits import Count, Natural, limited
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.signatures import own_options
from amortized_bayes.traces import trace_pair
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import draw_weights

__all__ = ["MAX_ROWS", "SHARED_DRAWS", "Elbo", "Estimate", "elbo", "iwae", "log_predictive"]

MAX_ROWS = 20_000
"""Particles times points that are evaluated at once: memory stays near 1 GB for 784 pixels in float32."""
STREAM_ABOVE = 1_000
"""Particles above which IWAE takes them in blocks."""
POINTS_STREAMED = 200
"""Points at once then."""
SHARED_DRAWS = 8
"""Draws of shared latents, where there are any."""


class Estimate(NamedTuple):
    """A value per data point and how sure it is, in nats.

    Args:
        value: ``(B,)``.
        standard_error: Monte Carlo error of each point's value, ``(B,)``.
        shared_error: the part of the Monte Carlo error of the mean over points that all points have in common, since
            they share the draws of theta; 0 without shared latents, nan with one draw of them.
    """

    value: Tensor
    standard_error: Tensor
    shared_error: float = 0.0

    def mean(self) -> tuple[float, float]:
        """Mean over points, and its standard error, over points and over draws of theta."""
        return mean_over_points(self)


class Elbo(NamedTuple):
    """An ELBO and its terms, each per data point, ``(B,)``, in nats.

    Args:
        value: log likelihood - KL + shared / N.
        standard_error: Monte Carlo error of ``value``.
        log_likelihood: E log p(x|z, theta).
        kl: KL(q(z|x) || p(z)).
        shared: shared / N, the same for all points, ``()``: minus the KL of q(theta) a data point.
        shared_error: as that of :class:`Estimate`; 0 with local reparametrization too, where each point draws its own.
    """

    value: Tensor
    standard_error: Tensor
    log_likelihood: Tensor
    kl: Tensor
    shared: Tensor
    shared_error: float = 0.0

    def mean(self) -> tuple[float, float]:
        """Mean over points, and its standard error, over points and over draws of theta."""
        return mean_over_points(self)


@own_options
@limited
@torch.no_grad()
def elbo(
    model: Model,
    guide: Guide,
    *args: Any,
    num_draws: Count = 20,
    plate: str | None = None,
    per_point: PerPointNames = None,
    num_data: Natural | None = None,
    analytic_kl: bool = True,
    local_reparametrization: bool = False,
    chunk_size: Count = MAX_ROWS,
    **kwargs: Any,
) -> Elbo:
    """ELBO of each point, from ``num_draws`` draws of all latents.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program that samples every latent site of the model.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take.
        num_draws: draws of local and shared latents.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        num_data: N, where the plate is sized by the batch.
        analytic_kl: see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        chunk_size: points at once.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`; scaled sites, and a guide with all mass at a point.

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
    entered = enter(elbo, model, guide, args, kwargs, plate=plate, per_point=per_point, whole=True)
    options = {"analytic_kl": analytic_kl, "local_reparametrization": local_reparametrization, "num_data": num_data}

    def evaluate(chunk: PointChunk) -> tuple[Tensor, ...]:
        found = chunk.weights(expected_log_weights, entered.model, entered.guide, **options)
        kl = (found.log_q - found.log_prior)[0, 0]
        return found.log_likelihood[0, 0], kl, (found.shared / found.num_data).expand_as(kl)

    chunks = _chunks(entered, chunk_size, apart=False)
    _check_weights(chunks[0], entered.model, entered.guide, apart=len(chunks) > 1)
    draws = list(_draws(chunks, num_draws, evaluate))
    likelihood, kl, shared = (torch.stack([found[i] for _, found in draws]) for i in range(3))
    of_draws = likelihood - kl + shared
    value, error, shared_error = _over_draws(of_draws, bool(draws[0][0].values))
    return Elbo(value, error, likelihood.mean(0), kl.mean(0), shared.mean(), shared_error)


@own_options
@limited
@torch.no_grad()
def iwae(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: Count = 100,
    num_shared: Count | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    num_data: Natural | None = None,
    max_rows: Count = MAX_ROWS,
    **kwargs: Any,
) -> Estimate:
    """Importance-weighted bound of each point from S = ``num_particles``, averaged over T = ``num_shared`` draws.

    Arguments as :func:`elbo`; ``num_shared`` is 8 where latents are shared, else 1, and ``max_rows`` bounds particles
    times points at once. The error comes from the spread over T where T is above 1, else from the spread of the weights
    (delta method), and is nan where the k̂ of 25 particles or more is above its threshold, since it does not hold there;
    with one draw of shared latents it is unknown, nan. The KL of theta is in closed form where that of
    the ELBO is. More particles than 1,000 are taken in blocks whose sums are kept as logarithms, so that any number
    needs no more memory.

    Raises:
        ValueError: as :func:`elbo`; a guide with bounds within the posterior.

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
    entered = enter(iwae, model, guide, args, kwargs, plate=plate, per_point=per_point, whole=True)
    model, guide = entered.model, entered.guide
    streamed = num_particles > STREAM_ABOVE
    chunks = _chunks(entered, POINTS_STREAMED if streamed else max_rows // num_particles)

    def evaluate(chunk: PointChunk) -> tuple[Tensor, Tensor]:
        if streamed:
            return streamed_mean(chunk, model, guide, num_particles, max_rows)
        weights = chunk.weights(draw_weights, model, guide, num_particles=num_particles).local[0]
        value, error = _log_mean_exp(weights)
        if num_particles < MIN_DRAWS:
            return value, error
        return value, error.where(psis_khat(weights.T) <= khat_threshold(num_particles), math.nan)

    _check_weights(chunks[0], model, guide)
    check_reach_of(chunks, model, guide)

    def share() -> Tensor:
        found = chunks[0].weights(expected_log_weights, model, guide, num_data=num_data)
        return found.shared / found.num_data

    bounds, errors, drawn = [], [], False
    for theta, (bound, error) in _draws(chunks, num_shared, evaluate):
        drawn = bool(theta.values)
        if drawn:
            with theta:
                bound = bound + share()
        bounds.append(bound)
        errors.append(error)
    total = torch.stack(bounds) + (0 if drawn else share())  # sites outside the plate may be observed
    value, error, shared_error = _over_draws(total, drawn)
    return Estimate(value, error if drawn or len(bounds) > 1 else errors[0], shared_error)


@own_options
@limited
@torch.no_grad()
def log_predictive(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: Count = 16,
    num_shared: Count = 32,
    plate: str | None = None,
    per_point: PerPointNames = None,
    local_reparametrization: bool = False,
    max_rows: Count = MAX_ROWS,
    **kwargs: Any,
) -> Estimate:
    """Log predictive density of each test point, ``log E_q(theta) p(x|theta)``, from T times S draws.

    A lower bound in expectation, tighter with more draws. The error is by the delta method over T draws of theta; with
    one draw it is unknown, nan, unless no latents are shared.

    How far the value lies below the density falls with the quality of q(z), so that guides are comparable where their
    q(z) are alike: fresh factors for both. From the default of 16 x 32 draws, 512 decoder evaluations per point, their
    difference was then within 0.1 nats of that from 100 x 64 (MNIST, D = 16), while it moved by 0.6 with an encoder's
    q(z) against fresh factors.

    Args:
        model: as of :func:`elbo`.
        guide: as of :func:`elbo`.
        args: as of :func:`elbo`.
        num_particles: S.
        num_shared: T.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        local_reparametrization: give each of the T S draws, of each point, weights of its own without drawing them. For
            the same number of draws the value is higher, by 0.7 nats in the case above, and points share no noise; an
            evaluation costs two matrix products. See :func:`~amortized_bayes.expectations.expected_log_weights`.
        max_rows: particles times points at once.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`elbo`; a guide with bounds within the posterior.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.log_predictive(model, guide, x, num_particles=50).value.shape
        torch.Size([4])
    """
    entered = enter(log_predictive, model, guide, args, kwargs, plate=plate, per_point=per_point, whole=True)
    model, guide = entered.model, entered.guide

    def evaluate(chunk: PointChunk) -> tuple[Tensor, Tensor]:
        if not local_reparametrization:
            return _log_mean_exp(chunk.weights(draw_weights, model, guide, num_particles=num_particles).local[0])
        mean = LogMeanExp()
        options = {"analytic_kl": False, "local_reparametrization": True}  # weights, and no expectations
        most = min(max_rows, ROWS_AT_ONCE) // len(chunk.places) if chunk.places else 1
        for times in blocks(num_particles * num_shared, most):
            found = chunk.repeated(times).weights(expected_log_weights, model, guide, **options)
            mean.add(found.local.reshape(times, -1))
        return mean.value, mean.standard_error

    chunks = _chunks(entered, max_rows // num_particles)
    _check_weights(chunks[0], model, guide, bound=False)
    check_reach_of(chunks, model, guide)
    draws = list(_draws(chunks, 1 if local_reparametrization else num_shared, evaluate))
    of_theta = torch.stack([found for _, (found, _) in draws])  # (T, B)
    value, error = _log_mean_exp(of_theta)
    relative = (of_theta - value).exp()  # how each draw moves the value, to first order
    shared_error = _over_draws(relative, bool(draws[0][0].values))[2]
    alone = len(draws) == 1 and not draws[0][0].values
    return Estimate(value, draws[0][1][1] if alone else error, shared_error)


def _chunks(entered: Entered, size: int, *, apart: bool = True) -> list[PointChunk]:
    chunks = list(point_chunks(entered.args, entered.kwargs, size, entered.plate))
    entered.check_estimates(apart=apart or len(chunks) > 1)
    return chunks


def _draws(
    chunks: list[PointChunk],
    num_draws: int | None,
    evaluate: Callable[[PointChunk], tuple[Tensor, ...]],
) -> Iterator[tuple[SharedDraw, list[Tensor]]]:
    """Yield draws of the latents, with what was evaluated of all points, ``(B,)`` each.

    All chunks of a draw share the latents outside the plate. ``None`` draws are 8 where there are such, else 1.
    """
    count = 0
    while True:
        theta, parts = SharedDraw(chunks[0].plate), []
        for chunk in chunks:
            with theta:
                parts.append(evaluate(chunk))
        yield theta, [torch.cat(part) for part in zip(*parts, strict=True)]
        count += 1
        if count >= (num_draws or (SHARED_DRAWS if theta.values else 1)):
            return


def _over_draws(values: Tensor, drawn: bool) -> tuple[Tensor, Tensor, float]:
    r"""Mean over draws of values ``(T, B)``, its error, and the error that all points share where theta was drawn.

    With random effects of points, of draws and of both, :math:`v_{tb} = \mu + \pi_b + \alpha_t + \epsilon_{tb}`, the
    variance of the grand mean is :math:`\sigma_\pi^2/B + \sigma_\alpha^2/T + \sigma_\epsilon^2/(TB)`. The spread over
    points of the means over draws, :math:`\sigma_\pi^2 + \sigma_\epsilon^2/T`, covers the first and the last. What is
    left, :math:`\sigma_\alpha^2/T`, is estimated without bias from the spread of the means over points, less that part
    of it which is :math:`\epsilon`'s, and is 0 where that comes out negative (Searle, Casella & McCulloch, 1992).
    """
    draws, points = values.shape
    mean = values.mean(0)
    error = values.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(mean, math.nan)
    if not drawn or points < 2:  # of one point the error over points is unknown anyway
        return mean, error, 0.0
    if draws < 2:
        return mean, error, math.nan
    exact = values.double()
    of_draws = exact.mean(1)
    rest = exact - exact.mean(0) - of_draws[:, None] + exact.mean()
    own = rest.square().sum() / ((draws - 1) * (points - 1))
    return mean, error, math.sqrt(max(0.0, (of_draws.var() - own / points).item() / draws))


def _check_weights(chunk: PointChunk, model: Model, guide: Guide, *, bound: bool = True, apart: bool = True) -> None:
    """Refuse programs whose weights have no bound on log p(x) in them; the generator is left as it was.

    Shared latents may be one point where no ``bound`` on all data is asked for. ``apart``: points are not all in one.
    """
    with chunk, torch.random.fork_rng():
        traces = trace_pair(model, guide, chunk.args, chunk.kwargs, chunk.plate)
        if apart:
            check_outside(model, traces.model, chunk.args, chunk.kwargs, chunk.plate)
        check_terms(traces.model, chunk.plate)
        check_guide(traces, guide, chunk.args, chunk.kwargs)
    if bound:
        check_auxiliary(traces, inside=False)
        check_masses(traces, traces.shared_sites(traces.guide))


def _log_mean_exp(log_terms: Tensor) -> tuple[Tensor, Tensor]:
    """Log-mean-exp over the first dimension, and its standard error: spread of the terms over their mean."""
    count = len(log_terms)
    value = log_terms.logsumexp(0) - math.log(count)
    if count < 2:
        return value, torch.full_like(value, math.nan)
    return value, (log_terms - value).exp().std(0) / math.sqrt(count)
