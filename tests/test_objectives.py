"""Models trained by other objectives, and with per-point steps: told apart, kept, reused and measured."""

import shutil
from dataclasses import replace

import pytest
import torch
from test_gaps_experiment import FEW
from wing import CPU, TINY, go, loaded, only, uncaptured

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import sweep
from amortized_bayes.experiments.guide_fits import Place
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.setup import build_vae, vae_options
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.guides.registry import Fit
from amortized_bayes.inference.semi_amortized import SemiAmortized
from amortized_bayes.results import list_runs

KINDS = {
    "iwae": replace(TINY, objective="iwae", num_particles=4),
    "rws": replace(TINY, objective="rws", num_particles=4),
    "semi-amortized": replace(TINY, semi_amortized_steps=2),
}


@pytest.fixture(scope="module")
def runs(trained_results, tmp_path_factory):
    """A run of ``train`` for each, beside that of the plain model."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("objectives") / "results"
    shutil.copytree(trained_results, out)
    with uncaptured():
        return out, {name: go("train", config, out) for name, config in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow_cases("iwae")
def test_a_model_is_found_by_how_it_was_trained(runs, name):
    out, folders = runs
    lab = Lab(out, CPU)
    assert lab.find(KINDS[name]).path == folders[name].path
    assert list(folders[name].done()) == [job_key(model_factors(KINDS[name]))]
    others = {lab.find(config).path for config in KINDS.values()}
    assert len(others) == len(KINDS)
    assert lab.find(TINY) is None
    assert lab.find(replace(KINDS["iwae"], num_particles=5)) is None
    rows = folders[name].rows()
    for factor, value in model_factors(KINDS[name]).items():
        assert set(rows[factor]) == {value}


def test_each_is_trained_as_it_says(runs):
    trained = {name: loaded(folder) for name, folder in runs[1].items()}
    assert isinstance(trained["semi-amortized"].guide, SemiAmortized)
    assert trained["semi-amortized"].guide.model is trained["semi-amortized"].model
    assert trained["semi-amortized"].guide.steps == 2
    assert not isinstance(trained["iwae"].guide, SemiAmortized)
    states = [folder.load_tensors(next(iter(folder.done()))) for folder in runs[1].values()]
    networks = [state["model.network.0.weight"] for state in states]
    assert not any((networks[i] == networks[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))
    options = {name: vae_options(config) for name, config in KINDS.items()}
    assert [o.objective for o in options.values()] == ["iwae", "rws", "elbo"]
    assert [o.num_particles for o in options.values()] == [4, 4, 1]


@pytest.mark.parametrize("name", ["iwae", "semi-amortized"])
@pytest.mark.slow_cases("semi-amortized")
def test_gaps_measures_it(runs, name):
    out, folders = runs
    with uncaptured():
        run = go("gaps", replace(FEW, checkpoint=str(folders[name].path), splits=("test",)), out)
    rows = run.rows()
    for factor, value in model_factors(KINDS[name]).items():
        assert set(rows[factor]) == {value}
    assert only(rows, "amortization_gap")["value"].notna().all()


def test_a_table_names_what_is_unusual(runs, capsys):
    from amortized_bayes.labels import describe

    assert describe(model_factors(KINDS["iwae"])).endswith("objective iwae, particles 4, seed 0")
    assert len(list_runs(runs[0])) >= 4


def test_a_sweep_fits_by_the_objective(tmp_path):
    config = sweep.Config(dataset=("digits",), objective="iwae", num_particles=5, guides=("amortized",), widths=(4,))
    options = Place(config, Lab(tmp_path, CPU), "digits", 0).options(Fit("amortized", 4))
    assert (options.objective, options.num_particles) == ("iwae", 5)
    assert not options.annealed
    assert not options.local_reparametrization
    assert options.quadrature_nodes == 0
    assert sweep.factors(config).items() >= {"objective": "iwae", "num_particles": 5}.items()
    assert "objective" not in sweep.factors(replace(config, objective="elbo"))
    plain = Place(replace(config, objective="elbo"), Lab(tmp_path, CPU), "digits", 0).options(Fit("amortized", 4))
    assert (plain.objective, plain.num_particles, plain.annealed) == ("elbo", 1, True)
    with pytest.raises(SettingError, match="--decoder point with --objective rws"):
        replace(config, objective="rws")


@pytest.mark.slow
def test_a_sweep_by_the_importance_weighted_bound_runs(tmp_path):
    config = sweep.Config(
        dataset=("digits",),
        objective="iwae",
        num_particles=3,
        guides=("constant", "amortized", "factorized"),
        widths=(4,),
        epochs=2,
        rungs=1,
        num_train=60,
        num_test=20,
        batch_size=30,
        latent_dim=2,
        hidden=(4,),
        iwae_points=5,
        iwae_particles=20,
        predictive_points=5,
    )
    with uncaptured():
        rows = go("sweep", config, tmp_path).rows()
    assert set(rows["status"]) <= {"ok", "vacuous"}
    assert set(only(rows, "final_elbo")["guide"]) == {
        "constant",
        "amortized",
        "factorized",
        "factorized-from-amortized",
    }


def test_a_semi_amortized_guide_starts_as_the_plain_one(tmp_path):
    data = Lab(tmp_path, CPU).images(TINY)
    _, plain = build_vae(TINY, data)
    model, guide = build_vae(KINDS["semi-amortized"], data)
    assert guide.model is model
    for name, value in plain.state_dict().items():
        assert torch.equal(guide.state_dict()[f"guide.{name}"], value)
