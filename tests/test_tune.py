"""Learning rates: the same budget for each family, and the pair that is best over data sets."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from amortized_bayes.configuration import to_mapping
from amortized_bayes.experiments import tune as module
from amortized_bayes.experiments.sweep import Rates, SweepConfig
from amortized_bayes.experiments.tune import GRID, TUNING_SEED, num_trials, tune, with_winners
from amortized_bayes.results import RunFolder
from amortized_bayes.types import ROW_FIELDS, Row

CPU = torch.device("cpu")
TINY = SweepConfig(
    dataset=("digits",),
    widths=(1, 2, 3),
    hidden=(4,),
    latent_dim=2,
    epochs=2,
    batch_size=50,
    num_train=100,
    num_test=20,
)
TINY = replace(TINY, compile_step="off", tune=True)


def trial(family, rates, value, dataset="digits", status="ok", note=""):
    place = ("tune", dataset, "bayesian", family, None, TUNING_SEED, 10, 1.0, "tune_elbo")
    return Row(*place, value, 0.1, "points", status, rates + note)


def frame_of(*rows):
    return pd.DataFrame(rows, columns=pd.Index(ROW_FIELDS)).astype({"k": "Int64", "value": "float64"})


def others(family, datasets=("digits",)):
    families = (f for f in GRID if f != family)
    return [trial(f, "0.004 0.002", -1.0, d) for f in families for d in datasets]


def test_every_family_has_as_many_trials():
    assert {len(pairs) for pairs in GRID.values()} == {9}
    assert all(len(set(pairs)) == 9 for pairs in GRID.values())
    assert {tuple(sorted({p.shared for p in pairs})) for pairs in GRID.values()} == {module.SHARED}


def test_the_best_mean_over_data_sets_wins():
    rows = [
        *(trial("constant", "0.004 0.002", v, d) for d, v in (("digits", -1.0), ("mnist", -100.0))),
        *(trial("constant", "0.008 0.004", v, d) for d, v in (("digits", -20.0), ("mnist", -70.0))),
    ]
    config = replace(TINY, dataset=("digits", "mnist"))
    chosen = with_winners(config, frame_of(*rows, *others("constant", config.dataset)))
    assert chosen.rates_constant == (0.008, 0.004)
    assert not chosen.tune


def test_a_pair_that_failed_anywhere_is_out():
    rows = [
        trial("factorized", "0.016 0.2", 50.0, "digits"),
        trial("factorized", "0.016 0.2", None, "mnist", "failed"),
        *(trial("factorized", "0.004 0.05", -10.0, d) for d in ("digits", "mnist")),
    ]
    config = replace(TINY, dataset=("digits", "mnist"))
    chosen = with_winners(config, frame_of(*rows, *others("factorized", config.dataset)))
    assert chosen.rates_factorized == (0.004, 0.05)


def test_a_local_rate_that_diverged_in_any_trial_is_out():
    rows = [
        trial("amortized", "0.004 0.008", None, status="failed"),
        trial("amortized", "0.016 0.008", 50.0),
        trial("amortized", "0.008 0.004", -10.0),
    ]
    assert with_winners(TINY, frame_of(*rows, *others("amortized"))).rates_amortized == (0.008, 0.004)


def test_a_family_without_a_pair_that_works_is_an_error():
    rows = [trial("amortized", "0.004 0.002", None, status="failed")]
    with pytest.raises(ValueError, match="work for amortized VI in every trial, got none"):
        with_winners(TINY, frame_of(*rows, *others("amortized")))


def test_notes_about_the_data_do_not_part_the_pairs():
    rows = [trial("constant", "0.004 0.002", v, note="; digits stand in") for v in (-3.0,)]
    chosen = with_winners(TINY, frame_of(*rows, *others("constant")))
    assert chosen.rates_constant == (0.004, 0.002)


def test_trials_are_recorded_failures_too_and_go_on(tmp_path, monkeypatch):
    grid = {f: [Rates(4e-3, 4e-3), Rates(1e6, 1e6)] for f in GRID}
    monkeypatch.setattr(module, "GRID", grid)
    folder = RunFolder.create(tmp_path, "tune", to_mapping(TINY), {})
    with folder:
        first = [row for row, _ in zip(tune(TINY, folder, device=CPU, note="a note"), range(2), strict=False)]
    with folder:
        rest = list(tune(TINY, folder, device=CPU, note="a note"))
    assert len(first) == 2
    frame = folder.rows()
    assert len(frame) == num_trials(TINY) == 8
    assert len(rest) in (5, 6)
    assert set(frame["seed"]) == {TUNING_SEED}
    assert frame[frame["guide"] == "amortized"]["k"].tolist() == [2, 2, 3, 3]
    assert (frame["status"] == "failed").tolist() == [False, True] * 4
    assert frame["note"].str.endswith("; a note").all()
    assert with_winners(TINY, frame).rates_factorized == (4e-3, 4e-3)
