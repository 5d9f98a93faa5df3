"""Guides that ``compare`` fitted: the next line, ``diagnose``, gets the right number or is refused."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_reports import FAST, X, compared, normal
from torch import nn
from torch.distributions import constraints

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions


class Decoder(nn.Module):
    """A model with parameters of its own, and one that only the param store has."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 2)

    def forward(self, x):
        scale = pyro.param("scale", lambda: torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)


def elbo_of(model, guide):
    torch.manual_seed(0)
    return ab.elbo(model, guide, X, num_draws=100).mean()[0]


def tensors(model):
    return copy.deepcopy(model.state_dict()), pyro.param("scale").item()


@pytest.mark.slow
def test_the_guide_of_a_model_without_parameters_is_diagnosed_at_once():
    report = compared(normal)
    assert all(fit.model_state is None for fit in report.fits)
    settings = ab.DiagnosisSettings(num_particles=500, certificate=ab.CertificateSettings(4, 0.1, 64))
    found = ab.diagnose(normal, report.best.guide, X, settings=settings).mean("elbo")
    value, _ = report.best.elbo.mean()
    assert found == pytest.approx(value, abs=4 * report.best.elbo.standard_error.norm().item() / len(X))


@pytest.mark.parametrize("average", [None, 0.5])
@pytest.mark.slow
def test_guides_of_a_model_with_parameters_run_beside_those_alone(average):
    torch.manual_seed(1)
    model = Decoder()
    model(X)
    start = tensors(model)
    settings = ab.ComparisonSettings(
        8, 1, num_draws=100, fit=FitOptions(**FAST, average=average, shared_learning_rate=0.05)
    )
    report = ab.compare(model, X, widths=(2,), settings=settings, progress=False)
    after = tensors(model)
    assert all(torch.equal(after[0][name], value) for name, value in start[0].items())
    assert after[1] == start[1]
    for fit in report.fits:
        assert len(fit.model_state) == 3  # weight, bias, scale
        with pytest.raises(ValueError, match=r"report.best.apply\(\)"):
            elbo_of(model, fit.guide)
        with pytest.raises(ValueError, match=r"report.best.apply\(\)"):
            ab.diagnose(model, fit.guide, X)
        error = fit.elbo.standard_error.norm().item() / len(X)
        assert elbo_of(model, fit.apply().guide) == pytest.approx(fit.elbo.mean()[0], abs=6 * error)
        report.fits[0].model_state()  # the next refuses those too
    first, second = report.fits[:2]
    first.apply()
    with pytest.raises(ValueError, match="other values"):
        second.guide(X)


@pytest.mark.slow
def test_fitting_on_from_a_kept_guide_is_allowed():
    model = Decoder()
    report = ab.compare(
        model, X, widths=(2,), settings=ab.ComparisonSettings(2, 1, fit=FitOptions(**FAST)), progress=False
    )
    guide = report.best.apply().guide
    ab.fit(model, guide, X, 3, FitOptions(**FAST), pass_index=False)
    assert elbo_of(model, guide) < 0


def test_other_parameters_of_the_store_do_not_hide_that_a_model_stands_at_its_start():
    model = Decoder()
    report = ab.compare(
        model, X, widths=(2,), settings=ab.ComparisonSettings(2, 1, fit=FitOptions(**FAST)), progress=False
    )
    pyro.param("unrelated", torch.zeros(()))
    with pytest.raises(ValueError, match="other values"):
        report.best.guide(X)
    report.best.apply().guide(X)
    pyro.clear_param_store()
    model(X)
    with pytest.raises(ValueError, match="param store has lost"):
        report.best.guide(X)
    with pytest.raises(ValueError, match="param store has lost"):
        report.best.apply()


def test_there_is_no_guide_of_a_failed_or_loaded_fit(tmp_path):
    report = compared(row_learning_rate=1e30)
    failed = next(fit for fit in report.fits if fit.status == "failed")
    with pytest.raises(ValueError, match="there is no guide F-VI: its fit failed"):
        _ = failed.guide
    report.save(tmp_path / "report")
    with pytest.raises(ValueError, match="a file of a report holds numbers and no programs"):
        ab.Comparison.load(tmp_path / "report").best.apply()
