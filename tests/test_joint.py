"""log p(x, z) on the unconstrained space, against densities written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import amortized_bayes as ab
from amortized_bayes.joint import draw_shared, joint_density

pytestmark = pytest.mark.usefixtures("float64")


def observations(x: Tensor) -> None:
    """Plate ``observations``, site ``u`` with a constrained support."""
    with pyro.plate("observations", len(x)):
        u = pyro.sample("u", dist.LogNormal(0.3, 0.8))
        pyro.sample("x", dist.Poisson(u), obs=x)


def two_sites(x: Tensor, y: Tensor) -> None:
    """Two latent sites a point, the second on a simplex that depends on nothing, and an extra observed site."""
    with pyro.plate("data", len(x)):
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(3), scale[:, None]).to_event(1))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(z.sum(-1), 2.0), obs=y)


def test_a_constrained_site_gets_its_jacobian() -> None:
    x = torch.tensor([1.0, 4.0, 0.0])
    joint = joint_density(observations, x, plate="observations")
    z = torch.randn(5, 3, 1)
    u = z[..., 0].exp()
    expected = dist.Normal(0.3, 0.8).log_prob(z[..., 0]) + dist.Poisson(u).log_prob(x)
    torch.testing.assert_close(joint(z), expected)
    torch.testing.assert_close(joint.log_prior(z), dist.Normal(0.3, 0.8).log_prob(z[..., 0]))
    torch.testing.assert_close(joint.unpack(z)["u"], u)


def test_arguments_may_have_any_form() -> None:
    """Those of `compare` and `diagnose`: by name, numpy arrays, dicts, a plate that is found."""

    def model(batch: dict[str, Tensor], *, times: int, groups: int = 1) -> None:
        with pyro.plate("rows", len(batch["x"])):
            z = pyro.sample("z", dist.Normal(batch["shift"], 1.0))
            pyro.sample("x", dist.Normal(times * z, 1.0), obs=batch["x"])

    x, shift, z = torch.randn(4), torch.randn(4), torch.randn(2, 4, 1)
    joint = ab.log_joint(model, {"x": x.numpy(), "shift": shift}, times=3)
    expected = dist.Normal(shift, 1.0).log_prob(z[..., 0]) + dist.Normal(3 * z[..., 0], 1.0).log_prob(x)
    torch.testing.assert_close(joint(z), expected)
    points = torch.tensor([2, 0])
    torch.testing.assert_close(joint.select(points)(z[:, points]), expected[:, points])
    with pytest.raises(TypeError, match=r"got group=.*did you mean groups="):
        ab.log_joint(model, {"x": x, "shift": shift}, times=3, group=2)


def test_two_sites_are_laid_side_by_side() -> None:
    x, y = torch.randn(4, 3), torch.randn(4)
    joint = joint_density(two_sites, x, y)
    assert joint.dim == 1 + 3 + 2
    assert [(s.name, tuple(s.shape)) for s in joint.sites] == [("scale", ()), ("z", (3,)), ("w", (3,))]
    z = torch.randn(2, 5, 4, 6)
    values = joint.unpack(z)
    bijection = torch.distributions.biject_to(dist.Dirichlet(torch.ones(3)).support)
    expected = (
        dist.Gamma(2.0, 1.0).log_prob(values["scale"])
        + z[..., 0]
        + dist.Normal(0, values["scale"][..., None]).log_prob(values["z"]).sum(-1)
        + dist.Dirichlet(torch.ones(3)).log_prob(values["w"])
        + bijection.log_abs_det_jacobian(z[..., 4:], values["w"])
        + dist.Normal(values["z"] * values["w"], 1.0).log_prob(x).sum(-1)
        + dist.Normal(values["z"].sum(-1), 2.0).log_prob(y)
    )
    torch.testing.assert_close(joint(z), expected)


def test_points_do_not_depend_on_their_neighbours() -> None:
    joint = joint_density(two_sites, torch.randn(5, 3), torch.randn(5))
    z, points = torch.randn(3, 5, 6), torch.tensor([4, 1])
    torch.testing.assert_close(joint.select(points)(z[:, points]), joint(z)[:, points], rtol=0, atol=1e-12)


def test_prior_draws_come_back_through_pack() -> None:
    joint = joint_density(observations, torch.ones(2), plate="observations")
    z = joint.sample_prior(4000)
    assert z.shape == (4000, 2, 1)
    assert abs(z.mean() - 0.3) < 4 * 0.8 / 8000**0.5
    assert abs(z.std() - 0.8) < 4 * 0.8 / 16000**0.5


def test_subsampling_is_undone() -> None:
    table = torch.arange(10.0)

    def model(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", 10, subsample=index):
            z = pyro.sample("z", dist.Normal(table[index], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, index = torch.randn(3), torch.tensor([7, 2, 5])
    joint, z = joint_density(model, x, index), torch.randn(4, 3, 1)
    expected = dist.Normal(table[index], 1.0).log_prob(z[..., 0]) + dist.Normal(z[..., 0], 1.0).log_prob(x)
    torch.testing.assert_close(joint(z), expected)
    torch.testing.assert_close(joint.select(torch.tensor([2]))(z[:, 2:]), expected[:, 2:])


class BayesianDecoder(PyroModule):
    """A decoder whose weights are latents outside the plate."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 3)
        self.decoder.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        self.decoder.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, x: Tensor) -> None:
        _ = self.decoder.weight, self.decoder.bias
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


def test_shared_latents_are_held_at_a_draw() -> None:
    model = BayesianDecoder()
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"'decoder.weight' is outside plate 'data'; expected its value in `fixed`"):
        joint_density(model, x)
    (fixed,) = draw_shared(model, x, num_draws=1)
    assert set(fixed) == {"decoder.weight", "decoder.bias"}
    joint, z = joint_density(model, x, fixed=fixed), torch.randn(5, 4, 2)
    mean = z @ fixed["decoder.weight"].T + fixed["decoder.bias"]
    expected = dist.Normal(0, 1).log_prob(z).sum(-1) + dist.Normal(mean, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(joint(z), expected)
    with pytest.raises(ValueError, match=r"expected a value of shape \(3, 2\) for 'decoder.weight', got \(2, 3\)"):
        joint_density(model, x, fixed={**fixed, "decoder.weight": torch.zeros(2, 3)})


def test_bad_models_are_refused_in_words() -> None:
    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("component", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def random(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.randn(len(x)), 1.0), obs=x)

    def normalized(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((z - z.mean()) / z.std(), 1.0), obs=x)

    x = torch.ones(3)
    with pytest.raises(ValueError, match="'component'"):
        joint_density(discrete, x)
    with pytest.raises(ValueError, match=r"plate 'data'.*'observations'"):
        joint_density(observations, x, plate="data")
    for model in (random, normalized):
        with pytest.raises(ValueError, match="random, or changes with a point's neighbours"):
            joint_density(model, x)
    with pytest.raises(ValueError, match="names in `fixed`"):
        joint_density(observations, x, plate="observations", fixed={"theta": torch.zeros(())})
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="NaN at point 1"):
        joint_density(observations, torch.tensor([1.0, float("nan"), 2.0]), plate="observations")
    with pytest.raises(ValueError, match=r"expected z of shape \(..., 3, 1\), got \(3, 2\)"):
        joint_density(observations, x, plate="observations")(torch.zeros(3, 2))
