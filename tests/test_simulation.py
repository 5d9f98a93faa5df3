"""Simulated data are exact draws, whichever arguments hold them, or there are none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from amortized_bayes import AISSettings, CertificateSettings, diagnose
from amortized_bayes.diagnosis.run import DiagnosisSettings
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.simulation import simulate
from amortized_bayes.joint import joint_density

pytestmark = pytest.mark.usefixtures("float64")

N = 4_000


def simulated(model, *args: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        joint, z = simulate(joint_density(model, *args))
    return tuple(joint.leaves), z[:, 0]


def regression(x: Tensor, y: Tensor) -> None:
    """What is observed first is what the second depends on."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        pyro.sample("y", dist.Normal(z + 3 * x, 0.1), obs=y)


def test_a_site_depends_on_the_data_that_were_drawn_before_it() -> None:
    (x, y), z = simulated(regression, torch.full((N,), 100.0), torch.zeros(N))
    assert (y - z - 3 * x).std() == pytest.approx(0.1, rel=0.1)
    assert (x - z).std() == pytest.approx(0.5, rel=0.1)


def test_both_bounds_are_of_the_same_data() -> None:
    """With data of the wrong kind the upper bound lies hundreds of nats below the lower one, or above it."""

    def guide(x: Tensor, y: Tensor) -> None:
        precision = 1 + 4 + 100
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((4 * x + 100 * (y - 3 * x)) / precision, precision**-0.5))

    settings = AISSettings(num_temperatures=10, num_chains=4)
    x, y = torch.full((50,), 2.0), torch.zeros(50)
    found = bdmc(regression, guide, x, y, settings=settings, certificate=CertificateSettings(50))
    assert abs(found.mean_gap) < 3 * found.gap_error + 0.01


def two_parts(table: Tensor) -> None:
    with pyro.plate("data", len(table)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        both = dist.Normal((z + table[:, 0])[:, None].expand(-1, 2), 0.1).to_event(1)
        pyro.sample("b", both, obs=table[:, 2:])
        pyro.sample("a", dist.Normal(z - table[:, 2], 0.1), obs=table[:, 1])


def test_columns_of_one_argument_are_put_back_where_they_came_from() -> None:
    covariate = torch.linspace(-5, 5, N)
    table = torch.stack([covariate, *torch.zeros(3, N)], 1)  # columns are told apart by their places, not by values
    ((new,), z) = simulated(two_parts, table)
    torch.testing.assert_close(new[:, 0], covariate)
    assert (new[:, 2:] - (z + covariate)[:, None]).std() == pytest.approx(0.1, rel=0.1)
    assert (new[:, 1] - z + new[:, 2]).std() == pytest.approx(0.1, rel=0.1)


def copied(table: Tensor) -> None:
    """Columns that are copied before they are observed."""
    with pyro.plate("data", len(table)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 0.1).to_event(1), obs=table[:, [2, 0]])


def test_copies_of_columns_are_found_where_no_two_are_equal() -> None:
    table = torch.arange(3.0) + torch.zeros(N, 1)
    ((new,), z) = simulated(copied, table)
    torch.testing.assert_close(new[:, 1], table[:, 1])
    assert (new[:, [2, 0]] - z[:, None]).std() == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match="'x' to be an argument of the model or columns of one"):
        simulated(copied, torch.zeros(4, 3))


def own_past(x: Tensor) -> None:
    """A density of each column given those before it, which are read off the data."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        past = torch.cat([z[:, None], x[:, :-1]], 1)
        pyro.sample("x", dist.Normal(past, 1.0).to_event(1), obs=x)


def looks_ahead(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.mean(-1), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)


def rounded(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1), obs=x.double())


@pytest.mark.parametrize(
    ("model", "x", "site"),
    [(own_past, torch.ones(5, 3), "x"), (looks_ahead, torch.ones(5, 3), "z"), (rounded, torch.ones(5, 3).long(), "x")],
)
def test_data_that_would_be_no_draws_of_the_model_are_refused(model, x: Tensor, site: str) -> None:
    with pytest.raises(ValueError, match=f"site '{site}' is another once data are drawn"):
        simulated(model, x if x.dtype == torch.int64 else x.double())


def test_a_diagnosis_says_why_it_has_no_certificate() -> None:
    def factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.factor("energy", -(z - x).square())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.5, 0.5))

    few = DiagnosisSettings(num_particles=50, ais=AISSettings(num_chains=4, num_temperatures=5))
    found = diagnose(factor, guide, torch.linspace(-1, 1, 6).double(), settings=few)
    assert found.certificate is None
    assert "got factor 'energy', which says how likely data are and not how to draw them" in found.evidence()
