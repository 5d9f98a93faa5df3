"""``frozen-decoder`` and ``decoder-capacity``: the decoder stays as it is, and what belongs to it is measured once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import BOUNDS, CPU, TINY, QuickLab, cut, go, loaded, one, only, resume, stop_at, values

from amortized_bayes.divergence import Divergence
from amortized_bayes.experiments import bounds, encoders
from amortized_bayes.experiments.bounds import GAPS
from amortized_bayes.experiments.decoder_capacity import Config as CapacityConfig
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.frozen_decoder import Config
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.results import RunFolder, find_run, list_runs

MODEL = replace(TINY, early_stopping=True, epochs=4, learning_rate=1e-2)
FEW = Config(
    model=MODEL,
    encoders=("linear", "small"),
    families=("gaussian", "planar"),
    encoder_epochs=1,
    points=20,
    bounds=replace(BOUNDS, best_families=("gaussian", "planar", "auxiliary")),
)
PLAIN = replace(FEW, families=("gaussian",), points=6, bounds=BOUNDS)
FACTORS = {"dataset": "digits", "seed": 0}
DECODER = job_key(FACTORS, "decoder")


def key_of(family, encoder):
    return job_key({**FACTORS, "encoder": encoder, "family": family})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return go("frozen-decoder", FEW, tmp_path_factory.mktemp("frozen"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is cut and resumed below, as it is where nothing happens."""
    torch.set_num_threads(1)
    return go("frozen-decoder", PLAIN, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def trained(run):
    return loaded(RunFolder.open(find_run(run.path.parents[1], "latest", "train")))


def test_no_parameter_of_a_frozen_decoder_moves(trained, tmp_path):
    before = {name: p.clone() for name, p in trained.model.named_parameters()}
    for family in ("gaussian", "auxiliary", "realnvp-contextual"):
        wanted = replace(MODEL, encoder="linear", family=family)
        guide = fit_encoder(trained, replace(wanted, epochs=1), QuickLab(tmp_path, CPU))
        assert any(p.abs().sum() > 0 for p in guide.parameters())
    assert before
    assert all(torch.equal(p, before[name]) for name, p in trained.model.named_parameters())


def test_early_stopping_of_encoders_looks_at_validation_images_alone(trained, tmp_path, monkeypatch):
    seen = []
    real = encoders.elbo
    monkeypatch.setattr(encoders, "elbo", lambda m, g, x, **options: seen.append(x) or real(m, g, x, **options))
    fit_encoder(trained, replace(MODEL, encoder="linear", epochs=2), QuickLab(tmp_path, CPU))
    assert seen
    assert all(torch.equal(x, trained.data.validation.float()) for x in seen)
    everything = {tuple(row) for row in trained.data.train.tolist()}
    assert len(everything & {tuple(row) for row in trained.data.validation.tolist()}) < 5  # by chance alone


def test_encoders_share_what_belongs_to_the_decoder(run):
    rows, shared = run.rows(), run.load_arrays(DECODER)
    assert set(run.done().values()) == {"ok"}
    log_p = max((shared["log_p_lower"], shared["iwae"]), key=np.mean)
    elbos = []
    for family in FEW.families:
        best = shared[f"elbo_star_{family}"]
        for encoder in FEW.encoders:
            own, arrays = {"family": family, "encoder": encoder}, run.load_arrays(key_of(family, encoder))
            found = {name: one(rows, name, label=None, **own)["value"] for name in GAPS}
            assert found["approximation_gap"] == pytest.approx((log_p - best).mean())
            assert found["amortization_gap"] == pytest.approx((best - arrays["elbo"]).mean())
            assert found["inference_gap"] == pytest.approx((log_p - arrays["elbo"]).mean())
            assert one(rows, "elbo", **own)["value"] == pytest.approx(arrays["elbo"].mean())
            elbos.append(arrays["elbo"].mean())
    assert len(set(elbos)) == 4


def test_rows_hold_the_best_q_of_every_family_that_was_searched(run):
    stars = only(run.rows(), "elbo_star")
    assert stars["searched"].tolist() == ["gaussian", "planar", "auxiliary"]
    assert stars[["family", "encoder"]].isna().all(axis=None)
    for name in ("log_p_lower", "iwae", "certificate_gap"):
        assert len(only(run.rows(), name)) == 1


def test_points_of_training_are_measured_with_their_labels(run, trained):
    shared = run.load_arrays(DECODER)
    np.testing.assert_array_equal(shared["labels"], trained.data.source.train.labels[shared["places"]])
    assert len(np.unique(shared["places"])) == 20
    assert shared["places"].max() < len(trained.data.train)
    rows = run.rows()
    arrays = run.load_arrays(key_of("planar", "linear"))
    labels, counts = np.unique(shared["labels"], return_counts=True)
    by_class = rows[rows["label"].notna()]
    assert len(by_class) == 4 * 3 * (counts > 1).sum() > 0
    for label in labels[counts > 1]:
        for name in GAPS:
            row = one(by_class, name, family="planar", encoder="linear", label=label)
            assert row["value"] == pytest.approx(arrays[name][shared["labels"] == label].mean())


# Failures and interruptions -------------------------------------------------------------------------------------------


def test_a_model_that_diverges_fails_every_job_and_the_run_finishes(tmp_path):
    config = replace(PLAIN, model=replace(MODEL, learning_rate=100.0, epochs=10))
    folder = go("frozen-decoder", config, tmp_path)
    assert folder.finished
    assert folder.verify() == []
    assert set(folder.done().values()) == {"failed"}
    rows = folder.rows()
    assert set(rows["metric"]) == {"failure"}
    assert len(rows) == 3
    assert rows["note"].str.contains("loss of ").all()
    assert (rows["step"] > 0).all()
    (train,) = (info for info in list_runs(tmp_path) if info.experiment == "train")
    assert train.status == "failed"
    again = go("frozen-decoder", config, tmp_path)  # which trains nothing anew to fail again
    assert set(again.done().values()) == {"failed"}
    assert sum(info.experiment == "train" for info in list_runs(tmp_path)) == 1


@pytest.mark.slow
def test_an_encoder_that_diverges_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    real = encoders.fit_encoder

    def poisoned(trained, wanted, *rest):
        if wanted.encoder == "linear":
            raise Divergence(7, math.nan)
        return real(trained, wanted, *rest)

    monkeypatch.setattr(encoders, "fit_encoder", poisoned)
    folder = go("frozen-decoder", PLAIN, tmp_path)
    assert folder.done() == {DECODER: "ok", key_of("gaussian", "linear"): "failed", key_of("gaussian", "small"): "ok"}
    failed = only(folder.rows(), "failure")
    assert failed[["encoder", "step"]].to_numpy().tolist() == [["linear", 7]]


def test_encoders_of_a_decoder_whose_bounds_failed_fail_too(tmp_path, monkeypatch):
    def poisoned(*_):
        raise Divergence(3, math.inf)

    monkeypatch.setattr(bounds, "shared_bounds", poisoned)
    folder = go("frozen-decoder", PLAIN, tmp_path)
    assert folder.finished
    assert set(folder.done().values()) == {"failed"}
    assert only(folder.rows(), "failure")["note"].tolist()[1:] == [f"{DECODER} failed"] * 2


@pytest.mark.slow
def test_resuming_keeps_the_decoders_bounds_and_finished_encoders(tmp_path, plain, monkeypatch):
    folder = cut("frozen-decoder", PLAIN, tmp_path, stop_at("encoder", job="3/3"))
    assert len(folder.done()) == 2
    monkeypatch.setattr(bounds, "shared_bounds", None)  # nobody calls it
    resume("frozen-decoder", tmp_path)
    assert values(folder.rows()) == values(plain.rows())


@pytest.mark.slow
def test_bounds_that_were_lost_are_no_failure(tmp_path, plain):
    """A file that is missing is made again; no encoder fails for it."""
    folder = cut("frozen-decoder", PLAIN, tmp_path, stop_at("encoder", job="3/3"))
    (folder.path / "arrays" / f"{DECODER}.npz").unlink()
    resume("frozen-decoder", tmp_path)
    assert values(folder.rows()) == values(plain.rows())
    assert set(folder.done().values()) == {"ok"}


# decoder-capacity -----------------------------------------------------------------------------------------------------


def test_decoders_of_each_depth_are_trained_and_measured(tmp_path):
    config = CapacityConfig(replace(TINY, epochs=1), layers=(0, 2), points=6, bounds=BOUNDS)
    folder = go("decoder-capacity", config, tmp_path)
    rows = folder.rows()
    hidden = [loaded(RunFolder.open(i.path)).config.hidden for i in list_runs(tmp_path) if i.experiment == "train"]
    assert hidden == [(), (16, 16)]
    for layers in (0, 2):
        arrays = folder.load_arrays(job_key({**FACTORS, "decoder_layers": layers}))
        log_p = max((arrays["log_p_lower"], arrays["iwae"]), key=np.mean)
        gap = log_p - arrays["elbo_star_gaussian"]
        assert one(rows, "approximation_gap", decoder_layers=layers)["value"] == pytest.approx(gap.mean())
        assert one(rows, "elbo_star", decoder_layers=layers)["searched"] == "gaussian"
        for name in ("log_p_lower", "iwae", "elbo", "certificate_gap"):
            assert len(only(rows, name, decoder_layers=layers)) == 1
