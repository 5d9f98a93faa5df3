r"""Constant VI, F-VI and A-VI on the models of ``models/series.py``: equal starts, equal rates, all points at once.

Points of a series are tied to each other, so a step sees all of them. Its gradient is that of the ELBO with respect to
the means and scales of q, by draws in pairs and the exact entropy,

.. math:: \nabla_m = \mathrm{E}[\nabla_u \log p(u, x)], \qquad
   \nabla_{\log s} = \mathrm{E}[\nabla_u \log p(u, x)\,(u - m)] + 1 ,

and goes on through f by the chain rule. What a fit has reached is measured without draws, by the model's exact ELBO.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from amortized_bayes.divergence import Divergence
from amortized_bayes.guides.local import INITIAL_LOG_SCALE
from amortized_bayes.inference.interpolation import standardized, window_inputs
from amortized_bayes.joint import captured_or_plain
from amortized_bayes.labels import SEES
from amortized_bayes.models import SERIES, GaussianJoint, SeriesModel
from amortized_bayes.models.flat_program import FlatProgram
from amortized_bayes.models.independent_joint import IndependentJoint
from amortized_bayes.networks import MLP
from amortized_bayes.seeding import torch_generator, torch_seed

__all__ = ["Answers", "Case", "Problem", "Reached", "case", "fit_answers", "slopes"]

CHECK_EVERY = 100
"""Steps after which a fit is looked at for nan."""
FLAT = 0.2
"""Share of a fit with its full rate; in the rest it falls to 0 as a square, so that the noise of the draws dies out."""
REACH = 4
"""Of a window: rows on each side."""


@dataclass(frozen=True)
class Case:
    """A model, its data, and what f may see of them.

    Args:
        model: Pyro program.
        x: its data.
        inputs: by name of what f sees, (N, K) each.
    """

    model: SeriesModel
    x: Tensor
    inputs: Mapping[str, Tensor]


class Problem:
    """A case, with what is known of it: a density, its gradient, and the optimum of F-VI."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.program = FlatProgram(case.model, case.x, local=case.model.local)
        self.truth: GaussianJoint | IndependentJoint = case.model.truth(case.x)
        self.best_elbo = self.truth.best_elbo()
        self._gradient: Callable[..., Sequence[Tensor]] | None = None

    @property
    def num_data(self) -> int:
        """N."""
        return self.program.num_data

    @property
    def sizes(self) -> tuple[int, int]:
        """G shared latents, and D of each point."""
        return self.program.num_shared, sum(self.program.sizes)

    def behind(self, mean: Tensor, log_scale: Tensor) -> float:
        """Nats per point that a factorized Gaussian lies behind the optimum of F-VI."""
        return float(self.best_elbo - self.truth.elbo(mean, log_scale)) / self.num_data

    def gradient(self, u: Tensor, other: Tensor) -> Sequence[Tensor]:
        """Gradients of log p(u, x) at two draws: by a Gaussian model's quadratic form, else the program's, replayed."""
        if isinstance(truth := self.truth, GaussianJoint):
            return [truth.linear - truth.times(u), truth.linear - truth.times(other)]
        if self._gradient is None:
            plain = self.program.gradient
            inputs, others = (u, other), (other + 0.5, u - 0.5)
            self._gradient = captured_or_plain(lambda a, b: [plain(a)[1], plain(b)[1]], inputs, others, 10_000)
        return self._gradient(u, other)


class Answers(nn.Module):
    """Means and log scales of all latents: own ones for theta, and f's for the points.

    Args:
        problem: what it answers.
        guide: constant, factorized or amortized.
        inputs: what f sees, (N, K), brought to variance 1/K here.
        width: k; 0 for an f that is linear.
        seed: random seed for the first weights.
    """

    def __init__(
        self, problem: Problem, guide: str, inputs: Tensor | None = None, width: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        shared, size = problem.sizes
        start = torch.tensor([0.0, INITIAL_LOG_SCALE]).double()[:, None]
        self.num_data = problem.num_data
        self.shared = nn.Parameter(start.repeat(1, shared))
        common = start.repeat(1, size).flatten()
        self.table = self.network = None
        if guide == "amortized":
            assert inputs is not None
            self.inputs = standardized(inputs) / math.sqrt(inputs.shape[1])  # a step moves f as far whatever K is
            with torch.random.fork_rng():
                torch.manual_seed(torch_seed(seed, "series", "network"))
                sizes = [inputs.shape[1], *([width] if width else []), 2 * size]
                self.network = MLP(sizes, common, "tanh").double()
        else:
            self.table = nn.Parameter(common.repeat(self.num_data if guide == "factorized" else 1, 1))

    def rows(self) -> Tensor:
        """Means and log scales of the points, (N, 2 D)."""
        found = self.table if self.network is None else self.network(self.inputs)
        assert found is not None
        return found.expand(self.num_data, -1)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Means and log scales of all latents, (G + N·D,) each."""
        mean, log_scale = self.rows().chunk(2, 1)
        return torch.cat([self.shared[0], mean.flatten()]), torch.cat([self.shared[1], log_scale.flatten()])


class Reached(NamedTuple):
    """Where a fit stands.

    Args:
        step: steps taken.
        seconds: that they took.
        behind: nats per point behind the optimum of F-VI.
    """

    step: int
    seconds: float
    behind: float


def fit_answers(
    problem: Problem, answers: Answers, num_steps: int, rate: float, marks: Sequence[int], seed: int
) -> Iterator[Reached]:
    """Fit by Adam; what is reached at the marks, the start (step 0) first.

    Raises:
        Divergence: an answer is not finite.
    """
    generator = torch_generator(seed, "series", "draws")
    optimizer = torch.optim.Adam(answers.parameters(), lr=rate, fused=True)
    seconds, wanted = 0.0, {*marks, num_steps}
    problem.gradient(*(part.detach() for part in answers()))  # captured before the clock starts
    yield Reached(0, 0.0, problem.behind(*(part.detach() for part in answers())))
    begin = time.perf_counter()
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        mean, log_scale = answers()
        torch.autograd.backward([mean, log_scale], slopes(problem, mean, log_scale, generator))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (1 - (step - 1) / num_steps) / (1 - FLAT)) ** 2
        optimizer.step()
        if step in wanted or step % CHECK_EVERY == 0:
            seconds += time.perf_counter() - begin
            with torch.no_grad():
                found = answers()
                behind = problem.behind(*found)
            if not all(part.isfinite().all() for part in found):
                raise Divergence(step, behind, f"an answer is not finite after step {step}")
            if step in wanted:
                yield Reached(step, seconds, behind)
            begin = time.perf_counter()


@torch.no_grad()
def slopes(problem: Problem, mean: Tensor, log_scale: Tensor, generator: Generator) -> list[Tensor]:
    """Gradient of the loss, the negative ELBO per point, with respect to means and log scales, from a pair of draws."""
    away = log_scale.exp() * torch.empty_like(mean).normal_(generator=generator)
    one, other = problem.gradient(mean + away, mean - away)
    return [-0.5 * (one + other) / problem.num_data, -(0.5 * (one - other) * away + 1) / problem.num_data]


def case(name: str, num_data: int, seed: int) -> Case:
    """A model by its name in ``SERIES``, with data drawn by seed, and all that f may see of them."""
    model = SERIES[name]()
    x = model.simulate(num_data, seed)
    return Case(model, x, {sees: _inputs(name, sees, x, num_data) for sees in SEES[name]})


def _inputs(name: str, sees: str, x: Tensor, num_data: int) -> Tensor:
    if name == "two-levels":
        return x[:, :1] if sees == "first-member" else x
    reach = {"neighbours": 1, "window": REACH, "whole": num_data - 1}.get(sees, 0)
    offsets = {"next": [1], "own-and-next": [0, 1]}.get(sees, range(-reach, reach + 1))
    return window_inputs(x, [*offsets], num_data=num_data)
