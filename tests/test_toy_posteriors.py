"""``toy-posteriors``: evidence on a grid is exact, and every family's draws and gaps are kept."""

import math
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from wing import CPU, TINY, QuickLab, cut, go, one, resume, stop_at, values

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import grid
from amortized_bayes.experiments.grid import best_gaussian, log_evidence_on_grid
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.experiments.toy_posteriors import Config
from amortized_bayes.models import LinearGaussian

FEW = Config(
    model=replace(TINY, latent_dim=2, epochs=1),
    families=("gaussian", "auxiliary"),
    encoder_epochs=1,
    points=4,
    grid=24,
    steps=10,
)
FACTORS = {"dataset": "digits", "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "DRAWS", 500)
        patch.setattr(grid, "COARSE_CELLS", 50)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return go("toy-posteriors", FEW, tmp_path_factory.mktemp("toy"))


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "COARSE_CELLS", 150)
    return QuickLab(tmp_path, CPU)


def test_evidence_on_the_grid_is_exact(float64, quiet):
    generator = torch.Generator().manual_seed(0)
    model = LinearGaussian(torch.randn(4, 2, generator=generator), torch.randn(4, generator=generator), 0.6)
    x = torch.randn(5, 4, generator=generator)
    found = log_evidence_on_grid(model, x, 200, quiet)
    np.testing.assert_allclose(found.log_p, model.log_evidence(x), atol=1e-3)
    np.testing.assert_allclose(found.mean, model.posterior(x).mean, atol=1e-3)
    variance = model.posterior(x).covariance_matrix.diagonal(dim1=-2, dim2=-1)
    np.testing.assert_allclose(found.scale, variance.sqrt().expand(5, 2), rtol=1e-2)
    areas = (found.axes[:, 0, 1] - found.axes[:, 0, 0]) * (found.axes[:, 1, 1] - found.axes[:, 1, 0])
    np.testing.assert_allclose(found.density.sum((1, 2)) * areas, 1)


class TwoFarModes(torch.nn.Module):
    """The first latent enters by its square: the posterior has two modes, far apart."""

    def forward(self, x, index=None):
        with pyro.plate("data", len(x), subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.05).to_event(1), obs=x)


def test_evidence_counts_modes_far_from_each_other(float64, quiet):
    """At x = (4, 0) the two modes are z = ±2 and each has half of the mass: p(x) is a product of two integrals."""
    x = torch.tensor([[4.0, 0.0]])
    found = log_evidence_on_grid(TwoFarModes(), x, 800, quiet)
    z = torch.linspace(-5, 5, 200_001)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    parts = [prior + torch.distributions.Normal(z.square(), 0.05).log_prob(value) for value in x[0]]
    exact = sum(part.logsumexp(0).item() + math.log(1e-4 / 2) for part in parts)
    np.testing.assert_allclose(found.log_p, exact, atol=0.02)
    np.testing.assert_allclose(found.mean, 0, atol=1e-6)


def test_the_better_of_two_searches_is_not_scored_on_the_draws_that_chose_it(float64, quiet, monkeypatch):
    """Both start at the optimum: which seems better is chance, and a score on the same draws would count it as gain."""
    monkeypatch.setattr(grid, "SCORE_DRAWS", 50)
    search, seeds = grid.optimize_local, count(1)
    # with common draws two searches that end at the same q would have the same score
    monkeypatch.setattr(grid, "optimize_local", lambda *given, seed, **more: search(*given, seed=next(seeds), **more))
    points, weight = 500, torch.tensor([[1.0, 0.4], [0.3, -0.8], [0.5, 0.6]])
    model = LinearGaussian(weight, torch.zeros(3), 0.7)
    x = torch.randn(points, 3)
    posterior, scale = model.posterior(x), model.posterior_precision().diagonal().rsqrt()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(model.posterior(x).mean, scale).to_event(1))

    trained = SimpleNamespace(model=model, guide=guide, config=SimpleNamespace(seed=0))
    truth = {"mean": posterior.mean.numpy(), "scale": scale.expand(points, 2).numpy()}
    found = best_gaussian(trained, x, truth, 10, quiet)
    q = MultivariateNormal(found.q.loc, scale_tril=torch.diag_embed(found.q.scale))
    off = found.elbo_star - (model.log_evidence(x) - kl_divergence(q, posterior))
    error = (off.std() / math.sqrt(points)).item()
    assert abs(off.mean().item()) < 4 * error
    assert error < 0.1 * found.standard_error.mean()  # the better of two seems 0.56 of their errors better
    assert (off.square().mean() / found.standard_error.square().mean()).item() == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_rows_are_gaps_to_the_evidence_on_the_grid(run):
    rows = run.rows()
    truth = run.load_arrays(job_key(FACTORS, "posterior"))
    assert len(rows) == 4
    for metric, name in (("inference_gap", "amortized"), ("approximation_gap", "best")):
        for family in FEW.families:
            row = one(rows, metric, family=family)
            gap = truth["log_p"] - run.load_arrays(job_key({**FACTORS, "family": family}, name))["elbo"]
            assert row["value"] == pytest.approx(gap.mean(), rel=1e-5)
            assert row["standard_error"] == pytest.approx(gap.std(ddof=1) / 2, rel=1e-4)
            assert row["error_over"] == "points"
    assert run.verify() == []


def test_draws_and_densities_are_kept(run):
    assert run.load_arrays(job_key(FACTORS, "posterior"))["density"].shape == (4, 24, 24)
    for family in FEW.families:
        for name in ("amortized", "best"):
            draws = run.load_arrays(job_key({**FACTORS, "family": family}, name))["draws"]
            assert draws.shape == (500, 4, 2)
            assert np.isfinite(draws).all()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, run):
    """The best Gaussian, from which other searches start, is found again if it was lost with the process."""
    folder = cut("toy-posteriors", FEW, tmp_path, stop_at("q* auxiliary", job="5/5"))
    assert len(folder.done()) == 4
    resume("toy-posteriors", tmp_path)
    assert values(folder.rows()) == values(run.rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": TINY}, "expected --latent-dim of 2, got 3"),
        ({"families": ("auxiliary",)}, "--families that start with gaussian, each once"),
        ({"grid": 2}, "expected --grid of 20 or more, got 2"),
        ({"points": 3}, "expected --points of 4 or more, got 3"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(SettingError, match=message):
        replace(FEW, **change)
