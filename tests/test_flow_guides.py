"""Flow guides through the seam: densities by change of variables, sites, neighbours, bad arguments."""

import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from flow_problems import SEVERAL, SITES, AnyPrior, N, P, make, scrambled
from torch import nn
from torch.distributions import biject_to, constraints

from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.flows import FAMILIES, FlowSettings
from amortized_bayes.guides import Amortized, MeanField
from amortized_bayes.guides.flow import LOG_SCALE_RANGE
from amortized_bayes.guides.local import INITIAL_LOG_SCALE
from amortized_bayes.sites import latent_sites
from amortized_bayes.traces import trace_pair
from amortized_bayes.types import LatentSite
from amortized_bayes.weights import log_weights

every_family = pytest.mark.parametrize("family", FAMILIES)
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES.keys())
some_families = pytest.mark.parametrize("family", ["gaussian", "sylvester", "spline-contextual", "auxiliary"])


def nodes_of(guide, x, index=None, seed=0):
    torch.manual_seed(seed)
    return poutine.trace(guide).get_trace(x, index).nodes


def log_q(guide, sites, x, seed=0):
    """The seam's log q of one particle, (B,)."""
    torch.manual_seed(seed)
    return log_weights(AnyPrior(sites), guide, x).log_q[0, 0]


# Sites ----------------------------------------------------------------------------------------------------------------


@every_family
@every_site
def test_draws_lie_in_the_support_with_the_density_of_the_change_of_variables(float64, family, site):
    """Against a guide of the site's unconstrained values with the same parameters, and the support's Jacobian."""
    transform = biject_to(site.support)
    shape = transform.inverse_shape(site.event_shape)
    flat = LatentSite("z", shape, constraints.independent(constraints.real, len(shape)))
    guide, plain, x = scrambled(make(family, [site])), make(family, [flat]), torch.randn(N, P)
    plain.load_state_dict(guide.state_dict())
    u, node = nodes_of(plain, x)["z"]["value"], nodes_of(guide, x)["z"]
    assert node["value"].shape == (N, *site.event_shape)
    assert node["fn"].batch_shape == (N,)
    assert node["fn"].event_shape == site.event_shape
    assert site.support.check(node["value"]).all()
    torch.testing.assert_close(node["value"], transform(u))
    jacobian = transform.log_abs_det_jacobian(u, transform(u)).reshape(N, -1).sum(-1)
    found = log_q(guide, [site], x)
    assert found.shape == (N,)
    torch.testing.assert_close(found, log_q(plain, [flat], x) - jacobian)


@every_family
def test_several_sites_share_one_flow_in_order(float64, family):
    guide, x = scrambled(make(family, SEVERAL)), torch.randn(N, P)
    whole = make(family, [LatentSite("z", torch.Size([10]), constraints.independent(constraints.real, 1))])
    whole.load_state_dict(guide.state_dict())
    u, nodes = nodes_of(whole, x)["z"]["value"], nodes_of(guide, x)
    simplex = biject_to(constraints.simplex)
    if family != "gaussian":  # which draws site by site, as other guides do
        torch.testing.assert_close(nodes["scalar"]["value"], u[:, 0])
        torch.testing.assert_close(nodes["simplex"]["value"], simplex(u[:, 1:4]))
        torch.testing.assert_close(nodes["matrix"]["value"], u[:, 4:].reshape(N, 2, 3))
        jacobian = simplex.log_abs_det_jacobian(u[:, 1:4], simplex(u[:, 1:4]))
        flat = [LatentSite("z", torch.Size([10]), constraints.independent(constraints.real, 1))]
        torch.testing.assert_close(log_q(guide, SEVERAL, x), log_q(whole, flat, x) - jacobian)


@every_family
@pytest.mark.parametrize("sites", [[SITES["vector"]], SEVERAL], ids=["one", "several"])
def test_expected_and_plain_log_weights_agree_on_a_draw(float64, family, sites):
    """What a closed KL divergence would replace is not lost for sites whose log density is their guide's."""
    guide, x, model = scrambled(make(family, sites)), torch.randn(N, P), AnyPrior(sites)
    found = []
    for evaluate in (log_weights, expected_log_weights):
        torch.manual_seed(3)
        found.append(evaluate(model, guide, x))
    torch.testing.assert_close(found[1].log_likelihood, found[0].log_likelihood)
    if family != "gaussian":
        torch.testing.assert_close(found[1].local, found[0].local)


@every_family
@pytest.mark.parametrize("dim", [-2, -3])
def test_the_plate_may_be_at_any_dimension(float64, family, dim):
    """Beside positive latents in a further plate; against the same flow of a plate at -1, with the same draws."""

    def model(x, dim=dim):
        room, parts = (1,) * (-dim - 1), (P,) if dim == -1 else ()
        with pyro.plate("data", len(x), dim=dim):
            a = pyro.sample("a", dist.Normal(torch.zeros(len(x), *room), 1.0))
            if parts:
                b = pyro.sample("b", dist.Gamma(2.0, torch.ones(len(x), P)).to_event(1))
                pyro.sample("x", dist.Normal(a[:, None] + b, 1.0).to_event(1), obs=x)
                return
            with pyro.plate("parts", P, dim=-1):
                b = pyro.sample("b", dist.Gamma(2.0, 1.0))
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=x.reshape(len(x), *room[1:], P))

    x, found = torch.randn(N, P), []
    guide = scrambled(make(family, latent_sites(model, x).local))
    plain = make(family, latent_sites(model, x, dim=-1).local)
    plain.load_state_dict(guide.state_dict())
    for some, at in ((guide, dim), (plain, -1)):
        torch.manual_seed(2)
        found.append(log_weights(model, some, x, dim=at, num_particles=3))
    for ours, expected in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(ours, expected)


# Laws -----------------------------------------------------------------------------------------------------------------


@every_family
def test_log_q_of_a_point_does_not_depend_on_its_neighbours(float64, family):
    guide, x = scrambled(make(family, [SITES["vector"]])), torch.randn(N, P)
    draws = base_draws(guide, x)
    for places in (torch.tensor([7, 0, 11]), torch.tensor([5])):
        some = scored_on(guide, x[places], {name: value[places] for name, value in draws.items()}, places)
        for found, expected in zip(some, scored_on(guide, x, draws), strict=True):
            torch.testing.assert_close(found, expected[places], rtol=1e-12, atol=1e-10)


def base_draws(guide, x):
    """Noise of the base Gaussian and of v_0, (B, D) each."""
    return {name: torch.randn(len(x), guide.latent_dim) for name in ("first", "second")}


def scored_on(guide, x, noise, index=None):
    """Value and log q of each point, given the noise, (B, D) and (B,)."""
    given = iter(noise.values())

    class Given(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            fn = msg["fn"]
            base = fn.base_dist if isinstance(fn, dist.TransformedDistribution) else fn
            base = base.base_dist if isinstance(base, dist.Independent) else base
            if isinstance(base, dist.Normal) and msg["value"] is None:
                value = base.loc + base.scale * next(given)
                for transform in getattr(fn, "transforms", []):
                    value = transform(value)
                msg["value"], msg["done"] = value, True

    with Given():
        traces = trace_pair(AnyPrior(guide.sites), guide, (x, index), {})
    parts = [traces.log_prob(s) for seen in (False, True) for s in traces.local_sites(traces.guide, observed=seen)]
    return traces.guide.nodes["z"]["value"], torch.stack(parts).sum(0)


@every_family
@pytest.mark.parametrize("sites", [[SITES["vector"]], SEVERAL], ids=["one", "several"])
def test_gradients_reach_every_parameter(float64, family, sites):
    guide, x = scrambled(make(family, sites)), torch.randn(N, P)
    names, parameters = zip(*guide.named_parameters(), strict=True)
    loss = -log_weights(AnyPrior(sites), guide, x).local.mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    missed = [n for n, g in zip(names, gradients, strict=True) if g is None or not g.isfinite().all() or not g.any()]
    assert missed == []


@every_family
def test_state_dict_brings_the_guide_back(float64, family):
    sites, x = [SITES["vector"]], torch.randn(N, P)
    guide, other = scrambled(make(family, sites)), make(family, sites)
    assert not torch.equal(log_q(guide, sites, x), log_q(other, sites, x))
    other.load_state_dict(guide.state_dict())
    assert torch.equal(log_q(guide, sites, x), log_q(other, sites, x))


@every_family
def test_a_guide_that_has_run_can_be_copied(float64, family):
    sites, x = [SITES["vector"]], torch.randn(N, P)
    guide = scrambled(make(family, sites))
    expected = log_q(guide, sites, x)
    assert torch.equal(log_q(copy.deepcopy(guide), sites, x), expected)


@every_family
def test_particles_are_tiles_of_the_data(float64, family):
    """Scores of S particles are those of one of S copies: draws are scored by the transforms that made them."""
    sites, x = [SITES["vector"]], torch.randn(N, P)
    guide, model = scrambled(make(family, sites)), AnyPrior(sites)
    torch.manual_seed(5)
    nodes_of(guide, x)  # the seam looks at the plate once before it draws
    torch.manual_seed(5)
    poutine.trace(guide).get_trace(x)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    found = log_weights(model, guide, x, num_particles=3)
    torch.set_rng_state(state)
    expected = log_weights(model, guide, x.repeat(3, 1))
    torch.testing.assert_close(found.local.reshape(-1), expected.local.reshape(-1))
    assert found.local.shape == (1, 3, N)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("auxiliary")])  # only near it
def test_start_is_the_gaussian_of_every_other_guide(float64, family):
    sites, x = [SITES["vector"]], torch.randn(N, P)
    found, common = (nodes_of(g, x)["z"] for g in (make(family, sites), Amortized(sites, N, P, width=6)))
    allowed = 0.01 if "spline" in family else 1e-9
    torch.testing.assert_close(found["value"], common["value"], rtol=0, atol=allowed)
    expected = common["fn"].log_prob(common["value"])
    torch.testing.assert_close(found["fn"].log_prob(found["value"]), expected, rtol=0, atol=allowed)


@some_families
def test_plate_shared_sites_and_further_arguments(float64, family):
    shared = MeanField([SITES["positive"]._replace(name="theta")])
    guide = make(family, [SITES["vector"]], shared=shared, plate="points")
    nodes = poutine.trace(guide).get_trace(torch.randn(2, P), torch.tensor([1, 5]), "more", option=3).nodes
    (frame,) = nodes["z"]["cond_indep_stack"]
    assert (frame.name, frame.size, frame.full_size) == ("points", 2, N)
    assert nodes["theta"]["cond_indep_stack"] == ()


@every_family
def test_an_encoder_of_images(float64, family):
    context = FlowSettings(family, context=4).context_dim
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ELU(), nn.Flatten(), nn.Linear(2 * 2 * 2, 6 + context))
    guide, x = scrambled(make(family, [SITES["vector"]], observed=16, encoder=encoder)), torch.randn(N, 1, 4, 4)
    loc, log_scale = guide.locate(x, torch.arange(N)).chunk(2, -1)
    torch.testing.assert_close(loc, encoder(x)[:, :3])
    start, bound = INITIAL_LOG_SCALE, LOG_SCALE_RANGE
    torch.testing.assert_close(log_scale, start + bound * torch.tanh((encoder(x)[:, 3:6] - start) / bound))
    assert nodes_of(guide, x)["z"]["value"].isfinite().all()


@every_family
def test_what_the_encoder_gives_is_bounded(family):
    guide, x = scrambled(make(family, [SITES["vector"]]), 3.0), 1e6 * torch.randn(N, P)
    encoded = guide.encode(x)
    assert (encoded.log_scale - INITIAL_LOG_SCALE).abs().max() <= LOG_SCALE_RANGE
    assert (encoded.context is not None) == family.endswith("contextual")
    assert encoded.context is None or encoded.context.abs().max() <= 1
    assert encoded.loc.abs().max() > 1e5  # a mean may go where it wants


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s: make("planar", s, width=0), "width of 1 or more"),
        (lambda s: make("planar", s, depth=-1), "depth of 0 or more"),
        (lambda s: make("planar", s, num_data=0), "num_data of 1 or more, got 0"),
        (lambda s: make("auxiliary", []), "latent site in plate 'data', got none"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build([SITES["vector"]])


def test_data_of_another_size_than_the_reverse_model_reads():
    encoder = nn.Linear(P + 1, 6)
    guide = make("auxiliary", [SITES["vector"]], encoder=encoder)
    with pytest.raises(ValueError, match=r"data points of size 5, .*, got 6"):
        guide(torch.randn(N, P + 1))


def test_an_encoder_of_another_size_is_refused():
    guide = make("planar-contextual", [SITES["vector"]], encoder=nn.Linear(P, 6))
    with pytest.raises(ValueError, match=r"encoder that gives \(12, 10\), got \(12, 6\)"):
        guide(torch.randn(N, P))
