"""Long loops of ``celeba``: the ground truth, and the features of its Fréchet distance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from amortized_bayes.dcgan import Classifier, ImageGenerator, evaluating, settle_norms, start_dcgan
from amortized_bayes.divergence import Divergence
from amortized_bayes.experiments.image_setup import build_truth, critic_of, draws_of, image_source, shown, tensors_of
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Measured, measured
from amortized_bayes.keeping import kept
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.seeding import torch_generator, torch_seed

if TYPE_CHECKING:
    from amortized_bayes.experiments.image_settings import Config
    from amortized_bayes.experiments.lab import Lab

__all__ = ["descend", "ground_truth", "learned_features", "training"]

PASSES = 100
"""Batches whose statistics batch norm of the ground truth keeps."""
ROWS = 250
"""Images at once where nothing is fitted."""
PICTURES = 10
"""Images of a kind that are shown."""
BETAS = (0.5, 0.999)
"""Of Adam for the ground truth, as in DCGAN."""
CLASSIFIER_RATE = 1e-3


class Place(NamedTuple):
    """Where a training stands."""

    step: int
    seconds: float


def training(
    name: str,
    parts: Sequence[tuple[nn.Module, torch.optim.Optimizer]],
    step: Callable[[], Tensor],
    marks: Sequence[int],
    generator: Generator,
    watch: Callable[[int, float], None],
) -> Iterator[Place]:
    """Take steps up to each of some marks, and yield there; a loop from mark to mark goes on where it was killed.

    Args:
        name: name of the loops.
        parts: what is trained, each with its optimizer.
        step: takes a step, and gives its loss.
        marks: steps, rising.
        generator: all draws.
        watch: told the steps done and the loss, now and then.

    Raises:
        Divergence: the loss is not finite.
    """
    done, seconds = 0, 0.0

    def state() -> list[Any]:
        return [done, seconds, [[dict(part.state_dict()), _moments(optimizer)] for part, optimizer in parts]]

    for mark in marks:
        with kept(name, state, generator) as loop:
            if loop.found is not None:
                done, seconds, found = loop.found
                for (part, optimizer), (tensors, moments) in zip(parts, found, strict=True):
                    part.load_state_dict(tensors)
                    _set_moments(optimizer, moments)
            start = time.perf_counter() - seconds
            while done < mark:
                loss = float(step())
                done, seconds = done + 1, time.perf_counter() - start
                if not math.isfinite(loss):
                    raise Divergence(done, loss)
                if done % 10 == 0 or done == mark:
                    watch(done, loss)
                loop.offer()
        yield Place(done, seconds)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {str(place): values for place, values in optimizer.state_dict()["state"].items()}


def _set_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    state = {int(place): dict(values) for place, values in moments.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def ground_truth(config: Config, lab: Lab, seed: int) -> Iterator[Checkpoint | Arrays]:
    """A DCGAN: generator and discriminator, with the generator's batch norm settled."""
    source = image_source(config, lab, seed)
    generator = torch_generator(seed, "celeba", "ground truth", device=lab.device)
    model, critic = build_truth(config, source).to(lab.device), critic_of(config, source, 1).to(lab.device)
    network = model.network
    assert isinstance(network, ImageGenerator)
    for part in (network, critic):
        start_dcgan(part, generator)
        part.train()
    makes, judges = (torch.optim.Adam(part.parameters(), config.gan_rate, BETAS) for part in (network, critic))
    size = config.batch_size

    def latents() -> Tensor:
        return draws_of((size, config.latent_dim), generator)

    def step() -> Tensor:
        real = source.batch(torch.randint(len(source.pixels), (size,), generator=generator, device=generator.device))
        made = network(latents())
        judged = -F.logsigmoid(critic(real)).mean() - F.logsigmoid(-critic(made.detach())).mean()
        descend(judges, judged)
        descend(makes, -F.logsigmoid(critic(made)).mean())
        return judged.detach()

    def watch(done: int, loss: float) -> None:
        lab.watch("ground truth", done, config.gan_steps, f"loss of the discriminator {loss:.2f}")

    for _ in training("gan", [(network, makes), (critic, judges)], step, [config.gan_steps], generator, watch):
        pass
    settle_norms(network, (latents() for _ in range(PASSES)))
    with evaluating(network):
        drawn = network(draws_of((PICTURES, config.latent_dim), generator))
    pictures = {
        "picture_data": source.batch(torch.arange(min(PICTURES, len(source.pixels)))),
        "picture_generator": drawn,
    }
    yield Arrays({name: shown(source, images) for name, images in pictures.items()})
    yield Checkpoint({**tensors_of("model", model), **tensors_of("critic", critic)})


def learned_features(config: Config, lab: Lab, seed: int) -> Iterator[Checkpoint | Measured]:
    """A classifier of the labels, and its accuracy on the test split."""
    source = image_source(config, lab, seed)
    assert source.labels is not None
    labels = source.labels
    generator = torch_generator(seed, "celeba", "classifier", device=lab.device)
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "celeba", "classifier start"))
        network = Classifier(source.image_shape, config.channels, source.num_outputs).to(lab.device)
    optimizer = torch.optim.Adam(network.parameters(), CLASSIFIER_RATE)

    def step() -> Tensor:
        places = torch.randint(len(labels), (config.batch_size,), generator=generator, device=generator.device)
        logits = network(source.batch(places))
        several = labels.dim() == 2
        loss = (
            F.binary_cross_entropy_with_logits(logits, labels[places].float())
            if several
            else F.cross_entropy(logits, labels[places])
        )
        descend(optimizer, loss)
        return loss.detach()

    def watch(done: int, loss: float) -> None:
        lab.watch("classifier", done, config.classifier_steps, f"loss {loss:.2f}")

    for _ in training("classifier", [(network, optimizer)], step, [config.classifier_steps], generator, watch):
        pass
    pixels, wanted = source.held_out
    assert wanted is not None
    hits = []
    with evaluating(network):
        for places in torch.arange(len(pixels)).split(ROWS):
            logits = network(source.batch(places, pixels))
            right = (logits > 0) == wanted[places] if wanted.dim() == 2 else logits.argmax(-1) == wanted[places]
            hits.append(right.double().reshape(len(places), -1).mean(-1))
    yield measured("accuracy", mean_over_points(torch.cat(hits)))
    yield Checkpoint(tensors_of("classifier", network))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step down."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
