"""Models by configuration: what a training run leaves, whatever happens to it on the way, and what decides about it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from amortized_bayes.commands.stages import StageProgress

from amortized_bayes import cli
from amortized_bayes.configuration import to_mapping
from amortized_bayes.data import load_dataset
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.experiments import trained
from amortized_bayes.experiments import training as training_run
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import ImageData, build_vae, load_vae_images, vae_options
from amortized_bayes.experiments.trained import find_trained, load_trained
from amortized_bayes.experiments.training import state_of, train
from amortized_bayes.inference.options import FitOptions, burda
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.types import ROW_FIELDS

CPU = torch.device("cpu")
TINY = VAEConfig(
    dataset="digits",
    encoder="small",
    latent_dim=3,
    hidden=(16,),
    epochs=2,
    batch_size=50,
    num_train=200,
    num_test=50,
)
FLAGS = [
    *("--dataset", "digits", "--encoder", "small", "--latent-dim", "3", "--hidden", "16", "--epochs", "2"),
    *("--batch-size", "50", "--num-train", "200", "--num-test", "50", "--device", "cpu"),
]


def vae_images(config):
    return load_vae_images(config, load_dataset(config.dataset, seed=config.seed), CPU)


def fit(out, config=TINY, name="run", **watching):
    """Train into a run of its own, to the end."""
    folder = RunFolder.create(out, "train", to_mapping(config), {"device": "cpu"}, name)
    with folder:
        rows = list(train(config, folder, device=CPU, **watching))
        folder.finish()
    return folder, rows


def cut(out, config, name="cut", **watching):
    """Train until something interrupts it."""
    with pytest.raises(KeyboardInterrupt):
        fit(out, config, name, **watching)
    return RunFolder.open(out / "train" / name)


def go_on(folder, config):
    with folder:
        rows = list(train(config, folder, device=CPU))
        folder.finish()
    return rows


def values(rows):
    """Numbers by metric and step, without times."""
    return {(r.metric, r.step): (r.value, r.standard_error) for r in rows if not r.metric.startswith("seconds")}


def assert_same_weights(one, other):
    first, second = one.load_tensors("model"), other.load_tensors("model")
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture
def refused(capsys):
    """Call a command and return the one line that says what is wrong."""

    def of(*arguments):
        assert call(*arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        return said

    return of


@pytest.fixture
def grey_file(tmp_path):
    """A user's file of grey images of 6 x 6, with a test part."""
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (240, 40))
    np.savez(tmp_path / "mine.npz", train=train, test=test)
    return tmp_path / "mine.npz"


# What a run leaves ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")
    return out, *fit(out)


def test_a_run_holds_rows_weights_and_its_mark(run):
    out, folder, rows = run
    frame = folder.rows()
    assert tuple(frame.columns) == ROW_FIELDS
    assert len(frame) == len(rows)
    assert set(frame["status"]) == {"ok"}
    assert set(frame["experiment"]) == {"train"}
    finals = {"final_elbo", "final_kl", "final_test_elbo", "final_test_kl", "final_iwae", "active_units"}
    assert finals | {"elbo", "kl", "test_elbo", "seconds_per_step"} == set(frame["metric"])
    assert (frame["metric"] == "final_elbo").sum() == 1
    assert sorted(frame[frame["metric"] == "elbo"]["step"]) == list(range(1, 9))  # fewer steps than looks: all of them
    names = {f"model.network.{i}.{what}" for i in (0, 1) for what in ("weight", "bias")}
    names |= {f"guide.encoder.{i}.{what}" for i in (0, 1) for what in ("weight", "bias")}
    tensors = folder.load_tensors("model")
    assert set(tensors) == names
    assert tensors["guide.encoder.1.weight"].shape == (6, 100)
    assert folder.load_metadata("model") == {"model": "VAE, small encoder"}
    assert folder.verify() == []
    finished = json.loads((folder.path / "FINISHED").read_text())["sha256"]
    assert {"config.yaml", "rows.jsonl", "summary.csv", "checkpoints/model.safetensors"} <= set(finished)
    assert [(i.status, i.num_fits) for i in list_runs(out)] == [("finished", 1)]


def spread_of_elbo(config, model, guide, images, num_data):
    """Mean over points of single-draw ELBOs: its mean over draws, and its standard deviation."""
    local = config.decoder == "bayesian" and config.network == "dense"
    index = torch.arange(len(images))
    options = {"num_draws": 1, "num_data": num_data, "local_reparametrization": local}
    found = torch.stack([elbo(model, guide, images.float(), index, **options).value.mean() for _ in range(30)])
    return found.mean().item(), found.std().item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": "convolutional", "epochs": 1},
        {"decoder": "bayesian", "epochs": 1},
        {"decoder": "bayesian", "network": "convolutional", "epochs": 1},
        {"encoder": "linear", "binarization": "dynamic", "epochs": 1},
        {"schedule": "burda", "binarization": "threshold", "epochs": 1},
        {"family": "realnvp-contextual", "epochs": 1},
    ],
    ids=str,
)
def test_a_loaded_model_has_the_elbo_of_the_final_row(tmp_path, changes):
    config = replace(TINY, learning_rate=5e-3, **changes)
    folder, rows = fit(tmp_path, config)
    loaded = load_trained(folder, device=CPU)
    assert loaded.config == config
    assert not any(p.requires_grad for p in (*loaded.model.parameters(), *loaded.guide.parameters()))
    (final,) = (row.value for row in rows if row.metric == "final_elbo")
    mean, spread = spread_of_elbo(config, loaded.model, loaded.guide, loaded.data.train, 200)
    assert abs(final - mean) < 4.5 * spread * (1 + 1 / 30) ** 0.5
    fresh = build_vae(config, loaded.data)  # and a model that is not the trained one is found out
    mean, spread = spread_of_elbo(config, *fresh, loaded.data.train, 200)
    assert abs(final - mean) > 10 * spread


def test_two_runs_of_a_seed_are_equal_to_the_bit_and_another_seed_is_not(run, tmp_path):
    _, folder, rows = run
    again, equal = fit(tmp_path)
    assert values(equal) == values(rows)
    assert_same_weights(again, folder)
    other, _ = fit(tmp_path, replace(TINY, seed=1), "other")
    assert not np.array_equal(other.load_tensors("model")["model.network.0.weight"], first_weight(folder))


def first_weight(folder):
    return folder.load_tensors("model")["model.network.0.weight"]


# Interrupted and resumed ----------------------------------------------------------------------------------------------

LONG = replace(TINY, epochs=20)  # 80 steps, with the looks below one after every eighth


@pytest.fixture
def few_looks(monkeypatch):
    monkeypatch.setattr(training_run, "NUM_LOOKS", 10)


def stop_at(step):
    def watch(done, total, state):
        assert total == 80
        assert state.startswith("ELBO -")
        if done == step:
            raise KeyboardInterrupt

    return watch


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"binarization": "dynamic", "entropy_annealing": 15, "kl_warm_up": 20},
        {"decoder": "bayesian", "schedule": "burda"},
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, changes):
    config = replace(LONG, **changes)
    whole, rows = fit(tmp_path, config, "whole")
    folder = cut(tmp_path, config, watch=stop_at(41))
    assert not folder.done()
    assert int(folder.load_tensors("training")["steps"]) == 40
    again = go_on(folder, config)
    assert_same_weights(folder, whole)
    assert folder.verify() == []
    assert [(r.metric, r.step) for r in again] == [(r.metric, r.step) for r in rows]
    kept = {key: value for key, value in values(again).items() if key[1] <= 40}
    assert len(kept) == 15
    assert kept.items() <= values(rows).items()


@pytest.mark.usefixtures("few_looks")
def test_an_interrupted_run_goes_on_to_the_same_rows(tmp_path):
    _, rows = fit(tmp_path, LONG, "whole")
    folder = cut(tmp_path, LONG, watch=stop_at(41))
    assert values(go_on(folder, LONG)) == values(rows)


def test_a_run_cut_after_its_last_step_goes_on(tmp_path, monkeypatch):
    whole, _ = fit(tmp_path, name="whole")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "iwae", interrupt)
        folder = cut(tmp_path, TINY)
    assert int(folder.load_tensors("training")["steps"]) == 8
    rows = go_on(folder, TINY)
    assert_same_weights(folder, whole)
    assert [r.metric for r in rows].count("final_elbo") == 1
    assert [r.metric for r in rows].count("elbo") == 8


# Early stopping -------------------------------------------------------------------------------------------------------

STOPPING = replace(
    TINY, num_train=100, early_stopping=True, num_validation=100, epochs=100, learning_rate=2e-2, patience=4
)


@pytest.fixture
def looks(monkeypatch):
    """Steps, measures and averaged weights of all looks, as they happen."""
    seen = []
    look = training_run._look

    def watched(config, data, model, guide, *more):
        found = look(config, data, model, guide, *more)
        seen.append((found, {name: np.array(value) for name, value in state_of(model, guide).items()}))
        return found

    monkeypatch.setattr(training_run, "_look", watched)
    return seen


def test_early_stopping_keeps_the_best_look(tmp_path, looks):
    folder, rows = fit(tmp_path, STOPPING)
    scores = [found["validation_elbo"].value for found, _ in looks]
    best = int(np.argmax(scores))
    assert best < len(scores) - 1
    assert len(scores) < 50
    assert len(scores) - 1 - best == STOPPING.patience
    kept = folder.load_tensors("model")
    last = looks[-1][1]
    for name, value in kept.items():
        np.testing.assert_array_equal(value, looks[best][1][name], err_msg=name)
    assert not np.array_equal(kept["guide.encoder.0.weight"], last["guide.encoder.0.weight"])
    assert max(row.step for row in rows) == 4 * len(scores) == rows[-1].step


def test_validation_images_are_held_out_of_training():
    whole = vae_images(replace(TINY, num_train=1_500))
    data = vae_images(replace(TINY, num_train=1_500, early_stopping=True))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (1_350, 150)  # a tenth at most
    torch.testing.assert_close(torch.cat([data.train, data.validation]), whole.train)
    torch.testing.assert_close(data.test, whole.test)
    assert whole.validation is None


@pytest.mark.parametrize("binarization", ["fixed", "dynamic"])
def test_test_pixels_decide_nothing(tmp_path, grey_file, binarization):
    config = replace(STOPPING, dataset=str(grey_file), binarization=binarization, epochs=50, patience=3)
    first, rows = fit(tmp_path, config, "first")
    with np.load(grey_file) as arrays:
        np.savez(grey_file, train=arrays["train"], test=255 - arrays["test"])
    second, others = fit(tmp_path, config, "second")
    assert_same_weights(first, second)
    one, other = values(rows), values(others)
    assert {k: v for k, v in one.items() if "test" not in k[0]} == {
        k: v for k, v in other.items() if "test" not in k[0]
    }
    assert one["test_elbo", 4] != other["test_elbo", 4]


def test_validation_pixels_decide(tmp_path, grey_file):
    config = replace(STOPPING, dataset=str(grey_file), epochs=10, num_train=200, num_validation=24)
    _, rows = fit(tmp_path, config, "first")
    data = vae_images(config)
    assert data.validation is not None
    with np.load(grey_file) as arrays:
        pixels = arrays["train"].copy()
        held_out = data.source.train.pixels[200:224]
        places = [int(np.flatnonzero((pixels.reshape(240, -1) == row).all(1))[0]) for row in held_out]
        pixels[places] = 255
        np.savez(grey_file, train=pixels, test=arrays["test"])
    _, others = fit(tmp_path, config, "second")
    one, other = values(rows), values(others)
    assert one["elbo", 4] == other["elbo", 4]
    assert one["validation_elbo", 4] != other["validation_elbo", 4]


def test_the_number_of_test_points_decides_nothing(tmp_path):
    config = replace(STOPPING, epochs=3)
    found = []
    for num_test in (50, 51):
        _, rows = fit(tmp_path, replace(config, num_test=num_test), f"{num_test}")
        found.append({k: v for k, v in values(rows).items() if k[0] == "validation_elbo"})
    assert found[0] == found[1]


def test_a_run_cut_after_early_stopping_is_not_trained_on(tmp_path, monkeypatch):
    _, rows = fit(tmp_path, STOPPING, "whole")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "iwae", interrupt)
        folder = cut(tmp_path, STOPPING)
    assert max(r.step for r in go_on(folder, STOPPING)) == max(r.step for r in rows)


# Pixels drawn afresh --------------------------------------------------------------------------------------------------


class Recording(Training):
    """Keeps the inputs of every step."""

    kept: list

    def _step(self, done):
        self.kept = [*getattr(self, "kept", []), []]
        return super()._step(done)

    def _inputs(self, index, done=0.0):
        inputs = super()._inputs(index, done)
        if getattr(self, "kept", None):
            self.kept[-1] = [t.clone() for t in inputs]
        return inputs


@pytest.fixture
def recorded(monkeypatch):
    """The trainings that a run makes, each with the inputs of its steps."""
    made = []

    def make(*arguments, **options):
        made.append(Recording(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(training_run, "Training", make)
    return made


@pytest.mark.parametrize("binarization", ["dynamic", "fixed"])
def test_pixels_are_drawn_afresh_at_each_visit_or_once(tmp_path, recorded, binarization):
    config = replace(TINY, binarization=binarization)
    fit(tmp_path, config)
    (training,) = recorded
    steps = [(x, index) for x, index in training.kept]
    assert len(steps) == 8
    seen = torch.empty(2, 200, 64)
    for number, (x, index) in enumerate(steps):
        seen[number // 4, index] = x
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    data = vae_images(config)
    if binarization == "fixed":
        assert not data.drawn_anew
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], data.train.float())
        return
    assert data.drawn_anew
    grey = data.grey_train
    differ = (seen[0] != seen[1]).double().mean()
    expected, error = (2 * grey * (1 - grey)).double(), (grey.numel()) ** -0.5
    assert abs(differ - expected.mean()) < 4 * error * 0.5
    assert differ > 0.05
    score = (seen.double().sum() - 2 * grey.double().sum()) / (expected.sum()).sqrt()
    assert abs(score) < 4
    assert ((seen == 1) & (grey == 0)).sum() == ((seen == 0) & (grey == 1)).sum() == 0


def test_drawing_afresh_changes_no_held_out_pixels():
    once, afresh = (vae_images(replace(TINY, binarization=b)) for b in ("fixed", "dynamic"))
    assert torch.equal(once.test, afresh.test)
    assert torch.equal(once.train, afresh.train)  # what looks are taken on
    assert isinstance(afresh, ImageData)


# Annealing ------------------------------------------------------------------------------------------------------------


def annealed_training(cls=Training, **options):
    config = replace(TINY, entropy_annealing=2)
    data = vae_images(config)
    model, guide = build_vae(config, data)
    options = FitOptions(batch_size=20, capture="replay", **(options or {"entropy_weight": lambda done: done}))
    return cls(model, guide, data.train[:100], options, 0)


def assert_step_follows_the_weights(training):
    """Replayed loss and gradients equal the program's at several weights, and these differ."""
    training.prepare(10)
    assert training.captured is not None
    index = torch.arange(20)
    x = training.data[index].float()
    losses = []
    for weights in ([1.0, 0.0], [1.0, 0.7], [0.3, 0.3], [1.0, 1.0]):
        inputs = x, index, torch.tensor(weights)
        torch.manual_seed(3)
        replayed = [t.clone() for t in training.captured(*inputs)]
        torch.manual_seed(3)
        plain = Training.loss_and_gradients(training, *inputs)
        for a, b in zip(replayed, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        losses.append(replayed[0].item())
        assert losses[-1] == pytest.approx(by_hand(training, x, index, weights), rel=1e-5)
    assert len({round(loss, 3) for loss in losses}) == 4


def by_hand(training, x, index, weights):
    """-E[log p(x|z)] + w (-E log p(z)) + v E log q, a point."""
    torch.manual_seed(3)
    found = expected_log_weights(training.model, training.guide, x, index, num_data=100, analytic_kl=True)
    parts = [part.mean().item() for part in (found.log_likelihood, found.log_prior, found.log_q)]
    return -parts[0] - weights[0] * parts[1] + weights[1] * parts[2]


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_weight": lambda done: done},
        {"kl_weight": lambda done: done},
        {"entropy_weight": lambda done: done, "kl_weight": lambda done: 1.0},
        {"entropy_weight": lambda done: 0.0},
    ],
    ids=["entropy", "kl", "both", "constant"],
)
def test_a_captured_step_follows_the_weights(options):
    assert_step_follows_the_weights(annealed_training(**options))


class Frozen(Training):
    """As if the weights were Python numbers, which capturing keeps as they were."""

    def loss_and_gradients(self, x, index, *more):
        return super().loss_and_gradients(x, index, torch.tensor([1.0, 0.5]), *more[1:])


def test_a_frozen_weight_is_caught():
    with pytest.raises(AssertionError):
        assert_step_follows_the_weights(annealed_training(Frozen))


def test_captured_and_plain_runs_anneal_alike():
    found = []
    for how in ("off", "replay"):
        config = replace(TINY, entropy_annealing=1, kl_warm_up=2)
        data = vae_images(config)
        model, guide = build_vae(config, data)
        training = Training(model, guide, data.train, replace(vae_options(config), capture=how), 0)
        records = list(training.run(8, range(1, 9)))
        found.append(([r.elbo for r in records], [p.detach().clone() for p in guide.parameters()]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_weights_rise_over_the_epochs_they_are_given():
    epochs = np.array([0, 1, 2.5, 5, 7, 10])
    for changes, prior, q in (
        ({}, [1] * 6, [1] * 6),
        ({"entropy_annealing": 5}, [1] * 6, [0, 0.2, 0.5, 1, 1, 1]),
        ({"kl_warm_up": 10}, [0, 0.1, 0.25, 0.5, 0.7, 1], [0, 0.1, 0.25, 0.5, 0.7, 1]),
        ({"kl_warm_up": 5, "entropy_annealing": 10}, [0, 0.2, 0.5, 1, 1, 1], [0, 0.02, 0.125, 0.5, 0.7, 1]),
    ):
        options = vae_options(replace(TINY, epochs=10, **changes))
        assert options.annealed == bool(changes)
        found = np.array([options.weights_at(epoch / 10) for epoch in epochs])
        np.testing.assert_allclose(found, np.stack([prior, q], 1), atol=1e-12, err_msg=str(changes))


@pytest.mark.usefixtures("few_looks")
def test_steps_of_a_resumed_run_have_the_weights_of_the_whole(tmp_path, recorded):
    config = replace(LONG, entropy_annealing=10, kl_warm_up=20)
    folder = cut(tmp_path, config, watch=stop_at(41))
    go_on(folder, config)
    first, second = recorded
    done = np.arange(80) / 80
    expected = np.stack([done, done * np.minimum(1, 2 * done)], 1)
    seen = [torch.stack([inputs[2] for inputs in training.kept]).numpy() for training in (first, second)]
    np.testing.assert_allclose(seen[0], expected[:41], atol=1e-6)
    np.testing.assert_allclose(seen[1], expected[40:], atol=1e-6)


def test_burda_has_eight_stages_of_powers_of_three():
    stages = [(10 ** (-i / 7), 3**i) for i in range(8)]
    expected = np.repeat([rate for rate, _ in stages], [count for _, count in stages])
    assert len(expected) == 3_280
    np.testing.assert_allclose([burda(epoch / 3_280) for epoch in range(3_280)], expected, rtol=1e-12)
    assert burda(1.0) == pytest.approx(0.1)
    for steps in (7, 600):  # the first and last step of each stage
        first = np.cumsum([0, *(count for _, count in stages[:-1])]) * steps
        found = [burda(step / (3_280 * steps)) for step in first]
        np.testing.assert_allclose(found, [rate for rate, _ in stages])
        last = [burda((step - 1) / (3_280 * steps)) for step in first[1:]]
        np.testing.assert_allclose(last, [rate for rate, _ in stages[:-1]])


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_rate_that_diverges_is_a_failed_row(tmp_path):
    config = replace(TINY, learning_rate=1e6, epochs=40)  # looks come after the loss was seen
    folder, rows = fit(tmp_path, config)
    failed = [row for row in rows if row.status == "failed"]
    assert [(r.metric, r.value, r.step) for r in failed] == [("failure", None, 2)]
    assert failed[0].note.startswith("loss of ")
    assert rows[-1] is failed[0]
    assert folder.rows()["status"].tolist()[-1] == "failed"
    assert not (folder.path / "checkpoints" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="holds no 'model'"):
        load_trained(folder, device=CPU)
    assert find_trained(tmp_path, config) is None


def test_a_look_that_is_not_finite_is_a_failed_row(tmp_path):
    _, rows = fit(tmp_path, replace(TINY, learning_rate=1e6))  # eight steps, a look after each
    assert rows[-1].status == "failed"


def spoil_at(monkeypatch, step):
    """A ``watch`` that puts a NaN into the encoder after a step."""
    made = []

    def build(*arguments):
        made.append(build_vae(*arguments))
        return made[-1]

    monkeypatch.setattr(training_run, "build_vae", build)

    def watch(done, *_):
        if done == step:
            with torch.no_grad():
                next(made[-1][1].parameters()).fill_(float("nan"))

    return watch


@pytest.mark.usefixtures("few_looks")
def test_weights_that_are_not_numbers_are_a_failed_row(tmp_path, monkeypatch):
    folder, rows = fit(tmp_path, LONG, watch=spoil_at(monkeypatch, 41))
    failed = [row for row in rows if row.status == "failed"]
    assert [(r.metric, r.step) for r in failed] == [("failure", 42)]
    assert "nan" in failed[0].note
    assert {r.step for r in rows if r.metric == "elbo"} == {8, 16, 24, 32, 40}
    assert folder.finished
    assert folder.verify() == []


def test_find_trained_takes_exactly_the_same_configuration(tmp_path, run):
    out, folder, _ = run
    found = find_trained(out, TINY)
    assert found is not None
    assert found.path == folder.path
    for changes in ({"seed": 1}, {"latent_dim": 4}, {"hidden": (16, 16)}, {"epochs": 3}, {"decoder": "bayesian"}):
        assert find_trained(out, replace(TINY, **changes)) is None
    assert find_trained(tmp_path, TINY) is None


def test_find_trained_takes_the_latest_that_finished(tmp_path):
    short = replace(TINY, epochs=1)
    fit(tmp_path, short, "a")
    later, _ = fit(tmp_path, short, "b")
    config = tmp_path / "train" / "a" / "environment.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"started": "2000-01-01T00:00:00+00:00"}))
    RunFolder.create(tmp_path, "train", to_mapping(short), {}, "unfinished")
    found = find_trained(tmp_path, short)
    assert found is not None
    assert found.path == later.path


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, and no data but the embedded digits and what is put there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset nope", "expected --preset quick or paper, got 'nope'"),
        ("--dataset nothing", "expected a data set (mnist, fashion-mnist, binarized-mnist, digits) or a path"),
        ("--dataset none.npz", "expected a numpy file, got 'none.npz': no such file"),
        ("--epochs 0", "expected --epochs of 1 or more, got 0"),
        ("--latent-dim 0", "expected --latent-dim of 1 or more, got 0"),
        ("--batch-size -3", "expected --batch-size of 1 or more, got -3"),
        ("--hidden 4 0", "expected --hidden of 1 or more, got [4, 0]"),
        ("--learning-rate 0", "expected --learning-rate above 0, got 0.0"),
        ("--learning-rate nan", "expected --learning-rate above 0, got nan"),
        ("--learning-rate inf", "expected --learning-rate above 0, got inf"),
        ("--epochs 5 --kl-warm-up 6", "expected --kl-warm-up of at most 5 epochs, got 6"),
        ("--epochs 5 --entropy-annealing 6", "expected --entropy-annealing of at most 5 epochs, got 6"),
        ("--patience 0", "expected --patience of 1 or more, got 0"),
        ("--seed -1", "expected --seed of 0 or more, got -1"),
        ("--network convolutional --encoder linear", "expected a convolutional --encoder small or standard or wide"),
        ("--binarization dynamic", "expected --binarization fixed for binarized-mnist"),
        ("--config none.yaml", "cannot read none.yaml: No such file or directory"),
        ("--resume nope", "expected a run under results, got 'nope': no such run"),
        ("--data-dir none --dataset digits", "expected a folder as data directory, got 'none'"),
    ],
)
def test_bad_input_is_one_line(place, refused, arguments, message):
    assert message in refused("train", *arguments.split())
    assert not (place / "results").exists()


def test_a_preset_starts_the_flags_and_a_file_wins_over_it(place):
    assert cli._parse(["train", "--preset", "paper"]).setting.epochs == 3_280
    assert cli._parse(["train", "--preset", "paper", "--epochs", "400"]).setting.schedule == "burda"
    (place / "c.yaml").write_text("preset: paper\nlatent_dim: 7\n")
    setting = cli._parse(["train", "--config", "c.yaml", "--hidden", "5"]).setting
    assert (setting.epochs, setting.latent_dim, setting.hidden) == (3_280, 7, (5,))


def test_the_command_from_start_to_figures(place, capsys):
    assert call("train", *FLAGS) == 0
    said = capsys.readouterr().out
    (info,) = list_runs(place / "results")
    assert (info.experiment, info.status, info.num_fits) == ("train", "finished", 1)
    assert "ELBO, training points" in said
    assert said.endswith(f"next: gaps results/train/{info.name}\n")
    for ending in ("png", "pdf"):
        assert (info.path / f"training.{ending}").stat().st_size > 2_000
    assert RunFolder.open(info.path).verify() == []
    assert "data" in json.loads((info.path / "environment.json").read_text())
    assert call("table", info.name) == 0
    assert call("plot", info.name, "--into", place / "again") == 0
    assert (place / "again" / "training.png").read_bytes() == (info.path / "training.png").read_bytes()


def test_an_interrupted_command_says_how_to_go_on_and_goes_on(place, capsys, monkeypatch, grey_file, refused):
    flags = [*FLAGS, "--dataset", "mine.npz"]

    def stop(self, stage, done, total, state=""):
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageProgress, "__call__", stop)
        assert call("train", *flags) == 130
    (info,) = list_runs(place / "results")
    said = capsys.readouterr().err
    assert f"train --resume results/train/{info.name}" in said
    assert "Traceback" not in said

    kept = grey_file.read_bytes()
    np.savez(grey_file, train=np.zeros((240, 36), dtype=np.uint8), test=np.ones((40, 36), dtype=np.uint8))
    assert "was started on, got other files" in refused("train", "--resume", "latest", "--device", "cpu")
    grey_file.write_bytes(kept)
    assert call("train", "--resume", "latest", "--device", "cpu") == 0
    assert [i.status for i in list_runs(place / "results")] == ["finished"]
    capsys.readouterr()
    assert "which is finished" in refused("train", "--resume", "latest", "--device", "cpu")
    assert call("train", *flags, "--out", "whole") == 0
    (whole,) = list_runs(place / "whole")
    assert_same_weights(RunFolder.open(info.path), RunFolder.open(whole.path))


def test_a_run_of_another_kind_is_not_resumed(place, refused):
    RunFolder.create(place / "results", "sweep", {}, {}, "other")
    assert "expected a run of `train` to resume, got" in refused("train", "--resume", "other", "--device", "cpu")


def diverging(place, monkeypatch):
    """A command that diverges once it is under way."""
    monkeypatch.setattr(trained, "estimate_training", lambda *_: 1.0)
    return ["train", *FLAGS, "--epochs", "40", "--learning-rate", "1e6"]


def test_a_divergence_is_one_line_and_recorded(place, refused, monkeypatch):
    said = refused(*diverging(place, monkeypatch))
    assert "training failed at step 2, as results/train/" in said
    (info,) = list_runs(place / "results")
    assert info.status == "finished"
    frame = RunFolder.open(info.path).rows()
    assert frame[["metric", "status", "step"]].values.tolist()[-1] == ["failure", "failed", 2]
    for command in ("table", "plot"):
        assert call(command, info.name) == 0


def test_a_divergence_at_once_is_one_line_and_recorded(place, refused):
    refused("train", *FLAGS, "--learning-rate", "1e6")


def test_images_that_do_not_fit_the_network(place, refused):
    np.save(place / "vectors.npy", np.zeros((300, 7), dtype=np.uint8))
    said = refused("train", *FLAGS, "--dataset", "vectors.npy", "--network", "convolutional")
    assert "expected images for --network convolutional, got the vectors of vectors.npy" in said
    said = refused("train", *FLAGS, "--dataset", "vectors.npy", "--batch-size", "280")
    assert "expected --batch-size of at most 200 training images, got 280" in said


def test_tensorboard_is_there_or_is_asked_for(place, capsys):
    code = call("train", *FLAGS, "--epochs", "1", "--tensorboard")
    said = capsys.readouterr().err
    if code:
        assert said.startswith("error: expected the package tensorboard for --tensorboard: pip install ")
        assert said.count("\n") == 1
        assert not list_runs(place / "results")
        return
    (info,) = list_runs(place / "results")
    assert any((info.path / "tensorboard").iterdir())
