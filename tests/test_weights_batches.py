"""A log weight does not depend on the batch: not on neighbours, on the number of particles, nor on the partition."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_evidence import INDEX, TOLERANCE, assert_evidence
from pyro.poutine.messenger import Messenger
from torch import nn

from amortized_bayes.guides import Amortized, Constant, Factorized
from amortized_bayes.networks import MLP
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights


class NoiseOfThePoint(Messenger):
    """Makes the draw of each point the same function of the point, whoever its neighbours are."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["value"] = msg["fn"].mean + msg["fn"].variance.sqrt() * self.noise.repeat(
                msg["fn"].batch_shape[0] // len(self.noise), 1
            )


def guides_for(model, x):
    sites = latent_sites(model, x).local
    encoder = nn.Sequential(nn.Flatten(), MLP([5, 8, 4]))
    return {
        "constant": Constant(sites, 12),
        "factorized": Factorized(sites, 12, start=torch.randn(12, 4)),
        "amortized": Amortized(sites, 12, 5, encoder=encoder),
    }


@pytest.mark.parametrize("family", ["constant", "factorized", "amortized"])
@pytest.mark.parametrize("particles", [1, 3])
def test_log_weight_does_not_depend_on_neighbours(linear_problem, family, particles):
    model, x, _ = linear_problem
    guide, noise = guides_for(model, x)[family], torch.randn(12, 2)

    def weights_of(index):
        return log_weights(model, NoiseOfThePoint(noise[index])(guide), x[index], index, num_particles=particles).local

    together = weights_of(torch.arange(12))
    assert together[0, 0].std() > 0.1
    torch.testing.assert_close(weights_of(INDEX), together[..., INDEX], **TOLERANCE)
    for n in (0, 5):
        torch.testing.assert_close(weights_of(torch.tensor([n])), together[..., n : n + 1], **TOLERANCE)


def test_a_guide_that_looks_at_the_whole_batch_breaks_the_invariance(linear_problem):
    model, x, _ = linear_problem

    def guide(x, index):
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", dist.Normal((x - x.mean(0))[:, :2], 1.0).to_event(1))

    handler = NoiseOfThePoint(torch.zeros(1, 2))
    few, more = (log_weights(model, handler(guide), x[:n], torch.arange(n)).local[0, 0, 0] for n in (2, 9))
    assert (few - more).abs() > 1e-3


def row_model(x, index):
    """Point n is observed at 10 n, so that any other row is found out."""
    with pyro.plate("data", 12, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 100.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def factorized_rows():
    x = 10.0 * torch.arange(12.0)[:, None]
    sites = latent_sites(row_model, x, torch.arange(12)).local
    return Factorized(sites, 12, start=torch.cat([x, torch.full_like(x, -25.0)], 1))


def param_indexed_by_the_plate(x, index):
    with pyro.plate("data", 12, subsample=index) as places:
        table = pyro.param("table", lambda: 10.0 * torch.arange(12.0)[:, None])
        pyro.sample("z", dist.Normal(table[places], 1e-11).to_event(1))


def param_selected_by_the_plate(x, index):
    with pyro.plate("data", 12, subsample=index):
        rows = pyro.param("table", lambda: 10.0 * torch.arange(12.0)[:, None], event_dim=1)
        pyro.sample("z", dist.Normal(rows, 1e-11).to_event(1))


@pytest.mark.parametrize("guide", ["factorized", param_indexed_by_the_plate, param_selected_by_the_plate])
@pytest.mark.parametrize("particles", [1, 2, 3, 7])  # 4 points times 3 particles are as many as all N
@pytest.mark.parametrize("index", [INDEX, torch.arange(12)], ids=["part", "all"])
def test_every_particle_finds_the_row_of_its_point(float64, guide, particles, index):
    guide = factorized_rows() if guide == "factorized" else guide
    found = log_weights(row_model, guide, 10.0 * index[:, None], index, num_particles=particles, num_shared=2)
    peak = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    torch.testing.assert_close(found.log_likelihood, peak.expand(2, particles, len(index)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("particles", [1, 3])
def test_data_selected_by_pyro_subsample(linear_problem, particles):
    linear, x, _ = linear_problem

    def model(everything, index):
        with pyro.plate("data", 12, subsample=index):
            batch = pyro.subsample(everything, event_dim=1)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(mean, linear.scale).to_event(1), obs=batch)

    def guide(everything, index):
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", linear.posterior(pyro.subsample(everything, event_dim=1)))

    found = log_weights(model, guide, x, INDEX, num_particles=particles)
    assert_evidence(found, linear.log_evidence(x[INDEX]), particles, 1)


def test_gradients_reach_the_rows_that_the_plate_selects(float64):
    index = torch.tensor([3, 1, 6, 8])
    x = torch.randn(4, 1)
    log_weights(row_model, param_selected_by_the_plate, x, index, num_particles=3).local.sum().backward()
    gradient = pyro.param("table").unconstrained().grad
    assert gradient[index].abs().min() > 0
    assert gradient.abs().gt(0).sum() == 4


def test_totals_of_the_batches_of_a_partition_average_to_the_full_total(linear_problem):
    model, x, _ = linear_problem
    guide, noise = guides_for(model, x)["factorized"], torch.randn(12, 2)

    def total(index):
        found = log_weights(model, NoiseOfThePoint(noise[index])(guide), x[index], index)
        return found.num_data * found.local.mean()

    batches = torch.randperm(12).split(4)
    everything = total(torch.arange(12))
    torch.testing.assert_close(torch.stack([total(b) for b in batches]).mean(), everything, **TOLERANCE)
    assert (total(batches[0]) - everything).abs() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_packed_sequence_are_no_rows():
    """Its sizes, and how it was sorted, are as many numbers as there are points here."""
    sequences = [torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.5, 0.2]), torch.tensor([-0.7])]
    packed = nn.utils.rnn.pack_sequence([sequences[i] for i in (1, 0, 2)], enforce_sorted=False)
    totals = torch.tensor([s.sum() for s in (sequences[1], sequences[0], sequences[2])])

    def model(totals, packed):
        with pyro.plate("data", len(totals)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(totals)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=totals)

    def posterior(totals, packed):
        padded, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        with pyro.plate("data", len(totals)):
            pyro.sample("z", dist.Normal(padded.sum(1) / 2, math.sqrt(0.5)))

    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(totals)
    weights = log_weights(model, posterior, totals, packed, num_particles=4)
    torch.testing.assert_close(weights.local, exact.expand(1, 4, 3))
