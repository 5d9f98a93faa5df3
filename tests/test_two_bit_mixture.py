"""The mixture of two bits: evidence, best product and both optima against enumeration, grids and Pyro."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

import amortized_bayes as ab
from amortized_bayes.guides import AmortizedBits
from amortized_bayes.models import TwoBitMixture

pytestmark = pytest.mark.usefixtures("float64")

SQUARE = [[[1.0, 1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, -1.0]]]
PUBLISHED = [[[1.0, 1.0], [1.0, -1.0]], [[0.0, 0.0], [-1.0, 0.0]]]


def mixture(means=PUBLISHED, scale=1.0):
    return TwoBitMixture(torch.tensor(means, dtype=torch.float64), scale)


def random_mixture(seed, scale=1.0, size=2):
    generator = torch.Generator().manual_seed(seed)
    return TwoBitMixture(2 * torch.randn(2, 2, size, generator=generator), scale)


def elbo_on_grid(model, x, cells=400):
    """The best ELBO of a point, by a grid over both probabilities and a finer one about its best cell."""
    codes = torch.stack([dist.Normal(model.means[a, b], model.scale).log_prob(x).sum() for a in (0, 1) for b in (0, 1)])
    log_p = (codes - math.log(4)).detach().reshape(2, 2)
    low, high = torch.zeros(2), torch.ones(2)
    for _ in range(4):
        p, r = (torch.linspace(float(a), float(b), cells) for a, b in zip(low, high, strict=True))
        p, r = p[:, None], r[None]
        q = torch.stack([(1 - p) * (1 - r), (1 - p) * r, p * (1 - r), p * r])
        values = (q * log_p.reshape(4, 1, 1)).sum(0) - torch.special.xlogy(q, q).sum(0)
        place = divmod(int(values.argmax()), cells)
        step = (high - low) / (cells - 1)
        middle = torch.stack([p[place[0], 0], r[0, place[1]]])
        low, high = (middle - step).clamp(min=0), (middle + step).clamp(max=1)
    return float(values.max())


def test_the_evidence_is_the_sum_over_codes_and_that_of_the_program():
    model = random_mixture(0, 0.7, 3)
    x, codes = model.simulate(5, 1)
    assert codes.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    parts = [
        math.log(0.25) + dist.Normal(model.means[a, b], 0.7).log_prob(x).sum(-1)
        for a, b in itertools.product((0, 1), repeat=2)
    ]
    by_hand = torch.stack(parts).logsumexp(0).detach()
    torch.testing.assert_close(model.log_evidence(x), by_hand)
    torch.testing.assert_close(model.posterior(x).flatten(1).T, (torch.stack(parts).detach() - by_hand).exp())
    program = ab.log_weights(model, lambda *_: None, x).local[0, 0]  # whose enumerated sites the seam sums out
    torch.testing.assert_close(program.detach(), by_hand)


def test_points_are_drawn_from_the_model():
    model = random_mixture(3, 0.5)
    x, codes = model.simulate(20_000, 0)
    for code, mean in enumerate(model.means.detach().flatten(0, 1)):
        own = x[codes == code]
        assert ((own.mean(0) - mean).abs() < 4 * 0.5 / math.sqrt(20_000)).all()
        assert ((own.std(0) - 0.5).abs() < 4 * 0.5 / math.sqrt(40_000)).all()
    other, _ = model.simulate(20_000, 0, "test")
    assert (other - x).abs().min() > 0
    torch.testing.assert_close(model.simulate(10, 4)[0], model.simulate(10, 4)[0], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("means", [PUBLISHED, None], ids=["published", "random"])
@pytest.mark.slow_cases("published-0.5", "random-0.5", "random-1.0")
def test_the_best_product_is_that_of_a_dense_grid(means, scale):
    model = mixture(means, scale) if means else random_mixture(5, scale)
    generator = torch.Generator().manual_seed(2)
    x = 2.5 * torch.randn(40, 2, generator=generator)
    found = model.best_factorized(x)
    torch.testing.assert_close(found.elbo, torch.tensor([elbo_on_grid(model, point) for point in x]), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.factorized_elbo(x, found.logits), found.elbo)
    assert (found.elbo <= model.log_evidence(x) + 1e-12).all()


def test_of_two_optima_the_better_is_taken():
    """Bits that agree: both all 0 and all 1 are optima, and which is the better changes with x."""
    far = mixture([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [-2.0, 0.0]]], 0.6)
    x = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.02, 0.3], [-0.02, 0.3]])
    # J(x) = (mu00 + mu11) . x ... is 0 in x here, and -1/2 (4 + 4) / .36 in the constant: the bits repel
    assert (far.log_odds_ratio(x) < -10).all()
    torch.testing.assert_close(
        far.best_factorized(x).elbo, torch.tensor([elbo_on_grid(far, point) for point in x]), rtol=0, atol=1e-6
    )
    agree = mixture([[[1.5, 0.0], [3.0, 3.0]], [[-3.0, 3.0], [-1.5, 0.0]]], 1.0)
    x = torch.tensor([[0.2, -1.0], [-0.2, -1.0]])
    assert (agree.log_odds_ratio(x) > 10).all()
    found = agree.best_factorized(x)
    assert (found.logits[0] < 0).all()  # 00 lies to the right
    assert (found.logits[1] > 0).all()
    torch.testing.assert_close(found.elbo, torch.tensor([elbo_on_grid(agree, point) for point in x]), rtol=0, atol=1e-6)
    lower = agree.factorized_elbo(x, found.logits.flip(0))
    assert (lower < found.elbo - 0.1).all()


def test_a_centred_square_factorizes_at_every_point():
    square = mixture(SQUARE)
    x = 3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(square.log_odds_ratio(x), torch.zeros(200), atol=1e-10, rtol=0)
    torch.testing.assert_close(square.best_factorized(x).elbo, square.log_evidence(x), atol=1e-10, rtol=0)
    moved = mixture([[[a + 0.5, b] for a, b in row] for row in SQUARE])  # a parallelogram that is not centred
    assert (moved.log_odds_ratio(x).abs() < 1e-10).all()
    longer = mixture([[[1.0, 1.0], [1.0, -1.0]], [[-1.0, 2.0], [-1.0, 0.0]]])  # one whose sums of squares differ
    assert (longer.log_odds_ratio(x) - longer.log_odds_ratio(x[:1])).abs().max() < 1e-10
    assert longer.log_odds_ratio(x[0:1]).abs() > 0.5


def test_the_odds_ratio_is_linear_in_x_as_the_formula_says():
    model = random_mixture(7, 0.8)
    x = torch.randn(20, 2)
    (m00, m01), (m10, m11) = model.means.detach()
    formula = x @ (m00 - m01 - m10 + m11) - 0.5 * (m00 @ m00 - m01 @ m01 - m10 @ m10 + m11 @ m11)
    torch.testing.assert_close(model.log_odds_ratio(x), formula / 0.64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_enumerated_elbo_is_pyros_and_the_seams(dtype):
    model, x = mixture().to(dtype), torch.randn(30, 2, dtype=dtype)
    guide = AmortizedBits(("first", "second"), nn.Linear(2, 2, dtype=dtype))
    exact = model.factorized_elbo(x, guide.logits(x).detach())
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert pyros == pytest.approx(float(exact.sum()), rel=1e-10 if dtype == torch.float64 else 1e-5)
    found = ab.elbo(model, guide, x, num_draws=2)
    torch.testing.assert_close(found.value.double(), exact, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5)
    assert float(found.standard_error.max()) == 0


@pytest.mark.slow
def test_joint_training_and_maximum_likelihood_on_a_draw():
    """The exact table: optima are stationary, the best from many starts, and beat the truth by what they climb."""
    truth = mixture()
    x, _ = truth.simulate(2_000, 0)
    joint, likely = truth.joint_optimum(x), truth.maximum_likelihood(x)

    def bounds(model):
        return float(model.log_evidence(x).mean()), float(model.best_factorized(x).elbo.mean())

    (log_p, best), (joint_log_p, joint_best), (likely_log_p, _) = map(bounds, (truth, joint, likely))
    assert likely_log_p >= log_p
    assert likely_log_p >= joint_log_p
    assert joint_best >= best + 0.04
    assert joint_log_p < log_p - 0.002
    # another draw of 8,000: gaps of 0.06277 and 0.00272, whose spread over draws is 0.001
    assert log_p - best == pytest.approx(0.06277, abs=0.004)
    assert joint_log_p - joint_best == pytest.approx(0.00272, abs=0.002)
    for seed in range(3):
        other = random_mixture(seed).joint_optimum(x)
        assert float(other.best_factorized(x).elbo.mean()) == pytest.approx(joint_best, abs=1e-6)
    for model, bound in ((joint, lambda m: m.best_factorized(x).elbo), (likely, lambda m: m.log_evidence(x))):
        at = float(bound(model).mean())
        for direction in torch.randn(6, 2, 2, 2):
            moved = TwoBitMixture(model.means + 0.02 * direction / direction.norm(), 1.0)
            assert float(bound(moved).mean()) < at


def test_values_of_the_population():
    """Under the published means: E log p = -3.2851±.0009, gap 0.0637±.0002, of a draw of another's."""
    x, _ = mixture().simulate(50_000, 0)
    log_p = mixture().log_evidence(x)
    gap = log_p - mixture().best_factorized(x).elbo
    for values, published, error in ((log_p, -3.2851, 0.0009), (gap, 0.0637, 0.0002)):
        own = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - published) < 3 * math.hypot(own, error)


def test_the_printed_scale_shows_nothing():
    narrow = mixture(scale=0.01)
    x, codes = narrow.simulate(200, 0)
    assert float((narrow.log_evidence(x) - narrow.best_factorized(x).elbo).abs().max()) < 1e-9
    assert (narrow.posterior(x).flatten(1).argmax(1) == codes).all()
    assert (narrow.joint_optimum(x).means - narrow.means).abs().max() < 0.01


def test_mixtures_and_data_that_cannot_be():
    with pytest.raises(ValueError, match=r"expected means of two bits, \(2, 2, P\), got \(4, 2\)"):
        TwoBitMixture(torch.zeros(4, 2), 1.0)
    with pytest.raises(ValueError, match="expected finite means"):
        TwoBitMixture(torch.full((2, 2, 2), math.nan), 1.0)
    with pytest.raises(ValueError, match="scale above 0"):
        TwoBitMixture(torch.zeros(2, 2, 2), 0.0)
    with pytest.raises(ValueError, match=r"expected finite data of shape \(B, 2\), got \(3, 3\)"):
        mixture().log_evidence(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="with 1 values that are not"):
        mixture().best_factorized(torch.tensor([[math.inf, 0.0]]))
    with pytest.raises(ArithmeticError, match="left a code without points"):
        mixture([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [99.0, 99.0]]], 0.1).maximum_likelihood(torch.zeros(5, 2))


def test_bits_of_a_guide_that_cannot_be():
    with pytest.raises(ValueError, match="expected names of bits, each once"):
        AmortizedBits(("first", "first"), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"an encoder that gives \(4, 2\) for 4 points, got \(4, 3\)"):
        AmortizedBits(("first", "second"), nn.Linear(2, 3))(torch.zeros(4, 2))
