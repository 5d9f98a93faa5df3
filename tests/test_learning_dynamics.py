"""``learning-dynamics`` and ``gradient-norms``: measured from the same trainings, at the points and steps they say."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal, kl_divergence
from wing import BOUNDS, CPU, QuickLab, go, one, only, uncaptured

from amortized_bayes.configuration import SettingError
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments import bounds, gradient_norms, gradients, learning_dynamics
from amortized_bayes.experiments.gradients import batch_gradients
from amortized_bayes.experiments.settings import VAEConfig, same_model
from amortized_bayes.experiments.spec import Arrays, job_key
from amortized_bayes.experiments.variants import VariantsConfig, epochs_kept, variant_models
from amortized_bayes.joint import global_seed
from amortized_bayes.results import list_runs

MODEL = VariantsConfig(
    dataset=("digits",),
    variants=("gaussian",),
    epochs=2,
    checkpoints=2,
    first=1,
    latent_dim=3,
    num_train=200,
    num_test=50,
)
FEW = learning_dynamics.Config(MODEL, 4, 20, replace(BOUNDS, best_families=learning_dynamics.FAMILIES))
NORMS = gradient_norms.Config(MODEL, batches=3)
LAST = 8
"""Steps: two epochs of four."""


def key_of(variant, epoch):
    return job_key({"dataset": "digits", "seed": 0, "variant": variant}, f"epoch-{epoch}")


def encoder_of(guide: Any) -> Any:
    return guide.encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("dynamics")


@pytest.fixture(scope="module")
def run(place):
    torch.set_num_threads(1)
    return go("learning-dynamics", FEW, place)


@pytest.fixture(scope="module")
def norms(place, run):
    del run  # before: its trainings are shared
    return go("gradient-norms", NORMS, place)


@pytest.fixture(scope="module")
def models():
    return dict(variant_models(MODEL))


def test_both_measure_the_same_trainings(place, run, norms):
    kept = [key_of(variant, epoch) for variant in MODEL.variants for epoch in (1, 2)]
    assert run.done() == norms.done() == dict.fromkeys(kept, "ok")
    names = [info.experiment for info in list_runs(place)]
    assert sorted(names) == ["gradient-norms", "learning-dynamics", "train"]


# Gaps -----------------------------------------------------------------------------------------------------------------


def test_the_last_checkpoint_has_the_gaps_of_the_final_model(place, run, models):
    """As ``model-gaps`` measures them at the same points."""
    lab = QuickLab(place, CPU)
    for variant, model in models.items():
        own = learning_dynamics._own_bounds(FEW, model.family)
        with uncaptured():
            found = list(bounds.model_bounds(model, FEW.points, own, lab))
        (arrays,) = (item.arrays for item in found if isinstance(item, Arrays))
        kept = run.load_arrays(key_of(variant, 2))
        for name, values in arrays.items():
            np.testing.assert_allclose(kept[f"train_{name}"], values, rtol=1e-5, err_msg=name)
        assert not np.allclose(run.load_arrays(key_of(variant, 1))["train_elbo"], arrays["elbo"])
        for item in found:
            if not isinstance(item, Arrays):
                row = one(run.rows(), item.metric, step=LAST, variant=variant, split="train", **item.factors)
                assert row["value"] == pytest.approx(item.value)


def test_points_are_those_of_their_split(place, run, models):
    """Images at the places of a split have its ELBO; images of the other split there have not."""
    for variant, model in models.items():
        trained, kept = QuickLab(place, CPU).trained(model), run.load_arrays(key_of(variant, 2))
        for split in ("train", "test"):
            for name in ("train", "test"):
                images = getattr(trained.data, name)
                x = images[torch.from_numpy(kept[f"{split}_places"] % len(images))].float()
                again = elbo(trained.model, trained.guide, x, num_draws=100)
                error = np.hypot(kept[f"{split}_elbo_error"], again.standard_error.numpy())
                apart = np.abs(kept[f"{split}_elbo"] - again.value.numpy()) / error
                assert (apart.max() < 5) == (name == split), (variant, split, name)


def test_the_generalization_gap_is_between_amortization_gaps(run):
    rows = run.rows()
    for variant in MODEL.variants:
        steps = only(rows, "generalization_gap", variant=variant)["step"].tolist()
        assert steps == [4, LAST]
        for epoch, step in ((1, 4), (2, LAST)):
            kept = run.load_arrays(key_of(variant, epoch))
            train, test = (kept[f"{split}_amortization_gap"] for split in ("train", "test"))
            row = one(rows, "generalization_gap", variant=variant, step=step)
            assert row["value"] == pytest.approx(test.mean() - train.mean())
            assert row["standard_error"] == pytest.approx(math.sqrt((train.var(ddof=1) + test.var(ddof=1)) / 4))


def test_kl_and_reconstruction_are_the_parts_of_the_elbo(place, run, models):
    trained = QuickLab(place, CPU).trained(models["gaussian"], 1)
    for split in ("train", "test"):
        x = getattr(trained.data, split)[:20].float()
        loc, log_scale = encoder_of(trained.guide)(x).chunk(2, -1)
        kl = kl_divergence(Normal(loc, log_scale.exp()), Normal(0.0, 1.0)).sum(-1).mean()
        where = {"variant": "gaussian", "split": split, "step": 4}
        assert one(run.rows(), "kl", **where)["value"] == pytest.approx(kl.item(), rel=1e-4)
        found = elbo(trained.model, trained.guide, x, num_draws=200).log_likelihood.mean().item()
        assert one(run.rows(), "reconstruction", **where)["value"] == pytest.approx(found, abs=0.3)


# Gradients ------------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_autograd(place, norms, models):
    """On one batch, with the noise of that step: minus the ELBO per point, differentiated by hand."""
    trained = QuickLab(place, CPU).trained(models["gaussian"], 2)
    model, guide = trained.model.requires_grad_(), trained.guide.requires_grad_()
    kept = norms.load_arrays(key_of("gaussian", 2))
    places = []
    loss = gradients.Training.loss_and_gradients

    def recorded(self, x, index):
        places.append(index)
        return loss(self, x, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients.Training, "loss_and_gradients", recorded)
        batch_gradients(trained, 1, QuickLab(place, CPU))
    (index,) = places
    assert len(set(index.tolist())) == 50
    x = trained.data.train[index].float()
    loc, log_scale = encoder_of(guide)(x).chunk(2, -1)
    q = Normal(loc, log_scale.exp())
    with global_seed(0, "gradients"), pyro.validation_enabled(False):
        z = poutine.trace(guide).get_trace(x, index).nodes["z"]["value"]
    noise = ((z - loc) / log_scale.exp()).detach()
    z = loc + log_scale.exp() * noise
    logits = model.decode(z, model.weights())
    likelihood = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    (-(likelihood - kl_divergence(q, Normal(0.0, 1.0)).sum(-1)).mean()).backward()
    for part, module in (("encoder", guide), ("decoder", model)):
        by_hand = math.sqrt(
            sum(p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None)
        )
        assert kept[part][0] == pytest.approx(by_hand, rel=1e-4)
        row = one(norms.rows(), "num_parameters", variant="gaussian", part=part, step=LAST)
        assert row["value"] == sum(p.numel() for p in module.parameters())


def test_rows_are_means_over_batches(norms, models):
    rows = norms.rows()
    assert set(only(rows, "gradient_norm")["step"]) == {4, LAST}
    for variant in models:
        kept = norms.load_arrays(key_of(variant, 2))
        where = {"variant": variant, "step": LAST}
        size = {part: one(rows, "num_parameters", part=part, **where)["value"] for part in ("encoder", "decoder")}
        scaled = {part: kept[part] / math.sqrt(size[part]) for part in size}
        expected = [("gradient_norm", part, kept[part]) for part in size]
        expected += [("gradient_rms", part, scaled[part]) for part in size]
        expected += [("gradient_ratio", None, kept["encoder"] / kept["decoder"])]
        expected += [("gradient_rms_ratio", None, scaled["encoder"] / scaled["decoder"])]
        for metric, part, values in expected:
            row = one(rows, metric, part=part, **where)
            assert row["value"] == pytest.approx(values.mean())
            assert row["standard_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(3))
            assert row["error_over"] == "batches"


def test_a_gradient_that_is_not_finite_is_refused(place, norms, models):
    trained = QuickLab(place, CPU).trained(models["gaussian"], 1)
    with torch.no_grad():
        next(trained.model.parameters()).fill_(3e38)
    with pytest.raises(ArithmeticError, match="the gradient of the"):
        batch_gradients(trained, 2, QuickLab(place, CPU))


# Settings -------------------------------------------------------------------------------------------------------------


def test_variants_differ_in_one_thing_each():
    first, *others = (model for _, model in variant_models(replace(VariantsConfig(), dataset=("digits",))))
    assert not any(same_model(first, other) for other in others)
    changes = ({"family": "realnvp"}, {"family": "realnvp-contextual"}, {"encoder": "large"}, {"hidden": (500,) * 3})
    for other, change in zip(others, changes, strict=True):
        assert other == replace(first, **change)
    assert not first.early_stopping


def test_the_paper_has_the_published_setting():
    for module in (learning_dynamics, gradient_norms):
        models = dict(variant_models(module.PRESETS["paper"].model))
        assert len(models) == 5
        for model in models.values():
            assert isinstance(model, VAEConfig)
            assert (model.dataset, model.num_train, model.batch_size) == ("fashion-mnist", 50_000, 50)
            assert (model.latent_dim, model.keep_epochs[0], model.keep_epochs[-1]) == (20, 1, 3_280)


def test_checkpoints_end_with_the_training():
    for epochs in (1, 2, 7, 100):
        for count, first in itertools.product((1, 2, 5, 12), (1, 5)):
            kept = epochs_kept(replace(MODEL, epochs=epochs, checkpoints=count, first=first))
            assert kept[-1] == epochs
            assert kept[0] == min(first, epochs) if count > 1 else kept == (epochs,)
            assert list(kept) == sorted(set(kept))
            assert len(kept) <= count


def test_the_best_q_of_a_models_own_family_is_searched():
    for family, expected in {
        "gaussian": ("gaussian",),
        "realnvp": ("gaussian", "realnvp"),
        "realnvp-contextual": ("gaussian", "realnvp"),
    }.items():
        assert learning_dynamics._own_bounds(FEW, family) == replace(FEW.bounds, best_families=expected)


def test_families_that_no_variant_has_are_refused():
    with pytest.raises(SettingError, match=r"--best-families gaussian realnvp, .* got gaussian planar"):
        replace(FEW, bounds=replace(BOUNDS, best_families=("gaussian", "planar")))
