"""The integrator and the transition, against exact properties."""

import itertools
import math

import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.evaluation import hmc
from amortized_bayes.evaluation.hmc import (
    ChainState,
    Ladder,
    PathEnds,
    PathGradients,
    anneal,
    hmc_transition,
    leapfrog,
    start_chains,
)

ONE = torch.ones((), dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("float64")


class Quartic:
    """log f_1 = -z⁴/4 - z²/2 a coordinate, log f_0 a standard normal without its constant."""

    def __call__(self, z: Tensor) -> PathEnds:
        start = -0.5 * z.square().sum(-1)
        return PathEnds(start, start - 0.25 * z.pow(4).sum(-1), -z, -z - z.pow(3))


class Normals:
    """N(0, I) to N(loc, scale²), for points of different loc and scale; both normalized up to (2π)^(-D/2)."""

    loc, scale = torch.tensor([[0.0, 1.0], [3.0, -2.0]]), torch.tensor([[1.0, 2.0], [0.3, 1.5]])

    def __call__(self, z: Tensor) -> PathEnds:
        loc, scale = self.loc.to(z), self.scale.to(z)
        white = (z - loc) / scale
        end = -(0.5 * white.square() + scale.log()).sum(-1)
        return PathEnds(-0.5 * z.square().sum(-1), end, -z, -white / scale)


def energy(state: ChainState, momentum: Tensor, inverse_mass: Tensor, beta: Tensor = ONE) -> Tensor:
    return 0.5 * (momentum.square() * inverse_mass).sum(-1) - state.ends.log_density(beta)


def test_a_trajectory_runs_back_to_where_it_came_from() -> None:
    density, mass = Quartic(), torch.rand(3, 4) + 0.5
    state, momentum = start_chains(density, torch.randn(5, 3, 4)), torch.randn(5, 3, 4)
    beta, step = torch.tensor([0.2, 0.7, 1.0]), torch.tensor([0.05, 0.1, 0.2])
    there, turned = leapfrog(density, state, momentum, beta, step, mass, 10)
    back, again = leapfrog(density, there, -turned, beta, step, mass, 10)
    assert (there.z - state.z).abs().amax() > 0.1
    assert (back.z - state.z).abs().amax() < 1e-10
    assert (again + momentum).abs().amax() < 1e-10


def test_the_energy_error_falls_with_the_square_of_the_step() -> None:
    density, mass = Quartic(), torch.ones(50, 4)
    state, momentum = start_chains(density, torch.randn(1, 50, 4)), torch.randn(1, 50, 4)
    errors = []
    for halving in range(4):
        step = torch.tensor(0.1 / 2**halving)
        end, last = leapfrog(density, state, momentum, ONE, step, mass, 6 * 2**halving)
        errors.append((energy(end, last, mass) - energy(state, momentum, mass)).abs().mean().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.2 for order in orders), orders


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_kicks_read_the_same_from_either_end(num_steps: int) -> None:
    shares = hmc.kick_shares(num_steps)
    assert len(shares) == num_steps + 1
    assert shares == pytest.approx(shares[::-1])
    assert sum(shares) == pytest.approx(num_steps)


def test_pairs_keep_the_energy_better(monkeypatch: pytest.MonkeyPatch) -> None:
    density, mass = Normals(), Normals.scale.square()
    state, momentum = start_chains(density, torch.randn(2_000, 2, 2)), torch.randn(2_000, 2, 2) / mass.sqrt()
    errors = []
    for shares in (hmc.kick_shares, lambda count: [0.5, *[1.0] * (count - 1), 0.5]):
        monkeypatch.setattr(hmc, "kick_shares", shares)
        end, last = leapfrog(density, state, momentum, ONE, torch.tensor(0.9), mass, 2)
        errors.append((energy(end, last, mass) - energy(state, momentum, mass)).abs().mean().item())
    assert errors[0] < errors[1] / 3


def test_no_density_is_asked_for_on_the_way() -> None:
    class Counted(Quartic):
        calls = ""

        def __call__(self, z: Tensor) -> PathEnds:
            self.calls += "d"
            return super().__call__(z)

        def gradients(self, z: Tensor) -> PathGradients:
            self.calls += "g"
            return PathGradients(*super().__call__(z)[2:])

    counted, plain = Counted(), Quartic()
    state, momentum = start_chains(plain, torch.randn(5, 3, 4)), torch.randn(5, 3, 4)
    for num_steps in (1, 3, 4):
        counted.calls = ""
        ends = [leapfrog(d, state, momentum, ONE, 0.1 * ONE, torch.ones(3, 4), num_steps) for d in (counted, plain)]
        assert counted.calls == "g" * (num_steps - 1) + "d"
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [2, 3])
def test_transitions_leave_moments_alone(num_steps: int) -> None:
    density, generator = Normals(), Generator().manual_seed(1)
    num = 20_000
    z = density.loc + density.scale * torch.randn(num, 2, 2, generator=generator)
    state = start_chains(density, z)
    step, mass = torch.tensor([1.2, 0.9]), density.scale.square()
    for _ in range(6):
        state, info = hmc_transition(density, state, ONE, step, mass, num_steps, generator)
    white = (state.z - density.loc) / density.scale
    assert info.acceptance.mean() < 0.98, "the test needs rejections"
    assert (white.mean(0) * num**0.5).abs().amax() < 4
    assert ((white.square().mean(0) - 1) * (num / 2) ** 0.5).abs().amax() < 4
    assert ((white.pow(4).mean(0) - 3) * (num / 96) ** 0.5).abs().amax() < 4


def test_a_divergent_trajectory_is_a_rejected_proposal() -> None:
    def density(z: Tensor) -> PathEnds:
        ends = Quartic()(z)
        broken = ends.log_end.masked_fill(z.abs().amax(-1) > 5, math.nan)
        return ends._replace(log_end=broken)

    state = start_chains(density, torch.randn(7, 2, 3).clamp(-2, 2))
    step = torch.tensor([0.1, 30.0])
    new, info = hmc_transition(density, state, ONE, step, torch.ones(2, 3), 4)
    assert info.divergent[:, 1].all()
    assert not info.divergent[:, 0].any()
    assert not info.accepted[:, 1].any()
    assert info.acceptance[:, 1].eq(0).all()
    torch.testing.assert_close(new.z[:, 1], state.z[:, 1], rtol=0, atol=0)
    assert all(part.isfinite().all() for part in (new.z, *new.ends))


@pytest.mark.parametrize("backwards", [False, True])
def test_annealed_weights_are_unbiased_both_ways(backwards: bool) -> None:
    """Both ends have the same constant, so E[w] = 1 up the ladder and E[1/w] = 1 down it."""
    density, generator = Normals(), Generator().manual_seed(2)
    num = 5000
    z = torch.randn(num, 2, 2, generator=generator)
    if backwards:
        z = density.loc + density.scale * z
    betas = torch.linspace(0, 1, 16)
    ladder = Ladder(betas, torch.full((15, 2), 0.7), torch.ones(2, 2), 2)
    walk = anneal(density, start_chains(density, z), ladder, generator, backwards=backwards)
    weights = (-walk.log_weights if backwards else walk.log_weights).exp()
    z_score = (weights.mean(0) - 1) / (weights.std(0) / num**0.5)
    assert z_score.abs().amax() < 3
    assert (walk.acceptance > 0.3).all()


def test_a_start_of_no_density_gets_no_weight() -> None:
    def density(z: Tensor) -> PathEnds:
        ends = Quartic()(z)
        return ends._replace(log_end=ends.log_end.masked_fill(z[..., 0] > 0, -math.inf))

    z = torch.tensor([[[0.5]], [[-0.5]]])
    state = start_chains(density, z)
    ladder = Ladder(torch.tensor([0.0, 1.0]), torch.ones(1, 1), torch.ones(1, 1), 1)
    weights = anneal(density, state, ladder, Generator()).log_weights[:, 0]
    assert weights[0] == -math.inf
    assert weights[1].isfinite()
    assert state.ends.log_density(torch.zeros(())).isfinite().all()
