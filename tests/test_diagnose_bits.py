"""``diagnose`` where the latents of a point are bits that the guide draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from bit_models import Apart, Belief, Encoder, NoisyOr, Rows, all_codes, normal
from torch import nn

import amortized_bayes as ab
from amortized_bayes.diagnosis import diagnose_block, join_blocks, prepare_blocks
from amortized_bayes.guides import AmortizedBits
from amortized_bayes.inference.mean_field import best_product, elbo_of_codes
from amortized_bayes.joint import bits_of, joint_density
from amortized_bayes.models import TwoBitMixture

MEANS = torch.tensor([[[1.0, 1.2], [1.4, -1.0]], [[-1.3, 0.8], [-0.5, -1.6]]], dtype=torch.float64)
SAMPLED = ab.DiagnosisSettings(
    num_particles=400,
    sum_up_to=0,
    ais=ab.AISSettings(num_temperatures=100),
    certificate=ab.CertificateSettings(40, 0.1, 400),
)


def diagnosed(model, guide, x, **options):
    return ab.diagnose(model, guide, x, progress=False, **options)


def exact(model, logits, x):
    """ELBO, best ELBO and log p of each point, from the table of codes."""
    table = model.table(x).detach()
    best = best_product(table, torch.zeros(0, *logits.shape), torch.Generator()).elbo
    return elbo_of_codes(table, logits.detach()), best, table.logsumexp(1)


@pytest.fixture(scope="module")
def belief():
    model = Belief(6)
    return model, Encoder(6), model.simulate(80)


@pytest.fixture(scope="module")
def sampled(belief):
    return diagnosed(*belief, settings=SAMPLED)


@pytest.fixture(scope="module")
def summed(belief):
    return diagnosed(*belief)


def test_sites_that_are_marked_and_drawn_are_measured_as_drawn():
    """Each term of the mixture of two bits is known, and the report has it."""
    torch.manual_seed(0)
    model = TwoBitMixture(MEANS, 1.0)
    x, _ = model.simulate(50, seed=0)
    guide = AmortizedBits(("first", "second"), nn.Linear(2, 2).double())
    report = diagnosed(model, guide, x)
    frame = report.to_frame()
    with torch.no_grad():
        logits = guide.logits(x)
    for name, wanted in {
        "elbo": model.factorized_elbo(x, logits),
        "elbo_star": model.best_factorized(x).elbo,
        "log_p_lower": model.log_evidence(x),
        "log_p_upper": model.log_evidence(x),
    }.items():
        torch.testing.assert_close(torch.tensor(frame[name]), wanted, rtol=0, atol=1e-8)
    assert report.exact
    assert report.certified
    assert report.converged
    assert (frame[["approximation_gap", "amortization_gap"]] > -1e-12).all(axis=None)
    assert (
        "log p(x) exact, by the sum over all 4 codes of each point; gaps exact given the q* found" in report.evidence()
    )
    assert "independent bits, as of the guide" in report.evidence()
    assert report.verdict.cause == "amortization"
    assert "widen the encoder" in report.verdict.words


def test_sums_are_the_models(belief, summed):
    model, guide, x = belief
    found = summed.to_frame()
    for name, wanted in zip(("elbo", "elbo_star", "log_p_lower"), exact(model, guide.net(x), x), strict=True):
        torch.testing.assert_close(torch.tensor(found[name]), wanted, rtol=0, atol=1e-9)
        assert found[f"{name}_error"].max() < 1e-10
    iwae = torch.tensor(summed.to_frame()["iwae"])
    away = iwae - exact(model, guide.net(x), x)[2]
    assert -0.5 < away.mean() < 3 * away.std() / 80**0.5
    assert summed.certificate is None
    assert summed.verdict.cause in ("amortization", "both")


def test_draws_say_what_sums_say(belief, sampled, summed):
    """AIS, the search for q* and draws of the guide, each within three of its errors."""
    assert not sampled.exact
    for name in ("elbo", "elbo_star", "log_p_lower", "iwae"):
        away = sampled.values[name][0] - summed.values[name][0]
        error = sampled.errors[name][0]
        z = (away / error)[error > 1e-6]
        assert abs(z.nanmean()) < 0.6 or abs(away.mean()) < 0.02
    assert sampled.certified
    assert sampled.certificate is not None
    for name in ("approximation", "amortization", "inference"):
        one, other = (getattr(report.gaps(), name) for report in (sampled, summed))
        assert abs(one.mean - other.mean) < 3 * one.standard_error.square().sum().sqrt() / 80 + 0.02
    assert sampled.verdict.cause == summed.verdict.cause
    assert "best of several starts" in sampled.evidence()


def test_a_family_that_cannot_is_blamed_and_one_that_can_is_not():
    model = Belief(5, steep=4.0)
    x = model.simulate(60)
    best = best_product(model.table(x), torch.zeros(0, 60, 5), torch.Generator()).logits
    report = diagnosed(model, Rows(best), x)
    assert report.verdict.cause == "approximation"
    assert "a richer family than independent bits" in report.verdict.words
    assert abs(report.gaps().amortization.mean) < 1e-9
    model, x = Apart(4), torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    report = diagnosed(model, Rows(model.prior + x - 0.5), x)
    assert report.verdict.cause == "nothing"
    assert report.summary().loc["inference_gap", "mean"] == pytest.approx(0, abs=1e-10)
    assert report.summary()["negative"].dropna().sum() == 0
    assert report.summary().attrs["family"] == "independent bits"


@pytest.mark.slow
def test_reports_are_kept_and_drawn(summed, sampled, tmp_path):
    for report in (summed, sampled):
        report.save(tmp_path / "report")
        again = ab.Diagnosis.load(tmp_path / "report")
        assert again.summary().equals(report.summary())
        assert again.evidence() == report.evidence()
        assert again.exact == report.exact
        report.plot()
        report.to_html(tmp_path / "report.html")
        (tmp_path / "report").unlink()
    assert "exact" in str(list(summed._badges()))


def test_blocks_are_the_whole(belief, summed):
    model, guide, x = belief
    ground = prepare_blocks(model, guide, x[:20], progress=False)
    ground = type(ground).unpack(*ground.pack())
    parts = [
        diagnose_block(model, guide, some, ground=ground, seed=n, progress=False) for n, some in enumerate(x.split(30))
    ]
    joined = join_blocks(parts, ground)
    for name in ("elbo", "elbo_star", "log_p_lower"):
        torch.testing.assert_close(joined.values[name], summed.values[name])
    assert joined.exact


@pytest.mark.slow
def test_rows_of_each_point_are_taken_whole_and_refused_in_blocks():
    model = Belief(4)
    x = model.simulate(24)
    guide = Rows(normal(1, 24, 4))
    settings = ab.DiagnosisSettings(sum_up_to=0, certificate=ab.CertificateSettings(12, 0.1, 200))
    report = diagnosed(model, guide, x, settings=settings)
    assert report.certificate is not None
    assert "belong to the real points" in report.certificate.words
    for chosen in (settings, None):
        with pytest.raises(ValueError, match="a function of the data"):
            prepare_blocks(model, guide, x, settings=chosen, progress=False)


class Chain(nn.Module):
    """The second bit follows the first."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("a", dist.Bernoulli(torch.full((len(x),), 0.5).double()))
            pyro.sample("b", dist.Bernoulli(0.1 + 0.8 * first))


def two(x):
    half = torch.full((len(x),), 0.5).double()
    with pyro.plate("data", len(x)):
        a, b = (pyro.sample(name, dist.Bernoulli(half)) for name in "ab")
        pyro.sample("x", dist.Normal(2 * a * b + a - b, 1.0), obs=x)


@pytest.mark.parametrize("sum_up_to", [16, 0])
@pytest.mark.slow_cases("0")
def test_of_dependent_bits_no_cause_is_named(sum_up_to):
    x = torch.linspace(-2, 3, 40).double()
    settings = ab.DiagnosisSettings(sum_up_to=sum_up_to, certificate=ab.CertificateSettings(20, 0.1, 200))
    report = diagnosed(two, Chain(), x, settings=settings)
    assert report.verdict.abstains
    assert "the best product of independent bits" in report.verdict.words
    places = torch.tensor([0.0, -1.0, 1.0, 2.0]).double()
    log_p = torch.distributions.Normal(places, 1.0).log_prob(x[:, None]).logsumexp(1) - math.log(4)
    assert abs(report.values["log_p_lower"][0] - log_p).mean() < (1e-9 if sum_up_to else 0.03)


def three(x):
    with pyro.plate("data", len(x)):
        a, b, c = (pyro.sample(name, dist.Bernoulli(torch.full((len(x),), 0.5).double())) for name in "abc")
        pyro.sample("x", dist.Normal(a + b - 2 * c, 1.0), obs=x)


class Difference(nn.Module):
    """The last bit follows the difference of those before, which is the same at all zeros and at all ones."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            a, b = (pyro.sample(name, dist.Bernoulli(logits=x)) for name in "ab")
            pyro.sample("c", dist.Bernoulli(logits=4 * (a - b)))


def test_bits_that_follow_a_difference_are_dependent():
    x = torch.linspace(-2, 2, 40).double()
    settings = ab.DiagnosisSettings(num_particles=2_000)
    report = diagnosed(three, Difference(), x, settings=settings)
    a, b, c = all_codes(3).T
    bernoulli = torch.distributions.Bernoulli
    log_q = sum(bernoulli(logits=x[:, None]).log_prob(bit) for bit in (a, b)) + bernoulli(logits=4 * (a - b)).log_prob(
        c
    )
    log_p = torch.distributions.Normal(a + b - 2 * c, 1.0).log_prob(x[:, None]) - 3 * math.log(2)
    away = report.values["elbo"][0] - (log_q.exp() * (log_p - log_q)).sum(1)
    assert abs(away.mean()) < 3 * report.errors["elbo"].square().sum().sqrt() / 40
    assert (report.errors["elbo"] > 1e-3).all()
    assert report.settings["relation"] == "unknown"
    assert "the approximation gap alone, since the ELBO is of draws, exact given the q* found" in report.evidence()
    assert report.verdict.abstains
    for some in x.split(1):  # a point has eight codes to tell by, whatever its neighbours
        assert bits_of(joint_density(three, some, bits=True), Difference()) is None


def test_bits_in_a_plate_or_on_sites_are_those_of_a_vector(belief):
    model, guide, x = belief

    def plated(x):
        with pyro.plate("data", len(x)):
            with pyro.plate("each", 6):
                z = pyro.sample("z", dist.Bernoulli(logits=model.prior[:, None]))
            pyro.sample("x", model.likelihood(z.mT).to_event(1), obs=x)

    def in_plate(x):
        with pyro.plate("data", len(x)), pyro.plate("each", 6):
            pyro.sample("z", dist.Bernoulli(logits=guide.net(x).mT))

    report = diagnosed(plated, in_plate, x, plate="data")
    for name, wanted in zip(("elbo", "elbo_star", "log_p_lower"), exact(model, guide.net(x), x), strict=True):
        torch.testing.assert_close(report.values[name][0], wanted, rtol=0, atol=1e-9)


def mixed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def of_both(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("k", dist.Bernoulli(logits=x))


def test_bits_beside_continuous_latents_are_refused():
    with pytest.raises(ValueError, match=r"continuous latents, got 'k' of Bernoulli: mark it infer=") as refused:
        diagnosed(mixed, of_both, torch.zeros(5))
    assert "\n" not in str(refused.value)


def test_flows_and_other_callers_refuse_bits(belief):
    with pytest.raises(ValueError, match="no `flow` where latents are bits"):
        diagnosed(*belief, settings=ab.DiagnosisSettings(flow=ab.FlowSettings("planar")))
    model, guide, x = belief
    for call in (ab.optimize_local, ab.refine):
        with pytest.raises(ValueError, match="expected continuous latents, got 'z' of Bernoulli"):
            call(model, guide, x)


def test_shared_latents_beside_bits():
    """A shift that all points share: each draw of it is a model of its own."""

    def model(x):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x), 3), 0.3).double()).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) + shift, 0.5), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x), 3), 0.4).double()).to_event(1))

    x = torch.linspace(0, 3, 20).double()
    report = diagnosed(model, guide, x, seed=3)
    assert report.num_shared == 3
    shifts = [draw["shift"] for draw in prepare_blocks(model, guide, x, seed=3, progress=False).fixed]
    prior = torch.distributions.Bernoulli(torch.tensor(0.3).double()).log_prob(all_codes(3)).sum(-1)
    for found, shift in zip(report.values["log_p_lower"], shifts, strict=True):
        normal = torch.distributions.Normal(all_codes(3).sum(-1) + shift, 0.5)
        torch.testing.assert_close(found, (normal.log_prob(x[:, None]) + prior).logsumexp(1))


def test_ties_among_draws_are_no_tail():
    """Draws of a few codes are level in all but a few weights, and weights are bounded."""
    model = NoisyOr(4)
    x = model.simulate(40)
    best = best_product(model.table(x), torch.zeros(0, 40, 4), torch.Generator()).logits
    assert diagnosed(model, Rows(best.clamp(-6, 6)), x).verdict.cause is not None
