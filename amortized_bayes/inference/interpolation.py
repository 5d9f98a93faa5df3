r"""The amortization interpolation problem: how well some f(x_n) meets the optimum of F-VI, found by regression.

A-VI can do what F-VI does where one f gives every point its optimum, f(x_n) = nu*_n (Margossian & Blei, UAI 2024). So
the family gap has a forecast that needs no training of A-VI: fit f to the nu*_n, and say what its answers lose.

With q*_n = N(m*_n, diag v*_n), a point's residual is

.. math:: \mathrm{KL}(q_f \,\|\, q^*_n)
   = \tfrac12 \sum_d \Big( \frac{v_{nd}}{v^*_{nd}} - 1 - \log \frac{v_{nd}}{v^*_{nd}}
   + \frac{(m_{nd} - m^*_{nd})^2}{v^*_{nd}} \Big) .

Of a jointly Gaussian model 1/v* is the diagonal of the precision matrix, and the residuals add up to the ELBO that is
lost where it has no other entries, neither between the latents of points nor within one, and where latents that points
share are held. Elsewhere
:meth:`GaussianJoint.answer <amortized_bayes.models.GaussianJoint.answer>` gives the exact loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from amortized_bayes.divergence import Divergence
from amortized_bayes.limits import AtLeast, Count, Positive, Seed, limited
from amortized_bayes.networks import MLP
from amortized_bayes.seeding import torch_seed

__all__ = ["Interpolation", "interpolate", "standardized", "window_inputs"]

POLISH = 300
"""Iterations of L-BFGS after the steps of Adam, each of all points."""
BEGINNINGS = 10
"""Times that these are begun at most."""
FURTHER = 1e-3
"""Of the mean residual, and nats, by which steps may end above their start: where that is the best f, they hover."""


class Interpolation(NamedTuple):
    """What an f gives that was fitted to the optimum of F-VI.

    Args:
        answers: means and log scales, (N, 2 D).
        residual: KL(q_f || q*_n) of each point in nats, (N,).
    """

    answers: Tensor
    residual: Tensor


@limited
def interpolate(
    inputs: Tensor,
    best: Tensor,
    *,
    width: Annotated[int, AtLeast(0)],
    num_steps: Count = 2000,
    learning_rate: Positive = 0.02,
    seed: Seed = 0,
) -> Interpolation:
    """Fit f, from inputs to the optimum of F-VI, by its total residual.

    Args:
        inputs: what f sees of each point, (N, K); columns are standardized.
        best: means and log scales of the optimum of F-VI, (N, 2 D).
        width: k, hidden units of f, in one layer; 0 for an f that is linear.
        num_steps: number of steps of Adam, at a rate that falls to 0, of all points at once; none for a linear f.
        learning_rate: initial learning rate.
        seed: random seed for the first weights.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: inputs or best of other shapes or not finite, or an option out of its range.
        Divergence: steps that end further from the optimum than they began.

    Example:
        >>> import torch
        >>> from amortized_bayes.inference.interpolation import interpolate
        >>> x = torch.linspace(-1, 1, 9)[:, None]
        >>> found = interpolate(x, torch.cat([0.5 * x, 0 * x - 1], 1), width=0)
        >>> float(found.residual.sum()) < 1e-6
        True
    """
    if inputs.dim() != 2 or best.dim() != 2 or len(inputs) != len(best) or best.shape[1] % 2 or not best.numel():
        raise ValueError(
            f"expected inputs (N, K) and best (N, 2 D) of the same points, got {tuple(inputs.shape)} and "
            f"{tuple(best.shape)}"
        )
    if not (inputs.isfinite().all() and best.isfinite().all()):
        raise ValueError("expected finite inputs and answers, got nan or inf in them")
    inputs, best = inputs.detach().double(), best.detach().double()
    standard = standardized(inputs)
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "interpolate"))
        sizes = [inputs.shape[1], *([width] if width else []), best.shape[1]]
        network = MLP(sizes, _best_common(best), "tanh").double()

    def objective() -> Tensor:
        return _residual(network(standard), best).mean()

    if width:
        begun = objective().item()
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, num_steps)
        for _ in range(num_steps):
            optimizer.zero_grad()
            objective().backward()
            optimizer.step()
            falling.step()
        reached = objective().item()
        if not reached <= begun + FURTHER * (1 + begun):  # from there L-BFGS finds a poor f, or none
            raise Divergence(
                num_steps,
                reached,
                f"expected steps that come nearer to the optimum of F-VI, got {reached:.3g} nats per point after them "
                f"and {begun:.3g} before: take a smaller learning_rate than {learning_rate:g}",
            )
    _polish(network, objective)
    answers = network(standard).detach()
    return Interpolation(answers, _residual(answers, best))


@limited
def window_inputs(x: Tensor, offsets: Sequence[int], *, num_data: Count | None = None, marks: bool = True) -> Tensor:
    """What f sees of each point of a series: data rows counted from its own, 0 where the series has none.

    Args:
        x: data of the series, (R,) or (R, P).
        offsets: rows of point n are ``n + offset``.
        num_data: N, by default R.
        marks: add for each offset that leaves the series at some point a column which is 1 there: edges are seen.

    Returns:
        (N, K), for ``offsets`` times P columns and the marks.

    Raises:
        ValueError: no offsets, or data of another shape.

    Example:
        >>> import torch
        >>> from amortized_bayes.inference.interpolation import window_inputs
        >>> window_inputs(torch.tensor([5.0, 6.0, 7.0]), [0, 1])
        tensor([[5., 6., 0.],
                [6., 7., 0.],
                [7., 0., 1.]])
    """
    if x.dim() not in (1, 2) or not len(x) or not offsets:
        raise ValueError(f"expected a series (R,) or (R, P) and offsets, got {tuple(x.shape)} and {list(offsets)}")
    rows = x if x.dim() == 2 else x[:, None]
    places = torch.arange(len(x) if num_data is None else num_data, device=x.device)
    seen, edges = [], []
    for offset in offsets:
        row = places + offset
        outside = (row < 0) | (row >= len(x))
        seen.append(torch.where(outside[:, None], 0, rows[row.clamp(0, len(x) - 1)]))
        if marks and outside.any():
            edges.append(outside[:, None].to(rows.dtype))
    return torch.cat([*seen, *edges], 1)


def standardized(inputs: Tensor) -> Tensor:
    """Columns (N, K) of mean 0 and variance 1; those that are constant are 0."""
    spread = inputs.std(0, correction=0)
    return (inputs - inputs.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))


def _polish(network: nn.Module, objective: Callable[[], Tensor]) -> None:
    """L-BFGS, begun again at the best parameters so far where a line search leaves the numbers."""
    parameters = list(network.parameters())
    least, best, finite = math.inf, [p.detach().clone() for p in parameters], True

    def loss() -> Tensor:
        nonlocal least, best, finite
        network.zero_grad()
        value = objective()
        value.backward()
        finite = finite and bool(value.isfinite())
        if value.item() < least:
            least, best = value.item(), [p.detach().clone() for p in parameters]
        return value

    for _ in range(BEGINNINGS):
        finite = True
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=POLISH, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  it takes a tensor
        with torch.no_grad():
            for parameter, value in zip(parameters, best, strict=True):
                parameter.copy_(value)
        if finite:
            break


def _residual(answers: Tensor, best: Tensor) -> Tensor:
    """KL(q_f || q*_n) of each point, (N,)."""
    (mean, log_scale), (target, target_scale) = answers.chunk(2, -1), best.chunk(2, -1)
    change = 2 * (log_scale - target_scale)
    return 0.5 * (change.expm1() - change + (mean - target) ** 2 * (-2 * target_scale).exp()).sum(-1)


def _best_common(best: Tensor) -> Tensor:
    """The answer for all points with the least total residual, (2 D,), where f starts."""
    mean, log_scale = best.chunk(2, -1)
    precision = (-2 * log_scale).exp()
    common = (precision * mean).sum(0) / precision.sum(0)
    return torch.cat([common, -0.5 * precision.mean(0).log()])
