"""``compare`` reaches the exact answer of a linear-Gaussian model whatever the form of its arguments and plate."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions

N = 60
SCALES = torch.tensor([0.7, 0.9])
WEIGHTS = torch.tensor([1.0, -0.8])


def data():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(N, 1, generator=generator)
    x = z * WEIGHTS + SCALES * torch.randn(N, 2, generator=generator)
    return x[:, 0].clone(), x[:, 1].clone()


A, B = data()
WHOLE = (3 * A).round().long()


def evidence(a, b):
    covariance = WEIGHTS[:, None] * WEIGHTS + SCALES.square().diag()
    return dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.stack([a, b], 1)).mean().item()


def two(a, b, *, plate="data", dim=-1, sized=True, seed=None):
    shape = (-1,) + (1,) * (-dim - 1)
    with pyro.plate(plate, len(a) if sized else None, dim=dim):
        z = pyro.sample("latent", dist.Normal(torch.zeros(len(a)).reshape(shape), 1.0))
        pyro.sample("a", dist.Normal(WEIGHTS[0] * z, SCALES[0]), obs=a.reshape(shape))
        pyro.sample("b", dist.Normal(WEIGHTS[1] * z, SCALES[1]), obs=b.reshape(shape))


def with_numbers(counts, b):
    two(counts / 3, b)


def with_places(a, b, places):
    with pyro.plate("rows", N, subsample=places):
        z = pyro.sample("latent", dist.Normal(torch.zeros(len(a)), 1.0))
        pyro.sample("a", dist.Normal(WEIGHTS[0] * z, SCALES[0]), obs=a)
        pyro.sample("b", dist.Normal(WEIGHTS[1] * z, SCALES[1]), obs=b)


def by_places(a, b):
    """Reads its rows by the plate's own places."""
    with pyro.plate("data", len(a)) as places:
        z = pyro.sample("latent", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(WEIGHTS[0] * z, SCALES[0]), obs=a[places])
        pyro.sample("b", dist.Normal(WEIGHTS[1] * z, SCALES[1]), obs=b[places])


def of_dict(batch):
    two(batch["a"], batch["b"])


FORMS = {
    "two tensors": (two, (A, B), {}),
    "keywords": (two, (), {"a": A, "b": B}),
    "dict": (of_dict, ({"a": A, "b": B},), {}),
    "list": (lambda both: two(*both), ([A, B],), {}),
    "numpy": (two, (A.double().numpy(), B.numpy()), {}),
    "another plate": (lambda a, b: two(a, b, plate="people"), (A, B), {}),
    "dim": (two, (A, B), {"dim": -2}),
    "unsized": (two, (A, B), {"sized": False}),
    "whole numbers": (with_numbers, (WHOLE, B), {}),
    "places": (with_places, (A, B, torch.arange(N)), {}),
    "by places": (by_places, (A, B), {}),
    "float64": (two, (A.double(), B.double()), {}),
}


def fitted(model, *args, epochs=100, options=None, **kwargs):
    fit = options or FitOptions.recipe(capture="off", batch_size=60, learning_rate=0.1)
    settings = ab.ComparisonSettings(epochs, rungs=1, depth=0, num_draws=100, fit=fit)
    options = {"widths": (1,), "guides": ("amortized",), "settings": settings, "progress": False}
    return ab.compare(model, *args, **(options | kwargs))


def gap_of(fit, exact):
    """Of the mean ELBO to an exact value, in Monte Carlo errors and what 100 epochs leave."""
    return abs(fit.value.mean().item() - exact) / (4 * fit.standard_error.square().sum().sqrt().item() / N + 0.01)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.slow_cases(
    "another plate", "dict", "dim", "float64", "keywords", "numpy", "places", "two tensors", "unsized", "whole numbers"
)
def test_compare_reaches_the_evidence(name):
    model, args, kwargs = FORMS[name]
    (fit,) = fitted(model, *args, **kwargs).fits
    exact = evidence(WHOLE / 3 if name == "whole numbers" else A, B)
    assert gap_of(fit.elbo, exact) < 1
    if name in ("keywords", "dict", "dim", "unsized"):  # its guide takes what its model takes
        assert gap_of(ab.elbo(model, fit.guide, *args, num_draws=100, **kwargs), exact) < 1


@pytest.mark.parametrize("dims", [(-1, -2), (-2, -1)])
def test_latents_in_a_further_plate(dims):
    """Three coordinates of each point, in a plate of their own on either side of the plate over points."""
    of_points, of_parts = dims
    x = torch.stack([A, B, A - B], 1)

    def laid(values):
        return values if of_points == -2 else values.T

    def model(x):
        points, parts = pyro.plate("points", len(x), dim=of_points), pyro.plate("parts", 3, dim=of_parts)
        with points:
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            with parts:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + 0 * shift, 0.5), obs=laid(x))

    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).sum(-1).mean().item()
    (fit,) = fitted(model, x, plate="points").fits
    assert gap_of(fit.elbo, exact) < 1
    assert fit.guide.latent_dim == 4
    weights = ab.log_weights(model, fit.guide, x, num_particles=200, plate="points")
    assert abs(weights.local.mean().item() - exact) < 0.05


def test_a_guide_with_the_plate_at_another_dim_is_refused():
    def guide(a, b, **options):
        with pyro.plate("data", len(a)):
            pyro.sample("latent", dist.Normal(torch.zeros(len(a)), 1.0))

    with pytest.raises(ValueError, match="'latent' has plate 'data' at dim=-1 in the guide but dim=-2 in the model"):
        ab.log_weights(two, guide, A, B, dim=-2)


def test_large_counts_need_an_encoder_input(caplog):
    counts = torch.poisson(2000 * torch.rand(N, 2, generator=torch.Generator().manual_seed(0)))

    def model(counts):
        with pyro.plate("data", len(counts)):
            rate = pyro.sample("rate", dist.LogNormal(torch.full((len(counts),), 6.0), 1.0))
            pyro.sample("count", dist.Poisson(rate[:, None]).to_event(1), obs=counts)

    with caplog.at_level(logging.WARNING):
        fitted(model, counts.long(), epochs=2)
    assert "encoder_input=lambda counts: torch.log1p(counts)" in caplog.text
    caplog.clear()
    (fit,) = fitted(model, counts.long(), encoder_input=torch.log1p, epochs=2).fits
    assert not caplog.text
    assert torch.equal(fit.guide.read(counts)[0], counts.log1p())


def test_a_network_of_the_data_is_fitted_with_the_encoder():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.1, 0.1]))

        def forward(self, a, b):
            return (torch.stack([a, b], 1) * self.weight).sum(1, keepdim=True)

    network = Sum()
    one = fitted(two, A, B, encoder_input=network, guides=("constant", "amortized")).fits
    assert network.weight.tolist() == pytest.approx([0.1, 0.1])
    assert gap_of(one[1].elbo, evidence(A, B)) < 1  # one number is enough: the posterior's mean is linear in it
    ratio = (one[1].guide.seen.encoder_input.weight[0] / one[1].guide.seen.encoder_input.weight[1]).item()
    exact = WEIGHTS[0] / SCALES[0] ** 2 / (WEIGHTS[1] / SCALES[1] ** 2)
    assert ratio == pytest.approx(exact.item(), abs=0.4)


def test_a_compiled_or_replayed_step_of_several_tensors_gives_the_same_numbers():
    found = []
    for capture in ("off", "replay"):
        options = FitOptions.recipe(capture=capture, batch_size=30)
        (fit,) = fitted(two, A, B, epochs=4, options=options).fits
        assert fit.elbo is not None
        found.append(fit.elbo.value)
    torch.testing.assert_close(*found)


def test_rows_of_the_model_s_own_numbers_stay_what_they_are():
    kinds = []

    def model(counts, flags):
        kinds.append((counts.dtype, flags.dtype))
        with pyro.plate("data", len(counts)):
            rate = pyro.sample("rate", dist.Gamma(torch.full((len(counts),), 2.0), 1.0))
            pyro.sample("count", dist.Poisson(torch.where(flags, rate, 2 * rate)), obs=counts)

    fitted(model, torch.poisson(torch.full((N,), 3.0)).long(), torch.arange(N) % 2 == 0, epochs=2)
    assert set(kinds) == {(torch.int64, torch.bool)}


def with_missing(x, seen):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("a", dist.Normal(WEIGHTS[0] * z, SCALES[0]), obs=x[:, 0])
        b = pyro.sample("b", dist.Normal(WEIGHTS[1] * z, SCALES[1]), obs=x[:, 1], obs_mask=seen)
        pyro.deterministic("double", 2 * b)


def with_masked_nan(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        loc = z[:, None] * WEIGHTS
        pyro.sample("x", dist.Normal(loc, SCALES).mask(~x.isnan()).to_event(1), obs=x)


def exact_with_missing(x, seen):
    alone = dist.Normal(0.0, (WEIGHTS[0] ** 2 + SCALES[0] ** 2).sqrt()).log_prob(x[:, 0])
    covariance = WEIGHTS[:, None] * WEIGHTS + SCALES.square().diag()
    both = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x.nan_to_num())
    return torch.where(seen, both, alone)


def missing_guide(x, seen=None):
    kept = torch.stack([torch.ones(len(x), dtype=torch.bool), ~x[:, 1].isnan()], 1)
    precision = 1 + (kept * (WEIGHTS / SCALES).square()).sum(1)
    loc = (x.nan_to_num() * kept * WEIGHTS / SCALES.square()).sum(1) / precision
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, precision.rsqrt()))


@pytest.mark.parametrize("kind", ["obs_mask", "mask"])
@pytest.mark.slow_cases("obs_mask")
def test_missing_data(kind):
    """Some of the second numbers are nan: hidden by ``obs_mask``, whose extra latent drops out, or by a mask."""
    seen = torch.arange(N) % 3 > 0
    x = torch.stack([A, torch.where(seen, B, torch.nan)], 1)
    model, args = (with_missing, (x, seen)) if kind == "obs_mask" else (with_masked_nan, (x,))
    exact = exact_with_missing(x, seen)
    quick = ab.DiagnosisSettings(
        num_particles=25,
        ais=ab.AISSettings(num_chains=2, num_temperatures=2, num_pilot=2),
        local=ab.LocalSettings(max_steps=10, max_rounds=1, num_samples=4),
        certificate=ab.CertificateSettings(2, 0.5, 2),
    )
    found = ab.diagnose(model, missing_guide, *args, settings=quick)
    torch.testing.assert_close(found.values["elbo"][0].float(), exact, atol=1e-4, rtol=1e-4)
    fits = fitted(model, *args, guides=("factorized",), epochs=200).fits
    assert fits[0].elbo is not None
    assert gap_of(fits[0].elbo, exact.mean().item()) < 1.5


def test_missing_values_that_others_depend_on_stay_latent():
    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            a = pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0], obs_mask=seen)
            pyro.sample("b", dist.Normal(a, 1.0), obs=x[:, 1])

    (fit,) = fitted(model, torch.stack([A, B], 1), A > 0, epochs=2).fits
    assert [site.name for site in fit.guide.sites] == ["z", "a_unobserved"]


def test_grey_pixels_under_a_bernoulli_are_captured(caplog):
    """Validation, which would refuse them, is off while a step is checked, as it is while steps are taken."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None].expand(-1, 4)).to_event(1), obs=x)

    generator = torch.Generator().manual_seed(0)
    with caplog.at_level(logging.WARNING):
        fitted(
            model, torch.rand(N, 4, generator=generator), epochs=2, options=FitOptions(capture="replay", batch_size=30)
        )
    assert not caplog.text
