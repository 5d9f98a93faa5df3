"""An encoder with per-point steps: exact answers, gradients through the steps, and calls that it passes."""

import copy
import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn

import amortized_bayes as ab
from amortized_bayes.joint import joint_density, read_start

N, P, D = 24, 6, 3
ways = pytest.mark.parametrize("gradients", ["all", "guide", "straight"])


def orthogonal(seed=0):
    """A model whose posterior has no correlations, its data, and an encoder half a scale or so off."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        directions = torch.linalg.qr(torch.randn(P, D)).Q
        model = ab.LinearGaussian(directions * torch.tensor([0.5, 1.0, 2.0]), torch.randn(P), 0.7, num_data=N)
        x = torch.randn(N, P) @ torch.randn(P, P)
        plain = ab.Amortized(ab.latent_sites(model, x).local, N, P, width=8)
        for parameter in plain.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model, x, plain


class Curved(nn.Module):
    """A nonlinear model with a positive latent beside a real one, and parameters of its own."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, P, generator=generator))

    def forward(self, x, index=None):
        with pyro.plate("data", N, subsample=index) if index is not None else pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            size = pyro.sample("size", dist.LogNormal(torch.zeros(()), 0.5))
            mean = torch.tanh(torch.cat([z, size[:, None]], -1) @ self.weight)
            pyro.sample("x", dist.Normal(mean, 0.3).to_event(1), obs=x)

    def log_p(self, x, z):
        """Log p(x, z) on the unconstrained space, written out; ``(S, B, P)`` and ``(S, B, 3)`` in."""
        size = z[..., 2].exp()
        mean = torch.tanh(torch.cat([z[..., :2], size[..., None]], -1) @ self.weight)
        prior = dist.Normal(0.0, 1.0).log_prob(z[..., :2]).sum(-1) + dist.Normal(0.0, 0.5).log_prob(z[..., 2])
        return dist.Normal(mean, 0.3).log_prob(x).sum(-1) + prior


def curved(dtype=torch.float64):
    torch.manual_seed(2)
    model = Curved().to(dtype)
    x = torch.randn(N, P, dtype=dtype).tanh()
    plain = ab.Amortized(ab.latent_sites(model, x).local, N, P, width=5).to(dtype)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, x, plain


def rows_of(guide, x, index=None):
    index = torch.arange(len(x)) if index is None else index
    return guide.locate(x, index)


def fitted(model, guide, x, steps=30, **options):
    """Records of a short fit, and what it moved."""
    options = {"batch_size": 8, "learning_rate": 0.01, "shared_learning_rate": 0.01, **options}
    report_at = range(1, steps + 1)
    records = [*ab.fit_steps(model, guide, x, steps, ab.FitOptions(**options), report_at=report_at)]
    return [record.elbo for record in records], [p.detach().clone() for p in guide.parameters()]


# No step --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["off", pytest.param("replay", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "objective", [{}, pytest.param({"objective": "iwae", "num_particles": 4}, marks=pytest.mark.slow)]
)
@ways
def test_no_step_is_the_guide_that_it_starts_at(capture, objective, gradients):
    found = []
    for steps in (None, 0, 1):
        model, x, plain = orthogonal()
        guide = plain if steps is None else ab.SemiAmortized(model, plain, steps, gradients=gradients)
        found.append(fitted(model, guide, x, capture=capture, **objective))
    (losses, parameters), (of_none, of_none_parameters), (of_one, _) = found
    assert losses == of_none
    assert all(torch.equal(a, b) for a, b in zip(parameters, of_none_parameters, strict=True))
    assert losses != of_one


# Exact answers --------------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize(("rate", "steps", "num_samples"), [(1.0, 1, 2), (1.0, 3, 2), (0.6, 4, 6)])
def test_steps_on_a_posterior_without_correlations_are_known(float64, gradients, rate, steps, num_samples):
    model, x, plain = orthogonal()
    model, x, plain = model.double(), x.double(), plain.double()
    options = {"learning_rate": rate, "num_samples": num_samples, "gradients": gradients}
    guide = ab.SemiAmortized(model, plain, steps, **options)
    loc, log_scale = rows_of(plain, x).chunk(2, -1)
    best, curvature = model.posterior(x).mean, model.posterior_precision().diagonal()
    for _ in range(steps):
        scale = log_scale.exp()
        bounded = (rate * scale * curvature * (best - loc)).clamp(-1, 1)
        loc = loc + scale * bounded
        log_scale = log_scale + (rate * (1 - scale.square() * curvature) / math.sqrt(2)).clamp(-1, 1) / math.sqrt(2)
    torch.testing.assert_close(rows_of(guide, x), torch.cat([loc, log_scale], -1), rtol=0, atol=1e-10)


def test_a_step_of_rate_1_from_the_posteriors_scales_leads_to_its_mean(float64):
    model, x, plain = orthogonal()
    model, x = model.double(), x.double()
    scale = model.posterior_precision().diagonal().rsqrt()
    near = model.posterior(x).mean + 0.5 * scale

    class Near(ab.LocalGuide):
        def locate(self, x, index):
            return torch.cat([near[index], scale.log().expand(len(x), -1)], -1)

    guide = ab.SemiAmortized(model, Near(plain.sites, N), learning_rate=1.0)
    found = rows_of(guide, x)
    torch.testing.assert_close(found[:, :D], model.posterior(x).mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[:, D:].exp(), scale.expand(N, D), rtol=0, atol=1e-10)
    of_any_draw = ab.log_weights(model, guide, x, num_particles=3).local  # the evidence, where q is the posterior
    torch.testing.assert_close(of_any_draw[0], model.log_evidence(x).expand(3, N), rtol=0, atol=1e-8)


def by_hand(model, plain, x, guide):
    """The same steps from a log density that is written out, differentiable in all parameters."""
    loc, log_scale = rows_of(plain, x).chunk(2, -1)
    for noise in guide.noise:
        scale = log_scale.exp()
        z = loc + scale * noise
        (slope,) = torch.autograd.grad(model.log_p(x.expand(len(z), *x.shape), z).sum(), [z], create_graph=True)
        of_loc, of_log_scale = slope.mean(0), (slope * noise).mean(0) * scale + 1
        loc = loc + scale * (guide.learning_rate * scale * of_loc).clamp(-1, 1)
        log_scale = log_scale + (guide.learning_rate * of_log_scale / 2**0.5).clamp(-1, 1) / 2**0.5
    return torch.cat([loc, log_scale], -1)


def test_steps_and_their_gradients_are_those_of_a_density_written_out(float64):
    model, x, plain = curved()
    guide = ab.SemiAmortized(model, plain, 3, num_samples=4)
    found, expected = rows_of(guide, x), by_hand(model, plain, x, guide)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    parameters, weights = [*plain.parameters(), model.weight], torch.randn_like(found)
    of_ours, of_theirs = (torch.autograd.grad((r * weights).sum(), parameters) for r in (found, expected))
    for ours, theirs in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_gradients_through_the_steps_agree_with_finite_differences(float64):
    model, x, plain = curved()
    guide = ab.SemiAmortized(model, plain, 2)
    parameters = [*plain.parameters(), model.weight]

    def loss():
        torch.manual_seed(0)
        return ab.log_weights(model, guide, x, num_particles=2).local.mean()

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            parameter.data += sign * 1e-5 * direction
            values.append(loss().detach())
            parameter.data -= sign * 1e-5 * direction
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]).item() / 2e-5, rel=1e-5)


def test_without_derivatives_the_guide_gets_the_gradient_at_the_refined_q(float64):
    model, x, plain = curved()
    through = ab.SemiAmortized(model, plain, 3)
    straight = ab.SemiAmortized(model, plain, 3, gradients="straight")
    refined, weights = rows_of(straight, x), torch.randn(N, 6)
    torch.testing.assert_close(refined, rows_of(through, x), rtol=0, atol=0)
    of_rows = torch.autograd.grad((refined.exp() * weights).sum(), [*plain.parameters()])
    own = rows_of(plain, x)
    expected = torch.autograd.grad((own * (refined.exp() * weights).detach()).sum(), [*plain.parameters()])
    for a, b in zip(of_rows, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(rows_of(straight, x).sum(), [model.weight], allow_unused=True) == (None,)


def test_gradients_to_the_guide_alone_leave_the_model_its_own(float64):
    model, x, plain = curved()
    of_loss = []
    for gradients in ("all", "guide", "straight"):
        guide = ab.SemiAmortized(model, plain, 2, gradients=gradients)
        torch.manual_seed(0)
        loss = ab.log_weights(model, guide, x).local.mean()
        of_loss.append(torch.autograd.grad(loss, [*plain.parameters(), model.weight]))
        assert model.weight.requires_grad
    (*of_all, model_of_all), (*of_guide, model_of_guide), (*of_none, model_of_none) = of_loss
    assert all(torch.equal(a, b) for a, b in zip(of_all, of_guide, strict=True))
    assert torch.equal(model_of_guide, model_of_none)
    assert not torch.equal(model_of_guide, model_of_all)
    assert not any(torch.equal(a, b) for a, b in zip(of_guide, of_none, strict=True))


# Points do not see each other -----------------------------------------------------------------------------------------


@ways
def test_a_points_steps_do_not_depend_on_the_other_points(float64, gradients):
    model, x, plain = curved()
    guide = ab.SemiAmortized(model, plain, 3, gradients=gradients)
    everything, some = rows_of(guide, x), torch.tensor([5, 0, 17])
    for places in (some, some[:1]):
        torch.testing.assert_close(rows_of(guide, x[places], places), everything[places], rtol=0, atol=1e-12)
    traced = poutine.trace(guide).get_trace(x[some], some).nodes["z"]["fn"].mean
    torch.testing.assert_close(traced, everything[some, :2], rtol=0, atol=1e-12)
    other = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(rows_of(guide, other)[3].sum(), other)
    assert (slope[[0, 1, 2, *range(4, N)]] == 0).all()
    assert slope[3].abs().min() > 0


@pytest.mark.slow
def test_particles_of_a_point_share_its_q():
    model, x, plain = orthogonal()
    guide = ab.SemiAmortized(model, plain, 2)
    q = read_start(joint_density(model, x), guide)
    assert q is not None
    torch.testing.assert_close(torch.cat([q.loc, q.scale.log()], -1), rows_of(guide, x), rtol=1e-5, atol=1e-5)
    exact = ab.SemiAmortized(model, plain, 60, learning_rate=0.5)  # all weights of a point are then its evidence
    bound = ab.iwae(model, exact, x, num_particles=5).value
    torch.testing.assert_close(bound.float(), model.log_evidence(x), rtol=0, atol=1e-2)


# Calls ----------------------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("options", [{}, {"objective": "iwae", "num_particles": 3}])
@pytest.mark.slow
def test_a_captured_fit_is_the_plain_one(gradients, options):
    found = []
    for capture in ("off", "replay"):
        model, x, plain = curved(torch.float32)
        guide = ab.SemiAmortized(model, plain, 2, gradients=gradients)
        training = ab.Training(model, guide, x, ab.FitOptions(batch_size=8, capture=capture, average=None, **options))
        *_, record = training.run(40)
        assert (training.captured is not None) == (capture == "replay")
        found.append((record.elbo, [p.detach().clone() for p in (*guide.parameters(), model.weight)]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("gradients", "share"), [("guide", 0.9), ("straight", 0.95)])
@pytest.mark.slow
def test_training_beats_steps_from_an_encoder_trained_without_them(gradients, share):
    """One latent of two that a narrow encoder cannot serve: training for the steps leaves them less to do."""
    model, x, _ = orthogonal()
    sites = ab.latent_sites(model, x).local
    best = model.best_factorized_elbo(x).mean()

    def left(guide):
        return (best - ab.elbo(model, guide, x, num_draws=500).value.mean()).item()

    torch.manual_seed(0)
    plain, own = (ab.Amortized(sites, N, P, width=1) for _ in range(2))
    own.load_state_dict(plain.state_dict())
    options = ab.FitOptions(batch_size=N, learning_rate=0.02)
    ab.fit(model, plain, x, 500, options, progress=False)
    semi = ab.SemiAmortized(model, own, 1, gradients=gradients, learning_rate=0.5)
    ab.fit(model, semi, x, 500, options, progress=False)
    after = ab.SemiAmortized(model, plain, 1, learning_rate=0.5)
    assert left(semi) < share * left(after) < 0.9 * share * left(plain)


def test_pyros_own_svi_trains_guide_and_model():
    pyro.clear_param_store()
    model, x, plain = curved(torch.float32)

    class Registered(nn.Module):
        def forward(self, x):
            pyro.module("model", model)
            model(x)

    guide = ab.SemiAmortized(model, plain, 2)
    before = [p.detach().clone() for p in (*guide.parameters(), model.weight)]
    svi = pyro.infer.SVI(Registered(), guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(not torch.equal(a, b) for a, b in zip(before, (*guide.parameters(), model.weight), strict=True))
    assert not any("weight" in name and "SemiAmortized.model" in name for name in pyro.get_param_store())
    pyro.clear_param_store()


def test_the_model_is_held_and_not_owned():
    model, _, plain = curved(torch.float32)
    guide = ab.SemiAmortized(model, plain, 1)
    own = {id(p) for p in guide.parameters()}
    assert id(model.weight) not in own
    assert not any("model" in name for name in guide.state_dict())
    assert copy.deepcopy(guide).model is model
    twin, of_twin = copy.deepcopy((model, guide))
    assert of_twin.model is twin


class Shared(nn.Module):
    """A slope above 0 that all points share, drawn or held."""

    def forward(self, x, index=None):
        slope = pyro.sample("slope", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(slope * z, 0.5), obs=x[:, 0])


@pytest.mark.slow
def test_shared_latents_are_held_at_their_median(float64):
    """Whatever the slope of a run is: q(z) is independent of it, as that of other guides."""
    torch.manual_seed(0)
    model, x, places = Shared(), torch.randn(N, 1, dtype=torch.float64), torch.arange(N)
    sites = ab.latent_sites(model, x, places)
    shared = ab.MeanField(sites.shared, locs={"slope": torch.tensor(0.4)}, log_scale=0.0)
    guide = ab.SemiAmortized(model, ab.Constant(sites.local, N, shared=shared), 60, learning_rate=0.5)
    slope = math.exp(0.4)
    precision = 1 + slope**2 / 0.25
    mean, scale = slope * x[:, 0] / 0.25 / precision, torch.tensor(precision).rsqrt().expand(N)
    slopes = []
    for seed in range(3):
        torch.manual_seed(seed)
        trace = poutine.trace(guide).get_trace(x, places)
        slopes.append(trace.nodes["slope"]["value"].item())
        torch.testing.assert_close(trace.nodes["z"]["fn"].mean, mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(trace.nodes["z"]["fn"].stddev, scale, rtol=1e-6, atol=1e-6)
    assert len(set(slopes)) == 3
    rows = torch.stack([mean, scale.log()], 1)
    torch.testing.assert_close(guide.answer(x, places), rows, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guide.locate(x, places), rows, rtol=1e-6, atol=1e-6)
    result = ab.fit(model, guide, x, 20, ab.FitOptions(batch_size=8), progress=False)
    assert math.isfinite(result.elbo)


def test_a_bayesian_decoder_by_local_reparametrization():
    torch.manual_seed(0)
    x = (torch.rand(N, P) < 0.5).float()
    model = ab.DeepGenerative(P, 2, (4,), N, bayesian=True)
    sites = ab.latent_sites(model, x)
    plain = ab.Amortized(sites.local, N, P, width=4, shared=ab.MeanField(sites.shared, locs=sites.shared_draw))
    guide = ab.SemiAmortized(model, plain, 2)
    before = [p.detach().clone() for p in guide.parameters()]
    ab.fit(model, guide, x, 20, ab.FitOptions(batch_size=8, local_reparametrization=True), progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


@pytest.mark.slow
def test_it_is_diagnosed_like_any_guide():
    model, x, plain = orthogonal()
    for guide, improved in ((plain, False), (ab.SemiAmortized(model, plain, 30, learning_rate=0.5), True)):
        gap = ab.diagnose(model, guide, x, progress=False).gaps().amortization
        assert (abs(gap.mean) < 0.05) == improved
    assert ab.refine(model, guide, x, settings=ab.RefineSettings(steps=(0, 2))).gain[-1].abs().max() < 0.05


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_a_line():
    model, x, plain = orthogonal()
    sites = plain.sites
    flow = ab.FlowGuide(sites, N, P, ab.FlowSettings("planar"))
    for guide, error, words in (
        (flow, ValueError, "factorized Gaussian, got FlowGuide"),
        (ab.SemiAmortized(model, plain), ValueError, "got SemiAmortized"),
        (ab.Amortized(sites, N, P, shared=nn.Identity()), ValueError, "with a median, such as MeanField, got Identity"),
        (lambda x: None, TypeError, "got function"),
    ):
        with pytest.raises(error, match=words) as caught:
            ab.SemiAmortized(model, guide)
        assert "\n" not in str(caught.value)
    for options in ({"steps": -1}, {"num_samples": 3}, {"num_samples": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ab.SemiAmortized(model, plain, **options)
    with pytest.raises(ValueError, match="expected a module as model with gradients='guide', got function"):
        ab.SemiAmortized(lambda x: model(x), plain, gradients="guide")
    closed = ab.SemiAmortized(lambda: model(x), ab.Amortized(sites, N, P, encoder_input=lambda: x))
    with pytest.raises(ValueError, match="data passed to the model"):
        closed()
