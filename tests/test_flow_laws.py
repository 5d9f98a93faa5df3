"""Laws of flows, family by family: Jacobians, inverses, neighbours, gradients, far values."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.spline import ConditionedSpline
from torch.fx.experimental.proxy_tensor import make_fx

from amortized_bayes.flows import FAMILIES, FLOWS, FlowSettings
from amortized_bayes.guides.flow_layers import LAYERS, Conditioner, Flow
from amortized_bayes.guides.transforms import (
    BoxSpline,
    Sylvester,
    TamePlanar,
    reflect_all,
    softclip,
    spline_parameters,
    spline_size,
)

B, C = 6, 4
MOVING = [name for name in FAMILIES if name != "gaussian"]
INVERTIBLE = [name for name in MOVING if FlowSettings(name).kind.has_halves]
ONE_WAY = [name for name in MOVING if name not in INVERTIBLE]

every_flow = pytest.mark.parametrize("family", MOVING)
every_size = pytest.mark.parametrize("dim", [1, 2, 5])


def settings(family, **options):
    return FlowSettings(family, **{"num_flows": 3, "hidden": (7, 6), "context": C, "bound": 3.0} | options)


def scrambled(module, spread=0.4):
    """Parameters at a place where nothing is zero or alike."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module


def problem(family, dim, **options):
    """A flow with its parameters moved, a context for each point (or none), and points."""
    flow = scrambled(Flow(dim, settings(family, **options)))
    context = torch.randn(B, C).tanh() if family.endswith("contextual") else None
    return flow, context, torch.randn(B, flow.size)


def moved(flow, context, z):
    """Values (B, D) and log determinants (B,)."""
    return flow.push(z, context)


def jacobian_log_det(flow, context, z):
    """Log determinant of each point's Jacobian, by autograd, (B,)."""
    jacobian = torch.autograd.functional.jacobian(lambda points: moved(flow, context, points)[0].sum(0), z)
    return torch.linalg.slogdet(jacobian.movedim(1, 0))


# Laws -----------------------------------------------------------------------------------------------------------------


@every_flow
@every_size
def test_log_determinant_is_that_of_the_jacobian(float64, family, dim):
    flow, context, z = problem(family, dim)
    sign, expected = jacobian_log_det(flow, context, z)
    found = moved(flow, context, z)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.abs().max() > 0.01
    if family in ONE_WAY:
        assert (sign > 0).all()  # a transform of this kind that turns a point over is not one to one


def test_a_wrong_determinant_is_found_out(float64):
    """The formula wants both matrices triangular the same way round; multiplying rows by them, it would not hold."""
    r, s, z = 0.5 * torch.randn(3, 3).triu(), 0.5 * torch.randn(3, 3).triu(), torch.randn(B, 3)
    for other, right in ((s, True), (s.T, False)):
        flow = Sylvester(torch.randn(2, 3), r, other, torch.randn(3))
        difference = flow.log_abs_det_jacobian(z, flow(z)) - jacobian_of(flow, z)
        assert (difference.abs().max() < 1e-9) == right


@pytest.mark.parametrize("family", INVERTIBLE)
@every_size
def test_inverse(float64, family, dim):
    flow, context, z = problem(family, dim)
    y = moved(flow, context, z)[0]
    back = y
    for transform in reversed(flow(context)):  # made anew, so that nothing is remembered
        back = transform.inv(back)
    # Pyro's splines look for an inverse's bin with a margin of 1e-6.
    torch.testing.assert_close(back, z, rtol=0, atol=1e-5 if "spline" in family else 1e-9)
    assert (y - z).abs().max() > 0.1


@pytest.mark.parametrize("family", ONE_WAY)
def test_flows_without_an_inverse_say_so(family):
    flow, context, z = problem(family, 2)
    with pytest.raises((KeyError, NotImplementedError), match=r"its own draws|intermediates cache"):
        flow(context)[0].inv(z)


@every_flow
def test_a_point_is_moved_alike_whatever_its_neighbours(float64, family):
    flow, context, z = problem(family, 3)
    everything = moved(flow, context, z)
    for places in (torch.tensor([4, 0, 4, 2]), torch.tensor([3])):
        some = moved(flow, None if context is None else context[places], z[places])
        for found, expected in zip(some, everything, strict=True):
            torch.testing.assert_close(found, expected[places], rtol=0, atol=1e-12)


@every_flow
def test_gradients_reach_every_parameter(float64, family):
    flow, context, z = problem(family, 3)
    y, log_det = moved(flow, context, z)
    for target in (y * torch.randn_like(y), log_det):
        gradients = torch.autograd.grad(
            target.sum(), list(flow.layers.parameters()), retain_graph=True, allow_unused=True
        )
        reached = [g is not None and g.isfinite().all() and bool(g.abs().max() > 0) for g in gradients]
        names = [name for (name, _), found in zip(flow.layers.named_parameters(), reached, strict=True) if not found]
        # The last layer's shift moves z and leaves the volume alone.
        assert names == [] or (
            target is log_det and all(name.startswith(f"{len(flow.layers) - 1}.") for name in names)
        ), names


@every_flow
@every_size
def test_flows_start_at_the_identity_or_near(family, dim):
    flow = Flow(dim, settings(family))
    context = torch.randn(B, C).tanh() if family.endswith("contextual") else None
    z = torch.randn(B, flow.size)
    y, log_det = moved(flow, context, z)
    allowed = {"spline": 0.01, "auxiliary": 2.0}.get(family.split("-")[0], 1e-6)
    assert (y - z).abs().max() < allowed
    assert log_det.abs().max() < allowed


@pytest.mark.parametrize("family", [name for name in MOVING if name.endswith("contextual")])
def test_context_matters(float64, family):
    flow, context, z = problem(family, 2)
    moves = [moved(flow, c, z)[0] for c in (context, context.flip(0))]
    assert (moves[0] - moves[1]).abs().max() > 1e-3


@every_flow
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_far_points_stay_finite_and_so_do_gradients(family, size):
    flow, context, z = problem(family, 4, hidden=(20, 20))
    z = size * z
    y, log_det = moved(flow, context, z)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    gradients = torch.autograd.grad(y.sum() + log_det.sum(), list(flow.layers.parameters()))
    assert all(g.isfinite().all() for g in gradients)


@every_flow
def test_wild_parameters_give_finite_values(family):
    flow, context, z = problem(family, 4)
    y, log_det = moved(scrambled(flow, 30.0), context, z)
    assert y.isfinite().all()
    assert log_det.isfinite().all()


@every_flow
def test_state_dict_brings_the_flow_back(family):
    (flow, context, z), other = problem(family, 3), Flow(3, settings(family))
    assert not torch.equal(moved(flow, context, z)[0], moved(other, context, z)[0])
    other.load_state_dict(flow.state_dict())
    for found, expected in zip(moved(other, context, z), moved(flow, context, z), strict=True):
        assert torch.equal(found, expected)


@every_flow
def test_one_thing_remembered_does_not_mix_with_another(float64, family):
    flow, context, z = problem(family, 3)
    transforms = flow(context)
    first, second = z, z + 1.0
    for transform in transforms:
        y, other = transform(first), transform(second)  # only the second is remembered
        expected = jacobian_of(transform, first)
        torch.testing.assert_close(transform.log_abs_det_jacobian(first, y), expected, rtol=0, atol=1e-6)
        first, second = y, other


@pytest.mark.parametrize("family", INVERTIBLE)
def test_another_value_is_scored_after_a_draw(float64, family):
    flow, context, z = problem(family, 3)
    transforms = flow(context)
    base = dist.Normal(torch.zeros_like(z), 1.0).to_event(1)
    drawn = dist.TransformedDistribution(base, transforms)
    drawn.rsample()
    y, log_det = moved(flow, context, z)
    for _ in range(2):
        torch.testing.assert_close(drawn.log_prob(y), base.log_prob(z) - log_det, rtol=0, atol=1e-4)


def jacobian_of(transform, z):
    jacobian = torch.autograd.functional.jacobian(lambda points: transform(points).sum(0), z)
    return torch.linalg.slogdet(jacobian.movedim(1, 0))[1]


# Transforms of their own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
def test_box_spline_is_pyros(float64, inverse):
    params = spline_parameters(torch.randn(500, 2, spline_size(8)), 8)
    x = 3 * torch.randn(500, 2)
    assert 0.2 < (x.abs() < 3.0).float().mean() < 0.8
    own, pyros = BoxSpline(params, 3.0), ConditionedSpline((*params, None), bound=3.0, order="quadratic")
    for found, expected in zip(own.spline_op(x, inverse=inverse), pyros.spline_op(x, inverse=inverse), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    edge = torch.tensor([[-3.0, 3.0]])
    torch.testing.assert_close(BoxSpline(params, 3.0)(edge), edge.expand(500, 2), rtol=0, atol=1e-12)


def test_gradients_of_box_spline_are_pyros(float64):
    free, x = torch.randn(500, 2, spline_size(8)), 3 * torch.randn(500, 2)

    def gradients(make):
        leaves = [free.clone().requires_grad_(), x.clone().requires_grad_()]
        spline = make(spline_parameters(leaves[0], 8))
        y, log_slope = spline.spline_op(leaves[1])
        return torch.autograd.grad((y.sin() + log_slope).sum(), leaves)

    own = gradients(lambda params: BoxSpline(params, 3.0))
    pyros = gradients(lambda params: ConditionedSpline((*params, None), bound=3.0, order="quadratic"))
    for found, expected in zip(own, pyros, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_box_spline_can_be_traced_and_pyros_cannot(float64):
    free, x, other = torch.randn(9, 2, spline_size(4)), 3 * torch.randn(9, 2), torch.randn(9, 2)

    def program(make):
        def run(x, free):
            leaf = free.detach().requires_grad_()
            spline = make(spline_parameters(leaf, 4))
            return torch.autograd.grad(spline(x).sum() + spline._cache_log_detJ.sum(), [leaf])

        return run

    own = program(lambda params: BoxSpline(params, 3.0))
    traced = make_fx(own)(x, free)
    torch.testing.assert_close(traced(other, free)[0], own(other, free)[0])
    pyros = make_fx(program(lambda params: ConditionedSpline((*params, None), bound=3.0, order="quadratic")))(x, free)
    with pytest.raises(RuntimeError):
        pyros(other, free)


def test_not_a_number_passes_through_a_spline():
    params = spline_parameters(torch.zeros(1, spline_size(4)), 4)
    y = BoxSpline(params, 3.0)(torch.tensor([[torch.nan], [0.5]]))
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
    broken = tuple(p * torch.nan for p in params)
    assert BoxSpline(broken, 3.0)(torch.tensor([[0.5]])).isnan().all()


def test_planar_offset_is_bounded_and_the_determinant_positive(float64):
    for size_u in (1e-6, 1.0, 1e3):
        for size_w in (1e-9, 1e-3, 1.0, 1e3):
            u, w = size_u * torch.randn(200, 3), size_w * torch.randn(200, 3)
            u_hat = TamePlanar((torch.zeros(1), u, w)).u_hat(u, w)
            assert (u_hat.norm(dim=-1) <= 2 * u.norm(dim=-1)).all()
            assert ((u_hat * w).sum(-1) > -0.99).all()
    zero = torch.zeros(200, 3)
    torch.testing.assert_close(TamePlanar((torch.zeros(1), u, zero)).u_hat(u, zero), u)


def test_planar_is_pyros_with_another_offset(float64):
    """Pyro's is the same function of u moved along w, as long as the soft clip is out of the way."""
    u, w, z = 0.1 * torch.randn(B, 3), torch.randn(B, 3), torch.randn(B, 3)
    bias = torch.randn(B, 1)
    moved_u = u + 0.5413248546129181 * w / w.square().sum(-1, keepdim=True)
    own = TamePlanar((bias, u, w))
    pyros = ConditionedPlanar((bias, moved_u, w))
    torch.testing.assert_close(own(z), pyros(z), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        own.log_abs_det_jacobian(z, own(z)), pyros.log_abs_det_jacobian(z, pyros(z)), rtol=0, atol=1e-3
    )


def test_softclip(float64):
    values = torch.linspace(-50, 50, 1001)
    found = softclip(values, 5.0)
    assert found.abs().max() <= 5.0
    assert (found.diff() >= 0).all()
    near = torch.linspace(-0.1, 0.1, 11)
    torch.testing.assert_close(softclip(near, 5.0), near, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (7,)])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_reflections_at_once_are_reflections_in_turn(float64, batch, count):
    normals, x = torch.randn(*batch, count, 4), torch.randn(7, 4)
    q = reflect_all(normals)
    torch.testing.assert_close(q @ q.mT, torch.eye(4).expand(*batch, 4, 4))
    in_turn = ConditionedHouseholder(normals.flip(-2))(x)  # Pyro's first reflection is the first to act
    torch.testing.assert_close((q @ x[..., None])[..., 0], in_turn)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "radial"}, "expected family among gaussian, planar, .*got 'radial'"),
        ({"num_flows": 0}, "num_flows of 1 or more, got 0"),
        ({"context": 0}, "context of 1 or more, got 0"),
        ({"num_bins": 1}, "num_bins of 2 or more, got 1"),
        ({"num_bins": 501}, "num_bins of at most 500, got 501"),
        ({"hidden": ()}, "hidden widths of 1 or more, got none"),
        ({"hidden": (4, 0)}, r"hidden of 1 or more, got \[4, 0\]"),
        ({"bound": 0.0}, "bound above 0, got 0.0"),
        ({"bound": float("nan")}, "bound above 0, got nan"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        FlowSettings(**options)


def test_bad_dimension():
    with pytest.raises(ValueError, match="dimension of 1 or more, got 0"):
        Flow(0, FlowSettings())


def test_every_family_is_an_entry_of_the_registry_in_two_forms_but_the_gaussian():
    assert sorted(FAMILIES) == sorted(["gaussian", *FLOWS, *(f"{name}-contextual" for name in FLOWS)])
    assert len(Flow(2, FlowSettings("gaussian")).layers) == 0
    for name, kind in FLOWS.items():
        assert FlowSettings(name).kind is FlowSettings(f"{name}-contextual").kind is kind
        assert {type(layer) for layer in Flow(2, FlowSettings(name)).layers} == {LAYERS[kind.layer]}
        assert FlowSettings(f"{name}-contextual", num_flows=3).plain == FlowSettings(name, num_flows=3)


def test_conditioner_reads_all_parts_and_broadcasts_them(float64):
    conditioner = scrambled(Conditioner(5, (4,), torch.zeros(3)))
    first, second = torch.randn(7, B, 2), torch.randn(B, 3)
    found = conditioner(first, None, second)
    assert found.shape == (7, B, 3)
    torch.testing.assert_close(found[2], conditioner(first[2], second))
