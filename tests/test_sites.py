"""Latent sites as read off a trace."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to

from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

X = torch.zeros(4, 3)


def rich_model(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    mixture = pyro.sample("mixture", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("pixels", 3):
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("points", len(x)):
        pyro.sample("scalar", dist.Normal(0.0, 1.0))
        pyro.sample("vector", dist.Beta(torch.ones(2), 1.0).to_event(1))
        matrix = pyro.sample("matrix", dist.LogNormal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))
        mean = matrix.sum(-2) + bias + rate + mixture
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def test_names_shapes_and_supports():
    found = latent_sites(rich_model, X, plate="points")
    shapes = {site.name: tuple(site.event_shape) for site in found.local}
    assert shapes == {"scalar": (), "vector": (2,), "matrix": (2, 3), "simplex": (4,)}
    assert {site.name: tuple(site.event_shape) for site in found.shared} == {"rate": (), "mixture": (3,), "bias": (3,)}
    inside = {
        "scalar": (torch.tensor(-1.0), True),
        "vector": (torch.tensor([0.5, 1.5]), False),
        "matrix": (torch.ones(2, 3), True),
        "simplex": (torch.full((4,), 0.3), False),
    }
    for site in found.local:
        value, expected = inside[site.name]
        assert bool(site.support.check(value)) is expected


def test_one_support_answer_for_a_whole_event():
    for site in (*(found := latent_sites(rich_model, X, plate="points")).local, *found.shared):
        assert site.support.event_dim == len(site.event_shape)


def test_shared_draw_is_one_on_the_unconstrained_space():
    torch.manual_seed(3)
    found = latent_sites(rich_model, X, plate="points")
    torch.manual_seed(3)
    trace = pyro.poutine.trace(rich_model).get_trace(X)
    assert found.shared_draw.keys() == {"rate", "mixture", "bias"}
    assert found.shared_draw["mixture"].shape == (2,)
    for site in found.shared:
        value = biject_to(site.support)(found.shared_draw[site.name])
        torch.testing.assert_close(value, trace.nodes[site.name]["value"])


def test_sites_of_the_deep_generative_model():
    found = latent_sites(DeepGenerative(3, 2, [5], 10), X, torch.arange(4))
    assert [(s.name, tuple(s.event_shape)) for s in found.local] == [("z", (2,))]
    assert [(s.name, tuple(s.event_shape)) for s in found.shared] == [
        ("decoder.0.weight", (5, 2)),
        ("decoder.0.bias", (5,)),
        ("decoder.1.weight", (3, 5)),
        ("decoder.1.bias", (3,)),
    ]
    assert found.local[0].support.event_dim == 1
    assert latent_sites(DeepGenerative(3, 2, [5], 10, bayesian=False), X).shared == []


def test_arguments_by_keyword_and_no_gradients_kept():
    found = latent_sites(DeepGenerative(3, 2, [5], 10), x=X, index=torch.arange(4))
    assert not any(draw.requires_grad for draw in found.shared_draw.values())


def test_model_without_the_plate_names_those_it_has():
    with pytest.raises(ValueError, match="plate 'data' over data points, found plates: 'pixels', 'points'"):
        latent_sites(rich_model, X, plate="data")


def test_discrete_site():
    def model(x):
        with pyro.plate("data", len(x)):
            component = pyro.sample("component", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(component.float(), 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"discrete site 'component' \(Categorical\)"):
        latent_sites(model, X)


def test_local_site_inside_a_further_plate():
    def model(x, size=None):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("dimensions", 2, subsample_size=size, dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    (site,) = latent_sites(model, X).local
    assert (site.dim, site.around, site.plates) == (-1, (2,), (("dimensions", 2, -2),))
    with pytest.raises(ValueError, match=r"plate 'dimensions' of local site 'z' to be whole"):
        latent_sites(model, X, 1)


def test_a_start_is_inside_its_support():
    """A draw of a sparse Dirichlet has zeros in float32; one of a wide normal may be anywhere."""

    def model(x):
        pyro.sample("topics", dist.Dirichlet(torch.full((3, 20), 0.01)).to_event(1))
        pyro.sample("wide", dist.Normal(1000.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    start = latent_sites(model, torch.zeros(2)).shared_draw
    assert start["topics"].abs().max() <= 10
    assert start["wide"] > 900
