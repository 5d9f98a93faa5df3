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
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.guides.easyguides import forget_plates
from amortized_bayes.limits import Count, Natural, limited
from amortized_bayes.shared_draw import SharedDraw
from amortized_bayes.signatures import own_options
from amortized_bayes.tiling import Tiling
from amortized_bayes.traces import PairedTraces, trace_pair
from amortized_bayes.types import Guide, Model

__all__ = ["LogWeights", "draw_weights", "log_weights", "score_pair"]

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


@own_options
@limited
def log_weights(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: Count = 1,
    num_shared: Count = 1,
    plate: str | None = None,
    per_point: PerPointNames = None,
    num_data: Natural | None = None,
    **kwargs: Any,
) -> LogWeights:
    """Draw from the guide, score under model and guide, and return the parts of the log weights.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program that samples every latent site of the model, but discrete ones that the model marks
            ``infer={"enumerate": "parallel"}``: those are summed out. Sites marked ``is_auxiliary`` and factors count
            towards ``log_q``; densities of data that it observes do not.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take.
        num_particles: S, draws of the local latents for each shared draw.
        num_shared: T, draws of the shared latents.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        num_data: N, where the plate is sized by the batch and not by the whole data set.
        kwargs: keyword arguments of both programs.

    Returns:
        Parts of shape (T, S, B) and (T,), in nats.

    Raises:
        TypeError: arguments that model or guide do not take, such as an option that is misspelt.
        ValueError: no such plate or several, a sequential plate, a guide that misses a latent site or its plate, or a
            site marked for enumeration that cannot be enumerated for each point on its own.

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
    entered = enter(log_weights, model, guide, args, kwargs, plate=plate, per_point=per_point, whole=True)
    counts = {"num_particles": num_particles, "num_shared": num_shared, "num_data": num_data}
    return draw_weights(entered.model, entered.guide, *entered.args, plate=entered.plate, **counts, **entered.kwargs)


def draw_weights(
    model: Model,
    guide: Guide,
    *args: Any,
    num_particles: int = 1,
    num_shared: int = 1,
    plate: str = "data",
    num_data: int | None = None,
    **kwargs: Any,
) -> LogWeights:
    """:func:`log_weights` of programs whose data are the tensors with as many rows as the plate has points."""
    if num_particles < 1 or num_shared < 1:
        raise ValueError(f"expected num_particles and num_shared of 1 or more, got {num_particles} and {num_shared}")
    tiling = Tiling.of(guide, model, args, kwargs, num_particles, plate) if num_particles > 1 else None

    def tiled() -> LogWeights:
        """One draw of the shared latents, with the data repeated S times."""
        assert tiling is not None
        with tiling:
            found = score_pair(trace_pair(model, guide, *tiling.tile(args, kwargs), plate), num_particles)
        return found._replace(num_data=tiling.full_size)

    def in_turn() -> LogWeights:
        """The same from S runs that share one draw of the latents outside the plate."""
        with SharedDraw(plate):
            runs = [score_pair(trace_pair(model, guide, args, kwargs, plate), 1) for _ in range(num_particles)]
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


def score_pair(traces: PairedTraces, num_particles: int = 1) -> LogWeights:
    """Parts of the log weights of one pair of traces, local ones (S, B) and shared ones ()."""
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
