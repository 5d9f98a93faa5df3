"""The experiments of *Inference Suboptimality* on few digits: rows, sharing, freezing, failures, resuming, tables."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_bayes.commands.drawing import draw_all
from amortized_bayes.commands.published import TABLE_4, published_row
from amortized_bayes.commands.tables import print_run
from amortized_bayes.experiments.point_bounds import choose, gap_of
from amortized_bayes.experiments.suboptimality import (
    FROZEN_PRESETS,
    SET_PRESETS,
    TOY_PRESETS,
    BoundsConfig,
    FrozenDecoderConfig,
    TestSetGapsConfig,
    ToyConfig,
    frozen_base,
    set_models,
    toy_base,
)

from amortized_bayes import cli
from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.experiments import encoders, frozen_decoder, set_gaps
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.forecast import forecast
from amortized_bayes.experiments.sweep import SettingError
from amortized_bayes.experiments.toy_posteriors import log_evidence_on_grid, run_toy
from amortized_bayes.experiments.trained import obtain
from amortized_bayes.inference.options import Divergence
from amortized_bayes.models import LinearGaussian
from amortized_bayes.results import RunFolder, list_runs

CPU = torch.device("cpu")
BOUNDS = BoundsConfig(particles=30, local_steps=10, flow_steps=3, chains=3, temperatures=4, simulated=3, flow_hidden=4)
SETS = TestSetGapsConfig(dataset=("digits",), epochs=1, points=6, bounds=BOUNDS, annealing=(False,))
FROZEN = FrozenDecoderConfig(
    dataset="digits", epochs=1, encoders=("linear", "small"), families=("gaussian", "auxiliary"), points=20,
    encoder_epochs=1, bounds=BOUNDS,
)  # fmt: skip
TOY = ToyConfig(dataset="digits", epochs=1, encoder_epochs=1, points=4, grid=24, steps=10)


def run(runner, config, place, experiment, name="run"):
    folder = RunFolder.create(place, experiment, to_mapping(config), {"started": ""}, name)
    with folder:
        rows = list(runner(config, folder, out=place, device=CPU))
        folder.finish()
    return folder, rows


# test-set-gaps --------------------------------------------------------------------------------------------------------


def test_gaps_of_models_are_those_of_their_points(tmp_path, capsys):
    folder, rows = run(set_gaps.run_set_gaps, SETS, tmp_path, "test-set-gaps")
    assert {row.guide for row in rows} == {"gaussian", "auxiliary"}
    arrays = folder.load_arrays("digits_auxiliary_standard_plain_seed0")
    found = {row.metric: row for row in rows if row.guide == "auxiliary"}
    log_p = max((arrays["ais"], arrays["iwae"]), key=np.mean)
    np.testing.assert_allclose(found["approximation_gap"].value, np.mean(log_p - arrays["best_auxiliary"]))
    own = arrays["best_auxiliary"] - arrays["elbo"]
    np.testing.assert_allclose(found["amortization_gap"].value, own.mean())
    np.testing.assert_allclose(found["amortization_gap"].standard_error, own.std(ddof=1) / math.sqrt(len(own)))
    print_run(folder)
    assert "L(q*AF)" in capsys.readouterr().out
    assert all(path.stat().st_size > 2_000 for path in draw_all(folder, folder.rows(), tmp_path / "figures"))


def test_models_are_trained_once_and_shared(tmp_path):
    wanted = set_models(replace(SETS, families=("gaussian",)))[0]
    first = obtain(wanted, tmp_path, device=CPU)
    trained = [info.name for info in list_runs(tmp_path) if info.experiment == "train"]
    assert len(trained) == 1
    second = obtain(wanted, tmp_path, device=CPU)
    assert all(map(torch.equal, first.guide.parameters(), second.guide.parameters()))
    assert [info.name for info in list_runs(tmp_path) if info.experiment == "train"] == trained


def test_a_model_that_diverges_is_recorded_and_the_rest_go_on(tmp_path, monkeypatch, capsys):
    real = set_gaps.best_bounds

    def poisoned(model, guide, *rest):
        if "Flow" in type(guide).__name__:
            raise Divergence(7, math.nan)
        return real(model, guide, *rest)

    monkeypatch.setattr(set_gaps, "best_bounds", poisoned)
    bounds = replace(BOUNDS, best_families=("gaussian", "auxiliary"))
    config = replace(SETS, families=("auxiliary", "gaussian"), bounds=bounds)
    folder, rows = run(set_gaps.run_set_gaps, config, tmp_path, "test-set-gaps")
    failed = [row for row in rows if row.status == "failed"]
    assert [(row.guide, row.step, row.value) for row in failed] == [("auxiliary", 7, None)]
    assert any(row.metric == "inference_gap" and row.guide == "gaussian" for row in rows)
    print_run(folder)
    assert "failed" in capsys.readouterr().out
    assert draw_all(folder, folder.rows(), tmp_path / "figures")


def test_resuming_keeps_finished_models(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, "test-set-gaps", to_mapping(SETS), {"started": ""}, "run")
    with folder:
        rows = set_gaps.run_set_gaps(SETS, folder, out=tmp_path, device=CPU)
        first = next(row for row in rows if row.metric == "certificate_gap")
        next(rows)  # of the second model
        rows.close()
    assert first.guide == "gaussian"
    called = []
    real = set_gaps.best_bounds
    monkeypatch.setattr(set_gaps, "best_bounds", lambda *given: called.append(1) or real(*given))
    with folder:
        again = list(set_gaps.run_set_gaps(SETS, folder, out=tmp_path, device=CPU))
        folder.finish()
    assert len(called) == 1
    assert {row.guide for row in again} == {"auxiliary"}


def test_annealed_models_anneal_the_papers_part():
    models = set_models(replace(SETS, annealing=(True, False), epochs=60))
    assert [m.entropy_annealing for m in models] == [7, 0, 7, 0]
    assert [m.family for m in models] == ["gaussian", "gaussian", "auxiliary", "auxiliary"]
    assert all(m.kl_warm_up == 0 for m in models)


# frozen-decoder -------------------------------------------------------------------------------------------------------


def test_no_parameter_of_a_frozen_decoder_moves(tmp_path):
    trained = obtain(frozen_base(FROZEN), tmp_path, device=CPU)
    before = {name: p.clone() for name, p in trained.model.named_parameters()}
    for family in ("gaussian", "auxiliary", "realnvp-contextual"):
        guide = fit_encoder(trained, replace(trained.config, encoder="small", family=family), 1, 1e-2)
        moved = [p for p in guide.parameters() if p.abs().sum() > 0]
        assert moved
    assert before
    assert all(torch.equal(p, before[name]) for name, p in trained.model.named_parameters())


def test_early_stopping_of_encoders_looks_at_validation_images_alone(tmp_path, monkeypatch):
    trained = obtain(frozen_base(FROZEN), tmp_path, device=CPU)
    seen = []
    real = encoders.elbo
    monkeypatch.setattr(encoders, "elbo", lambda m, g, x, **options: seen.append(x) or real(m, g, x, **options))
    fit_encoder(trained, replace(trained.config, encoder="small"), 2, 1e-3)
    assert seen
    assert all(torch.equal(x, trained.data.validation.float()) for x in seen)
    everything = {tuple(row) for row in trained.data.train.tolist()}
    assert len(everything & {tuple(row) for row in trained.data.validation.tolist()}) < 5  # by chance alone


def test_encoders_share_what_belongs_to_the_decoder(tmp_path, capsys):
    folder, rows = run(frozen_decoder.run_frozen_decoder, FROZEN, tmp_path, "frozen-decoder")
    shared = folder.load_arrays("shared")
    log_p = max((shared["ais"], shared["iwae"]), key=np.mean)
    for family in FROZEN.families:
        gaps = {row.model: row.value for row in rows if row.metric == "approximation_gap" and row.guide == family}
        assert set(gaps) == {"linear encoder", "small encoder"}
        np.testing.assert_allclose(list(gaps.values()), (log_p - shared[f"best_{family}"]).mean())
    by_class = [row for row in rows if row.metric.startswith("class") and row.model == "linear encoder"]
    assert by_class
    print_run(folder)
    said = capsys.readouterr().out
    assert "Table 4" in said
    assert "s.e." in said
    assert all(path.stat().st_size > 2_000 for path in draw_all(folder, folder.rows(), tmp_path / "figures"))


# toy-posteriors -------------------------------------------------------------------------------------------------------


def test_evidence_on_the_grid_is_exact(float64):
    generator = torch.Generator().manual_seed(0)
    model = LinearGaussian(torch.randn(4, 2, generator=generator), torch.randn(4, generator=generator), 0.6)
    x = torch.randn(5, 4, generator=generator)
    grid = log_evidence_on_grid(SimpleNamespace(model=model), x, 200)
    np.testing.assert_allclose(grid.log_p, model.log_evidence(x), atol=1e-3)
    np.testing.assert_allclose(grid.mean, model.posterior(x).mean, atol=1e-3)
    variance = model.posterior(x).covariance_matrix.diagonal(dim1=-2, dim2=-1)
    np.testing.assert_allclose(grid.scale, variance.sqrt().expand(5, 2), rtol=1e-2)
    areas = (grid.axes[:, 0, 1] - grid.axes[:, 0, 0]) * (grid.axes[:, 1, 1] - grid.axes[:, 1, 0])
    np.testing.assert_allclose(grid.density.sum((1, 2)) * areas, 1)


class TwoFarModes(torch.nn.Module):
    """The first latent enters by its square: the posterior has two modes, far apart."""

    def forward(self, x, index=None):
        with pyro.plate("data", len(x), subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.05).to_event(1), obs=x)


def test_evidence_counts_modes_far_from_each_other(float64):
    """At x = (4, 0) the two modes are z = ±2 and each has half of the mass: p(x) is a product of two integrals."""
    x = torch.tensor([[4.0, 0.0]])
    grid = log_evidence_on_grid(SimpleNamespace(model=TwoFarModes()), x, 800)
    z = torch.linspace(-5, 5, 200_001)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    parts = [prior + torch.distributions.Normal(z.square(), 0.05).log_prob(value) for value in x[0]]
    exact = sum(part.logsumexp(0).item() + math.log(1e-4 / 2) for part in parts)
    np.testing.assert_allclose(grid.log_p, exact, atol=0.02)
    np.testing.assert_allclose(grid.mean, 0, atol=1e-6)


def test_toy_posteriors_leave_draws_and_gaps(tmp_path, capsys):
    folder, rows = run(run_toy, TOY, tmp_path, "toy-posteriors")
    assert {(row.guide, row.metric) for row in rows} == {
        (family, metric) for family in TOY.families for metric in ("amortized_gap", "best_gap")
    }
    assert folder.load_arrays("best_auxiliary")["draws"].shape == (20_000, 4, 2)
    print_run(folder)
    assert "best loses" in capsys.readouterr().out
    assert all(path.stat().st_size > 2_000 for path in draw_all(folder, folder.rows(), tmp_path / "figures"))


# What they share ------------------------------------------------------------------------------------------------------


def test_gaps_pair_points_and_do_not_clip():
    values = {"ais": [-5.0, -7.0], "iwae": [-6.0, -6.5], "best_gaussian": [-6.0, -6.0], "elbo": [-6.5, -5.5]}
    found = {name: np.array(v) for name, v in values.items()} | {f"{name}_error": np.full(2, 0.1) for name in values}
    gaps = gap_of(found, "gaussian")
    np.testing.assert_allclose(gaps["approximation_gap"].value, [1.0, -1.0])
    np.testing.assert_allclose(gaps["amortization_gap"].value, [0.5, -0.5])
    assert gaps["approximation_gap"].num_flagged == 1


def test_points_are_chosen_by_seed():
    images = torch.zeros(50, 3)
    assert len(set(choose(images, 10, 0))) == 10
    np.testing.assert_array_equal(choose(images, 10, 0), choose(images, 10, 0))
    assert list(choose(images, 10, 0)) != list(choose(images, 10, 1))


def test_published_rows_are_consistent():
    """Gaps of a row agree with its bounds within rounding, as a slip in copying would not; one row is printed so."""
    odd = []
    for family in ("gaussian", "auxiliary"):
        for dataset in ("binarized-mnist", "fashion-mnist"):
            for encoder, annealed in (("standard", True), ("wide", True), ("standard", False)):
                row = published_row(dataset, family, encoder, annealed=annealed)
                assert row is not None
                best = row.best_gaussian if family == "gaussian" else row.best_auxiliary
                errors = [row.log_p - best - row.approximation_gap, best - row.elbo - row.amortization_gap]
                if max(map(abs, errors)) > 0.021:
                    odd.append((family, dataset, encoder, annealed))
    assert odd == [("auxiliary", "fashion-mnist", "standard", False)]
    assert published_row("digits", "gaussian", "standard", annealed=True) is None
    assert set(TABLE_4) == {"gaussian", "auxiliary", "realnvp"}


def test_bases_of_presets():
    for preset, batch in (("quick", 250), ("paper", 100)):
        for base in (frozen_base(FROZEN_PRESETS[preset]), toy_base(TOY_PRESETS[preset])):
            assert (base.batch_size, base.entropy_annealing) == (batch, 0)
        assert {m.batch_size for m in set_models(SET_PRESETS[preset])} == {batch}


@pytest.mark.parametrize("presets", [SET_PRESETS, FROZEN_PRESETS, TOY_PRESETS])
def test_presets_come_back_from_yaml(tmp_path, presets):
    import yaml

    for setting in presets.values():
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(setting)))
        assert load_config(type(setting), tmp_path / "config.yaml") == setting


def test_forecast_grows_with_the_work(tmp_path):
    little, _ = forecast(SETS, tmp_path, CPU, None)
    much, on_gpu = forecast(replace(SETS, epochs=2_000), tmp_path, CPU, None)
    assert 0 < little < much
    assert on_gpu > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ()}, "--families"),
        ({"points": 1}, "--points of 2 or more, got 1"),
        ({"annealing": (True, True)}, "--annealing"),
        ({"learning_rate": -1.0}, "--learning-rate above 0"),
        ({"families": ("spline",)}, "--families among those of --best-families .*, got 'spline'"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(SettingError, match=message):
        replace(SETS, **change)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("test-set-gaps", "--points", "1"), "expected --points of 2 or more, got 1"),
        (("test-set-gaps", "--chains", "1"), "expected --chains of 2 or more, got 1"),
        (("frozen-decoder", "--best-families", "auxiliary"), "start with gaussian"),
        (("toy-posteriors", "--grid", "2"), "expected --grid of 20 or more, got 2"),
        (("toy-posteriors", "--preset", "fast"), "expected --preset quick or paper, got 'fast'"),
        (("frozen-decoder", "--resume", "nothing"), "got 'nothing'"),
    ],
)
def test_bad_flags_get_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main([*flags])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())
