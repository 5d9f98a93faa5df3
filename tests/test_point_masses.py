"""Guides that put all mass at one point: what they maximize is log p(x, z), which bounds nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.poutine import block

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions

X = torch.linspace(-1, 2, 5)
QUICK_DIAGNOSIS = ab.DiagnosisSettings(num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 64))
SHORT = ab.ComparisonSettings(epochs=2, num_draws=2, fit=FitOptions(capture="off"))


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def point(x):
    loc = pyro.param("point_loc", lambda: torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x / 1.25 + loc))


def with_shared(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + w, 0.5), obs=x)


def shared_point(x):
    pyro.sample("w", dist.Delta(torch.tensor(0.3)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - 0.3) / 1.25, 0.2**0.5))


CALLS = {
    "elbo": lambda: ab.elbo(model, point, X),
    "iwae": lambda: ab.iwae(model, point, X),
    "log_predictive": lambda: ab.log_predictive(model, point, X),
    "ais": lambda: ab.ais(model, point, X),
    "optimize_local": lambda: ab.optimize_local(model, point, X),
    "diagnose": lambda: ab.diagnose(model, point, X, progress=False),
    "compare": lambda: ab.compare(model, X, widths=(2,), guides={"point": point}, settings=SHORT, progress=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_latent_at_one_point_is_refused(name):
    with pytest.raises(ValueError, match=r"'z' with all mass at one point \(Delta\)") as refused:
        CALLS[name]()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("call", [ab.elbo, ab.iwae])
def test_a_shared_latent_at_one_point_has_no_bound(call):
    with pytest.raises(ValueError, match=r"'w' with all mass at one point \(Delta\)"):
        call(with_shared, shared_point, X)


def test_given_a_shared_point_log_predictive_is_that_of_new_points():
    found = ab.log_predictive(with_shared, shared_point, X, num_particles=2)
    exact = dist.Normal(0.3, 1.25**0.5).log_prob(X)
    torch.testing.assert_close(found.value.float(), exact, rtol=0, atol=1e-4)


def test_a_delta_that_hands_on_a_draw_is_none():
    """Log q is that of the noise less the logarithm of the scale, which the Delta carries."""
    scale = torch.tensor(0.2).sqrt()

    def guide(x):
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 1.25 + scale * noise, log_density=-scale.log()))

    found = ab.elbo(model, guide, X, num_draws=3)
    torch.testing.assert_close(found.value.float(), dist.Normal(0.0, 1.25**0.5).log_prob(X), rtol=0, atol=1e-4)


def test_a_draw_inside_the_plate_says_nothing_of_a_point_outside():
    def guide(x):
        pyro.sample("w", dist.Delta(torch.tensor(0.3)))
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(noise, log_density=torch.tensor(0.0)))

    with pytest.raises(ValueError, match="'w' with all mass at one point"):
        ab.elbo(with_shared, guide, X)


def test_a_point_that_has_a_probability_is_a_bound():
    """At a discrete value: log p(x, z) is a bound on log p(x), the sum over z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta((x > 0.5).float()))

    found = ab.elbo(model, guide, X, num_draws=2).value
    sides = [dist.Normal(z, 0.5).log_prob(X) + dist.Bernoulli(0.3).log_prob(torch.tensor(z)) for z in (0.0, 1.0)]
    torch.testing.assert_close(found.float(), torch.where(X > 0.5, sides[1], sides[0]), rtol=0, atol=1e-5)


def drawn_beside(draw):
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", draw(len(x)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 1.25 + 0.1 * u, 0.5))

    return guide


def made_in_part(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u[:, 0]))


MIXED = {
    "a label": drawn_beside(lambda n: dist.Categorical(torch.ones(n, 3) / 3)),
    "a number": drawn_beside(lambda n: dist.Normal(torch.zeros(n), 10.0)),
    "more than is made of it": made_in_part,
}


@pytest.mark.parametrize("call", [ab.elbo, ab.iwae, ab.log_predictive, ab.ais, ab.diagnose])
@pytest.mark.parametrize("kind", MIXED)
def test_auxiliary_draws_that_no_latent_is_made_of_are_refused(kind, call):
    """Of three equal labels IWAE would end log 3 above log p(x), of a number anywhere."""
    with pytest.raises(ValueError, match="made of the guide's auxiliary draws, number for number, got 'u'") as refused:
        call(model, MIXED[kind], X)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_an_auxiliary_draw_with_its_density_given_z_is_right():
    """q(u, z) over r(u | z), the exact one: all weights are those of q(z), a Gaussian."""
    spread = 0.6

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), spread), infer={"is_auxiliary": True})
            z = pyro.sample("z", dist.Normal(x / 1.25 + u, 0.5))
            variance = 1 / (1 / spread**2 + 1 / 0.25)
            back = dist.Normal(variance * (z - x / 1.25) / 0.25, variance**0.5)
            pyro.factor("back", -back.log_prob(u), has_rsample=True)

    def alone(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.25, (spread**2 + 0.25) ** 0.5))

    found, expected = (ab.elbo(model, each, X, num_draws=4_000) for each in (guide, alone))
    error = torch.hypot(found.standard_error, expected.standard_error)
    assert ((found.value - expected.value).abs() < 4 * error).all()


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("call", [ab.elbo, ab.iwae, ab.diagnose])
@pytest.mark.slow_cases(
    "diagnose-AutoMultivariateNormal",
    "diagnose-AutoNormal",
    "elbo-AutoMultivariateNormal",
    "iwae-AutoMultivariateNormal",
    "iwae-AutoNormal",
)
def test_autoguides_of_shared_latents_are_taken(call, auto):
    """Where shared latents are held, what is drawn for them makes nothing."""
    shared = auto(block(with_shared, hide=["z"]))

    def guide(x):
        w = shared(x)["w"]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - w) / 1.25, 0.2**0.5))

    settings = {"settings": QUICK_DIAGNOSIS} if call is ab.diagnose else {}
    assert call(with_shared, guide, X, **settings) is not None


def test_labels_beside_an_auxiliary_draw_are_taken():
    """A label that the guide hands on has a probability; z is made of the draw."""

    def labelled(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            label = pyro.sample("label", dist.Bernoulli(0.3), infer={"is_auxiliary": True})
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            pyro.sample("y", dist.Delta(label))
            pyro.sample("z", dist.Delta(u))

    exact = (0.5 * torch.stack([dist.Normal(y, 1.25**0.5).log_prob(X).exp() for y in (0.0, 1.0)]).sum(0)).log()
    found = ab.iwae(labelled, guide, X, num_particles=900)
    assert ((found.value - exact).abs() < 5 * found.standard_error).all()
