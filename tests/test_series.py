"""Models of which the answer is known: their densities, data, exact evidence, and the optimum of F-VI."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import MultivariateNormal

import amortized_bayes as ab
from amortized_bayes.models import (
    SERIES,
    GaussianProcess,
    Linear,
    Nonlinear,
    RandomWalk,
    Saw,
    TwoLevels,
    gaussian_joint,
)
from amortized_bayes.models.walk import Walk

pytestmark = pytest.mark.usefixtures("float64")

N = 12
GAUSSIAN = [name for name in SERIES if name != "nonlinear"]
WIDE = 10.0**2
"""Prior variance of theta and mu."""


def marginal(model, x):
    """What data are distributed as, by hand: values, their mean and covariance given theta, and its direction."""
    ones, eye = torch.ones(len(x)), torch.eye(len(x))
    match model:
        case Linear():
            return x, model.theta * ones, (model.tau**2 + model.sigma**2) * eye, ones
        case TwoLevels():
            flat, groups = x.flatten(), torch.arange(len(x)).repeat_interleave(model.members)
            same = (groups[:, None] == groups).double()
            return flat, torch.full_like(flat, model.mu), same + 2 * torch.eye(len(flat)), torch.ones_like(flat)
        case Saw():
            rest, a = x[1:] - model.a * x[:-1], model.a
            ones = torch.ones_like(rest)
            return rest, a * model.theta * ones, (1 + a**2) * torch.eye(len(rest)), a * ones
        case RandomWalk():
            places = torch.arange(1.0, len(x) + 1)
            return x, 0 * ones, torch.minimum(places[:, None], places) + eye, None
        case GaussianProcess():
            return x, 0 * ones, model.kernel(len(x)) + model.scale**2 * eye, None


@pytest.mark.parametrize("name", GAUSSIAN)
def test_evidence_by_hand(name):
    model = SERIES[name]()
    x = model.simulate(N, 3)
    value, mean, covariance, along = marginal(model, x)
    if along is not None:  # the prior of theta in place of the value that data are drawn with
        mean, covariance = 0 * mean, covariance + WIDE * along[:, None] * along
    expected = MultivariateNormal(mean, covariance).log_prob(value)
    torch.testing.assert_close(model.exact(x).log_evidence(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_data_are_drawn_from_the_model(name):
    """The squared length of standardized data is chi-squared."""
    model, count = SERIES[name](), 200 if name == "two-levels" else 1000
    x = model.simulate(count, 5)
    value, mean, covariance, _ = marginal(model, x)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (value - mean)[:, None], upper=False)
    assert abs(float((white**2).sum()) - len(white)) < 4 * math.sqrt(2 * len(white))
    assert abs(float(white.mean())) < 4 / math.sqrt(len(white))
    assert torch.equal(x, model.simulate(count, 5))
    assert not torch.equal(x, model.simulate(count, 6))


def test_nonlinear_data_have_the_moments_of_the_model():
    model, count = Nonlinear(theta=0.5), 20_000
    x, z = model.simulate(count, 1), torch.linspace(-9, 9, 20_001)
    weight = dist.Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    mean, scale = 0.5 + z * z.sin() + z, z.cos().exp()
    first = (weight * mean).sum()
    variance = (weight * (mean**2 + scale**2)).sum() - first**2
    assert abs(x.mean() - first) < 4 * (variance / count).sqrt()
    assert abs(x.var() - variance) < 4 * (x - x.mean()).pow(2).std() / math.sqrt(count)


def test_the_nonlinear_density_has_its_normalizing_term():
    x, z, theta = Nonlinear().simulate(N, 0), torch.linspace(-2, 2, N), torch.tensor(0.3)
    scale = z.cos().exp()
    expected = -0.5 * ((x - theta - z * z.sin() - z) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    trace = poutine.trace(poutine.condition(Nonlinear(), {"theta": theta, "z": z})).get_trace(x)
    assert torch.allclose(trace.log_prob_sum(lambda name, site: name == "x"), expected.sum())


def test_what_f_must_see():
    sees = {name: ab.can_amortize(cls(), cls().simulate(N, 0), plate="data").sees for name, cls in SERIES.items()}
    own, whole = "own point", "whole series"
    assert sees == {
        "linear": own,
        "nonlinear": own,
        "two-levels": own,
        "saw": "neighbours",
        "random-walk": whole,
        "gaussian-process": whole,
    }


def test_two_levels_can_be_amortized_by_their_groups_without_a_name():
    """Members are no points: their plate has the latents of all groups."""
    with pytest.raises(ValueError, match="'members'"):
        ab.can_amortize(lambda x: renamed(TwoLevels(), x), TwoLevels().simulate(N, 0))
    assert ab.can_amortize(TwoLevels(), TwoLevels().simulate(N, 0)).can is True


def renamed(model, x):
    """The same with another name for its plate, so that nothing says which is meant."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("groups", len(x), dim=-2):
        eta = pyro.sample("eta", dist.Normal(mu, 1.0))
        with pyro.plate("members", model.members, dim=-1):
            z = pyro.sample("z", dist.Normal(eta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


# The optimum of F-VI --------------------------------------------------------------------------------------------------


def test_the_means_of_a_walk_that_is_always_1():
    exact = RandomWalk().exact(torch.ones(40))
    best = exact.best()
    assert [round(float(mean), 2) for mean in best.mean[:3]] == [0.62, 0.85, 0.94]
    assert float(best.mean[-1]) == pytest.approx(1.0, abs=1e-9)
    assert exact.diagonal.tolist() == [3.0] * 39 + [2.0]
    assert torch.allclose(exact.band[1, :-1], torch.tensor(-1.0))
    assert torch.allclose(best.log_scale.exp() ** -2, exact.diagonal)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_posterior_and_optimum_by_a_dense_inverse(name):
    model = SERIES[name]()
    x = model.simulate(N, 4)
    exact = model.exact(x)
    precision = torch.stack([exact.times(row) for row in torch.eye(len(exact.linear))])
    assert torch.allclose(precision, precision.T)
    assert torch.allclose(exact.best().mean, torch.linalg.solve(precision, exact.linear))
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert float(exact.best_elbo()) == pytest.approx(float(exact.log_evidence() - gap))
    limits = gaussian_joint(model, x, local=model.local)  # every tie is looked for
    assert torch.allclose(precision, torch.stack([limits.times(row) for row in torch.eye(len(precision))]))


def test_a_band_is_a_matrix_only_where_that_is_small():
    many = TwoLevels(members=40)
    wide = gaussian_joint(many, many.simulate(100, 0), local=many.local, bandwidth=40)  # 4,100 latents
    assert wide._full is None
    small = gaussian_joint(many, many.simulate(3, 0), local=many.local, bandwidth=40)
    assert small._full is not None
    u = torch.randn(1 + 3 * 41)
    expected = small.times(u)
    small.__dict__["_full"] = None
    torch.testing.assert_close(small.times(u), expected)


def test_a_precision_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr("amortized_bayes.memory.SMALL", 0)
    monkeypatch.setattr("amortized_bayes.memory.memory_of", lambda _: (10.0, 10.0))
    with pytest.raises(ValueError, match="the precision of 9 latents by 9 diagonals, which needs"):
        gaussian_joint(Linear(), torch.ones(9))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_what_an_answer_loses(name):
    exact = SERIES[name]().exact(SERIES[name]().simulate(N, 4))
    best = exact.best()
    assert float(exact.elbo(best.mean, best.log_scale)) == pytest.approx(float(exact.best_elbo()))
    mean, log_scale = best.mean + torch.randn(len(best.mean)), best.log_scale + torch.randn(len(best.mean))
    lost = exact.best_elbo() - exact.elbo(mean, log_scale)
    assert lost > 1
    assert float(exact.lost(mean, log_scale)) == pytest.approx(float(lost))


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.slow_cases("gaussian-process", "linear", "saw", "two-levels")
def test_the_exact_elbo_is_the_mean_of_its_draws(name):
    """Draws of log p(u, x) - log q(u), from the Pyro program."""
    model = SERIES[name]()
    x = model.simulate(6, 4)
    exact, names = model.exact(x), ("theta", "mu")
    size = len(exact.linear)
    mean, log_scale = torch.randn(size), 0.3 * torch.randn(size) - 0.5
    q = dist.Normal(mean, log_scale.exp())
    found = []
    for _ in range(1500):
        u = q.sample()
        shared, local = u[: exact.num_shared], u[exact.num_shared :].reshape(exact.num_data, -1)
        values = dict.fromkeys(names, shared[0]) if len(shared) else {}
        values |= {"eta": local[:, :1], "z": local[:, 1:]} if name == "two-levels" else {"z": local[:, 0]}
        log_p = poutine.trace(poutine.condition(model, values)).get_trace(x).log_prob_sum()
        found.append(log_p - q.log_prob(u).sum())
    draws = torch.stack(found)
    assert abs(draws.mean() - exact.elbo(mean, log_scale)) < 4 * draws.std() / math.sqrt(len(draws))


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.slow_cases("gaussian-process", "linear", "random-walk", "two-levels")
def test_f_vi_by_gradients_reaches_the_optimum(name):
    exact = SERIES[name]().exact(SERIES[name]().simulate(15, 2))
    rows = torch.zeros(2, len(exact.linear), requires_grad=True)
    steps = 1500
    optimizer = torch.optim.Adam([rows], lr=0.1)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-exact.elbo(*rows)).backward()
        optimizer.step()
        falling.step()
    lost = float(exact.best_elbo() - exact.elbo(*rows.detach())) / exact.num_data
    assert -1e-9 < lost < 0.01


@pytest.mark.slow
def test_f_vi_of_the_package_reaches_the_optimum():
    """The package's own fit, of a table for z and a factorized Gaussian for theta, by draws."""
    model, x = Linear(), Linear().simulate(100, 2)
    exact = model.exact(x)
    sites = ab.latent_sites(model, x)
    guide = ab.Factorized(sites.local, num_data=100, shared=ab.MeanField(sites.shared))
    ab.fit(model, guide, x, 2500, ab.FitOptions(batch_size=100, capture="replay"), seed=1, progress=False)
    loc, log_scale = guide.locate(x, torch.arange(100)).detach().T
    mean = torch.cat([guide.shared.locs["theta"].detach().reshape(1), loc])
    scales = torch.cat([guide.shared.log_scales["theta"].detach().reshape(1), log_scale])
    assert 0 <= float(exact.lost(mean, scales)) / 100 < 0.01


# What f can reach -----------------------------------------------------------------------------------------------------


def columns(*parts):
    return torch.stack([torch.ones(len(parts[0])), *parts], 1) if parts else None


def test_a_linear_f_suffices_for_the_linear_model():
    model = Linear()
    x = model.simulate(N, 1)
    exact = model.exact(x)
    assert abs(float(exact.best_of(columns(x)).lost)) < 1e-9
    constant = exact.best_of(torch.ones(N, 1))
    assert float(constant.lost) > 0.5
    assert float(exact.best_elbo() - exact.elbo(*constant[:2])) == pytest.approx(float(constant.lost))


def test_saw_needs_both_rows():
    model = Saw()
    x = model.simulate(200, 1)
    exact = model.exact(x)
    assert abs(float(exact.best_of(columns(x[:-1], x[1:])).lost)) < 1e-8
    assert float(exact.best_of(columns(x[1:])).lost) > 5
    assert float(exact.best_of(columns(x[:-1])).lost) > 5


def test_two_levels_need_the_data_of_their_group():
    model = TwoLevels()
    x = model.simulate(20, 1)
    exact = model.exact(x)
    assert abs(float(exact.best_of(torch.cat([torch.ones(20, 1), x], 1)).lost)) < 1e-8
    assert float(exact.best_of(torch.cat([torch.ones(20, 1), x[:, :2]], 1)).lost) > 1


def test_the_best_common_answer_of_a_walk_that_is_always_1():
    """Rows of the precision sum to 2 at the first point and to 1 elsewhere, and h = 1: by hand, the mean is N/(N+1)."""
    count = 25
    exact = RandomWalk().exact(torch.ones(count))
    answer = exact.best_of(torch.ones(count, 1))
    assert torch.allclose(answer.mean, torch.tensor(count / (count + 1)))
    assert torch.allclose((2 * answer.log_scale).exp(), torch.tensor(count / (3 * count - 1)))
    by_means = exact.linear @ exact.best().mean - count**2 / (count + 1)
    by_scales = count * math.log((3 * count - 1) / count) - exact.diagonal.log().sum()
    assert float(answer.lost) == pytest.approx(0.5 * float(by_means + by_scales))
    assert float(answer.lost) > 0.1
    pair = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([pair], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        (found := -exact.elbo(*pair[:, None].expand(2, count))).backward()
        return found

    optimizer.step(loss)
    assert float(exact.best_elbo() - exact.elbo(*pair.detach()[:, None].expand(2, count))) == pytest.approx(
        float(answer.lost)
    )


def test_a_window_with_marks_at_the_edges_closes_the_gap_as_it_grows():
    """All data are 1: a window tells how far the edges are, and its best f is a table by these distances."""
    count = 25
    exact = RandomWalk().exact(torch.ones(count))
    places = torch.arange(count)
    lost = []
    for reach in range(8):
        groups = torch.minimum(places, torch.tensor(reach)) * 100 + torch.minimum(
            count - 1 - places, torch.tensor(reach)
        )
        labels = groups.unique(return_inverse=True)[1]
        lost.append(float(exact.best_of(torch.nn.functional.one_hot(labels).double(), labels).lost))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.1
    assert lost[-1] < 1e-5


@pytest.mark.parametrize("name", ["random-walk", "gaussian-process"])
def test_a_linear_f_of_a_window_closes_the_gap_as_it_grows(name):
    model = SERIES[name]()
    x = model.simulate(60, 2)
    exact = model.exact(x)
    padded = torch.nn.functional.pad(x, (60, 60))
    lost = []
    for reach in (0, 1, 2, 4, 8):
        shifted = [padded[60 + k : 120 + k] for k in range(-reach, reach + 1)]
        lost.append(float(exact.best_of(columns(*shifted)).lost))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 5 * lost[-1]
    whole = exact.best_of(torch.eye(60), torch.arange(60))  # f of the place: F-VI itself
    assert abs(float(whole.lost)) < 1e-8


# Walks, and bad input -------------------------------------------------------------------------------------------------


def test_a_walk_is_the_gaussian_of_its_covariance():
    places, drift = torch.arange(1.0, 7.0), torch.randn(6)
    z = torch.randn(4, 6)
    walk = MultivariateNormal(drift.cumsum(0), torch.minimum(places[:, None], places))
    torch.testing.assert_close(Walk(drift).log_prob(z), walk.log_prob(z))
    torch.testing.assert_close(Walk(drift).expand([4]).log_prob(z), walk.log_prob(z))
    draws = Walk(drift)(torch.Size([20_000]))
    assert ((draws.mean(0) - walk.mean).abs() < 5 * (places / 20_000).sqrt()).all()
    assert ((draws.T.cov() - walk.covariance_matrix).abs() < 5 * places.max() * math.sqrt(2 / 20_000)).all()


def improper(x):
    """A latent without a density."""
    with poutine.mask(mask=False):
        pyro.sample("free", dist.Normal(0.0, 1.0))
    Linear()(x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Linear().exact(torch.zeros(4, dtype=torch.float32)), "float64, got torch.float32"),
        (lambda: Linear().exact(torch.tensor([0.0, math.nan])), "1 not finite"),
        (lambda: Nonlinear().exact(torch.ones(4)), "quadratic"),
        (lambda: gaussian_joint(RandomWalk(), torch.ones(9), bandwidth=0), "bandwidth"),
        (lambda: gaussian_joint(Linear(), torch.ones(9), local=("y",)), "got 'y'"),
        (lambda: gaussian_joint(improper, torch.ones(9)).best(), "positive definite"),
        (lambda: Linear().exact(torch.ones(4)).best_of(torch.ones(3, 1)), r"expected features \(4, K\)"),
        (lambda: Linear().exact(torch.ones(4)).best_of(torch.full((4, 1), math.inf)), "finite features"),
        (lambda: Linear(sigma=-1.0), "sigma above 0"),
        (lambda: TwoLevels(members=0), "members of 1 or more"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(ValueError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)
