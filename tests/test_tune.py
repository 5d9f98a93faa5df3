"""Learning rates: the same budget for each guide, and the pair that is best over data sets."""

from dataclasses import replace

import pytest
from sweeps import ADDED, TINY, TINY_TRIALS, Listener, a_lab, latest, numbers, resume, start

from amortized_bayes.comparing import fitting
from amortized_bayes.experiments import tune
from amortized_bayes.experiments.tune import SHARED, rates_tried, with_winners
from amortized_bayes.guides import registry
from amortized_bayes.guides.registry import GUIDES
from amortized_bayes.results.rows import to_frame
from amortized_bayes.types import Row

TUNED = [guide for guide, entry in GUIDES.items() if entry.tuned_over]


def trial(guide, rates, value, dataset="digits"):
    """A row of a trial; without a value it failed."""
    factors = {"dataset": dataset, "guide": guide, "shared_rate": rates[0], "local_rate": rates[1]}
    if value is None:
        return Row("tune", factors, 7, 0.1, "failure", None, status="failed", note="diverged")
    return Row("tune", factors, 10, 1.0, "tune_elbo", value, 0.1, "points")


def frame_of(*rows):
    return to_frame({**row._asdict(), "factors": dict(row.factors)} for row in rows)


def others(guide, datasets=("digits",)):
    return [trial(other, (0.004, 0.002), -1.0, data) for other in TUNED if other != guide for data in datasets]


def test_every_guide_has_as_many_trials():
    assert TUNED == ["constant", "amortized", "factorized"]
    grids = {guide: rates_tried(guide) for guide in TUNED}
    assert {len(set(pairs)) for pairs in grids.values()} == {9}
    assert {tuple(sorted({pair.shared for pair in pairs})) for pairs in grids.values()} == {SHARED}


def test_the_best_mean_over_data_sets_wins():
    rows = [
        *(trial("constant", (0.004, 0.002), v, d) for d, v in (("digits", -1.0), ("mnist", -100.0))),
        *(trial("constant", (0.008, 0.004), v, d) for d, v in (("digits", -20.0), ("mnist", -70.0))),
    ]
    config = replace(TINY, dataset=("digits", "mnist"), tune=True)
    chosen = with_winners(config, frame_of(*rows, *others("constant", config.dataset)))
    assert chosen.rates_constant == (0.008, 0.004)
    assert not chosen.tune


def test_a_local_rate_that_failed_anywhere_is_out():
    rows = [
        trial("factorized", (0.016, 0.2), 50.0, "digits"),
        trial("factorized", (0.016, 0.2), None, "mnist"),
        trial("factorized", (0.008, 0.2), 40.0, "digits"),
        *(trial("factorized", (0.004, 0.05), -10.0, d) for d in ("digits", "mnist")),
    ]
    config = replace(TINY, dataset=("digits", "mnist"))
    chosen = with_winners(config, frame_of(*rows, *others("factorized", config.dataset)))
    assert chosen.rates_factorized == (0.004, 0.05)


def test_a_local_rate_that_diverged_in_any_trial_is_out():
    rows = [
        trial("amortized", (0.004, 0.008), None),
        trial("amortized", (0.016, 0.008), 50.0),
        trial("amortized", (0.008, 0.004), -10.0),
    ]
    assert with_winners(TINY, frame_of(*rows, *others("amortized"))).rates_amortized == (0.008, 0.004)


def test_a_rate_that_fails_one_guide_is_not_out_for_another():
    rows = [trial("constant", (0.004, 0.004), None), trial("constant", (0.004, 0.008), -5.0)]
    rows += [trial("amortized", (0.016, 0.004), -1.0), trial("factorized", (0.004, 0.2), -1.0)]
    assert with_winners(TINY, frame_of(*rows)).rates_amortized == (0.016, 0.004)


def test_a_guide_without_a_pair_that_works_is_an_error():
    rows = [trial("amortized", (0.004, 0.002), None)]
    with pytest.raises(ValueError, match="rates that work for A-VI in every trial, got none"):
        with_winners(TINY, frame_of(*rows, *others("amortized")))


def test_a_guide_that_is_not_swept_is_not_asked_for():
    chosen = with_winners(replace(TINY, guides=("constant",)), frame_of(trial("constant", (0.008, 0.004), -1.0)))
    assert chosen.rates_constant == (0.008, 0.004)
    assert chosen.rates_amortized == TINY.rates_amortized


def test_winners_of_a_guide_that_was_added_are_kept(monkeypatch):
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    rows = [trial("prototypes", (0.016, 0.04), -1.0), trial("prototypes", (0.004, 0.02), -2.0)]
    config = replace(TINY, guides=("prototypes", "constant"), rates_others=(("prototypes", 1.0, 1.0),))
    chosen = with_winners(config, frame_of(*rows, *others("factorized")))
    assert chosen.rates_others == (("prototypes", 0.016, 0.04),)
    assert with_winners(config, frame_of(*rows, *others(""))).rates_constant == (0.004, 0.002)


def test_guides_with_the_rates_of_another_have_its_trials(tmp_path):
    """Per-point steps follow A-VI's answers, at A-VI's rates: these are tuned where it is not fitted."""
    guides = ("refined", "semi-amortized")
    trials = tune.jobs(replace(TINY_TRIALS, guides=guides), a_lab(tmp_path))
    again = tune.jobs(replace(TINY_TRIALS, guides=("amortized",)), a_lab(tmp_path))
    assert [job.factors for job in trials] == [job.factors for job in again]
    rows = [trial("amortized", (0.016, 0.004), -5.0), trial("amortized", (0.032, 0.004), -9.0)]
    chosen = with_winners(replace(TINY, guides=guides), frame_of(*rows))
    assert chosen.rates_amortized == (0.016, 0.004)
    assert chosen.rates_others == ()


def test_guides_without_rates_to_try_are_refused_in_a_line(tmp_path, monkeypatch, refused):
    """A run of no jobs would end as one whose jobs all failed. Beside others such a guide keeps its rates."""
    for name, like in (("plain", ""), ("alike", "plain")):
        monkeypatch.setitem(registry.GUIDES, name, replace(GUIDES["amortized"], tuned_over=(), like=like))
    found = refused("tune", "--guides", "plain", "alike", "--out", tmp_path)
    words = "expected --guides with learning rates to try, such as constant, amortized, factorized, got plain, alike"
    assert words in found
    assert list(tmp_path.iterdir()) == []
    assert tune.tuned(("plain", "constant")) == ("constant",)
    assert tune.config_of(replace(TINY, guides=("plain", "constant"))).guides == ("plain", "constant")


@pytest.fixture
def _few_trials(monkeypatch):
    """A pair that works and one that cannot, for each guide."""
    monkeypatch.setattr(tune, "SHARED", (4e-3,))
    for guide in TUNED:
        monkeypatch.setitem(registry.GUIDES, guide, replace(GUIDES[guide], tuned_over=(4e-3, 1e6)))


@pytest.mark.usefixtures("_few_trials")
@pytest.mark.slow
def test_trials_are_recorded_failures_too_and_go_on(tmp_path):
    def cut(job, stage, done):
        if "A-VI, k = 2" in job:
            raise KeyboardInterrupt

    whole = start(tmp_path / "whole", TINY_TRIALS, "tune").rows()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, TINY_TRIALS, "tune", Listener(cut))
    assert list(latest(tmp_path, "tune").done().values()) == ["ok", "failed"]
    again = resume(tmp_path, "tune")
    frame = again.folder.rows()
    assert len(again.rows) == 6
    assert "seed" not in frame
    assert frame["k"].dropna().tolist() == [2, 2, 3, 3]  # the middle and the widest of 1, 2, 3
    assert (frame["status"] == "failed").tolist() == [False, True] * 4
    assert (frame.loc[frame["status"] == "failed", "metric"] == "failure").all()
    assert with_winners(TINY, frame).rates_factorized == (4e-3, 4e-3)
    frames = [rows.assign(epochs=None, share=None) for rows in (frame, whole)]
    assert numbers(frames[0]) == numbers(frames[1])


@pytest.mark.slow
def test_a_guide_that_was_added_is_tuned_on_two_widths(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    frame = start(tmp_path, replace(TINY_TRIALS, guides=("prototypes",)), "tune").rows()
    assert frame[["k", "local_rate"]].drop_duplicates().to_numpy().tolist() == [
        [2, 0.02],
        [2, 0.04],
        [3, 0.02],
        [3, 0.04],
    ]
    assert len(frame) == 4 * len(SHARED)


def test_rows_say_what_trials_climb(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "SHARED", (4e-3,))
    config = replace(TINY_TRIALS, guides=("constant",), objective="iwae", num_particles=5, decoder="point")
    frame = start(tmp_path, config, "tune").rows()
    told = frame[["objective", "num_particles", "decoder", "likelihood"]].drop_duplicates().to_numpy().tolist()
    assert told == [["iwae", 5, "point", "bernoulli"]]


def test_trials_take_a_quarter_of_the_epochs(tmp_path, monkeypatch):
    steps = []
    real = fitting.train_kept
    monkeypatch.setattr(
        fitting, "train_kept", lambda training, count, *rest: steps.append(count) or real(training, count, *rest)
    )
    config = replace(TINY_TRIALS, guides=("constant",), epochs=12)
    jobs = tune.jobs(config, a_lab(tmp_path))
    list(jobs[0].run())
    assert steps == [6]  # three epochs of two batches
    assert jobs[0].work[0].amount == 6


def test_the_settings_of_trials_are_those_of_the_sweep():
    config = tune.config_of(replace(TINY, depth=3, likelihood="gaussian"))
    assert (config.depth, config.likelihood, config.widths) == (3, "gaussian", TINY.widths)
    assert type(config) is tune.Config
