"""Train a model by configuration: from its last checkpoint, with evaluations on the way, to its final numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from amortized_bayes.data import to_pictures
from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import SHARED_DRAWS, Elbo, elbo, iwae
from amortized_bayes.evaluation.errors import active_units, mean_latents
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import ImageData, build_vae, rows_at_once, taken_in_training, vae_options
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Measured, measured
from amortized_bayes.experiments.trained import Trained, copy_name, load_state, model_key, state_of
from amortized_bayes.guides.amortized_bits import AmortizedBits
from amortized_bayes.inference.options import StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import global_seed
from amortized_bayes.keeping import Loop, kept, known
from amortized_bayes.models import DeepGenerative
from amortized_bayes.per_point import PointValues, is_vacuous, mean_over_points

__all__ = ["kl_and_reconstruction", "train"]

NUM_EVALUATIONS = 50
"""On the way."""
SHOWN_EVERY = 5
"""Evaluations from one at which images are shown to the next."""
CURVE_POINTS = 2_000
IWAE_POINTS = 1_000
IWAE_PARTICLES = 50
PICTURES = 10
"""Test images that are shown."""


def train(config: VAEConfig, lab: Lab) -> Iterator[Measured | Checkpoint | Arrays]:
    """Train a model; yield its curves, copies of it on the way, and final numbers.

    Raises:
        Divergence: the loss, or a number measured on the way, is not finite.
        ValueError: data that are unavailable, or a checkpoint of another architecture.
    """
    data = lab.images(config)
    model, guide = build_vae(config, data)
    source, transform = data.fitted
    training = Training(model, guide, source, vae_options(config), config.seed, transform=transform)
    rows: list[Measured] = []
    best: tuple[float, int] = (-math.inf, 0)
    state: dict[str, np.ndarray] | None = None
    stops_early = data.validation is not None  # of too few images none are held out
    copies = {epoch * training.batches.per_epoch: epoch for epoch in config.keep_epochs}
    evaluations = _evaluations(config, training)
    shown = set(sorted(evaluations)[::SHOWN_EVERY]) if data.image_shape is not None else set()
    with kept("training", lambda: [training.state(), rows, best, state]) as loop:
        if loop.found is not None:
            now, told, best, state = loop.found
            training.load_state(now)
            rows += [Measured(*row) for row in told]
            yield from rows
            yield from (lab.kept(model_key(config), copy_name(copies[s])) for s in copies if s <= training.steps)
        patient = not (stops_early and _is_over(config, training, best[1], evaluations))
        records = _remaining(config, training, (model, guide), lab, evaluations.union(copies), loop)
        for record in records if patient else ():
            if record.step in copies:
                with training.averaged():
                    copied = state_of(model, guide)
                yield Checkpoint(copied, name=copy_name(copies[record.step]))
            if record.step in evaluations:
                with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
                    found = _on_the_way(config, data, model, guide, record)
                    _refuse_infinite(record.step, found)
                    scores = (m.value for m in found if m.metric == "elbo" and m.factors["split"] == "validation")
                    score = next(scores, None)
                    if score is not None and score > best[0]:
                        best, state = (score, record.step), state_of(model, guide)
                    if record.step in shown:
                        lab.show(record.step, _pictures(config, data, model, guide))
                rows += found
                yield from found
            loop.offer()
            if stops_early and _is_over(config, training, best[1], evaluations):
                break
    training.settle()
    if stops_early:
        assert state is not None
        load_state(model, guide, state, "the best iterate")
    yield from (Measured(*row) for row in known("final", lambda: _final(config, data, model, guide, training)))
    if data.image_shape is not None:
        yield Arrays(_pictures(config, data, model, guide), training.steps)
    yield Checkpoint(state_of(model, guide), {"model": model_key(config)})


def _evaluations(config: VAEConfig, training: Training) -> set[int]:
    """Steps after which the model is evaluated."""
    total = config.epochs * training.batches.per_epoch
    return {round(total * (i + 1) / NUM_EVALUATIONS) for i in range(NUM_EVALUATIONS)} - {0}


def _remaining(
    config: VAEConfig,
    training: Training,
    programs: tuple[nn.Module, nn.Module],
    lab: Lab,
    wanted: Collection[int],
    loop: Loop,
) -> Iterator[StepRecord]:
    """Take the steps that are left; yield the records of those that are wanted, and of those whose state is kept.

    Programs are then in evaluation mode.
    """
    total = config.epochs * training.batches.per_epoch
    ticks = {round(total * i / 500) for i in range(1, 500)}
    if training.steps >= total:
        return
    records = training.run(total - training.steps, ticks.union(wanted), begin=0, due=lambda: loop.due)
    for record in taken_in_training(records, *programs):
        lab.watch("training", record.step, total, f"ELBO {record.elbo:.1f}")
        if record.step in wanted or loop.due:
            yield record


def _is_over(config: VAEConfig, training: Training, best: int, evaluations: Collection[int]) -> bool:
    """Whether this is an evaluation, and the best one is too long ago."""
    each = max(1, config.epochs * training.batches.per_epoch / NUM_EVALUATIONS)
    return training.steps in evaluations and (training.steps - best) / each >= config.patience


def _on_the_way(
    config: VAEConfig, data: ImageData, model: DeepGenerative, guide: nn.Module, record: StepRecord
) -> list[Measured]:
    """ELBO of each split, with draws of its own: none depends on other splits, nor on where a run was resumed."""
    found: list[Measured] = []
    for split, images in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if images is None:
            continue
        stream = "" if split == "train" else f"{split}_"
        with global_seed(config.seed, "look", record.step, stream):
            value = _elbo(config, model, guide, images[:CURVE_POINTS], len(data.train))
        found.append(measured("elbo", mean_over_points(_of_split(value, split)), split=split))
        found += [measured("kl", mean_over_points(value.kl), split=split)] if split == "train" else []
    return [row._replace(step=record.step, seconds=record.seconds) for row in found]


def kl_and_reconstruction(trained: Trained, split: str, count: int) -> list[Measured]:
    """The two parts of L[q] at the first ``count`` points of a split: the mean of log p(x|z), and the KL of z."""
    config, images = trained.config, getattr(trained.data, split)
    with pyro.validation_enabled(False), global_seed(config.seed, "look", split):
        value = _elbo(config, trained.model, trained.guide, images[:count], len(trained.data.train))
    found = {"kl": value.kl, "reconstruction": value.log_likelihood}
    return [measured(name, mean_over_points(values)) for name, values in found.items()]


def _of_split(value: Elbo, split: str) -> PointValues:
    """The ELBO per training point; of held-out points its local part alone, which counts no decoder weights."""
    return PointValues(value.value if split == "train" else value.log_likelihood - value.kl, value.shared_error)


def _elbo(
    config: VAEConfig, model: DeepGenerative, guide: nn.Module, images: Tensor, num_data: int, shared_draws: int = 1
) -> Elbo:
    """ELBO from one draw; from several where all points share the weights that are drawn."""
    index = torch.arange(len(images), device=images.device)
    bayesian, local = config.decoder == "bayesian", config.decoder == "bayesian" and config.architecture == "dense"
    draws = shared_draws if bayesian and not local else 1
    options = {"num_draws": draws, "num_data": num_data, "local_reparametrization": local}
    return elbo(model, guide, images.float(), index, **options, chunk_size=rows_at_once(config))


def _final(
    config: VAEConfig, data: ImageData, model: DeepGenerative, guide: nn.Module, training: Training
) -> list[Measured]:
    """Numbers for the table, of all points but for IWAE and active units."""
    found: list[Measured] = []
    with pyro.validation_enabled(False), global_seed(config.seed, "final"):
        for split, images in (("train", data.train), ("test", data.test)):
            value = _elbo(config, model, guide, images, len(data.train), SHARED_DRAWS)
            found.append(measured("final_elbo", mean_over_points(_of_split(value, split)), split=split))
            found.append(measured("final_kl", mean_over_points(value.kl), split=split))
        some = torch.arange(min(IWAE_POINTS, len(data.train)), device=data.train.device)
        few = data.train[some].float()
        bound = iwae(
            model,
            guide,
            few,
            some,
            num_particles=IWAE_PARTICLES,
            num_data=len(data.train),
            max_rows=rows_at_once(config),
        )
        found.append(measured("final_iwae", bound.mean(), split="train"))
    bits = isinstance(guide, AmortizedBits)
    active = active_bits(guide, few) if bits else active_units(mean_latents(guide, few, some))
    found.append(Measured("active_units", float(active)))
    found.append(Measured("seconds_per_step", training.seconds / max(1, training.steps)))
    _refuse_infinite(training.steps, found)
    status = "vacuous" if is_vacuous(active) else "ok"
    return [row._replace(step=training.steps, seconds=training.seconds, status=status) for row in found]


@torch.no_grad()
def active_bits(guide: AmortizedBits, x: Tensor) -> int:
    """Bits whose probability of a one varies over points by more than 0.01 of the variance of the bit over all points.

    Their modes would not do: a probability from 0.1 to 0.4 has the mode 0 at every point.
    """
    ones = guide.logits(x).sigmoid()
    return active_units(ones, (ones * (1 - ones)).sqrt())


@torch.no_grad()
def _pictures(config: VAEConfig, data: ImageData, model: DeepGenerative, guide: nn.Module) -> dict[str, np.ndarray]:
    """Test images, means of the pixels given the means of q, and given draws from the prior."""
    with pyro.validation_enabled(False), global_seed(config.seed, "pictures"):
        x = data.test[:PICTURES].float()
        weights = model.weights()
        codes = {
            "reconstruction": mean_latents(guide, x),
            "draw_from_the_prior": model.prior().sample((len(x),)),
        }
        seen = {name: model.observation(model.decode(z.to(x), weights)).mean for name, z in codes.items()}
    rows = {"original": x, **seen}
    return {f"picture_{name}": to_pictures(row.cpu().numpy(), data.image_shape) for name, row in rows.items()}


def _refuse_infinite(step: int, found: list[Measured]) -> None:
    """Steps may stay finite while what they lead to is not."""
    for row in found:
        if row.value is not None and not math.isfinite(row.value):
            raise Divergence(step, row.value)
