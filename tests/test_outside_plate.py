"""Sites outside the plate that depend on latents inside it: no point has a density of its own, and none is given."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab

N = 12
X, Y = torch.linspace(-2, 2, N), torch.linspace(1, -0.5, N)
QUICK = ab.DiagnosisSettings(
    num_particles=50, ais=ab.AISSettings(num_temperatures=20), certificate=ab.CertificateSettings(4, 0.5, 20)
)
WORDS = "'z' inside plate 'rows', where it is, got '{}' outside: its density belongs to no point"


def in_two_plates(x, y):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
    with pyro.plate("others", len(x)):
        pyro.sample("y", dist.Normal(-z, 0.8), obs=y)


def penalized(x, y):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
    pyro.factor("y", -0.1 * z.square().sum())


def summed(x, y):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
    pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y.sum())


def guide(x, y):
    slope = pyro.param("slope", torch.tensor(0.6))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.5))


CALLS = {
    "iwae": lambda model: ab.iwae(model, guide, X, Y, plate="rows"),
    "log_predictive": lambda model: ab.log_predictive(model, guide, X, Y, plate="rows"),
    "elbo of parts": lambda model: ab.elbo(model, guide, X, Y, plate="rows", chunk_size=5),
    "ais": lambda model: ab.ais(model, guide, X, Y, plate="rows"),
    "bdmc": lambda model: ab.bdmc(model, guide, X, Y, plate="rows"),
    "diagnose": lambda model: ab.diagnose(model, guide, X, Y, plate="rows", settings=QUICK, progress=False),
    "optimize_local": lambda model: ab.optimize_local(model, guide, X, Y, plate="rows"),
    "compare": lambda model: ab.compare(model, X, Y, plate="rows", progress=False),
    "fit": lambda model: ab.fit(
        model, guide, X, Y, num_steps=2, plate="rows", options=ab.FitOptions(batch_size=4), progress=False
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", [in_two_plates, penalized, summed])
def test_sites_outside_that_depend_on_latents_inside_are_refused(model, call):
    with pytest.raises(ValueError, match=WORDS.format("y")):
        CALLS[call](model)


@pytest.mark.slow
def test_one_elbo_of_all_points_counts_what_lies_outside():
    """Exact: the ELBO of both likelihoods, with Gaussians throughout."""
    found = ab.elbo(in_two_plates, guide, X, Y, plate="rows", num_draws=4000)
    m, v = 0.6 * X, 0.25
    terms = [dist.Normal(m, 0.5).log_prob(X) - v / (2 * 0.25), dist.Normal(-m, 0.8).log_prob(Y) - v / (2 * 0.64)]
    exact = sum(terms) - 0.5 * (m.square() + v - 1 - math.log(v))
    error = found.standard_error.square().sum().sqrt() / N
    assert abs(found.value.mean() - exact.mean()) < 4 * error


def before(x, y):
    """What is observed outside is seen before the latents, or does not depend on them."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("t", dist.Normal(w, 1.0), obs=torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
    pyro.sample("later", dist.Normal(w, 1.0), obs=torch.tensor(-0.3))
    pyro.factor("f", 0.0 * z.sum())


def with_w(x, y):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    guide(x, y)


def test_sites_outside_that_depend_on_shared_latents_alone_are_taken():
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(X)
    found = ab.log_predictive(before, with_w, X, Y, plate="rows", num_particles=4000, num_shared=2)
    assert (found.value - exact).abs().max() < 0.1
    found = ab.ais(before, with_w, X, Y, plate="rows", fixed={"w": torch.tensor(0.2)})
    assert ((found.log_p - exact).abs() < 5 * found.standard_error + 0.02).all()
