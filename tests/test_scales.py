"""Scales and masks where gaps to log p(x) are asked for: the right number, or one refusal from every call."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized_bayes as ab
from amortized_bayes.comparing.any_model import ComparisonSettings
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.joint import joint_density
from amortized_bayes.joint.gaussian import Gaussian

X = torch.linspace(-1.5, 2, 12).reshape(6, 2)
NOISE = 0.5
CHAINS = ab.AISSettings(num_temperatures=20, num_chains=4, num_pilot=4)
QUICK = ab.DiagnosisSettings(
    num_shared=1,
    num_particles=200,
    ais=CHAINS,
    certificate=ab.CertificateSettings(6, 0.1, 20),
    local=ab.LocalSettings(max_steps=100),
)
SHORT = ComparisonSettings(epochs=2, num_draws=2, fit=FitOptions(capture="off"))


def scaled(on, where):
    return poutine.scale(scale=torch.tensor(0.25)) if on == where else nullcontext()


def model_with(where, shared=False):
    """z_n ~ N(0, I) around a shared shift or none, x_n ~ N(z_n, 1/4), one of the sites scaled."""

    def model(x):
        shift = torch.zeros(2)
        if shared:
            with scaled("shared", where):
                shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            with scaled("latent", where):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            with scaled("observed", where):
                pyro.sample("x", dist.Normal(z + shift, NOISE).to_event(1), obs=x)

    return model


def guide_with(where, shared=False):
    def guide(x, kept=None):
        if shared:
            with scaled("guide's shared", where):
                pyro.sample("shift", dist.Normal(torch.zeros(2), 0.1).to_event(1))
        with pyro.plate("data", len(x)), scaled("guide", where):
            pyro.sample("z", dist.Normal(x / 1.25, 0.2**0.5).to_event(1))

    return guide


FIXED = {"shift": torch.zeros(2)}
CALLS = {
    "elbo": lambda model, guide, fixed: ab.elbo(model, guide, X),
    "iwae": lambda model, guide, fixed: ab.iwae(model, guide, X, num_particles=5),
    "log_predictive": lambda model, guide, fixed: ab.log_predictive(model, guide, X),
    "diagnose": lambda model, guide, fixed: ab.diagnose(model, guide, X, settings=QUICK),
    "ais": lambda model, guide, fixed: ab.ais(model, guide, X, settings=CHAINS, fixed=fixed),
    "bdmc": lambda model, guide, fixed: ab.bdmc(model, guide, X, settings=CHAINS, fixed=fixed),
    "optimize_local": lambda model, guide, fixed: ab.optimize_local(model, guide, X, fixed=fixed),
    "optimize_flow": lambda model, guide, fixed: ab.optimize_flow(
        model, Gaussian(X, X.exp()), X, settings=ab.FlowSettings("planar"), fixed=fixed
    ),
    "log_joint": lambda model, guide, fixed: ab.log_joint(model, X, fixed=fixed),
    "compare": lambda model, guide, fixed: ab.compare(model, X, widths=(2,), settings=SHORT, progress=False),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("where", ["observed", "latent", "shared"])
def test_a_scaled_site_of_the_model_is_refused_by_every_call(name, where):
    shared = where == "shared"
    with pytest.raises(ValueError, match=r"expected sites that are not scaled, got '.*' with a scale of 0\.25"):
        CALLS[name](model_with(where, shared), guide_with(None, shared), FIXED if shared else None)


@pytest.mark.parametrize("name", ["diagnose", "ais", "bdmc", "optimize_local", "elbo", "iwae", "log_predictive"])
def test_a_scaled_site_of_the_guide_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a guide whose sites are not scaled, got 'z' with a scale of 0\.25"):
        CALLS[name](model_with(None), guide_with("guide"), None)


@pytest.mark.parametrize("call", [ab.diagnose, ab.iwae, ab.elbo])
def test_the_scale_of_a_plate_that_is_larger_than_its_batch_is_no_scale(call):
    """Rows 2 and 3 of a plate of 600 points: scaled by 300, which is undone."""
    generator = torch.Generator().manual_seed(3)
    model = ab.LinearGaussian(torch.randn(5, 2, generator=generator), torch.zeros(5), NOISE, num_data=600)
    x, index = torch.randn(2, 5, generator=generator), torch.tensor([2, 3])

    def guide(x, index):
        with pyro.plate("data", 600, subsample=index):
            pyro.sample("z", model.posterior(x))

    options = {"settings": QUICK} if call is ab.diagnose else {}
    found = call(model, guide, x, index, **options)
    value = found.values["iwae"][0] if call is ab.diagnose else found.value
    if call is ab.elbo:
        assert (value - model.log_evidence(x)).abs().max() < 5 * found.standard_error.max() + 1e-3
    else:
        torch.testing.assert_close(value.float(), model.log_evidence(x), rtol=0, atol=1e-3)


def test_a_jacobian_has_no_scale():
    """A positive latent, whose log p gets log |dv/dz| = z once, whatever its density is scaled by."""
    scale = {"value": 1.0}

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=scale["value"]):
                z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    density, z = joint_density(model, X[:, 0]), torch.linspace(-1, 1, 6)[:, None]
    scale["value"] = 0.25
    expected = 0.25 * dist.LogNormal(0.0, 1.0).log_prob(z.exp()) + z
    torch.testing.assert_close(density.log_prior(z), expected[:, 0])


KEPT = torch.tensor([True, False, True, True, False, True])


def masked(form, fn, mask):
    """The distribution with its entries masked in the form given, and the handler to draw it under."""
    if form == "poutine":
        return fn.to_event(1), poutine.mask(mask=mask)
    found = fn.to_event(1).mask(mask) if form == "after to_event" else fn.mask(mask[:, None]).to_event(1)
    return found, nullcontext()


def masking_model(form, site):
    def model(x, kept=KEPT):
        prior, outer = dist.Normal(torch.zeros(len(x), 2), 1.0), nullcontext()
        with pyro.plate("data", len(x)):
            prior, outer = masked(form, prior, kept) if site == "latent" else (prior.to_event(1), outer)
            with outer:
                z = pyro.sample("z", prior)
            noise, outer = dist.Normal(z, NOISE), nullcontext()
            noise, outer = masked(form, noise, kept) if site == "observed" else (noise.to_event(1), outer)
            with outer:
                pyro.sample("x", noise, obs=x)

    return model


FORMS = ("poutine", "after to_event", "before to_event")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["diagnose", "ais", "bdmc", "optimize_local"])
def test_a_masked_latent_is_refused_in_every_form(form, name):
    with pytest.raises(ValueError, match="latent 'z' is masked; expected a proper prior for each point"):
        CALLS[name](masking_model(form, "latent"), guide_with(None), None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow_cases("after to_event", "before to_event")
def test_a_masked_observation_is_missing(form):
    """Points without an observation have log p(x) = 0; the guide, exact for the others, is too narrow for them."""
    more = replace(QUICK, ais=ab.AISSettings(num_temperatures=40), local=ab.LocalSettings())
    found = ab.diagnose(masking_model(form, "observed"), guide_with(None), X, KEPT, settings=more)
    evidence = dist.Normal(0.0, math.hypot(1, NOISE)).log_prob(X).sum(-1)
    exact = torch.where(KEPT, evidence, 0.0).double()
    torch.testing.assert_close(found.values["iwae"][0][KEPT], exact[KEPT], rtol=0, atol=1e-4)
    bound = found.estimate("log_p_lower")
    assert ((bound.value - exact).abs() < 4 * bound.standard_error + 0.05).all()
    assert ((found.values["elbo_star"][0] - exact).abs() < 5 * found.errors["elbo_star"][0] + 0.05).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_guide_that_masks_what_the_model_does_not_is_refused_in_every_form(form):
    def guide(x):
        with pyro.plate("data", len(x)):
            fn, outer = masked(form, dist.Normal(x / 1.25, 0.2**0.5), KEPT)
            with outer:
                pyro.sample("z", fn)

    with pytest.raises(ValueError, match="the guide masks 'z' where the model does not"):
        ab.diagnose(model_with(None), guide, X, settings=QUICK)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_forms_of_one_mask_are_one_mask(form, other):
    def guide(x, kept=KEPT):
        with pyro.plate("data", len(x)):
            fn, outer = masked(other, dist.Normal(x / 1.25, 0.2**0.5), kept)
            with outer:
                pyro.sample("z", fn)

    plain = ab.log_weights(masking_model(form, "latent"), guide_with(None), X)
    alike = ab.log_weights(masking_model(form, "latent"), guide, X)
    wider = ab.log_weights(masking_model(form, "latent"), lambda x: guide(x, KEPT | (x[:, 0] > -1)), X)
    for found in (plain, alike, wider):
        assert (found.log_q[0, 0][~KEPT] == 0).all()
        assert (found.log_q[0, 0][KEPT] != 0).all()


def test_a_tensor_closed_over_is_named_where_chains_need_it_repeated():
    with pytest.raises(ValueError, match="cannot run the model on its data repeated 2 times along plate 'data'"):
        ab.diagnose(masking_model("poutine", "observed"), guide_with(None), X, settings=QUICK)
