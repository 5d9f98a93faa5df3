r"""Annealed importance sampling: a lower bound on log p(x) of each point, by Hamiltonian chains.

C chains a point walk from a start density f_0 to the joint f_1 = p(x, z) along the geometric path
:math:`f_\beta = f_0^{1-\beta} f_1^\beta` and gather

.. math::
    \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log \frac{f_1(z_{t-1})}{f_0(z_{t-1})}, \qquad
    \mathbb{E}[w] = p(x), \qquad \log \tfrac1C \sum_c w_c \;\text{is on average at most}\; \log p(x)

(Neal, *Annealed importance sampling*, 2001). f_0 is the prior, or a Gaussian made from the guide's q and widened: with
an encoder as guide, an amortized proposal for each point, whose q also gives the chains their masses.
Temperatures, and a step size for each temperature and point, are tuned on pilot chains, frozen, and then used by other
chains: a step that follows the chain's own history would break the identity above. Walked backwards from exact
posterior draws under the same settings, the same weights bound log p(x) from above: see
:mod:`amortized_bayes.evaluation.bdmc`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.evaluation.annealing import Ticker, chunks
from amortized_bayes.evaluation.hmc import anneal
from amortized_bayes.evaluation.psis import ess
from amortized_bayes.evaluation.settings import AISSettings, Progress
from amortized_bayes.joint import Start, found_start, joint_density
from amortized_bayes.limits import Seed, limited
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Model

__all__ = ["AISResult", "AISSettings", "ais", "mean_and_error"]


class AISResult(NamedTuple):
    """AIS of B points, in nats.

    Args:
        log_p: lower bound on log p(x) (on average), ``(B,)``.
        standard_error: standard error of ``log_p``, by the jackknife over chains, ``(B,)``.
        acceptance: mean acceptance of the transitions, ``(B,)``.
        ess: effective number of chains, ``(B,)``.
        log_weights: ``(C, B)``, float64.
        num_gradients: gradients per chain, those of the pilot chains among them.
        divergences: transitions in which a chain's energy diverged; it then stayed where it was. ``(B,)``.
    """

    log_p: Tensor
    standard_error: Tensor
    acceptance: Tensor
    ess: Tensor
    log_weights: Tensor
    num_gradients: int
    divergences: Tensor


@own_options
@limited
def ais(
    model: Model,
    guide: Start,
    *args: Any,
    settings: AISSettings | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
    **kwargs: Any,
) -> AISResult:
    """Bound log p(x) of each point from below, given the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program for its latents, or your own Gaussians on the unconstrained space, as ``q`` of
            :func:`amortized_bayes.inference.optimize.optimize_local`; may be ``None`` where both start and mass do
            without it.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take.
        settings: settings of the chains.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate (a Bayesian decoder's weights), held as they are.
        seed: random seed for all draws; torch's global generator is left as it was.
        progress: called with transitions done and transitions in all.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, or a guide that does not fit.
        Divergence: chains stopped being numbers, or all diverged in 100 transitions on end.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> settings = ab.AISSettings(num_chains=4, num_temperatures=10, num_pilot=4)
        >>> ab.ais(model, guide, x, settings=settings).log_p.shape
        torch.Size([4])
    """
    settings = settings or AISSettings()
    entered = enter(ais, model, guide, args, kwargs, plate=plate, per_point=per_point)
    joint = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, bits=True, **entered.kwargs)
    tick = Ticker(progress, settings, walks=1)
    walks = []
    for chunk in chunks(joint, found_start(joint, entered.guide), settings, seed, tick):
        state = chunk.draw_start(settings.num_chains)
        walks.append(chunk.keep(anneal(chunk.density, state, chunk.ladder, chunk.generator, tick=tick)))
    log_weights, acceptance, divergences = (torch.cat(part, -1) for part in zip(*walks, strict=True))
    log_p, error = mean_and_error(log_weights)
    return AISResult(log_p, error, acceptance, ess(log_weights.T), log_weights, settings.num_gradients, divergences)


def mean_and_error(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean weight, and its standard error by the jackknife: ``(C, B)`` in nats to ``(B,)`` twice."""
    num = len(log_weights)
    total = log_weights.logsumexp(0)
    # log of the sum without chain c; where c holds all of the weight the error is infinite.
    share = (log_weights - total).nan_to_num(nan=-math.log(num)).clamp(max=0)
    left_out = torch.log1p(-share.exp()) + math.log(num / (num - 1))
    error = ((num - 1) * (left_out - left_out.mean(0)).square().mean(0)).sqrt()
    return total - math.log(num), error.nan_to_num(nan=math.inf)
