"""Flow guides through the seam: densities by change of variables, exact bounds, families in order, captured steps."""

import copy
import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn
from torch.distributions import biject_to, constraints

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides import FAMILIES, Amortized, AuxiliaryFlow, FlowGuide, FlowSettings, MeanField
from amortized_bayes.guides.flow import LOG_SCALE_RANGE
from amortized_bayes.guides.local import INITIAL_LOG_SCALE
from amortized_bayes.inference.options import Divergence, FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import LinearGaussian
from amortized_bayes.sites import latent_sites
from amortized_bayes.types import LatentSite
from amortized_bayes.weights import log_weights, trace_pair

N, P = 12, 5

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
SEVERAL = [SITES[name]._replace(name=name) for name in ("scalar", "simplex", "matrix")]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES.keys())
some_families = pytest.mark.parametrize("family", ["gaussian", "sylvester", "spline-contextual", "auxiliary"])


def make(family, sites, observed=P, num_data=N, *, num_flows=2, hidden=(8, 8), width=6, **options):
    kind = AuxiliaryFlow if family.startswith("auxiliary") else FlowGuide
    settings = FlowSettings(family, num_flows=num_flows, hidden=hidden, context=4)
    return kind(sites, num_data, observed, settings, width, **options)


def scrambled(guide, spread=0.3):
    """Parameters at a place where nothing is zero or alike."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return guide


class AnyPrior(nn.Module):
    """A model with given local sites, each standard normal on the unconstrained space, and x about their sum."""

    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def forward(self, x, index=None):
        total = 0.0
        with pyro.plate("data", len(x) if index is None else N, subsample=index):
            for site in self.sites:
                transform = biject_to(site.support)
                base = dist.Normal(torch.zeros(transform.inverse_shape(site.event_shape)), 1.0)
                prior = dist.TransformedDistribution(base, [transform])
                prior = prior.to_event(len(site.event_shape) - transform.codomain.event_dim)
                value = pyro.sample(site.name, prior)
                total = total + value.reshape(len(x), -1).sum(-1)
            pyro.sample("x", dist.Normal(total[:, None].expand(x.shape), 1.0).to_event(1), obs=x)


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
        (lambda s: FlowGuide(s, N, P, FlowSettings("auxiliary")), "without auxiliary variables, got 'auxiliary'"),
        (lambda s: AuxiliaryFlow(s, N, P, FlowSettings("planar")), "expected a family 'auxiliary' or .*, got 'planar'"),
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


# Guides with known parts ----------------------------------------------------------------------------------------------


class Numbers(nn.Module):
    """A function in place of a network, so that exact parameters can be put into a guide."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *parts):
        return self.function(*parts)


def unclipped(log_scale, bound, centre=0.0):
    """What has to go into the soft clip for ``log_scale`` to come out."""
    return centre + bound * torch.atanh((log_scale - centre) / bound)


def encoder_of(model, scale, context_dim=0):
    """Exact posterior means with given scales (D,), and data for a context."""
    bounded = unclipped(scale.log(), LOG_SCALE_RANGE, INITIAL_LOG_SCALE)
    return Numbers(lambda x: torch.cat([model.posterior(x).mean, bounded.expand(len(x), -1), x[:, :context_dim]], -1))


# Weights are right: their mean is the evidence ------------------------------------------------------------------------


class Blind(nn.Module):
    """A guide without one of its auxiliary terms: what a forgotten one does."""

    def __init__(self, guide, name):
        super().__init__()
        self.guide, self.name = guide, name

    def forward(self, *args):
        with poutine.block(hide=[self.name]):
            self.guide(*args)


def ratio_to_evidence(model, guide, x, num_draws=10_000):
    """Mean of weight / evidence for each point, 1 in expectation, and its standard error, (B,) each."""
    torch.manual_seed(1)
    with torch.no_grad():
        ratio = (log_weights(model, guide, x, num_particles=num_draws).local[0] - model.log_evidence(x)).exp()
    return ratio.mean(0), ratio.std(0) / math.sqrt(num_draws)


def near_posterior(family, model, x):
    """A Gaussian wider than the posterior, about its mean, and a flow that moves it a little."""
    torch.manual_seed(0)
    scale = 2.0 * model.posterior_precision().diagonal().rsqrt()
    encoder = encoder_of(model, scale, FlowSettings(family, context=4).context_dim)
    auxiliary = family.startswith("auxiliary")  # starts further from the identity
    guide = make(family, latent_sites(model, x).local, num_data=len(x), encoder=encoder)
    scrambled(guide, 0.03 if auxiliary else 0.1)
    if auxiliary:  # q(v|z) wider than r(v|x, z)
        with torch.no_grad():
            guide.forward_model.network[-1].bias[2:] += 0.5
    return guide


@every_family
def test_mean_weight_is_the_evidence(linear_problem, family):
    model, x, _ = linear_problem
    mean, error = ratio_to_evidence(model, near_posterior(family, model, x), x)
    assert error.max() < 0.1
    assert ((mean - 1) / error).abs().max() < 5


@pytest.mark.parametrize("name", ["_base", "_auxiliary", "_reverse"])
def test_a_term_left_out_is_found_out(linear_problem, name):
    model, x, _ = linear_problem
    mean, error = ratio_to_evidence(model, Blind(near_posterior("auxiliary", model, x), name), x)
    assert ((mean - 1) / error).abs().max() > 5


# Auxiliary flows against exact values ---------------------------------------------------------------------------------


def bound_of(model, guide, x, num_draws=4000):
    """Mean log weight of each point and its standard error, (B,) each."""
    torch.manual_seed(2)
    values = log_weights(model, guide, x, num_particles=num_draws).local[0].detach()
    return values.mean(0), values.std(0) / math.sqrt(num_draws)


@pytest.mark.parametrize("reverse", ["r = q", "r off by 0.3"])
def test_auxiliary_bound_is_the_factorized_one_less_the_divergence(linear_problem, reverse):
    """Couplings at the identity and q(v|z) = r(v|x, z): the bound of the base Gaussian, which is known."""
    model, x, _ = linear_problem
    scale = model.posterior_precision().diagonal().rsqrt()
    guide = make("auxiliary", latent_sites(model, x).local, encoder=encoder_of(model, scale))
    for layer in guide.flow.layers:
        layer.numbers = Numbers(lambda first, context: first.new_zeros(len(first), 4))
    shift = 0.3 if reverse == "r off by 0.3" else 0.0
    constant = torch.tensor([0.2, -0.1, *unclipped(torch.tensor([-0.5, 0.4]), 8.0)])
    guide.forward_model = Numbers(lambda z: constant + torch.cat([z.sin(), 0.0 * z], -1))
    guide.reverse_model = Numbers(lambda x, z: constant + torch.cat([z.sin() + shift, 0.0 * z], -1))
    divergence = 0.5 * (shift**2 / torch.tensor([-0.5, 0.4]).exp().square()).sum()
    value, error = bound_of(model, guide, x)
    assert ((value - model.best_factorized_elbo(x) + divergence) / error).abs().max() < 5
    assert error.max() < 0.05


def exact_auxiliary(model, x):
    """Couplings and reverse model such that z_T has the exact, correlated posterior, and r is q(v|x, z_T).

    For the posterior's covariance U L U^T let z_T = z_0 + A v, A = U (L - s^2)^(1/2), z_0 ~ N(m, s^2 I), v ~ N(0, I).
    Then v given z_T is a factorized Gaussian of mean A^T C^-1 (z_T - m) and variances s^2 / L.
    """
    covariance = torch.linalg.inv(model.posterior_precision())
    lengths, directions = torch.linalg.eigh(covariance)
    s = (0.6 * lengths.min()).sqrt()
    a = directions * (lengths - s**2).sqrt()
    guide = make("auxiliary", latent_sites(model, x).local, num_flows=1, encoder=encoder_of(model, s.expand(2)))
    guide.flow.layers[0].numbers = Numbers(lambda v, context: torch.cat([v @ a.T, 0.0 * v], -1))
    solve = torch.linalg.inv(covariance) @ a
    # The second coupling, on the vector (v, z) reversed as a whole, turns v_0 into 2 v_0 + 0.5 z_T.
    log_two = unclipped(torch.tensor(2.0).log(), 2.0)
    guide.flow.layers[1].numbers = Numbers(lambda z, context: torch.cat([0.5 * z, log_two.expand(len(z), 2)], -1))

    def reverse(x, z):
        mean = (z - model.posterior(x).mean) @ solve
        return torch.cat([2 * mean + 0.5 * z, unclipped((2 * s / lengths.sqrt()).log(), 8.0).expand(len(z), 2)], -1)

    guide.reverse_model = Numbers(reverse)
    guide.forward_model = Numbers(lambda z: torch.zeros(len(z), 4))
    return guide


def test_every_auxiliary_weight_is_the_evidence_where_all_parts_are_exact(linear_problem):
    model, x, _ = linear_problem
    weights = log_weights(model, exact_auxiliary(model, x), x, num_particles=50).local[0]
    torch.testing.assert_close(weights, model.log_evidence(x).expand(50, N), rtol=0, atol=1e-8)


def test_auxiliary_bound_is_below_the_evidence_where_the_reverse_model_is_wrong(linear_problem):
    model, x, _ = linear_problem
    guide = exact_auxiliary(model, x)
    right = guide.reverse_model.function
    guide.reverse_model = Numbers(lambda x, z: right(x, z) + 0.2)
    value, error = bound_of(model, guide, x)
    assert (value < model.log_evidence(x) - 5 * error).all()


# Fits -----------------------------------------------------------------------------------------------------------------


class LinearFit:
    """A linear-Gaussian model with a correlated posterior, and 400 points of it."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(P, 2, generator=generator)
        weight[:, 1] += 0.7 * weight[:, 0]
        self.model = LinearGaussian(weight, torch.randn(P, generator=generator), 0.7, num_data=400)
        z = torch.randn(400, 2, generator=generator)
        self.x = z @ weight.T + self.model.bias + 0.7 * torch.randn(400, P, generator=generator)

    def guide(self, family):
        torch.manual_seed(0)
        return make(family, latent_sites(self.model, self.x).local, num_data=400, hidden=(32, 32), width=32)


def fitted(model, guide, x, num_steps, batch_size=100, learning_rate=4e-3, **options):
    settings = FitOptions(batch_size=batch_size, learning_rate=learning_rate, capture="replay")
    training = Training(model, guide, x, settings, **options)
    list(training.run(num_steps))
    training.settle()
    return training


@every_family
def test_fits_come_close_to_the_evidence_and_stay_below(family):
    problem = LinearFit()
    guide = problem.guide(family)
    training = fitted(problem.model, guide, problem.x, 300 if "spline" in family else 500)
    assert training.captured is not None
    found = elbo(problem.model, guide, problem.x, num_draws=50)
    evidence = problem.model.log_evidence(problem.x).mean()
    best_factorized = problem.model.best_factorized_elbo(problem.x).mean()
    error = found.standard_error.square().sum().sqrt() / len(problem.x)
    assert found.value.mean() < evidence + 4 * error
    if family == "gaussian":
        assert best_factorized - 0.05 < found.value.mean() < best_factorized + 4 * error
    else:  # the factorized gap is 0.41 nats
        assert found.value.mean() > evidence - 0.06

    # A point a thousand times as far as any that was seen.
    far = elbo(problem.model, guide, 1000 * problem.x, num_draws=5)
    assert far.value.isfinite().all()
    assert far.kl.isfinite().all()


@every_family
def test_a_captured_step_gives_the_numbers_of_the_plain_one(float64, family):
    found = []
    for capture in ("replay", "off"):
        problem = LinearFit()
        model, x = problem.model.double(), problem.x.double()
        guide = problem.guide(family)
        training = Training(model, guide, x, FitOptions(batch_size=20, capture=capture), seed=3)
        (last,) = training.run(4)
        assert (training.captured is not None) == (capture == "replay")
        found.append([torch.tensor(last.elbo), *(p.detach() for p in guide.parameters())])
    for replayed, plain in zip(*found, strict=True):
        torch.testing.assert_close(replayed, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "capture"),
    [*((name, "off") for name in FAMILIES), ("planar", "replay"), ("spline-contextual", "replay")],
)
def test_not_a_number_in_a_weight_ends_the_fit(family, capture):
    problem = LinearFit()
    guide = problem.guide(family)
    with torch.no_grad():
        list(guide.parameters())[-1].view(-1)[0] = math.nan
    with pyro.validation_enabled(False):  # or the model's own draws are refused before the first step
        training = Training(problem.model, guide, problem.x, FitOptions(batch_size=100, capture=capture))
    with pyro.validation_enabled(False), pytest.raises(Divergence, match="loss of nan nats a point at step 1"):
        list(training.run(3))


class Bent(nn.Module):
    """Two standard normal latents, seen through a curved mean with scale 0.3: (B, 1)."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z)[:, None], 0.3).to_event(1), obs=x)

    def log_evidence(self, x):
        """By quadrature on a grid, (B,)."""
        line = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
        log_joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        values = [(log_joint + dist.Normal(self.mean(z), 0.3).log_prob(v)).logsumexp((0, 1)) for v in x.double()[:, 0]]
        return torch.stack(values) + 2 * (line[1] - line[0]).log()


BENT = {
    "banana": (lambda z: z[..., 1] + z[..., 0] ** 2, torch.tensor([[0.5], [1.0], [1.5]])),
    "two modes": (lambda z: z[..., 0] ** 2 + 0.5 * z[..., 1], torch.tensor([[1.0], [1.5], [2.0]])),
}


def bent_gaps(shape, family, num_flows, num_steps):
    """Evidence less the bound, averaged over the points, and its standard error."""
    mean, x = BENT[shape]
    model, data = Bent(mean), x.repeat(50, 1)
    torch.manual_seed(0)
    sites = latent_sites(model, data).local
    guide = make(family, sites, 1, len(data), num_flows=num_flows, hidden=(32, 32), width=16)
    fitted(model, guide, data, num_steps, batch_size=len(data), learning_rate=0.01, pass_index=False)
    found = elbo(model, guide, x.repeat(3000, 1), num_draws=1).value.reshape(-1, 3).double().mean(1)
    return (model.log_evidence(x).mean() - found.mean()).item(), (found.std() / math.sqrt(len(found))).item()


@pytest.mark.parametrize(
    ("shape", "family", "num_flows", "num_steps", "most"),
    [
        ("banana", "planar", 4, 400, 0.5),
        ("banana", "spline", 2, 300, 0.04),
        ("two modes", "realnvp", 4, 400, 1.0),
        ("two modes", "auxiliary", 2, 500, 0.3),
    ],
)
def test_flows_fit_bent_posteriors_better_than_a_gaussian(shape, family, num_flows, num_steps, most):
    gaussian, _ = bent_gaps(shape, "gaussian", 1, 300)
    gap, error = bent_gaps(shape, family, num_flows, num_steps)
    assert -4 * error < gap < most < gaussian - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("shape", BENT)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gaussian"])
def test_every_flow_fits_bent_posteriors_better_than_a_gaussian(shape, family):
    gaussian, _ = bent_gaps(shape, "gaussian", 1, 600)
    gap, error = bent_gaps(shape, family, 4, 2000)
    assert -4 * error < gap < gaussian - 0.3
    if "spline" in family:
        assert gap < 0.03
