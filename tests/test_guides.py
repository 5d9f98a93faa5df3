"""Laws that every guide obeys, and each family against closed forms on the linear-Gaussian model."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.guides.local import INITIAL_LOG_SCALE, gaussian_site, is_real
from amortized_bayes.networks import MLP, RowTable, row_tables
from amortized_bayes.sites import latent_sites
from amortized_bayes.types import LatentSite
from amortized_bayes.weights import log_weights

N, P = 12, 5

GUIDES = {
    "constant": lambda sites, **options: Constant(sites, N, **options),
    "factorized": lambda sites, **options: Factorized(sites, N, **options),
    "amortized, linear": lambda sites, **options: Amortized(sites, N, P, depth=0, **options),
    "amortized, k = 1": lambda sites, **options: Amortized(sites, N, P, width=1, **options),
    "amortized, k = 8, deep": lambda sites, **options: Amortized(sites, N, P, width=8, depth=3, **options),
}

SITES = {
    "scalar": LatentSite("z", torch.Size(), constraints.real),
    "vector": LatentSite("z", torch.Size([3]), constraints.independent(constraints.real, 1)),
    "matrix": LatentSite("z", torch.Size([2, 3]), constraints.independent(constraints.real, 2)),
    "positive": LatentSite("z", torch.Size([2]), constraints.independent(constraints.positive, 1)),
    "positive scalar": LatentSite("z", torch.Size(), constraints.positive),
    "unit interval": LatentSite("z", torch.Size([2, 2]), constraints.independent(constraints.unit_interval, 2)),
    "simplex": LatentSite("z", torch.Size([4]), constraints.simplex),
    "two simplexes": LatentSite("z", torch.Size([2, 3]), constraints.independent(constraints.simplex, 1)),
}

every_guide = pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES.keys())


def scrambled(guide, spread=0.5):
    """Parameters at a place where nothing is zero or alike."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return guide


def scored(guide, x, index=None, seed=0):
    """The guide's distribution of z, a draw and its log density, ``(B,)``."""
    torch.manual_seed(seed)
    node = poutine.trace(guide).get_trace(x, index).nodes["z"]
    return node["fn"], node["value"], node["fn"].log_prob(node["value"])


# Laws -----------------------------------------------------------------------------------------------------------------


@every_guide
@every_site
def test_draws_lie_in_the_support_and_have_a_density(float64, make, site):
    fn, value, log_prob = scored(scrambled(make([site])), torch.randn(N, P))
    assert value.shape == (N, *site.event_shape)
    assert log_prob.shape == fn.batch_shape == (N,)
    assert fn.event_shape == site.event_shape
    assert log_prob.isfinite().all()
    assert site.support.check(value).all()


@every_guide
@every_site
def test_draws_are_reparametrized_and_gradients_reach_every_parameter(float64, make, site):
    guide = scrambled(make([site]))
    _, value, log_prob = scored(guide, torch.randn(N, P))
    weights = torch.randn_like(value)
    for target in (log_prob.sum(), (value * weights).sum()):
        gradients = torch.autograd.grad(target, list(guide.parameters()), retain_graph=True)
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


@every_guide
def test_distribution_of_a_point_does_not_depend_on_its_neighbours(float64, make):
    guide, x = scrambled(make([SITES["vector"]])), torch.randn(N, P)
    everything, index = scored(guide, x)[0], torch.tensor([7, 0, 11])
    for places in (index, index[:1]):
        some = scored(guide, x[places], places)[0]
        torch.testing.assert_close(some.mean, everything.mean[places], rtol=0, atol=1e-12)
        torch.testing.assert_close(some.variance, everything.variance[places], rtol=0, atol=1e-12)


@every_guide
def test_state_dict_brings_the_guide_back(float64, make):
    x, guide, other = torch.randn(N, P), scrambled(make([SITES["simplex"]])), make([SITES["simplex"]])
    assert not torch.equal(scored(guide, x)[2], scored(other, x)[2])
    other.load_state_dict(guide.state_dict())
    assert torch.equal(scored(guide, x)[2], scored(other, x)[2])


@every_guide
@every_site
def test_all_families_start_from_the_same_q(float64, make, site):
    found = scored(make([site]), torch.randn(N, P))
    flat = gaussian_site(site, *(torch.full((N, 3 * 4), v)[:, : found_size(site)] for v in (0.0, INITIAL_LOG_SCALE)))
    torch.testing.assert_close(found[2], flat.log_prob(found[1]), rtol=0, atol=1e-12)
    common = scored(Constant([site], N), torch.randn(N, P))
    assert torch.equal(found[1], common[1])


def found_size(site):
    return math.prod(torch.distributions.biject_to(site.support).inverse_shape(site.event_shape))


@every_guide
def test_start_is_location_0_and_the_common_log_scale(float64, make):
    fn = scored(make([SITES["vector"]]), torch.randn(N, P))[0]
    torch.testing.assert_close(fn.mean, torch.zeros(N, 3))
    torch.testing.assert_close(fn.stddev, torch.full((N, 3), math.exp(INITIAL_LOG_SCALE)))


@every_guide
def test_several_sites_share_out_the_vector_in_order(float64, make):
    named = [SITES[n]._replace(name=n) for n in ("scalar", "simplex", "matrix")]
    guide = scrambled(make(named))
    assert guide.latent_dim == 1 + 3 + 6
    x = torch.randn(N, P)
    nodes = poutine.trace(guide).get_trace(x).nodes
    loc, log_scale = guide.locate(x, torch.arange(N)).chunk(2, -1)
    torch.testing.assert_close(nodes["scalar"]["fn"].mean, loc[:, 0])
    torch.testing.assert_close(nodes["matrix"]["fn"].mean, loc[:, 4:].reshape(N, 2, 3))
    torch.testing.assert_close(nodes["matrix"]["fn"].stddev, log_scale[:, 4:].exp().reshape(N, 2, 3))


@every_guide
def test_plate_name_size_and_further_arguments(float64, make):
    guide = make([SITES["vector"]], plate="points")
    index = torch.tensor([1, 5])
    node = poutine.trace(guide).get_trace(torch.randn(2, P), index, "more", option=3).nodes["z"]
    (frame,) = node["cond_indep_stack"]
    assert (frame.name, frame.size, frame.full_size) == ("points", 2, N)


@every_guide
def test_shared_sites_are_sampled_outside_the_plate(float64, make):
    shared = MeanField([SITES["positive"]._replace(name="theta")])
    node = poutine.trace(make([SITES["vector"]], shared=shared)).get_trace(torch.randn(N, P)).nodes["theta"]
    assert node["cond_indep_stack"] == ()


@every_guide
def test_no_sites_and_no_data_are_refused(make):
    with pytest.raises(ValueError, match="latent site in plate 'data', got none"):
        make([])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Constant(s, 0), "num_data of 1 or more, got 0"),
        (lambda s: Amortized(s, N, P, width=0), "width of 1 or more"),
        (lambda s: Amortized(s, N, P, depth=-1), "depth of 0 or more"),
        (lambda s: Amortized(s, N, 0), "1 or more"),
        (lambda s: Factorized(s, N, start=torch.zeros(N, 5)), r"start of shape \(12, 6\), got \(12, 5\)"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make([SITES["vector"]])


def test_log_density_of_a_transformed_site_is_that_of_the_change_of_variables(float64):
    loc, log_scale = torch.randn(N, 2), torch.randn(N, 2) * 0.3
    fn = gaussian_site(SITES["positive"], loc, log_scale)
    value = fn.sample()
    expected = dist.LogNormal(loc, log_scale.exp()).to_event(1).log_prob(value)
    torch.testing.assert_close(fn.log_prob(value), expected)
    assert not is_real(SITES["positive"].support)
    assert is_real(SITES["matrix"].support)


# Each family of its own -----------------------------------------------------------------------------------------------


def test_factorized_rows_are_looked_up_by_place_and_not_by_data(float64):
    start = torch.randn(N, 6)
    guide = Factorized([SITES["vector"]], N, start=start)
    index = torch.tensor([4, 4, 9])
    torch.testing.assert_close(guide.locate(torch.zeros(3, P), index), start[index])
    start.zero_()
    assert guide.table.weight.abs().min() > 0  # a copy
    assert row_tables(guide) == [guide.table]


def test_bound_rows_stand_for_the_batch_and_for_its_tiles(float64):
    table, rows, index = RowTable(torch.randn(N, 2)), torch.randn(3, 2), torch.tensor([1, 8, 2])
    with table.bind(rows):
        assert torch.equal(table(index), rows)
        assert torch.equal(table(index.repeat(4)), rows.repeat(4, 1))
    assert torch.equal(table(index), table.weight[index])
    with pytest.raises(RuntimeError), table.bind(rows):
        raise RuntimeError
    assert torch.equal(table(index), table.weight[index])


def test_amortized_takes_an_encoder(float64):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(P, 6))
    guide, x = Amortized([SITES["vector"]], N, 999, width=1, encoder=encoder), torch.randn(N, 1, P)
    torch.testing.assert_close(guide.locate(x, torch.arange(N)), encoder(x))


@pytest.mark.parametrize(("width", "depth"), [(1, 0), (1, 1), (7, 1), (7, 3)])
def test_size_of_the_encoder(width, depth):
    guide = Amortized([SITES["vector"]], N, P, width, depth)
    sizes = [P, *[width] * depth, 6]
    assert sum(p.numel() for p in guide.parameters()) == sum((i + 1) * o for i, o in pairwise(sizes))


@pytest.mark.parametrize("sizes", [[3], [3, 0], [0, 2]])
def test_network_without_layers(sizes):
    with pytest.raises(ValueError, match="two sizes of 1 or more"):
        MLP(sizes)


@every_site
def test_mean_field_is_a_gaussian_at_its_start(float64, site):
    flat = torch.randn(found_size(site)).reshape(
        torch.distributions.biject_to(site.support).inverse_shape(site.event_shape)
    )
    guide = MeanField([site._replace(name="a.b")], locs={"a.b": flat}, log_scale=-30.0)
    node = poutine.trace(guide).get_trace().nodes["a.b"]
    assert node["fn"].event_shape == site.event_shape
    torch.testing.assert_close(node["value"], torch.distributions.biject_to(site.support)(flat))
    value = poutine.trace(MeanField([site._replace(name="a.b")])).get_trace().nodes["a.b"]["value"]
    assert site.support.check(value).all()


# ELBO, KL and gradients in closed form --------------------------------------------------------------------------------

FAMILIES = {
    "constant": lambda sites: Constant(sites, N),
    "factorized": lambda sites: Factorized(sites, N),
    "amortized": lambda sites: Amortized(sites, N, P, width=6),
}
DRAWS = 3000


def closed_elbo(model, guide, x, index):
    """KL and ELBO of each point, (B,), as functions of the guide's parameters."""
    loc, log_scale = guide.locate(x, index).chunk(2, -1)
    variance = (2 * log_scale).exp()
    kl = 0.5 * (loc.square() + variance - 1 - 2 * log_scale).sum(-1)
    squares = (x - loc @ model.weight.T - model.bias).square().sum(-1) + variance @ model.weight.square().sum(0)
    return kl, -0.5 * squares / model.scale**2 - P * math.log(model.scale * math.sqrt(2 * math.pi)) - kl


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_elbo_and_gradient_are_the_closed_forms(linear_problem, family):
    model, x, _ = linear_problem
    guide = scrambled(FAMILIES[family](latent_sites(model, x).local), 0.3)
    index = torch.tensor([3, 0, 8, 10])
    kl, elbo = closed_elbo(model, guide, x[index], index)
    exact = torch.cat(
        [elbo.detach(), *(g.flatten() for g in torch.autograd.grad(elbo.sum(), list(guide.parameters())))]
    )

    repeats = index.repeat(DRAWS)  # all draws at once, as so many points of the same four
    found = expected_log_weights(model, guide, x[repeats], repeats)
    torch.testing.assert_close((found.log_q - found.log_prior).reshape(DRAWS, 4)[0], kl)
    values = found.local.reshape(DRAWS, 4)
    assert_within_errors(values.detach(), elbo.detach())
    groups = values.sum(1).reshape(50, -1).mean(1)
    gradients = [torch.autograd.grad(g, list(guide.parameters()), retain_graph=True) for g in groups]
    assert_within_errors(torch.stack([torch.cat([g.flatten() for g in gs]) for gs in gradients]), exact[4:])


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_log_weight_is_the_closed_elbo(linear_problem, family):
    model, x, _ = linear_problem
    guide = scrambled(FAMILIES[family](latent_sites(model, x).local), 0.3)
    index = torch.tensor([3, 0, 8, 10])
    values = log_weights(model, guide, x[index], index, num_particles=DRAWS).local[0].detach()
    assert_within_errors(values, closed_elbo(model, guide, x[index], index)[1].detach())


def assert_within_errors(draws, expected, sigmas=5.0):
    error = draws.std(0) / math.sqrt(len(draws))
    alike = error < 1e-12
    assert (draws.mean(0) - expected)[alike].abs().sum() < 1e-9
    assert ((draws.mean(0) - expected) / error)[~alike].abs().max() < sigmas


def test_a_wrong_closed_form_is_found_out(linear_problem):
    model, x, _ = linear_problem
    guide = scrambled(Constant(latent_sites(model, x).local, N), 0.3)
    values = log_weights(model, guide, x, num_particles=DRAWS).local[0].detach()
    kl, elbo = closed_elbo(model, guide, x, torch.arange(N))
    with pytest.raises(AssertionError):
        assert_within_errors(values, (elbo + 0.2 * kl).detach())


def test_guides_leave_the_param_store_alone(linear_problem):
    model, x, _ = linear_problem
    for make in FAMILIES.values():
        make(latent_sites(model, x).local)(x)
    assert list(pyro.get_param_store().keys()) == []
