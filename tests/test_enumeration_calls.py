"""Discrete latents that a guide enumerates, and all of them in the calls that fit and diagnose."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_models import (
    DECODER,
    LENGTHS,
    LOGITS,
    MEANS,
    PARALLEL,
    WORDS,
    SemiSupervised,
    chain,
    chain_guide,
    components,
    gaussian_guide,
    log_mixture,
    mixture,
    mixture_data,
    nothing,
    points,
    topics,
    words_guide,
)
from pyro.infer import TraceEnum_ELBO, config_enumerate

import amortized_bayes as ab
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.joint import points_per_chunk
from amortized_bayes.traces import trace_pair

pytestmark = pytest.mark.usefixtures("float64")

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("analytic_kl", [False, True])
@pytest.mark.slow_cases("True")
def test_the_guides_own_sites_are_averaged_over_exactly(analytic_kl):
    problem, x, found = SemiSupervised(), points(5, 2), []
    many = 100 if analytic_kl else 1

    def draw():
        return expected_log_weights(problem.model, problem.guide, x, analytic_kl=analytic_kl).local[0, 0]

    torch.manual_seed(9)
    ours = torch.stack([draw() for _ in range(many)])
    torch.manual_seed(9)
    by_hand = torch.stack([problem.elbo(x) for _ in range(5 * many if analytic_kl else 1)])
    if not analytic_kl:
        torch.testing.assert_close(ours, by_hand)
        torch.manual_seed(9)
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(problem.model, problem.guide, x)
        assert -loss == pytest.approx(ours.sum().item(), rel=1e-12)
        for value in (ours, by_hand):
            found.append(torch.autograd.grad(value.sum(), [problem.logits, problem.loc]))
        torch.testing.assert_close(*found)
    else:
        error = (ours.var(0) / len(ours) + by_hand.var(0) / len(by_hand)).sqrt()
        assert ((ours.mean(0) - by_hand.mean(0)).abs() <= 4 * error).all()


def test_labels_that_are_given_are_not_enumerated():
    problem, x, y = SemiSupervised(), points(5, 2), torch.tensor([0, 1, 2, 1, 0])
    torch.manual_seed(10)
    found = expected_log_weights(problem.model, problem.guide, x, y=y, analytic_kl=False).local[0, 0]
    torch.manual_seed(10)
    traces = trace_pair(problem.model, problem.guide, (x,), {"y": y})
    sites = [("z", 1), ("x", 1), ("y", 1)]
    total = sum(s * traces.log_prob(traces.model.nodes[n]) for n, s in sites)
    torch.testing.assert_close(found, total - traces.log_prob(traces.guide.nodes["z"]))


def test_importance_weights_draw_what_the_guide_enumerates():
    """Their mean is the evidence, here a sum over y of Gaussian integrals."""
    problem, x = SemiSupervised(), points(5, 2)
    with torch.no_grad():
        log_w = ab.log_weights(problem.model, problem.guide, x, num_particles=40_000).local[0]
    parts = []
    for y in range(3):
        row = torch.tensor([1.0, y], dtype=torch.float64) @ DECODER
        covariance = row[:, None] * row + 0.49 * torch.eye(2)
        parts.append(LOGITS[y] + dist.MultivariateNormal(0.3 * y * row, covariance).log_prob(x))
    ratio = (log_w - torch.stack(parts).logsumexp(0)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / math.sqrt(len(ratio))).all()


def test_model_and_guide_enumerate_sites_of_their_own():
    """q(a) is averaged over, b is summed out given a."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.4))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a), infer=PARALLEL)
            pyro.sample("x", dist.Normal(a - 2 * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(x.sigmoid()), infer=PARALLEL)

    x, expected = points()[:, 0], 0.0
    for a in (torch.tensor(0.0), torch.tensor(1.0)):
        of_b = [
            dist.Bernoulli(0.2 + 0.5 * a).log_prob(b) + dist.Normal(a - 2 * b, 1.0).log_prob(x)
            for b in (torch.tensor(0.0), torch.tensor(1.0))
        ]
        log_q = dist.Bernoulli(x.sigmoid()).log_prob(a)
        log_p = dist.Bernoulli(0.4).log_prob(a) + torch.stack(of_b).logsumexp(0)
        expected = expected + log_q.exp() * (log_p - log_q)
    for analytic_kl in (False, True):
        found = expected_log_weights(model, guide, x, analytic_kl=analytic_kl)
        torch.testing.assert_close(found.local[0, 0], expected)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert -loss == pytest.approx(expected.sum().item(), rel=1e-12)


@pytest.mark.parametrize("expand", [False, True])
def test_several_sites_of_the_guide_in_total_as_in_pyro(expand):
    of_chain = (chain, config_enumerate(chain_guide, expand=expand), (points()[:, 0],), "data")
    of_words = (topics, words_guide, (WORDS, LENGTHS), "documents")
    for model, guide, args, plate in (of_chain, of_words):
        torch.manual_seed(14)
        ours = expected_log_weights(model, guide, *args, plate=plate, analytic_kl=False).local.sum().item()
        torch.manual_seed(14)
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide, *args)
        assert ours == pytest.approx(-loss, rel=1e-12)


def test_a_guide_that_draws_before_its_marks_is_captured():
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            return config_enumerate(chain_guide)(x + self.loc)

    options = ab.FitOptions(batch_size=4, capture="replay")
    training = ab.Training(chain, Guide(), points()[:, 0], options, pass_index=False)
    list(training.run(2))
    assert training.captured is not None


@pytest.mark.slow
def test_a_step_with_enumerated_sites_is_captured(caplog):
    problem, x = SemiSupervised(), points(8, 2)
    encoder = torch.nn.ParameterList([problem.logits, problem.loc])

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return problem.guide(x)

    training = ab.Training(problem.model, Guide(), x, ab.FitOptions(batch_size=4), pass_index=False)
    before = ab.elbo(problem.model, problem.guide, x).mean()[0]
    list(training.run(200))
    assert training.captured is not None
    assert ab.elbo(problem.model, problem.guide, x).mean()[0] > before + 0.3
    assert not caplog.records


# in both calls


def test_compare_meets_the_evidence_from_below():
    x = mixture_data(60)
    settings = ab.ComparisonSettings(epochs=30, rungs=1)
    report = ab.compare(mixture, x, widths=(4,), settings=settings, progress=False)
    best = report.to_frame()["elbo"].max()
    assert 0 < log_mixture(x).mean().item() - best < 0.5


def test_diagnose_meets_the_evidence():
    x = mixture_data(10)
    settings = ab.DiagnosisSettings(
        num_particles=200,
        ais=ab.AISSettings(num_temperatures=25),
        certificate=ab.CertificateSettings(4, 1.0, max_temperatures=25),
    )
    report = ab.diagnose(mixture, gaussian_guide, x, settings=settings)
    truth = log_mixture(x)
    for name in ("log_p_lower", "iwae"):
        value, error = report.values[name][0], report.errors[name][0]
        assert ((value - truth).abs() < 4.5 * error + 0.02).all(), name
    assert (report.values["elbo"][0] < truth + 4 * report.errors["elbo"][0]).all()


# refused


def body(k="data", **options):
    """A model with one discrete site of these options, inside or outside the plate."""
    fn = options.pop("fn", dist.Categorical(logits=LOGITS))

    def model(x):
        outside = pyro.sample("k", fn, infer=options) if k == "outside" else None
        with pyro.plate("data", len(x)):
            value = pyro.sample("k", fn, infer=options) if outside is None else outside
            z = pyro.sample("z", dist.Normal(value.double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def z_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def seen_outside(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("total", dist.Normal(k, 1.0), obs=torch.zeros(()))


REFUSED = [
    (body(), r"misses the model's latent site 'k': mark it infer=\{'enumerate': 'parallel'\} to have it"),
    (body(fn=dist.Poisson(2.0)), "latent site 'k': marginalize it or observe it"),
    (body(fn=dist.Poisson(2.0), **PARALLEL), r"'k' \(Poisson\) cannot be enumerated: .* marginalize it or observe it"),
    (body(enumerate="sequential"), "expected infer={'enumerate': 'parallel'} at site 'k', .* got 'sequential'"),
    (body(num_samples=10, **PARALLEL), "at site 'k', .* got 'num_samples=10'"),
    (body("outside", **PARALLEL), "'k' is outside plate 'data': points depend on each other"),
    (seen_outside, "'total' is outside plate 'data' and depends on"),
]


@pytest.mark.parametrize(("model", "words"), REFUSED)
def test_what_cannot_be_enumerated_point_by_point_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        ab.log_weights(model, z_guide, torch.zeros(5))


@pytest.mark.parametrize(("model", "words"), [(body(), "mark it"), REFUSED[2], REFUSED[3], REFUSED[5]])
def test_other_calls_refuse_them_alike(model, words):
    words = words.replace("misses the model's latent site 'k': ", "")
    for call in (ab.latent_sites, ab.log_joint):
        with pytest.raises(ValueError, match=words):
            call(model, torch.zeros(5))


def test_chunks_count_the_values_that_are_summed_out():
    """Three components, and two sites of three and two values together."""

    def both(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            j = pyro.sample("j", dist.Bernoulli(0.5), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((z + k + j)[..., None], 1.0).to_event(1), obs=x)

    def single(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    x, sizes = points(400), []
    for model, values in ((single, 1), (mixture, 3), (both, 6)):
        joint = ab.log_joint(model, x)
        state = torch.get_rng_state()
        assert joint.num_values == values
        torch.testing.assert_close(torch.get_rng_state(), state)
        sizes.append(points_per_chunk(joint, 4, 1e5))
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]


def test_nothing_to_infer_is_said():
    with pytest.raises(ValueError, match=r"got none .enumerated ones are summed out.: there is nothing to amortize"):
        ab.compare(components, points(), progress=False)
    with pytest.raises(ValueError, match=r"got none .enumerated ones are summed out.: there is nothing to infer"):
        ab.diagnose(components, nothing, points())


def test_a_guide_that_draws_a_discrete_latent_is_not_trained():
    problem = SemiSupervised(marks={})
    with pytest.raises(ValueError, match=r"draws 'y' from Categorical, .* wrong gradient; mark it"):
        expected_log_weights(problem.model, problem.guide, points(5, 2))
    with torch.no_grad():
        assert ab.elbo(problem.model, problem.guide, points(5, 2)).value.isfinite().all()


def test_a_guide_that_draws_what_the_model_enumerates_is_not_diagnosed():
    problem = SemiSupervised()
    with pytest.raises(ValueError, match="the guide draws 'y', which the model enumerates"):
        ab.diagnose(config_enumerate(problem.model), problem.guide, points(5, 2))


def test_local_reparametrization_is_refused():
    with pytest.raises(ValueError, match="other weights for each value of the enumerated site 'k'"):
        expected_log_weights(mixture, gaussian_guide, points(), local_reparametrization=True)


@pytest.mark.parametrize("dim", [-2, -3])
def test_compare_with_enumerated_sites_and_the_plate_at_any_dimension(dim):
    """A mixture as the prior of z: the ELBO of the fitted Gaussians is at most the log evidence, and near it."""

    def model(x):
        shape = (len(x), *[1] * (-dim - 1))
        with pyro.plate("rows", len(x), dim=dim):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(MEANS[k, 0], 0.8))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x.reshape(shape))

    x = MEANS[torch.arange(60) % 3, 0] + 0.8 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    quick = ab.ComparisonSettings(epochs=40, rungs=1, num_draws=100)
    report = ab.compare(model, x, guides=("factorized",), settings=quick, progress=False)
    guide = report.best.apply().guide
    loc, scale = (part[:, None] for part in guide.locate(x, torch.arange(60)).detach().T)
    eps = torch.linspace(-6, 6, 201)
    z = loc + scale.exp() * eps
    log_p = (LOGITS + dist.Normal(MEANS[:, 0], 0.8).log_prob(z[..., None])).logsumexp(-1)
    weight = dist.Normal(0.0, 1.0).log_prob(eps).exp() * (eps[1] - eps[0])
    log_w = log_p + dist.Normal(z, 0.3).log_prob(x[:, None]) - dist.Normal(loc, scale.exp()).log_prob(z)
    exact = (log_w * weight).sum(-1)
    error = report.best.elbo.standard_error.square().sum().sqrt() / 60
    assert abs(report.best.elbo.value.mean() - exact.mean()) < 3 * error
    evidence = (LOGITS + dist.Normal(MEANS[:, 0], (0.64 + 0.09) ** 0.5).log_prob(x[:, None])).logsumexp(-1)
    assert 0 < (evidence - exact).mean() < 0.1


def test_a_guide_that_enumerates_its_label_runs_in_the_race():
    """Its own label picks a row of its encoder: a mean of labels would be no index."""
    problem, x = SemiSupervised(), points(20, 2)
    settings = ab.ComparisonSettings(2, 1, num_draws=3, fit=ab.FitOptions(batch_size=10, capture="off"))
    model = config_enumerate(problem.model, "parallel")
    parameters = torch.nn.ParameterList([problem.logits, problem.loc])

    def mine(x):
        pyro.module("mine", parameters)
        problem.guide(x)

    report = ab.compare(model, x, guides={"mine": mine}, widths=(2,), settings=settings, progress=False)
    (found,) = (f for f in report.fits if f.name == "mine")
    assert found.status != "failed"
    assert math.isfinite(found.elbo.value.mean())
