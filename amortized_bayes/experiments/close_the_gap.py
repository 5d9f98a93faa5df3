"""What wins back the nats that an encoder loses, and what it takes: seconds at test time, or seconds of training.

Everything is measured on one trained decoder, which is held fixed, so that all ELBOs are of the same log p(x, z): what
a method recovers is L[q] - L[q of the encoder], at held-out points, paired by point and on common draws. Either
per-point steps follow the encoder's answer (SVI refinement: Krishnan, Liang & Hoffman, 2018), up to the best q of each
point, where amortization costs nothing. Or the encoder is trained further: with per-point steps in it
(semi-amortized VI: Kim et al., ICML 2018), by the importance-weighted bound (Burda et al., 2016; Tucker et al., 2019),
by reweighted wake-sleep (Bornschein & Bengio, 2015), or by the plain ELBO, which is what these are to be held against;
and a wider encoder is trained from scratch.

``python run_experiments.py close-the-gap`` runs preset *quick* on fixed binarized MNIST and FashionMNIST: ten
minutes on two quiet cores with ``--jobs 2``, of which the models of ``train`` take three where they are not there.
Expect five natural gradient steps to recover nine tenths of what the best q of each point would, a semi-amortized
encoder of one step a half, and two more passes of the same training nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, Even, Settings
from amortized_bayes.experiments.settings import VAE_PRESETS, EncoderName, VAEConfig, check_names, data_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Column, Drawn, Job, Table
from amortized_bayes.limits import Seed

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]


@dataclass(frozen=True)
class Config(Settings):
    """Win back what an encoder loses, at test time or by training, and measure the time it takes.

    Args:
        dataset: Data sets; one or more of binarized-mnist, mnist, fashion-mnist, cifar10, digits, or a path.
        epochs: Number of passes over the training images for each model.
        split: Where the points come from.
        points: Number of points, after a seeded shuffle; all if there are fewer.
        steps: Numbers of refinement steps after which each q is scored.
        refine_samples: Number of draws of each q per refinement step.
        adam_rate: Learning rate of refinement by Adam.
        search_steps: Number of steps of the search for the best q, from the encoder's answer and from the prior.
        own_steps: Numbers of per-point steps in semi-amortized training, each with an encoder of its own.
        num_particles: Number of draws of each image per step of training by IWAE and RWS.
        encoder_epochs: Number of passes over the training images for encoders that are trained further.
        encoder_learning_rate: Initial learning rate of these encoders; it falls to 0 along a cosine.
        wider: Size of the encoder that is trained from scratch.
        wider_epochs: Number of passes over the training images for that encoder.
        score: Number of fresh draws that score each q.
        seed: Random seed for models, points and draws.
    """

    dataset: Annotated[tuple[str, ...], Different()] = ("binarized-mnist", "fashion-mnist")
    epochs: Annotated[int, AtLeast(1)] = VAE_PRESETS["quick"].epochs
    split: Literal["train", "test"] = "test"
    points: Annotated[int, AtLeast(2)] = 200
    steps: Annotated[tuple[int, ...], Different(), AtLeast(1)] = (1, 2, 5, 10, 20, 50)
    refine_samples: Annotated[int, AtLeast(4), Even("since draws come in pairs")] = 10
    adam_rate: Annotated[float, Above(0)] = 0.2
    search_steps: Annotated[int, AtLeast(10)] = 300
    own_steps: Annotated[tuple[int, ...], Different(), AtLeast(1, 1_000)] = (1, 5)
    num_particles: Annotated[int, AtLeast(2)] = 8
    encoder_epochs: Annotated[int, AtLeast(1)] = 2
    encoder_learning_rate: Annotated[float, Above(0)] = 1e-3
    wider: EncoderName = "wide"
    wider_epochs: Annotated[int, AtLeast(1)] = 9
    score: Annotated[int, AtLeast(2)] = 500
    seed: Seed = 0

    def check(self) -> None:
        """Data sets have different names."""
        check_names(self.dataset)


PRESETS = {
    "quick": Config(),
    "paper": Config(
        points=1_000,
        steps=(1, 2, 5, 10, 20, 50, 100, 200),
        search_steps=3_000,
        own_steps=(1, 5, 20),
        encoder_epochs=30,
        wider_epochs=100,
        score=2_000,
    ),
}
TABLES = (
    Table(
        ("method", "budget"),
        ("recovered", "recovered_share", "seconds_per_point", "training_seconds"),
        "{dataset}: nats recovered over the encoder's own answer, and what that takes",
        where={"split": None},
    ),
    Table(
        ("split",),
        ("elbo", Column("elbo_star", heading="L(q*)"), "amortization_gap"),
        "{dataset}: what there is to recover",
    ),
)
FIGURES = {"close_the_gap": Drawn("close_the_gap")}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """The best q of each point, which says what there is to recover; then each method."""
    from amortized_bayes.experiments import closing

    for dataset in config.dataset:
        model = VAEConfig(dataset=dataset, epochs=config.epochs, seed=config.seed)
        place = closing.Place(config, model, lab)
        first = ""
        for method, budget, run, work in _methods(config, model, lab):
            factors = {**data_factors(model), "method": method, **({"budget": budget} if budget else {})}
            job = Job(
                factors,
                partial(run, place, first),
                work=[work],
                needs=[model],
                after=[first] if first else [],
                disk=16.0 * config.points * (len(config.steps) + 2),
            )
            first = first or job.key
            yield job


def _methods(config: Config, model: VAEConfig, lab: Lab) -> Iterator[tuple[str, int, Any, Any]]:
    """Name, per-point steps where they belong to the job, what measures it, and its work."""
    from amortized_bayes.experiments import closing

    search = config.points * (10 * config.search_steps + config.score)
    yield "qstar-encoder", 0, partial(closing.search, start="encoder"), lab.evaluation_work("q*", model, search)
    yield "qstar-prior", 0, partial(closing.search, start="prior"), lab.evaluation_work("q*", model, search)
    steps = config.points * (config.refine_samples * max(config.steps) + config.score * (1 + len(config.steps)))
    for name in ("natural", "adam"):
        yield name, 0, partial(closing.refined, optimizer=name), lab.evaluation_work("refinement", model, steps)
    further = replace(
        model,
        epochs=config.encoder_epochs,
        learning_rate=config.encoder_learning_rate,
        num_particles=config.num_particles,
    )
    wanted = [("elbo", 0, further)]
    wanted += [("semi-amortized", own, replace(further, semi_amortized_steps=own)) for own in config.own_steps]
    wanted += [(name, 0, replace(further, objective=name)) for name in ("iwae", "rws")]
    wanted += [("wider", 0, replace(model, encoder=config.wider, epochs=config.wider_epochs))]
    for name, own, encoder in wanted:
        run = partial(closing.trained_encoder, wanted=encoder, further=name != "wider")
        yield name, own, run, lab.training_work("encoder", encoder, encoder.epochs)
