"""The library's call on anybody's model: what it takes, what it refuses, and what it finds where that is known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro import poutine
from sweeps import ADDED
from torch import nn
from torch.distributions import constraints

import amortized_bayes
from amortized_bayes.comparing import fitting
from amortized_bayes.comparing.any_model import ComparisonSettings
from amortized_bayes.divergence import Divergence
from amortized_bayes.guides import registry
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.models import LinearGaussian

PLAIN = FitOptions(capture="off", batch_size=20)
BETWEEN = ("family_gap", "unconverged_by")
GUIDES = ["constant", "amortized", "factorized", "factorized-from-amortized"]


def compare(model, x, widths=(2,), epochs=2, options=PLAIN, **rest):
    settings = ComparisonSettings(epochs, depth=rest.pop("depth", 1), num_draws=2, fit=options)
    return amortized_bayes.compare(model, x, widths=widths, settings=settings, progress=False, **rest)


def normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)


def with_index(x, index=None):
    with pyro.plate("data", 40, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)


def several_sites(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + w[:, None], 0.5).to_event(1), obs=x)


def constrained(x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Gamma(torch.full((len(x),), 2.0), 2.0))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(len(x), 3)))
        u = pyro.sample("u", dist.Beta(torch.ones(len(x), 2), torch.ones(len(x), 2)).to_event(1))
        pyro.sample("x", dist.Normal(p + u.sum(-1, keepdim=True), s[:, None]).to_event(1), obs=x)


def shared(x):
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(mean + z[:, None], scale).to_event(1), obs=x)


def another_plate(x):
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)


def with_param(x):
    scale = pyro.param("scale", lambda: torch.tensor(3.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], scale).to_event(1), obs=x)


class Module(nn.Module):
    """A model with parameters."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 3)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


MODELS = {
    "normal": (normal, {}),
    "index": (with_index, {}),
    "several sites": (several_sites, {}),
    "constrained": (constrained, {}),
    "shared": (shared, {}),
    "another plate": (another_plate, {"plate": "points"}),
    "param": (with_param, {}),
    "linear encoder": (normal, {"depth": 0}),
    "deep encoder": (normal, {"depth": 2}),
}


@pytest.fixture(name="x")
def data():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds(x, name):
    model, options = MODELS[name]
    frame = compare(model, x, **options).to_frame()
    assert frame["guide"].tolist() == GUIDES
    assert set(frame["status"]) <= {"ok", "vacuous"}
    assert np.isfinite(frame[["elbo", "elbo_error", "kl", "family_gap", "family_gap_error"]].to_numpy(float)).all()
    best = frame["elbo"] + frame["family_gap"]
    assert best.to_numpy() == pytest.approx(frame.loc[frame["family_gap"] == 0, "elbo"].item(), abs=1e-5)
    assert frame["unconverged_by"].notna().tolist() == [not registry.GUIDES[guide].starts_from for guide in GUIDES]


def test_data_of_one_number_a_point():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    frame = compare(model, torch.randn(40)).to_frame()
    assert np.isfinite(frame["family_gap"].to_numpy(float)).all()


@pytest.mark.parametrize("unit", [pytest.param(0.05, marks=pytest.mark.slow), 50.0])
@pytest.mark.slow
def test_whether_a_latent_is_active_does_not_hang_on_its_unit(unit):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), unit))
            pyro.sample("x", dist.Normal(z[:, None], 0.3 * unit).to_event(1), obs=x)

    torch.manual_seed(0)
    options = FitOptions.recipe(capture="off", batch_size=20)
    frame = compare(model, unit * torch.randn(40, 3), epochs=100, options=options).to_frame().set_index("guide")
    assert frame.loc["factorized", "status"] == "ok"
    assert frame.loc["constant", "status"] == "vacuous"


@pytest.mark.slow
def test_a_model_with_a_captured_step(x):
    frame = compare(several_sites, x, options=FitOptions(batch_size=20, capture="replay")).to_frame()
    assert set(frame["status"]) <= {"ok", "vacuous"}


def test_parameters_are_fitted_beside_each_guide_and_put_back(x):
    model = Module()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frame = compare(model, x, epochs=20).to_frame()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    frozen = Module()
    frozen.load_state_dict(before)
    frozen.requires_grad_(False)
    assert (frame["elbo"].to_numpy() > compare(frozen, x, epochs=20).to_frame()["elbo"].to_numpy()).all()


def test_the_param_store_is_put_back(x):
    with_param(x)
    before = pyro.param("scale").item()
    report = compare(
        with_param, x, epochs=10, options=FitOptions(capture="off", batch_size=20, shared_learning_rate=0.1)
    )
    assert pyro.param("scale").item() == before
    assert list(pyro.get_param_store()) == ["scale"]
    assert report.to_frame()["elbo"].notna().all()


def test_reports(x):
    report = compare(normal, x, widths=(1, 4))
    assert repr(report).startswith("Comparison(5 guides, 40 points, elbo_reference=-")
    lines = str(report).splitlines()
    assert lines[0].startswith("ELBO of the best F-VI found: -")
    assert [line.split(":")[0] for line in lines[1:]] == [
        *("constant VI", "A-VI, k = 1", "A-VI, k = 4", "F-VI", "F-VI from A-VI")
    ]
    assert isinstance(report.plot(), Figure)
    assert isinstance(report.plot_curves(), Figure)


def test_gaps_that_longer_fits_may_close_are_marked(x):
    report = compare(normal, x, widths=(1, 4), epochs=4)
    frame = report.to_frame().set_index("guide")
    small = frame["family_gap"].abs() <= frame["unconverged_by"].fillna(0).clip(
        lower=frame.loc["factorized", "unconverged_by"]
    )
    assert (frame["gap_settled"] == (~small | (frame["family_gap"] == 0))).all()
    assert not frame["gap_settled"].all()
    assert str(report).count("so that longer fits may close or reverse the gap") == int((~frame["gap_settled"]).sum())


def test_rows_are_those_of_the_sweep(x):
    report = compare(normal, x, widths=(1, 4), epochs=40)
    rows, frame = report.to_rows(), report.to_frame()
    assert set(rows["metric"]) == {
        *("elbo", "final_elbo", "final_kl", "elbo_reference", "family_gap", "unconverged_by", "behind_reference"),
        *("gap_closed", "share_closed", "steps_to_share", "seconds_to_share"),
    }
    for metric, column in (("final_elbo", "elbo"), ("final_kl", "kl"), *[(name, name) for name in BETWEEN]):
        assert rows[rows["metric"] == metric]["value"].tolist() == frame[column].dropna().tolist()
    assert set(rows["dataset"]) == {"data"}
    assert rows[rows["metric"] == "elbo_reference"]["guide"].tolist() == ["reference"]
    budgets = rows[rows["metric"].isin(("elbo", "behind_reference"))].groupby(["guide", "metric"])["epochs"].unique()
    for (guide, _), epochs in budgets.items():
        assert epochs.tolist() == ([20, 40] if "from" in guide else [5, 10, 20, 40])
    assert rows.loc[rows["share"].notna(), "metric"].str.endswith("_to_share").all()


def test_a_seed_gives_the_same_numbers_and_another_others(x):
    first, second, other = (compare(shared, x, seed=s).to_frame() for s in (3, 3, 4))
    columns = ["elbo", "elbo_error", "kl", "family_gap"]
    assert first[columns].equals(second[columns])
    assert not first[columns].equals(other[columns])


def test_a_fit_that_fails_is_said_and_the_others_stand(x):
    report = compare(normal, x, options=FitOptions(capture="off", batch_size=20, row_learning_rate=1e30), epochs=5)
    frame = report.to_frame().set_index("guide")
    assert frame.loc["factorized", "status"] == "failed"
    assert frame.loc["constant", "status"] != "failed"
    assert "F-VI: failed at step" in str(report) or report.reference is None
    failed = report.to_rows().query("status == 'failed'")
    assert set(failed["metric"]) == {"failure"}


def test_when_all_fail_there_is_a_report_that_says_so(x, monkeypatch, tmp_path):
    def diverge(self, num_steps, *rest):
        raise Divergence(3, math.inf)
        yield

    monkeypatch.setattr(fitting.Training, "run", diverge)
    report = compare(normal, x)
    assert set(report.to_frame()["status"]) == {"failed"}
    assert "no reference" in repr(report)
    why = "loss of inf nats per point at step 3"
    said = f"no F-VI fit succeeded: there is no reference to compare with (F-VI failed at step 3 ({why}))"
    report.save(tmp_path / "report")
    for found in (report, amortized_bayes.Comparison.load(tmp_path / "report")):
        assert str(found) == said
        assert found.to_frame()["reason"].tolist() == [why, why, why, "A-VI, which it starts from, failed"]
        assert set(found.to_rows()["note"]) == set(found.to_frame()["reason"])
        assert found.summary()["reason"].tolist() == found.to_frame()["reason"].tolist()
        for call in (found.plot, found.plot_curves):
            with pytest.raises(ValueError, match="to draw the others against, but no F-VI fit succeeded") as refused:
                call()
            assert "\n" not in str(refused.value)
        with pytest.raises(ValueError, match=f"every one failed: F-VI failed at step 3 .{why}"):
            found.best  # noqa: B018


def test_a_fit_that_diverges_at_the_top_of_its_ladder_failed_and_starts_no_other(x, monkeypatch):
    run = fitting.Training.run

    def diverge_later(self, num_steps, *rest):
        if self.steps and type(self.guide).__name__ == "Amortized":
            raise Divergence(self.steps + 1, math.inf)
        yield from run(self, num_steps, *rest)

    monkeypatch.setattr(fitting.Training, "run", diverge_later)
    report = compare(normal, x)
    frame = report.to_frame().set_index("guide")
    assert frame.index[frame["status"] == "failed"].tolist() == ["amortized", "factorized-from-amortized"]
    assert frame["unconverged_by"].notna().tolist() == [True, False, True, False]
    assert report.reference.name == "factorized"
    assert "A-VI, k = 2: failed at step 3 (loss of inf" in str(report)


def test_a_guide_that_was_added_is_compared(x, monkeypatch):
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    report = compare(shared, x, widths=(1, 3), guides=("prototypes", "factorized"))
    frame = report.to_frame()
    assert list(zip(frame["guide"], frame["k"].fillna(0), strict=True)) == [
        *(("prototypes", 1), ("prototypes", 3), ("factorized", 0))
    ]
    assert frame["family_gap"].notna().all()
    assert frame["unconverged_by"].notna().all()
    assert "prototypes, k = 3: family gap" in str(report)
    (axes,) = report.plot().axes
    assert axes.get_xlabel() == "encoder width k of prototypes (log2)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "F-VI"]
    assert isinstance(report.plot_curves(), Figure)


def test_fvi_from_avi_starts_at_the_parameters_of_its_model_too(x, monkeypatch):
    """At those of the best A-VI with half of the epochs; every other fit starts at the model's own, at each rung."""
    scales = []

    def watched(training, num_steps, watch):
        begin = pyro.param("scale").item()
        train(training, num_steps, watch)
        scales.append((type(training.guide).__name__, begin, pyro.param("scale").item()))

    train = fitting.train
    monkeypatch.setattr(fitting, "train", watched)
    options = FitOptions(capture="off", batch_size=20, shared_learning_rate=0.1, average=None)
    compare(with_param, x, epochs=8, options=options)
    names, begins, ends = zip(*scales, strict=True)
    assert names == (*["Constant"] * 4, *["Amortized"] * 4, *["Factorized"] * 5)  # 1, 2, 4 and 4 more epochs
    for fit in (0, 4, 8):
        assert begins[fit : fit + 3] == pytest.approx([3.0] * 3)
        assert begins[fit + 3] == ends[fit + 2] != pytest.approx(3.0)
    assert begins[12] == ends[6] != pytest.approx(ends[7])


def no_plate(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(2), obs=x)


def discrete(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
        pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x.float())


def no_local(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (no_plate, {}, "plate"),
        (normal, {"plate": "points"}, "points"),
        (discrete, {}, "continuous latent sites, got the discrete site 'z'"),
        (no_local, {}, "expected a continuous latent site in plate 'data', got none"),
        (normal, {"widths": (4, 0)}, r"expected widths of 1 or more, got \[4, 0\]"),
        (normal, {"widths": ()}, "expected widths of 1 or more"),
        (normal, {"guides": ()}, "expected guides, such as 'constant', 'amortized', 'factorized', .* got none"),
        (normal, {"guides": {}}, "got none"),
        (normal, {"depth": -1}, "expected depth of 0 or more, got -1"),
        (normal, {"epochs": 1}, "expected epochs of 2 or more, got 1"),
        (normal, {"guides": ("amortised",)}, "expected guides among constant, amortized, factorized, got 'amortised'"),
        (normal, {"x": torch.full((4, 3), math.nan)}, "expected finite data, got 12 values"),
        (normal, {"x": torch.zeros(1, 3)}, "two points or more"),
        (normal, {"x": np.full((4, 3), "a")}, "expected arrays of numbers, got one of <U1"),
        (normal, {"width": (4,)}, r"compare got width=, .*; did you mean widths=\?"),
        (normal, {"index": torch.arange(40)}, "compare got index=, which is neither"),
        (with_index, {"index": torch.arange(40)}, "expected no index: compare gives the indices"),
        (normal, {"encoder_input": lambda x: x[:3]}, "finite row for each of 40 points, got shape"),
        (normal, {"encoder_input": lambda x: x - x.mean(0)}, "encoder_input that treats each point on its own"),
        (normal, {"encoder_input": lambda y, z: y}, "encoder_input fails when it is called as the model is"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, model, changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        compare(model, **({"x": x} | changes))
    assert "\n" not in str(refused.value)


def test_data_are_not_changed_and_a_large_batch_is_cut(x):
    before = x.clone()
    compare(normal, x, options=FitOptions(capture="off", batch_size=4_000))
    assert torch.equal(x, before)


def test_a_program_inside_another_handler(x):
    frame = compare(poutine.scale(normal, 1.0), x).to_frame()
    assert set(frame["status"]) <= {"ok", "vacuous"}


@pytest.mark.slow
def test_gaps_are_the_known_ones_on_a_linear_gaussian_model(float64):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 2, generator=generator)
    model = LinearGaussian(weight, torch.randn(4, generator=generator), 0.8)
    z = torch.randn(60, 2, generator=generator)
    x = z @ weight.T + model.bias + 0.8 * torch.randn(60, 4, generator=generator)
    options = FitOptions.recipe(capture="off", batch_size=20)
    settings = ComparisonSettings(epochs=300, depth=0, num_draws=500, fit=options)
    report = amortized_bayes.compare(model, x, widths=(1,), settings=settings, progress=False)
    best, constant = (f(x).mean().item() for f in (model.best_factorized_elbo, model.best_constant_elbo))
    spread = {f.name: f.elbo.standard_error.square().sum().sqrt().item() / len(x) for f in report.fits}
    frame = report.to_frame().set_index("guide")
    for guide in GUIDES:
        known = constant if guide == "constant" else best
        # four Monte Carlo errors, and what 300 visits leave of rows that have no neighbours to share noise with
        left = 0.02 if "factorized" in guide else 0.0
        assert abs(frame.loc[guide, "elbo"] - known) < 4 * spread[guide] + left, guide
        of_gap = math.hypot(spread[guide], spread["factorized"])
        assert abs(frame.loc[guide, "family_gap"] - (best - known)) < 4 * of_gap, guide
    assert 4 * max(spread.values()) < 0.03 * (best - constant)
    assert frame["elbo"].max() < model.log_evidence(x).mean().item() + 4 * spread["factorized"]
