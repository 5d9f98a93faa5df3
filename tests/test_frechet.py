"""The Fréchet distance against closed forms, and bounds around the mode of a posterior against the evidence."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from amortized_bayes.evaluation import frechet
from amortized_bayes.evaluation.frechet import check_frechet, features_of, frechet_distance
from amortized_bayes.evaluation.laplace import laplace, sandwich
from amortized_bayes.models import LinearGaussian


def gaussian(mean, covariance, count=200, seed=0):
    """Points whose empirical mean and covariance are exactly these."""
    draws = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws = draws - draws.mean(0)
    draws = torch.linalg.solve_triangular(torch.linalg.cholesky(draws.T.cov()), draws.T, upper=False).T
    return draws @ torch.linalg.cholesky(covariance).T + mean


def test_distance_of_two_gaussians():
    one = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -0.4, 0.2], [-0.4, 2.0, 0.0], [0.2, 0.0, 0.5]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root = scipy.linalg.sqrtm((one @ other).numpy()).real
    exact = float(mean.square().sum() + (one + other).trace()) - 2 * np.trace(root)
    value, error = frechet_distance(gaussian(0 * mean, one), gaussian(mean, other, seed=1))
    assert value == pytest.approx(exact, rel=1e-9)
    assert 0 < error < value


def test_the_error_is_that_of_other_sets():
    def one(seed):
        generator = torch.Generator().manual_seed(seed)
        real, other = (torch.randn(300, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        return frechet_distance(real, 1.5 * other + 0.5)

    found = np.array([one(seed) for seed in range(40)])
    assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(ddof=1), rel=0.35)  # 3 of its errors


def test_too_few_images_and_no_torchmetrics_are_one_line(monkeypatch):
    check_frechet(6, 4)
    with pytest.raises(ValueError, match=r"expected 6 or more images for a Fréchet distance of 4 features, .* got 5$"):
        check_frechet(5, 4)
    with pytest.raises(ValueError, match="expected two sets of one size"):
        frechet_distance(torch.zeros(6, 2), torch.zeros(7, 2))
    with pytest.raises(ValueError, match=r"expected features \(3, F\), got \(3, 2, 1\)"):
        features_of(lambda x: x[..., None], [torch.zeros(3, 2)])
    with pytest.raises(ArithmeticError, match="finite features"):
        features_of(torch.log, [-torch.ones(3, 2)])
    monkeypatch.setattr(frechet, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"got none: pip install 'amortized_bayes\[celeba\]'"):
        check_frechet(100, 4)


@pytest.fixture(name="linear")
def linear_fixture(float64):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 3, generator=generator)
    model = LinearGaussian(weight, torch.randn(5, generator=generator), 0.3)
    z = torch.randn(4, 3, generator=generator)
    x = z @ weight.T + model.bias + 0.3 * torch.randn(4, 5, generator=generator)
    return model, lambda z: z @ weight.T + model.bias, x, z


def test_bounds_are_exact_where_the_posterior_is_gaussian(linear):
    model, decode, x, z = linear
    near = laplace(decode, x, torch.zeros(4, 3), 0.3)
    exact = model.posterior(x)
    assert torch.allclose(near.mean, exact.mean)
    precision = near.factor @ near.factor.mT
    assert torch.allclose(precision.inverse(), exact.covariance_matrix.expand(4, 3, 3))
    assert torch.allclose(near.factorized_scale, precision.diagonal(dim1=-2, dim2=-1).rsqrt())
    assert torch.allclose(near.log_prob(z), exact.log_prob(z))
    lower, upper = sandwich(decode, x, near, 0.3, 30, torch.Generator().manual_seed(0), z)
    assert torch.allclose(lower, model.log_evidence(x))
    assert torch.allclose(upper, model.log_evidence(x))


def test_bounds_hold_the_evidence_between_them(float64):
    def decode(z):
        return torch.cat([z + 0.3 * z.square(), torch.sin(2 * z)], -1)

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 1, generator=generator)
    x = decode(z) + 0.4 * torch.randn(200, 2, generator=generator)
    near = laplace(decode, x, torch.zeros(200, 1), 0.4)  # at the true latents it would be no bound from above
    assert (near.log_joint >= laplace(decode, x, torch.zeros(200, 1), 0.4, 0).log_joint).all()
    grid = torch.linspace(-8, 8, 20_001)[:, None]
    log_p = -0.5 * ((x[:, None] - decode(grid)) / 0.4).square().sum(-1) - 0.5 * grid.square().T
    exact = log_p.logsumexp(1) + math.log(16 / 20_000) - 2 * math.log(0.4) - 1.5 * math.log(2 * math.pi)
    lower, upper = sandwich(decode, x, near, 0.4, 50, generator, z)
    below, above = exact - lower, upper - exact
    for gap in (below, above):
        assert gap.mean() > -2 * gap.std() / math.sqrt(200)
    assert above.mean() + below.mean() > 3 * (above + below).std() / math.sqrt(200)  # two bounds, and not one value
    assert below.mean() < 1


def test_a_start_for_other_points_is_refused():
    with pytest.raises(ValueError, match="expected a start for 2 points and a scale above 0, got 3"):
        laplace(lambda z: z, torch.zeros(2, 1), torch.zeros(3, 1), 0.1)
