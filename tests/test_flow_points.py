"""Laws of the flow families: where they start, their densities, their gradients, one point beside another."""

import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.inference.flow_families import FAMILIES

pytestmark = pytest.mark.usefixtures("float64")

B, D = 4, 3

every_family = pytest.mark.parametrize("name", list(FAMILIES))


def scrambled(name: str, spread: float = 0.3) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Parameters of which none is zero, a location and a scale."""
    generator = Generator().manual_seed(3)
    parameters = FAMILIES[name](2, 5).init(B, D, generator, torch.float64)
    moved = {n: p + spread * torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
    return moved, torch.randn(B, D, generator=generator), 0.5 + torch.rand(B, D, generator=generator)


def log_normal(z: Tensor, scale: float = 1.0) -> Tensor:
    return dist.Normal(0.0, scale).log_prob(z).sum(-1)


@every_family
def test_a_family_starts_at_the_gaussian(name: str) -> None:
    family, loc, scale = FAMILIES[name](2, 5), torch.randn(B, D), 0.5 + torch.rand(B, D)
    noise = torch.randn(7, B, family.noise_dim(D))
    parameters = family.init(B, D, Generator().manual_seed(0), torch.float64)
    for path in (False, True):
        z, log_q = family.sample(parameters, loc, scale, noise, path=path)
        torch.testing.assert_close(z, loc + scale * noise[..., :D], rtol=0, atol=1e-12)
        torch.testing.assert_close(log_q, dist.Normal(loc, scale).log_prob(z).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "planar", "realnvp"])
def test_log_q_is_that_of_the_change_of_variables(name: str) -> None:
    family, (parameters, loc, scale) = FAMILIES[name](2, 5), scrambled(name)
    noise = torch.randn(1, B, D)
    z, log_q = family.sample(parameters, loc, scale, noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: family.sample(parameters, loc, scale, e)[0], noise)
    assert isinstance(jacobian, Tensor)
    jacobian = jacobian[0, :, :, 0]  # (B, D, B, D)
    if name != "gaussian":
        assert (z - loc - scale * noise).abs().min() > 1e-3
    for b in range(B):
        own = jacobian[b, :, b].clone()
        torch.testing.assert_close(log_q[0, b], log_normal(noise[0, b]) - torch.linalg.slogdet(own)[1])
        jacobian[b, :, b] = 0.0
    assert (jacobian == 0).all()  # no point is moved by another's noise


@every_family
def test_weights_of_a_density_average_to_one(name: str) -> None:
    """So do E p(z) r(v|z) / q(z, v) of an auxiliary flow, for any r; a log q(v_0) left out shows here."""
    family, (parameters, loc, scale) = FAMILIES[name](2, 5), scrambled(name, 0.07)
    noise = torch.randn(100_000, B, family.noise_dim(D))
    z, log_q = family.sample(parameters, loc, scale, noise)
    target = dist.Normal(loc, 0.5 * scale).log_prob(z).sum(-1)
    weights = (target - log_q).exp()
    error = weights.std(0) / len(weights) ** 0.5
    assert (error < 0.02).all()
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()


@every_family
def test_a_point_does_not_see_its_neighbours(name: str) -> None:
    family, (parameters, loc, scale) = FAMILIES[name](2, 5), scrambled(name)
    noise, some = torch.randn(6, B, family.noise_dim(D)), torch.tensor([2, 0])
    z, log_q = family.sample(parameters, loc, scale, noise)
    part = {n: p[some] for n, p in parameters.items()}
    fewer = family.sample(part, loc[some], scale[some], noise[:, some])
    torch.testing.assert_close(fewer[0], z[:, some], rtol=0, atol=1e-12)
    torch.testing.assert_close(fewer[1], log_q[:, some], rtol=0, atol=1e-12)


@every_family
def test_the_path_gradient_has_the_same_mean(name: str) -> None:
    family, (parameters, loc, scale) = FAMILIES[name](2, 5), scrambled(name, 0.1)
    leaves = [t[:1].requires_grad_() for t in (*parameters.values(), loc, scale)]
    noise = torch.randn(200, 1, family.noise_dim(D))

    def gradients(path: bool) -> list[Tensor]:
        """Of each draw, ``(S, number of parameters)``."""

        def log_weights(*values: Tensor) -> Tensor:
            own = dict(zip(parameters, values, strict=False))
            z, log_q = family.sample(own, values[-2], values[-1], noise, path=path)
            return (log_normal(z) - log_q)[:, 0]

        jacobian = torch.autograd.functional.jacobian(log_weights, tuple(leaves))
        return [part.flatten(1) for part in jacobian]

    whole, path = torch.cat(gradients(False), 1), torch.cat(gradients(True), 1)
    left_out = whole - path
    error = left_out.std(0) / len(left_out) ** 0.5
    assert (left_out.mean(0).abs() < 5 * error + 1e-12).all()
    assert (left_out.abs().max() > 0.1) == family.invertible


@pytest.mark.parametrize("name", ["gaussian", "realnvp", "auxiliary"])
def test_at_the_optimum_the_path_gradient_is_zero_for_every_draw(name: str) -> None:
    family, loc, scale = FAMILIES[name](2, 5), torch.randn(B, D), 0.5 + torch.rand(B, D)
    parameters = family.init(B, D, Generator().manual_seed(0), torch.float64)
    # The score of r, which sees z in units of the location and scale, is no part of log q: it goes on to vary.
    leaves = [p.requires_grad_() for n, p in parameters.items() if not n.startswith("r.")]
    if name != "auxiliary":
        leaves += [loc.requires_grad_(), scale.requires_grad_()]
    noise = torch.randn(5, B, family.noise_dim(D))

    def largest(path: bool) -> float:
        z, log_q = family.sample(parameters, loc, scale, noise, path=path)
        target = dist.Normal(loc.detach(), scale.detach()).log_prob(z).sum(-1)
        found = torch.autograd.grad((target - log_q).sum(), leaves)
        return max(g.abs().max().item() for g in found)

    assert largest(path=True) < 1e-10
    assert largest(path=False) > 0.1
