"""Models and data are shared: trained once for all experiments, read once per process."""

from dataclasses import fields, replace

import pytest
from wing import BOUNDS, TINY, go

from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.experiments import EXPERIMENTS, decoder_capacity, experiment, frozen_decoder, lab, model_gaps
from amortized_bayes.experiments.settings import VAE_PRESETS, same_model
from amortized_bayes.experiments.toy_posteriors import Config as ToyConfig
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder, list_runs

MODEL = replace(TINY, early_stopping=True)


@pytest.fixture
def reads(monkeypatch):
    """Data sets that are read from their files, in order."""
    seen = []
    read = lab.read_dataset
    monkeypatch.setattr(lab, "read_dataset", lambda name, **options: seen.append(name) or read(name, **options))
    return seen


@pytest.fixture
def steps(monkeypatch):
    """Steps of training, one entry each."""
    taken = []
    step = Training._step
    monkeypatch.setattr(Training, "_step", lambda self, done: taken.append(done) or step(self, done))
    return taken


def test_quick_presets_share_the_model_of_train():
    model = VAE_PRESETS["quick"]
    assert same_model(experiment("train").PRESETS["quick"], model)
    assert same_model(frozen_decoder.PRESETS["quick"].model, model)
    plain = [m for m in model_gaps.models(model_gaps.PRESETS["quick"]) if not m.entropy_annealing]
    assert [m.family for m in plain if same_model(m, model)] == ["gaussian"]
    capacity = decoder_capacity.PRESETS["quick"]
    assert capacity.model == model
    toy = experiment("toy-posteriors").PRESETS["quick"].model
    assert same_model(replace(toy, latent_dim=model.latent_dim), model)


@pytest.mark.slow
def test_an_experiment_trains_nothing_that_was_trained_before(tmp_path, steps):
    shared = {"dataset": MODEL.dataset, "epochs": MODEL.epochs, "batch_size": 250, "learning_rate": 2e-3}
    model = replace(VAE_PRESETS["quick"], **shared, encoder="standard")
    go("train", model, tmp_path)
    before = len(steps)
    assert before == 10  # two epochs of five batches
    config = model_gaps.Config(
        dataset=("digits",), families=("gaussian",), annealing=(False,), epochs=2, points=4, bounds=BOUNDS
    )
    (wanted,) = model_gaps.models(config)
    assert same_model(wanted, model)
    go("model-gaps", config, tmp_path)
    capacity = decoder_capacity.Config(model, layers=(2,), points=4, bounds=BOUNDS)
    go("decoder-capacity", capacity, tmp_path)
    assert len(steps) == before
    frozen = frozen_decoder.Config(model, ("linear",), ("gaussian",), encoder_epochs=1, points=4, bounds=BOUNDS)
    go("frozen-decoder", frozen, tmp_path)
    assert len(steps) == before + 5  # its encoder's own
    names = [info.experiment for info in list_runs(tmp_path)]
    assert names == ["train", "model-gaps", "decoder-capacity", "frozen-decoder"]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.slow_cases("3")
def test_a_run_reads_its_data_once(tmp_path, reads, seed):
    config = frozen_decoder.Config(
        replace(MODEL, seed=seed), ("linear", "small"), ("gaussian",), encoder_epochs=1, points=4, bounds=BOUNDS
    )
    folder = go("frozen-decoder", config, tmp_path)
    assert set(folder.done().values()) == {"ok"}
    assert reads == ["digits"]


@pytest.mark.slow
def test_measuring_a_model_reads_its_data_once(results, reads):
    config = experiment("qstar").Config(
        points=2, restarts=2, budgets=(10,), samples=4, reference_steps=10, reference_samples=4, score=2
    )
    go("qstar", config, results)
    assert reads == ["digits"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_presets_come_back_from_their_files(tmp_path, name):
    module = experiment(name)
    for preset, setting in module.PRESETS.items():
        folder = RunFolder.create(tmp_path, name, to_mapping(setting), {}, preset)
        assert load_config(module.Config, folder.path / "config.yaml") == setting
        assert "preset" not in {field.name for field in fields(setting)}


def test_batches_of_presets():
    for preset, batch in (("quick", 250), ("paper", 100)):
        assert experiment("train").PRESETS[preset].batch_size == batch
        assert {m.batch_size for m in model_gaps.models(model_gaps.PRESETS[preset])} == {batch}
        assert ToyConfig().model.batch_size == 250
    paper = frozen_decoder.PRESETS["paper"].model  # Table 4: tanh, batches of 20, KL warm-up, no annealing
    assert (paper.activation, paper.batch_size, paper.kl_warm_up, paper.entropy_annealing) == ("tanh", 20, 100, 0)
