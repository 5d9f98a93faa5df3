"""Entropy annealing, KL warm-up and Burda's schedule: weights and rates of every step, captured or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import CPU, TINY

from amortized_bayes.data import load_dataset
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.experiments.setup import build_vae, load_vae_images, vae_options
from amortized_bayes.inference.options import FitOptions, burda
from amortized_bayes.inference.svi import Training


def problem(config):
    data = load_vae_images(config, load_dataset(config.dataset, seed=config.seed), CPU)
    return *build_vae(config, data), data.train


def annealed_training(cls=Training, **options):
    config = replace(TINY, entropy_annealing=2)
    model, guide, images = problem(config)
    options = FitOptions(batch_size=20, capture="replay", **(options or {"entropy_weight": lambda done: done}))
    return cls(model, guide, images[:100], options, 0)


def assert_step_follows_the_weights(training):
    """Replayed loss and gradients equal the program's at several weights, and these differ."""
    training.prepare(10)
    assert training.captured is not None
    index = torch.arange(20)
    x = training.data[index].float()
    losses = []
    for weights in ([1.0, 0.0, 1.0], [1.0, 0.7, 0.4], [0.3, 0.3, 0.3], [1.0, 1.0, 1.0]):
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
    """-E[log p(x|z)] + w (-E log p(z)) + v E log q - u (shared part) / N, per point."""
    torch.manual_seed(3)
    found = expected_log_weights(training.model, training.guide, x, index, num_data=100, analytic_kl=True)
    parts = [part.mean().item() for part in (found.log_likelihood, found.log_prior, found.log_q)]
    shared = found.shared.item() / 100
    return -parts[0] - weights[0] * parts[1] + weights[1] * parts[2] - weights[2] * shared


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
        return super().loss_and_gradients(x, index, torch.tensor([1.0, 0.5, 1.0]), *more[1:])


def test_a_frozen_weight_is_caught():
    with pytest.raises(AssertionError):
        assert_step_follows_the_weights(annealed_training(Frozen))


def test_captured_and_plain_runs_anneal_alike():
    found = []
    for how in ("off", "replay"):
        config = replace(TINY, entropy_annealing=1, kl_warm_up=2)
        model, guide, images = problem(config)
        training = Training(model, guide, images, replace(vae_options(config), capture=how), 0)
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
        np.testing.assert_allclose(found, np.stack([prior, q, [1] * 6], 1), atol=1e-12, err_msg=str(changes))


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
