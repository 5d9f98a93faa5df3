"""Flows with per-point parameters: where they start, their densities, and that they are the guide's flows."""

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from flow_problems import SITES, N, P, make, scrambled
from torch import Tensor

from amortized_bayes.flows import FAMILIES, FlowSettings
from amortized_bayes.guides.flow import AUXILIARY_NAME, BASE_NAME, REVERSE_NAME
from amortized_bayes.guides.flow_layers import FlowLayer
from amortized_bayes.inference.flow_points import PointFlows
from amortized_bayes.joint import Gaussian

pytestmark = pytest.mark.usefixtures("float64")

B, D = 4, 3
PLAIN = [name for name in FAMILIES if not name.endswith("contextual")]
PATH = [name for name in PLAIN if FlowSettings(name).kind is None or FlowSettings(name).kind.invertible]

every_family = pytest.mark.parametrize("name", PLAIN)


def problem(name: str, spread: float = 0.3) -> tuple[PointFlows, dict[str, Tensor], Gaussian]:
    """Flows at parameters of which none is zero, about a location and a scale."""
    flows = PointFlows(D, FlowSettings(name, num_flows=2, hidden=(5, 4)), torch.zeros(0))
    base = Gaussian(torch.randn(B, D), 0.5 + torch.rand(B, D))
    parameters = flows.init(base, range(B))
    return flows, {n: p + spread * torch.randn_like(p) for n, p in parameters.items()}, base


def log_normal(z: Tensor, scale: float = 1.0) -> Tensor:
    return dist.Normal(0.0, scale).log_prob(z).sum(-1)


# One family with the guide's ------------------------------------------------------------------------------------------


def scored_by_guide(guide, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, W), value (B, D) and log q (B,) of a draw of a guide."""
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    nodes, encoded = trace.nodes, guide.encode(x)
    scale = encoded.log_scale.exp()
    if BASE_NAME in nodes:
        z, v = nodes[BASE_NAME]["value"], nodes[AUXILIARY_NAME]["value"]
        loc, log_scale = guide.flow.draw_model(z)
        noise = torch.cat([(z - encoded.loc) / scale, (v - loc) * (-log_scale).exp()], -1)
        log_q = sum(nodes[name]["log_prob"] for name in (BASE_NAME, AUXILIARY_NAME, REVERSE_NAME))
    else:
        fn = nodes["z"]["fn"]
        start = nodes["z"]["value"]
        for transform in reversed(getattr(fn, "transforms", [])):
            start = transform.inv(start)  # remembered, for the value that it has just made
        noise, log_q = (start - encoded.loc) / scale, nodes["z"]["log_prob"]
    return noise, nodes["z"]["value"], log_q


def parameters_at(guide, x: Tensor) -> dict[str, Tensor]:
    """Each point's own parameters of the guide's flow: context and x, constants there, go into the first biases."""
    context, found = guide.encode(x).context, {}
    for name, value in guide.flow.named_parameters():
        found[f"flow.{name}"] = value.expand(len(x), *value.shape).clone()
    for name, part in guide.flow.named_modules():
        if not isinstance(part, FlowLayer):
            continue
        for number, source in part.named_children():
            key = f"flow.{name}.{number}"
            if context is not None:
                absorb(found, key, source, context, after=True)
    if guide.flow.auxiliary:
        absorb(found, "flow.reverse_model", guide.flow.reverse_model, x, after=False)
    return {name: value.detach() for name, value in found.items()}


def absorb(found: dict[str, Tensor], key: str, source, constant: Tensor, *, after: bool) -> None:
    """Make of a network that reads a constant, after or before what else it reads, one that does not."""
    weight, size = source.network[0].weight, constant.shape[-1]
    rest = weight.shape[-1] - size
    if rest == 0:  # nothing else: its numbers are free
        for name in [n for n in found if n.startswith(f"{key}.network")]:
            del found[name]
        found[f"{key}.free"] = source(constant)
        return
    kept, read = weight.split([rest, size], -1) if after else weight.split([size, rest], -1)[::-1]
    found[f"{key}.network.0.weight"] = kept.expand(len(constant), *kept.shape)
    found[f"{key}.network.0.bias"] = source.network[0].bias + constant @ read.T


@pytest.mark.parametrize("family", FAMILIES)
def test_a_guide_has_at_each_point_a_member_of_the_point_flows(family: str) -> None:
    guide, x = scrambled(make(family, [SITES["vector"]])), torch.randn(N, P)
    noise, z, log_q = scored_by_guide(guide, x)
    flows = PointFlows(3, guide.settings, torch.zeros(0))
    own = parameters_at(guide, x)
    encoded = guide.encode(x)
    assert {n: p.shape[1:] for n, p in own.items()} == {n: p.shape for n, p in flows.point.named_parameters()}
    found = flows.sample(own, Gaussian(encoded.loc, encoded.log_scale.exp()), noise[None])
    torch.testing.assert_close(found[0][0], z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1][0], log_q, rtol=1e-9, atol=1e-9)


# Laws -----------------------------------------------------------------------------------------------------------------


@every_family
def test_a_family_starts_at_the_gaussian(name: str) -> None:
    flows, _, base = problem(name)
    noise, allowed = torch.randn(7, B, flows.noise_dim), 2e-3 if name == "spline" else 1e-12
    for path in (False, True):
        z, log_q = flows.sample(flows.init(base, range(B)), base, noise, path=path)
        torch.testing.assert_close(z, base.loc + base.scale * noise[..., :D], rtol=0, atol=allowed)
        torch.testing.assert_close(log_q, dist.Normal(*base).log_prob(z).sum(-1), rtol=0, atol=3 * allowed)


def test_each_point_starts_with_its_own_random_numbers() -> None:
    flows, _, base = problem("planar")
    parameters = flows.init(base, [0, 1, 0, 2])["flow.layers.0.numbers.free"]
    assert torch.equal(parameters[0], parameters[2])
    assert not torch.equal(parameters[0], parameters[1])


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "auxiliary"])
def test_log_q_is_that_of_the_change_of_variables(name: str) -> None:
    flows, parameters, base = problem(name)
    noise = torch.randn(1, B, D)
    z, log_q = flows.sample(parameters, base, noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: flows.sample(parameters, base, e)[0], noise)
    assert isinstance(jacobian, Tensor)
    jacobian = jacobian[0, :, :, 0]  # (B, D, B, D)
    if name != "gaussian":
        assert (z - base.loc - base.scale * noise).abs().min() > 1e-4
    for b in range(B):
        own = jacobian[b, :, b].clone()
        torch.testing.assert_close(
            log_q[0, b], log_normal(noise[0, b]) - torch.linalg.slogdet(own)[1], rtol=0, atol=1e-6
        )
        jacobian[b, :, b] = 0.0
    assert (jacobian == 0).all()  # no point is moved by another's noise


@every_family
@pytest.mark.slow_cases("spline")
def test_weights_of_a_density_average_to_one(name: str) -> None:
    """So do E p(z) r(v|z) / q(z, v) of an auxiliary flow, for any r; a log q(v_0) left out shows here."""
    flows, parameters, base = problem(name, 0.05)
    z, log_q = flows.sample(parameters, base, torch.randn(50_000, B, flows.noise_dim))
    target = dist.Normal(base.loc, 0.4 * base.scale).log_prob(z).sum(-1)
    weights = (target - log_q).exp()
    error = weights.std(0) / len(weights) ** 0.5
    assert (error < 0.05).all()
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()


@every_family
def test_a_point_does_not_see_its_neighbours(name: str) -> None:
    flows, parameters, base = problem(name)
    noise, some = torch.randn(6, B, flows.noise_dim), torch.tensor([2, 0])
    z, log_q = flows.sample(parameters, base, noise)
    part = {n: p[some] for n, p in parameters.items()}
    fewer = flows.sample(part, Gaussian(base.loc[some], base.scale[some]), noise[:, some])
    torch.testing.assert_close(fewer[0], z[:, some], rtol=0, atol=1e-12)
    torch.testing.assert_close(fewer[1], log_q[:, some], rtol=1e-12, atol=1e-12)


@every_family
@pytest.mark.slow_cases("auxiliary", "planar", "realnvp", "spline", "sylvester")
def test_the_path_gradient_has_the_same_mean(name: str) -> None:
    flows, parameters, base = problem(name, 0.1)
    leaves = [t[:1].requires_grad_() for t in (*parameters.values(), *base)]
    noise = torch.randn(200, 1, flows.noise_dim)

    def gradients(path: bool) -> Tensor:
        """Of each draw, ``(S, number of parameters)``."""

        def log_weights(*values: Tensor) -> Tensor:
            own = dict(zip(parameters, values, strict=False))
            z, log_q = flows.sample(own, Gaussian(values[-2], values[-1]), noise, path=path)
            return (log_normal(z) - log_q)[:, 0]

        jacobian = torch.autograd.functional.jacobian(log_weights, tuple(leaves))
        return torch.cat([part.flatten(1) for part in jacobian], 1)

    left_out = gradients(False) - gradients(True)
    error = left_out.std(0) / len(left_out) ** 0.5
    assert (left_out.mean(0).abs() < 5 * error + 1e-12).all()
    assert (left_out.abs().max() > 0.1) == (name in PATH)


@pytest.mark.parametrize("name", PATH)
def test_at_the_optimum_the_path_gradient_is_zero_for_every_draw(name: str) -> None:
    flows, _, base = problem(name)
    parameters = flows.init(base, range(B))
    leaves = [p.requires_grad_() for n, p in parameters.items() if "reverse" not in n]
    target = dist.Normal(*base)
    if name != "auxiliary":
        base = Gaussian(*(part.clone().requires_grad_() for part in base))
        leaves += base
    noise = torch.randn(5, B, flows.noise_dim)

    def largest(path: bool) -> float:
        z, log_q = flows.sample(parameters, base, noise, path=path)
        found = torch.autograd.grad((target.log_prob(z).sum(-1) - log_q).sum(), leaves)
        return max(g.abs().max().item() for g in found)

    assert largest(path=True) < 1e-10
    assert largest(path=False) > 0.1
