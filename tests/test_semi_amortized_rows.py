"""What the steps of a semi-amortized guide are told: which arguments hold rows, at what rate, and of which points."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from wing import CPU, TINY

import amortized_bayes as ab
from amortized_bayes.experiments import setup
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.trained import load_state, state_of

N, P = 8, 4


class Weighted(nn.Module):
    """x ~ N(z, 1 + var t), of values t (3,) that all points share; with y, a second column of the data."""

    def forward(self, x, t, y=None, index=None):
        with pyro.plate("data", N, subsample=index) if index is not None else pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, (1 + t.var()).sqrt()), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def weighted(**options):
    torch.manual_seed(0)
    model, x, t = Weighted(), torch.randn(N), torch.tensor([1.0, 5.0, -2.0])
    sites = ab.latent_sites(model, x, t, per_point="x").local
    start = ab.Amortized(sites, N, 1, width=3, encoder_input=lambda x, t, y=None: x[:, None])
    return ab.SemiAmortized(model, start, 40, learning_rate=0.5, **options), x, t


def q_of(guide, *args, **kwargs):
    fn = pyro.poutine.trace(guide).get_trace(*args, **kwargs).nodes["z"]["fn"]
    return torch.stack([fn.mean, fn.stddev])


# Which arguments hold rows --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_values_as_many_as_the_points_by_chance_are_no_rows(float64):
    guide, x, t = weighted(per_point="x")
    variance = 1 + t.var()
    precision = 1 + 1 / variance
    for count in (1, 3, 4, N):  # t has three values
        expected = torch.stack([x[:count] / variance / precision, precision.rsqrt().expand(count)])
        torch.testing.assert_close(q_of(guide, x[:count], t), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(q_of(guide, t=t, x=x[:count]), expected, rtol=1e-6, atol=1e-6)
    for some in (torch.tensor([5, 0, 6]), torch.tensor([5])):
        expected = q_of(guide, x, t)[:, some]
        torch.testing.assert_close(q_of(guide, x[some], t, index=some), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(q_of(guide, x[some], t=t, index=some), expected, rtol=0, atol=1e-12)


def test_several_tensors_are_refused_without_names_whatever_their_lengths():
    guide, x, t = weighted()
    for count in (3, 4):
        with pytest.raises(ValueError, match=r"expected per_point, .* got x of shape .*, t of shape \(3,\)") as caught:
            guide(x[:count], t)
        assert "\n" not in str(caught.value)
    for names, words in (("w", "per_point to name tensors"), ("t", "a row for each of the 4 points")):
        guide, x, t = weighted(per_point=names)
        with pytest.raises(ValueError, match=words):
            guide(x[:4], t)


@pytest.mark.parametrize("count", [3, 4, N])
@pytest.mark.slow_cases("3")
def test_a_call_that_is_told_the_rows_tells_them(float64, count):
    """As many points as values of t, too; and guides that were told themselves take the same steps."""
    guide, x, t = weighted()
    named, *_ = weighted(per_point="x")
    variance = 1 + t.var()
    exact = dist.Normal(0.0, (1 + variance).sqrt()).log_prob(x[:count])
    found = ab.iwae(guide.model, guide, x[:count], t, per_point="x", num_particles=2).value
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)  # the evidence of any draw, where q is the posterior
    draws = []
    for one in (guide, named):
        torch.manual_seed(1)
        draws.append(ab.log_weights(one.model, one, x[:count], t, per_point="x", num_particles=5).log_q)
    torch.testing.assert_close(*draws, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected per_point"):  # by itself it is told nothing
        guide(x[:count], t)


@pytest.mark.slow
def test_rows_are_told_to_batches_of_a_fit_and_to_every_call():
    guide, x, t = weighted()
    fitted = ab.fit(guide.model, guide, x, t, num_steps=2, per_point="x", options=ab.FitOptions(batch_size=3))
    assert "2 steps" in repr(fitted)
    report = ab.diagnose(guide.model, guide, x, t, per_point="x", progress=False)
    assert report.verdict.cause == "nothing"


def test_several_arguments_may_hold_rows(float64):
    guide, x, t = weighted(per_point=iter(["x", "y"]))
    y = torch.randn(N)
    variance = 1 + t.var()
    precision = 2 + 1 / variance
    for count in (3, 4):
        expected = torch.stack([(x[:count] / variance + y[:count]) / precision, precision.rsqrt().expand(count)])
        torch.testing.assert_close(q_of(guide, x[:count], t, y[:count]), expected, rtol=1e-6, atol=1e-6)
    found = ab.iwae(guide.model, guide, x[:3], t, y[:3], per_point=("x", "y"), num_particles=2).value
    evidence = dist.MultivariateNormal(
        torch.zeros(2), torch.ones(2, 2) + torch.diag(torch.stack([variance, y.new_ones(())]))
    )
    exact = evidence.log_prob(torch.stack([x[:3], y[:3]], -1))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)  # the evidence of any draw, where q is the posterior


# At what rate ---------------------------------------------------------------------------------------------------------


def test_a_guide_that_is_loaded_takes_the_steps_that_it_was_trained_for(float64):
    model = ab.LinearGaussian(torch.randn(P, 2), torch.zeros(P), 0.7, num_data=N)
    x = torch.randn(N, P)
    sites = ab.latent_sites(model, x).local
    ours, theirs = (
        ab.SemiAmortized(model, ab.Amortized(sites, N, P, width=3), 3, learning_rate=rate) for rate in (0.7, 0.4)
    )
    theirs.load_state_dict(ours.state_dict())
    assert theirs.learning_rate == ours.learning_rate == 0.7
    torch.testing.assert_close(theirs.locate(x, torch.arange(N)), ours.locate(x, torch.arange(N)), rtol=0, atol=0)
    more = ab.SemiAmortized(model, ab.Amortized(sites, N, P, width=3), 3, num_samples=4)
    with pytest.raises(RuntimeError, match="noise"):
        more.load_state_dict(ours.state_dict())


def test_a_checkpoint_of_an_experiment_carries_the_rate(tmp_path, monkeypatch):
    config = replace(TINY, semi_amortized_steps=2)
    data = Lab(tmp_path, CPU).images(config)
    model, guide = setup.build_vae(config, data)
    assert guide.learning_rate == pytest.approx(0.4)
    assert (guide.noise.shape[1], guide.gradients) == (2, "guide")
    with monkeypatch.context() as patch:
        patch.setitem(setup.OWN_STEPS, "learning_rate", 0.7)
        tensors = state_of(*setup.build_vae(config, data))
    load_state(model, guide, tensors, "here")
    assert guide.learning_rate == pytest.approx(0.7)
    del tensors["guide.rate"]
    with pytest.raises(ValueError, match=r"here: expected .* guide\.rate of shape \(\), got none"):
        load_state(model, guide, tensors, "here")


# Of which points ------------------------------------------------------------------------------------------------------


class Normalized(nn.Module):
    """A decoder with batch norm."""

    def __init__(self, **options):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, P), nn.BatchNorm1d(P, **options))

    def forward(self, x, index=None):
        with pyro.plate("data", N, subsample=index) if index is not None else pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layers(z), 0.5).to_event(1), obs=x)


def test_steps_through_batch_norm_of_batches_are_refused():
    torch.manual_seed(0)
    model, x = Normalized().eval(), torch.randn(N, P)
    start = ab.Amortized(ab.latent_sites(model, x).local, N, P, width=3)
    guide = ab.SemiAmortized(model, start, 2)
    everything, some = guide.locate(x, torch.arange(N)), torch.tensor([4, 1])
    torch.testing.assert_close(guide.locate(x[some], some), everything[some], rtol=1e-5, atol=1e-5)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model\.eval\(\).* got BatchNorm1d in training mode") as caught:
        guide(x)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    bare = ab.SemiAmortized(Normalized(track_running_stats=False).eval(), start, 2)
    with pytest.raises(ValueError, match="got BatchNorm1d without running statistics"):
        bare(x)
