"""``qstar``: every search is kept, compared with the reference, and none is done twice."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from wing import CPU, TINY, QuickLab, cut, go, one, only, resume, stop_at, values

from amortized_bayes.experiments import searching
from amortized_bayes.experiments.qstar import Config, jobs
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.results import find_run

FEW = Config(
    points=6,
    restarts=2,
    spreads=(0.5, 2.0),
    budgets=(10, 20),
    samples=4,
    reference_steps=40,
    reference_samples=4,
    score=50,
)
SEARCHES = [(start, spread, budget) for budget in (10, 20) for start in ("encoder", "prior") for spread in (0.5, 2.0)]


@pytest.fixture(scope="module")
def run(trained_results, tmp_path_factory):
    out = tmp_path_factory.mktemp("qstar") / "results"
    shutil.copytree(trained_results, out)
    return go("qstar", FEW, out)


def key_of(start, spread=None, budget=40):
    moved = {} if spread is None else {"spread": spread}
    return job_key({**model_factors(TINY), "start": start, **moved, "budget": budget})


def test_all_searches_are_done_and_kept(run):
    assert len(run.done()) == 9
    reference = run.load_arrays(key_of("reference"))
    assert reference["elbo_star"].shape == (1, 6)
    for search in SEARCHES:
        arrays = run.load_arrays(key_of(*search))
        for name in ("elbo_star", "error", "residual", "residual_error", "evaluations"):
            assert arrays[name].shape == (2, 6), (search, name)
            assert np.isfinite(arrays[name]).all()
        assert not np.array_equal(arrays["elbo_star"][0], arrays["elbo_star"][1])
        assert np.array_equal(arrays["places"], reference["places"])
    assert run.verify() == []


def test_the_summary_keeps_every_search(run):
    """All budgets, not the largest alone."""
    for rows in (run.rows(), pd.read_csv(run.path / "summary.csv")):
        found = rows[rows["metric"] == "behind_reference"]
        assert list(found[["start", "spread", "budget"]].itertuples(index=False, name=None)) == SEARCHES
        stars = rows[rows["metric"] == "elbo_star"]
        assert stars["budget"].tolist() == [40, 10, 10, 10, 10, 20, 20, 20, 20]
        assert stars["start"].tolist()[0] == "reference"
        assert stars["spread"].isna().tolist() == [True] + [False] * 8


def test_rows_of_searches_are_means_by_hand(run):
    rows = run.rows()
    reference = run.load_arrays(key_of("reference"))["elbo_star"][0]
    for start, spread, budget in SEARCHES:
        arrays = run.load_arrays(key_of(start, spread, budget))
        own = {"start": start, "spread": spread, "budget": budget}
        behind = [sum(float(reference[b] - arrays["elbo_star"][r, b]) for r in range(2)) / 2 for b in range(6)]
        mean = sum(behind) / 6
        row = one(rows, "behind_reference", **own)
        assert row["value"] == pytest.approx(mean)
        assert row["value"] == pytest.approx(reference.mean() - arrays["elbo_star"].mean(), abs=1e-9)
        assert row["standard_error"] == pytest.approx((sum((v - mean) ** 2 for v in behind) / 5 / 6) ** 0.5)
        for metric in ("elbo_star", "residual", "evaluations"):
            assert one(rows, metric, **own)["value"] == pytest.approx(arrays[metric].mean())
        apart = arrays["elbo_star"][0] - arrays["elbo_star"][1]
        variance = (apart**2 / 2 - (arrays["error"] ** 2).mean(0)).mean()
        assert one(rows, "restart_variance", **own)["value"] == pytest.approx(variance)
    assert only(rows, "behind_reference", start="reference").empty


@pytest.mark.slow
def test_a_better_search_is_less_far_behind(results):
    """Started at the encoder's answer with many steps, a search finds what the reference found."""
    config = replace(
        FEW, points=12, spreads=(0.5,), starts=("encoder",), budgets=(10, 400), samples=10, reference_steps=1_000,
        reference_samples=10, score=1_000,
    )  # fmt: skip
    rows = go("qstar", config, results).rows()
    behind = {budget: one(rows, "behind_reference", budget=budget) for budget in (10, 400)}
    assert abs(behind[400]["value"]) < 0.1
    assert behind[10]["value"] - behind[400]["value"] > 3 * behind[10]["standard_error"]


@pytest.mark.slow
def test_a_run_resumes_with_the_searches_that_are_left(results, run, monkeypatch):
    folder = cut("qstar", FEW, results, stop_at("q*", job="4/9"))
    done = folder.done()
    assert len(done) == 3
    kept = (folder.path / "rows.jsonl").read_bytes()
    made = []
    search = searching.search_points
    monkeypatch.setattr(searching, "search_points", lambda *a: made.append(a[2]) or search(*a))
    resume("qstar", results)
    assert [(s.start, s.spread, s.budget) for s in made] == SEARCHES[2:]
    assert (folder.path / "rows.jsonl").read_bytes().startswith(kept)
    assert values(folder.rows()) == values(run.rows())


def test_searches_differ_in_their_keys_and_cheap_ones_come_first(results):
    path = find_run(results, "latest", "train")
    config = Config(str(path), spreads=(0.0, 0.25, 1e-3, 2.0))
    found = list(jobs(config, QuickLab(results, CPU)))
    assert len({job.key for job in found}) == len(found) == 1 + 4 * 2 * 4
    budgets = [job.factors["budget"] for job in found[1:]]
    assert budgets == sorted(budgets)
    assert all(job.after == [found[0].key] for job in found[1:])


@pytest.mark.slow
def test_other_splits_and_seeds_search_other_points(results, run):
    few = replace(FEW, budgets=(10,), spreads=(0.5,), starts=("encoder",))
    places = [run.load_arrays(key_of("reference"))["places"].tolist()]
    for config in (replace(few, split="test"), replace(few, seed=1)):
        folder = go("qstar", config, results)
        places.append(folder.load_arrays(key_of("reference"))["places"].tolist())
    assert places[0] != places[1] != places[2] != places[0]


@pytest.mark.slow
def test_a_model_whose_weights_are_random_is_searched_too(tmp_path):
    go("train", replace(TINY, decoder="bayesian", epochs=1, hidden=(4,)), tmp_path)
    folder = go("qstar", replace(FEW, spreads=(0.5,), budgets=(10,), starts=("encoder",)), tmp_path)
    assert set(folder.rows()["decoder"]) == {"bayesian"}
