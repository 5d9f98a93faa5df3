"""Guides of the user's own in the race of ``compare``."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
NOISE = 0.5
OPTIMUM = dist.MultivariateNormal(torch.zeros(2), NOISE**2 * torch.eye(2) + torch.ones(2, 2)).log_prob(X)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), NOISE).to_event(1), obs=x)


class Encoder(nn.Module):
    """An amortized guide that can be exact."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x)[:, 0], self.log_scale.exp()))


def stored(x):
    weight = pyro.param("weight", lambda: torch.zeros(2))
    scale = pyro.param("spread", lambda: torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight, scale))


def compared(guides):
    fit = FitOptions(capture="off", batch_size=12, learning_rate=0.1, shared_learning_rate=0.1, average=None)
    settings = ab.ComparisonSettings(50, 1, num_draws=20, fit=fit)
    return ab.compare(model, X, widths=(2,), guides=guides, settings=settings, progress=False)


@pytest.mark.slow
def test_own_guides_are_fitted_beside_ours_and_put_back():
    torch.manual_seed(0)
    mine = Encoder()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    auto = AutoDiagonalNormal(model)
    report = compared({"mine": mine, "stored": stored, "auto": auto})
    names = ["constant", "amortized", "factorized", "mine", "stored", "auto", "factorized-from-amortized"]
    frame = report.to_frame().set_index("guide")
    assert frame.index.tolist() == names
    assert frame["status"].tolist()[1:] == ["ok"] * 6
    for name in ("mine", "stored"):  # exact at its optimum
        assert frame.loc[name, "elbo"] == pytest.approx(OPTIMUM.mean().item(), abs=0.06)
    assert frame.loc["auto", "elbo"] > frame.loc["constant", "elbo"] + 0.1
    assert "mine: family gap" in str(report)
    assert set(report.to_rows()["guide"].dropna()) >= {"mine", "stored", "auto"}
    assert report.plot() is not None
    assert report.plot_curves() is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    assert pyro.param("weight").tolist() == [0.0, 0.0]

    for fit in report.fits[3:6]:
        with pytest.raises(ValueError, match="other values"):
            ab.elbo(model, fit.guide, X)
    for fit in report.fits[3:6]:
        found = ab.elbo(model, fit.apply().guide, X, num_draws=200)
        error = found.standard_error.norm().item() / len(X)
        assert found.mean()[0] == pytest.approx(
            fit.elbo.mean()[0], abs=6 * (error + fit.elbo.standard_error.norm().item() / 24)
        )
    # batches are shuffled, and yet each latent finds the posterior of its own row
    assert (auto.loc - X.sum(-1) / (2 + NOISE**2)).abs().mean() < 0.2
    assert (auto.scale.log() - 0.5 * math.log(NOISE**2 / (2 + NOISE**2))).abs().mean() < 0.3


def table(x):
    loc = pyro.param("rows", lambda: torch.zeros(24))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def by_place(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.arange(len(x)) * pyro.param("step", torch.tensor(1.0)), 1.0))


def joint_point(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "guide", "words"),
    [
        ("table", table, r"guides\['table'\] cannot be fitted to batches of points"),
        ("place", by_place, r"guides\['place'\] does not follow the rows that it is given"),
        ("outside", joint_point, r"guides\['outside'\] cannot be fitted"),
        ("auto", AutoNormal(model), "AutoNormal, which draws all points at once: fit it with pyro.infer.SVI"),
        ("delta", AutoDelta(model), "AutoDelta puts all mass on one point"),
        ("amortized", stored, "another name for a guide of your own than 'amortized'"),
        ("text", "constant", r"expected guides\['text'\] to be a Pyro guide, got str"),
    ],
)
def test_guides_that_cannot_join_are_refused(name, guide, words):
    with pytest.raises(ValueError, match=words) as refused:
        compared({name: guide})
    assert "\n" not in str(refused.value)


def test_an_own_guide_without_parameters_is_refused_in_a_line():
    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match=r"guides\['prior'\] has no parameter to fit: call diagnose"):
        compared({"prior": prior})
