"""The stages of ``celeba``: the encoder alone by forward KL, then both by the ELBO."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from amortized_bayes.dcgan import Classifier, Critic
from amortized_bayes.experiments.image_measures import (
    SEARCHED,
    WATCHED,
    Measures,
    SearchedBounds,
    forward_kl,
    measured_images,
)
from amortized_bayes.experiments.image_setup import (
    Source,
    build_encoder,
    build_truth,
    critic_of,
    draws_of,
    features_from,
    image_source,
    load_network,
    simulate,
)
from amortized_bayes.experiments.image_training import Place, training
from amortized_bayes.experiments.protocol import Stage, Subject, follow
from amortized_bayes.experiments.spec import Arrays, Measured
from amortized_bayes.guides import Amortized
from amortized_bayes.models import DeepGenerative
from amortized_bayes.seeding import torch_generator, torch_seed

if TYPE_CHECKING:
    from amortized_bayes.experiments.image_settings import Config
    from amortized_bayes.experiments.lab import Lab

__all__ = ["one_draw_elbo", "stages"]


def one_draw_elbo(model: DeepGenerative, guide: Amortized, x: Tensor, generator: Generator) -> Tensor:
    """ELBO of each point from one draw, with the KL in closed form, ``(B,)``."""
    loc, log_scale = guide.locate(x, torch.arange(len(x))).chunk(2, -1)
    z = loc + log_scale.exp() * draws_of(loc.shape, generator)
    log_likelihood = model.observation(model.decode(z, model.weights())).log_prob(x).sum(-1)
    kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1).sum(-1) - log_scale.sum(-1)
    return log_likelihood - kl


def stages(config: Config, lab: Lab, seed: int, after: Sequence[str]) -> Iterator[Measured | Arrays]:
    """The encoder alone, then both, with everything measured at checkpoints."""
    source = image_source(config, lab, seed)
    truth = build_truth(config, source)
    load_network(truth, "model", lab.tensors(after[0]))
    truth.to(lab.device).eval().requires_grad_(False)
    model = copy.deepcopy(truth)
    _free(model, learned=config.sigma == "learned")
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "celeba", "encoder"))
        guide = build_encoder(config, source).to(lab.device)
    generator = torch_generator(seed, "celeba", "stages", device=lab.device)
    ends = {"encoder": config.encoder_steps, "joint": config.joint_steps}

    def run(name: str, parts: Sequence[nn.Module], rate: float, loss: Callable[[], Tensor]) -> Callable[..., Any]:
        def go(marks: Sequence[int]) -> Iterator[Place]:
            fitted = [
                (part, torch.optim.Adam([p for p in part.parameters() if p.requires_grad], rate)) for part in parts
            ]

            def step() -> Tensor:
                value = loss()
                for _, optimizer in fitted:
                    optimizer.zero_grad(set_to_none=True)
                value.backward()
                for _, optimizer in fitted:
                    optimizer.step()
                return value.detach()

            def watch(done: int, value: float) -> None:
                lab.watch(WATCHED[name], done, ends[name], f"loss {value:.1f}")

            yield from training(name, fitted, step, marks, generator, watch)

        return go

    def alone() -> Tensor:
        guide.train()
        z, _, x = simulate(truth, config.batch_size, generator)
        return -forward_kl(guide, x, z).mean()

    def jointly() -> Tensor:
        guide.eval()
        _, _, x = simulate(truth, config.batch_size, generator)
        return -one_draw_elbo(model, guide, x, generator).mean()

    plan = (
        Stage("encoder", config.encoder_steps, run("encoder", [guide], config.encoder_rate, alone)),
        Stage("joint", config.joint_steps, run("joint", [guide, model], config.joint_rate, jointly)),
    )
    extract = _extractor(config, source, lab, after)
    look = Measures(config, seed, truth, source, extract)
    few = simulate(truth, config.points, torch_generator(seed, "celeba", "points", device=lab.device))
    bounds = SearchedBounds(few, config.particles, seed)
    subject = Subject(model, truth, guide, {SEARCHED: few.x}, bounds.as_bounds())
    checks = 2 * config.checkpoints + 2
    pictures: dict[str, np.ndarray] = {}
    for place, found in enumerate(follow(subject, plan, config.checkpoints, lambda *_: None)):
        lab.watch("measures", round(measured_images(config) * (place + 1) / checks), round(measured_images(config)))
        if found.step == 0:
            continue  # an encoder that nobody has trained
        at = {"step": found.step, "seconds": found.seconds}
        for row in (*found.rows, *bounds.rows(), *look.rows(model, guide)):
            yield row._replace(**at, factors={**row.factors, "stage": found.stage})
        if (found.stage, found.step) in zip(ends, (config.encoder_steps, sum(ends.values())), strict=True):
            if found.stage == "encoder":
                row = bounds.certificate(truth, guide)
                yield row._replace(**at, factors={**row.factors, "stage": found.stage})
            pictures |= look.pictures(model, guide, found.stage)
            lab.show(found.step, pictures)
    yield Arrays(pictures)


def _free(model: DeepGenerative, *, learned: bool) -> None:
    """Let a copy of the truth be trained, and its scale where that is learned."""
    model.requires_grad_(True)
    assert model.log_scale is not None
    model.log_scale.requires_grad_(learned)


def _extractor(config: Config, source: Source, lab: Lab, after: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """The features of the distance, in evaluation mode."""
    if features_from(config, source) == "classifier":
        network: Classifier | Critic = Classifier(source.image_shape, config.channels, source.num_outputs)
        load_network(network, "classifier", lab.tensors(after[1]))
    else:
        network = critic_of(config, source, 1)
        load_network(network, "critic", lab.tensors(after[0]))
    network.to(lab.device).eval()
    return network.features
