"""Small models to train, and what a training leaves behind."""

import dataclasses

import pytest
import torch

from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

N, P = 20, 4
OPTIONS = FitOptions(batch_size=6, capture="off")
FAMILIES = {
    "constant": lambda sites, shared: Constant(sites, N, shared=shared),
    "factorized": lambda sites, shared: Factorized(sites, N, shared=shared),
    "amortized": lambda sites, shared: Amortized(sites, N, P, width=3, shared=shared),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def training(family="amortized", seed=0, *, bayesian=True, data=None, **options):
    """A new training of a small deep generative model; every call starts from the same parameters."""
    torch.manual_seed(1)
    data = torch.bernoulli(torch.full((N, P), 0.5)) if data is None else data
    model = DeepGenerative(P, 2, [5], N, bayesian=bayesian, likelihood="gaussian-learned")
    sites = latent_sites(model, data[:2].to(torch.get_default_dtype()))
    shared = MeanField(sites.shared, locs=sites.shared_draw) if bayesian else None
    guide = FAMILIES[family](sites.local, shared)
    return Training(model, guide, data, dataclasses.replace(OPTIONS, **options) if options else OPTIONS, seed)


def parts_of(run):
    """All that a run leaves behind, but for its clock."""
    return {name: tensor.clone() for name, tensor in run.state().items() if name != "seconds"}


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def steps(run, count, **options):
    return list(run.run(count, **options))
