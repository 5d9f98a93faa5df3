"""Every public call takes a model's own arguments in the same forms, and refuses others by the same line."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from test_calls import EVIDENCE, FORMS, NOISE, SLOPES, N, X, evidence_of, posterior, two, two_guide

import amortized_bayes as ab

pytestmark = pytest.mark.usefixtures("float64")

CHAINS = ab.AISSettings(num_chains=2, num_temperatures=2, num_pilot=2)
LOCAL = ab.LocalSettings(max_steps=10, max_rounds=1, num_samples=4, num_score=20)
REFINE = ab.RefineSettings(steps=(2,), num_samples=4, num_score=20)
SEARCH = ab.FlowSearchSettings(num_steps=1, num_kept=2, num_score=20, num_samples=2)
FIT = ab.FitOptions(batch_size=5, capture="off", learning_rate=0.0, shared_learning_rate=0.0)


def flow(model, guide, *args, **kwargs):
    start = ab.optimize_local(model, guide, *args, settings=LOCAL, **kwargs)
    return ab.optimize_flow(model, start, *args, search=SEARCH, settings=ab.FlowSettings("gaussian"), **kwargs)


EXACT = {  # of a guide that is the posterior, all of these are log p(x) whatever is drawn
    "log_weights": lambda *a, **k: ab.log_weights(*a, num_particles=3, **k).local[0].mean(0),
    "elbo": lambda *a, **k: ab.elbo(*a, num_draws=2, analytic_kl=False, **k).value,
    "elbo in chunks": lambda *a, **k: ab.elbo(*a, num_draws=1, analytic_kl=False, chunk_size=5, **k).value,
    "iwae": lambda *a, **k: ab.iwae(*a, num_particles=3, max_rows=15, **k).value,
    "iwae, streamed": lambda *a, **k: ab.iwae(*a, num_particles=1001, **k).value,
    "log_predictive": lambda *a, **k: ab.log_predictive(*a, num_particles=2, num_shared=1, **k).value,
    "optimize_local": lambda *a, **k: ab.optimize_local(*a, settings=LOCAL, **k).elbo_star,
    "optimize_flow": lambda *a, **k: flow(*a, **k).elbo_star,
    "refine, optimized": lambda *a, **k: ab.refine(*a, settings=REFINE, **k).elbo[-1],
}
SHAPED = {
    "ais": lambda *a, **k: ab.ais(*a, settings=CHAINS, **k).log_p,
    "latent_sites": lambda model, guide, *a, **k: torch.zeros(N * len(ab.latent_sites(model, *a, **k).local)),
    "mean_prediction": lambda *a, **k: ab.mean_prediction(*a, **k).latents[:, 0],
}
SLOWER = ("iwae, streamed", "optimize_local", "optimize_flow", "refine, optimized")
CALLS = {**EXACT, **SHAPED}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow_cases(
    "a table of N rows",
    "another plate",
    "dict",
    "dim",
    "index",
    "keywords",
    "list",
    "numpy",
    "places",
    "positional",
    "unsized",
    "whole numbers",
)
def test_the_exact_posterior_is_worth_the_evidence_in_every_call(form):
    model, guide, args, kwargs = FORMS[form]
    few = form not in ("keywords", "dict", "index", "another plate")
    for name, call in EXACT.items():
        if few and name in SLOWER:
            continue
        near = 0.02 if "optimize" in name else 1e-6  # a few steps around the optimum
        found = call(model, guide, *args, **kwargs)
        torch.testing.assert_close(found, evidence_of(form), atol=near, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for call in () if few else SHAPED.values():
        assert call(model, guide, *args, **kwargs).shape == (N,)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_wrong_is_told_alike(call):
    with pytest.raises(TypeError, match=r"got slop=, which is neither an option of \w+ nor .*; did you mean slope=\?"):
        CALLS[call](two, two_guide, X, slop=SLOPES)
    with pytest.raises(ValueError, match="expected finite data, got 1 values that are nan or infinite, at 1 points"):
        CALLS[call](two, two_guide, torch.cat([X[1:], X[:1] * torch.nan]), SLOPES)
    with pytest.raises(ValueError, match="found plates: 'data'"):
        CALLS[call](partial(two, plate="data"), two_guide, X, SLOPES, plate="rows")


def in_global_order(x):
    """Slopes are closed over: no part of the points has its own."""
    two(x, SLOPES[: len(x)])


def test_points_that_go_in_chunks_do_not_meet_what_belongs_to_others():
    def guide(x):
        two_guide(x, SLOPES[: len(x)])

    for name in ("elbo in chunks", "iwae", "iwae, streamed", "log_predictive", "log_weights"):
        if name != "iwae, streamed":
            torch.testing.assert_close(CALLS[name](in_global_order, guide, X), EVIDENCE)
    for name in ("optimize_local", "ais"):
        with pytest.raises(ValueError, match="does not follow its rows of x: pass all data as arguments"):
            CALLS[name](in_global_order, guide, X)


def test_what_obs_mask_leaves_out_is_dropped_as_in_diagnose():
    mask = torch.arange(N) % 3 > 0

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x, obs_mask=mask)

    def guide(x, mask):
        q = posterior(x, torch.ones(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(mask, q.loc, 0.0), torch.where(mask, q.scale, 1.0)))

    exact = dist.Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(X).where(mask, torch.zeros(()))
    for name in ("log_weights", "elbo in chunks", "iwae", "optimize_local"):
        torch.testing.assert_close(CALLS[name](model, guide, X.where(mask, 99.0), mask), exact, atol=0.02, rtol=0)
    assert [site.name for site in ab.latent_sites(model, X, mask).local] == ["z"]


def fitted(form, **more):
    model, _, args, kwargs = FORMS[form]
    torch.manual_seed(0)
    guide = ab.Constant(ab.latent_sites(model, *args, **kwargs).local, N, plate=more.pop("named", "data"))
    result = ab.fit(model, guide, *args, num_steps=8, options=FIT, progress=False, **kwargs, **more)
    return [record.elbo for record in result.records]


@pytest.mark.parametrize("form", ["keywords", "numpy", "dict", "list", "index", "places", "another plate"])
def test_a_fit_takes_every_form_and_gives_the_same_numbers(form):
    assert fitted(form, named="rows" if form == "another plate" else "data") == fitted("positional")


@pytest.mark.slow
def test_a_fit_gives_a_guide_the_rows_of_its_points():
    guide = ab.Factorized(ab.latent_sites(two, X, SLOPES).local, N)
    options = ab.FitOptions(batch_size=4, row_learning_rate=0.05, capture="off", average=None)
    assert ab.fit(two, guide, X, SLOPES, 600, options, progress=False).steps == 600
    q = posterior(X, SLOPES)
    torch.testing.assert_close(guide.answer(X, torch.arange(N))[:, 0], q.loc, atol=0.3, rtol=0)


@pytest.mark.slow
def test_a_fit_sets_up_an_autoguide_on_all_points():
    guide = AutoMultivariateNormal(two)
    options = ab.FitOptions(batch_size=4, learning_rate=0.05, capture="off", average=None)
    ab.fit(two, guide, X, SLOPES, 300, options, progress=False)
    gap = EVIDENCE - ab.elbo(two, guide, X, SLOPES, num_draws=200).value
    assert gap.mean() < 0.15


def test_a_fit_is_told_what_to_do():
    guide = ab.Constant(ab.latent_sites(two, X, SLOPES).local, N)
    with pytest.raises(TypeError, match="expected a number of steps after the data"):
        ab.fit(two, guide, X, SLOPES, options=FIT)
    with pytest.raises(TypeError, match="got batch=, which is neither an option of fit nor an argument of the model"):
        ab.fit(two, guide, X, SLOPES, 3, FIT, batch=5)
    with pytest.raises(ValueError, match="expected no index"):
        ab.fit(FORMS["index"][0], guide, X, SLOPES, torch.arange(N).flip(0), 3, FIT)
    with pytest.raises(ValueError, match="the guide is an AutoNormal, which draws all points at once: fit it"):
        ab.fit(two, AutoNormal(two), X, SLOPES, 3, FIT)
    with pytest.raises(ValueError, match="does not follow its rows of x"):
        ab.fit(in_global_order, guide, X, 3, FIT)
