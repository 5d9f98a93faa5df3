"""``close-the-gap``: what is said to be recovered is, each method is what it says, and the figure shows the front."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_refine import exact_elbo, linear
from wing import CPU, QuickLab, go, loaded, only, uncaptured

import amortized_bayes as ab
from amortized_bayes.experiments import closing
from amortized_bayes.experiments.close_the_gap import FIGURES, Config
from amortized_bayes.experiments.encoders import fitted_encoder
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.inference.semi_amortized import SemiAmortized
from amortized_bayes.joint import Gaussian, joint_density, read_start
from amortized_bayes.labels import METHODS
from amortized_bayes.plotting import Way, closing_figure
from amortized_bayes.plotting.closing import FRONT
from amortized_bayes.presenting.figures import draw_figures
from amortized_bayes.presenting.view import RunView
from amortized_bayes.results import RunFolder, find_run

FEW = Config(
    dataset=("digits",),
    epochs=2,
    points=12,
    steps=(1, 3),
    search_steps=20,
    own_steps=(1, 2),
    num_particles=2,
    encoder_epochs=1,
    wider="small",
    wider_epochs=1,
    score=50,
)
FACTORS = {"dataset": "digits", "seed": 0}
STAR = job_key({**FACTORS, "method": "qstar-encoder"})


# What is recovered ----------------------------------------------------------------------------------------------------


def test_what_is_recovered_is_the_difference_of_the_exact_elbos():
    model, x, start = linear()
    precision = model.posterior_precision().diagonal()
    best = Gaussian(model.posterior(x).mean, precision.rsqrt().expand(len(x), -1))
    gain, of_best, of_start = closing.gain_over(joint_density(model, x), start, best, 4_000, seed=0)
    known = exact_elbo(model, x, best) - exact_elbo(model, x, start)
    torch.testing.assert_close(model.best_factorized_elbo(x).double(), exact_elbo(model, x, best), rtol=0, atol=1e-3)
    assert gain.mean() == pytest.approx(known.mean().item(), rel=0.02)
    np.testing.assert_allclose(gain, known.numpy(), rtol=0.2)
    np.testing.assert_allclose(gain, of_best - of_start, atol=1e-9)


def test_full_refinement_recovers_the_amortization_gap():
    model, x, start = linear()
    q = ab.refine(model, start, x, settings=ab.RefineSettings(steps=(200,), half_time=20.0)).q
    gain, *_ = closing.gain_over(joint_density(model, x), start, q, 4_000, seed=1)
    known = model.best_factorized_elbo(x) - exact_elbo(model, x, start)
    assert gain.mean() == pytest.approx(known.mean().item(), rel=0.02)


def test_nothing_is_recovered_over_the_same_answer():
    model, x, start = linear()
    assert (closing.gain_over(joint_density(model, x), start, start, 10, seed=0)[0] == 0).all()


def test_an_answer_is_the_guides_q():
    model, x, _ = linear()
    plain = ab.Amortized(ab.latent_sites(model, x).local, len(x), x.shape[1], width=4)
    for guide in (plain, ab.SemiAmortized(model, plain, 2)):
        q, seconds = closing.answer_of(guide, x)
        read = read_start(joint_density(model, x), guide)
        torch.testing.assert_close(q.loc, read.loc)
        torch.testing.assert_close(q.scale, read.scale)
        assert 0 < seconds < 1


# The run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    with uncaptured():
        return go("close-the-gap", FEW, tmp_path_factory.mktemp("close"))


def test_every_method_has_its_rows(run):
    rows = run.rows()
    assert set(only(rows, "recovered")["method"]) == set(METHODS)
    assert set(rows["status"]) == {"ok"}
    refined = only(rows, "recovered", method="natural")
    assert sorted(refined["budget"]) == [1, 3]
    assert sorted(only(rows, "recovered", method="semi-amortized")["budget"]) == [1, 2]
    timed = set(only(rows, "training_seconds")["method"])
    assert timed == {"elbo", "semi-amortized", "iwae", "rws", "wider"}
    assert (only(rows, "seconds_per_point")["value"] > 0).all()


def test_gains_are_paired_at_the_same_points(run):
    rows, star = run.rows(), run.load_arrays(STAR)
    there = star["recovered"].mean()
    assert only(rows, "amortization_gap")["value"].item() == pytest.approx(there)
    for method in ("elbo", "iwae", "rws", "wider"):
        arrays = run.load_arrays(job_key({**FACTORS, "method": method}))
        np.testing.assert_allclose(arrays["elbo"] - arrays["recovered"], star["elbo_encoder"], atol=1e-9)
        (gain,) = only(rows, "recovered", method=method)["value"]
        (error,) = only(rows, "recovered", method=method)["standard_error"]
        assert gain == pytest.approx(arrays["recovered"].mean())
        assert error == pytest.approx(arrays["recovered"].std(ddof=1) / np.sqrt(FEW.points))
        (share,) = only(rows, "recovered_share", method=method)["value"]
        assert share == pytest.approx(gain / there)


@pytest.mark.slow
def test_an_encoder_is_trained_further_from_where_it_was(run, tmp_path):
    trained = loaded(RunFolder.open(find_run(run.path.parents[1], "latest", "train")))
    lab, before = QuickLab(tmp_path, CPU), [p.clone() for p in trained.model.parameters()]
    for steps in (0, 2):
        wanted = replace(trained.config, learning_rate=1e-12, epochs=1, semi_amortized_steps=steps)
        with uncaptured():
            guide = fitted_encoder(trained, wanted, lab, further=True).guide
            fresh = fitted_encoder(trained, wanted, lab).guide
        assert isinstance(guide, SemiAmortized) == bool(steps)
        found, afresh = ((g.guide if steps else g).state_dict() for g in (guide, fresh))
        for name, value in trained.guide.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        assert not all(torch.allclose(afresh[name], value) for name, value in found.items())
    assert all(torch.equal(a, b) for a, b in zip(before, trained.model.parameters(), strict=True))


@pytest.mark.parametrize("steps", [0, 2])
def test_an_encoder_that_was_trained_for_steps_is_trained_further(run, tmp_path, steps):
    trained = loaded(RunFolder.open(find_run(run.path.parents[1], "latest", "train")))
    before = trained._replace(guide=SemiAmortized(trained.model, trained.guide, 1))
    wanted = replace(trained.config, learning_rate=1e-12, epochs=1, semi_amortized_steps=steps)
    with uncaptured():
        guide = fitted_encoder(before, wanted, QuickLab(tmp_path, CPU), further=True).guide
    found = (guide.guide if steps else guide).state_dict()
    for name, value in trained.guide.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_training_that_only_makes_an_encoder_worse_leaves_it_as_it_was(run, tmp_path):
    """At a rate far too high; afresh, the best of what there was is returned, and is not the start."""
    trained = loaded(RunFolder.open(find_run(run.path.parents[1], "latest", "train")))
    assert trained.data.validation is not None
    wanted = replace(trained.config, learning_rate=0.05, epochs=1)
    with uncaptured():
        found = fitted_encoder(trained, wanted, QuickLab(tmp_path, CPU), further=True).guide.state_dict()
    for name, value in trained.guide.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_the_figure_is_drawn(run, tmp_path):
    drawings = draw_figures(FIGURES, RunView(run), run.rows(), tmp_path)
    assert (tmp_path / "close_the_gap.png").stat().st_size > 10_000
    assert drawings


def test_the_front_is_what_nothing_beats():
    ways = [
        Way("best", [0], [2.0], [0.1], [900.0], [np.nan], is_ceiling=True),
        Way("steps", [1, 5, 9], [1.0, 1.9, 1.8], [0.1] * 3, [10.0, 20.0, 30.0], [np.nan] * 3),
        Way("trained", [0], [0.3], [0.1], [1.0], [60.0]),
        Way("worse", [0], [-5.0], [0.1], [2.0], [80.0]),
    ]
    figure = closing_figure({"somewhere": ways}, "What is recovered")
    left, right = figure.axes
    (front,) = [line for line in left.lines if line.get_label() == FRONT]
    steps = [*zip(*front.get_data(), strict=True)]
    assert steps == [(1.0, 0.3), (10.0, 1.0), (20.0, 1.9), (900.0, 2.0), (900.0, 2.0)]
    assert {container.get_label() for container in right.containers} == {"trained", "worse"}
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] > -1
    assert "-5" in {text.get_text() for text in left.texts}


def test_settings_that_cannot_be_run_are_refused():
    for options, words in (
        ({"refine_samples": 5}, "refine-samples"),
        ({"own_steps": (0,)}, "own-steps"),
        ({"num_particles": 1}, "num-particles"),
        ({"dataset": ("a/x.npz", "b/x.npz")}, "different names"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            replace(FEW, **options)
        assert "\n" not in str(caught.value)
