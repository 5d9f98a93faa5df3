"""What a training refuses, and what it leaves unchanged outside."""

import dataclasses
import math

import pyro
import pytest
import torch
from fits import OPTIONS, N, P, steps, training

from amortized_bayes.divergence import Divergence
from amortized_bayes.guides import Amortized, Constant
from amortized_bayes.inference.fit import fit
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.streams import Batches
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import LinearGaussian
from amortized_bayes.sites import latent_sites


class Poisoned(LinearGaussian):
    """Its likelihood becomes ``poison`` once a batch holds point ``bad``."""

    def __init__(self, model, bad, poison):
        super().__init__(model.weight, model.bias, model.scale, N)
        self.bad, self.poison = bad, poison

    def forward(self, x, index=None):
        super().forward(x, index)
        pyro.factor("poison", torch.where((index == self.bad).any(), torch.tensor(self.poison), torch.tensor(0.0)))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, -1e9])
@pytest.mark.parametrize("capture", ["off", "replay"])
@pytest.mark.slow_cases("replay-inf")
def test_divergence_names_its_step(poison, capture):
    x = torch.randn(N, P)
    plain = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    batches = Batches(N, 6, 0, x.device)
    bad = batches[3 * 3 + 2]  # the third batch of the fourth epoch; its points may come earlier
    first = [next(s for s in range(99) if n in batches[s].tolist()) + 1 for n in bad.tolist()]
    step, point = max(zip(first, bad.tolist(), strict=True))
    model = Poisoned(plain, point, poison)
    guide = Constant(latent_sites(plain, x).local, N)
    with pytest.raises(Divergence, match=f"at step {step}$") as caught:
        fit(model, guide, x, 30, dataclasses.replace(OPTIONS, capture=capture))
    assert caught.value.step == step > 1
    assert not abs(caught.value.value) < 1e6


def test_divergence_leaves_the_outside_as_it_was():
    x = torch.randn(N, P)
    plain = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    run = Training(Poisoned(plain, 5, math.nan), Constant(latent_sites(plain, x).local, N), x, OPTIONS)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(Divergence):
        steps(run, 30)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [N + 1])
def test_batch_size_beyond_the_data(size):
    with pytest.raises(ValueError, match=f"batch size of 1 to {N} .*, got {size}: set `FitOptions.batch_size="):
        training(batch_size=size)


def test_nothing_to_fit():
    x = torch.randn(N, P)
    model = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    guide = Constant(latent_sites(model, x).local, N)
    guide.parameters_of_all.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a parameter to fit"):
        Training(model, guide, x, OPTIONS)


def test_validation_is_back_after_a_run(unchanged_switches):
    with unchanged_switches():
        steps(training(), 2)


def test_validation_is_back_on_between_records():
    from pyro.poutine.util import is_validation_enabled

    model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
    x = torch.zeros(8, 3)
    guide = Amortized(latent_sites(model, x).local, num_data=8, observed=3, width=2)
    with pyro.validation_enabled(True):
        training = Training(model, guide, x, FitOptions(batch_size=4, capture="off"))
        assert all(is_validation_enabled() for _ in training.run(4, [1, 2]))
