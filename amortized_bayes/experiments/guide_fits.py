"""The problem that ``sweep`` and ``tune`` fit guides to, and what a fit costs, in seconds and bytes."""

from __future__ import annotations

import math
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes.experiments.fit_settings import FitSettings, rates_of
from amortized_bayes.experiments.settings import dataset_name
from amortized_bayes.experiments.spec import Work
from amortized_bayes.guides.registry import GUIDES, Fit, Rates, list_budgets
from amortized_bayes.likelihoods import with_scale

if TYPE_CHECKING:
    from amortized_bayes.comparing.fitting import Watch
    from amortized_bayes.comparing.problem import FitProblem
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.setup import ImageData
    from amortized_bayes.inference.options import FitOptions

__all__ = ["Place", "Sizes", "fit_disk", "shown_places", "starts_others"]

EVALUATION = 1.3
"""A fit with its evaluations takes about this times its steps."""
TIMED_STEPS = 10
PIXEL = 200
"""Multiplications that the likelihood of a value takes the time of, about."""
ROW_STEP = 0.7
"""What a further step of the rows costs, of a whole step: the model's own parameters stay as they are."""
OWN_STEP = 2.5
"""What a per-point step costs while it is trained for, likewise."""
SCALES_SLOWER = 4
"""How many times smaller the steps of q(theta)'s log scales are than those of its means."""


class Sizes(NamedTuple):
    """N training points of P values, and steps per epoch."""

    num_data: int
    observed: int
    per_epoch: int


class Place(NamedTuple):
    """What guides are fitted to: a data set of a configuration, and a seed."""

    config: FitSettings
    lab: Lab
    dataset: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the data set in rows."""
        return dataset_name(self.dataset)

    @property
    def sizes(self) -> Sizes:
        """Sizes of the data, as far as the settings let them be used."""
        available, *shape = self.lab.cached(("shape", self.dataset), self._shape)
        num_data = min(self.config.num_train, available)
        return Sizes(num_data, math.prod(shape), math.ceil(num_data / self.config.batch_size))

    @property
    def images(self) -> ImageData:
        """The data as the model sees them, on the device.

        Raises:
            ValueError: data that are unavailable, or do not fit the likelihood.
        """
        from amortized_bayes.experiments.setup import load_images

        likelihood = with_scale(self.config.likelihood, self.config.gaussian_scale)
        sizes = {"num_train": self.config.num_train, "num_test": self.config.num_test}
        source = self.lab.dataset(self.dataset, self.seed)
        load = partial(load_images, source, likelihood=likelihood, seed=self.seed, device=self.lab.device, **sizes)
        return self.lab.recent(("images", self.dataset, self.seed, likelihood, *sizes.values()), load)

    def work(self, stage: str, epochs: float, fit: Fit | None = None) -> Work:
        """What a fit takes (``None``: the widest encoder's), from timed steps of the latter, scaled by arithmetic."""
        seconds = partial(self.lab.cached, ("seconds per step", self.dataset, self.config), self._seconds_per_step)
        own, timed = (_step_size(self.config, fit, self.sizes) for fit in (fit or self._widest, self._widest))
        basis = f"{TIMED_STEPS} steps with the widest encoder"
        return Work(stage, epochs * self.sizes.per_epoch * own / timed, seconds, basis)

    def evaluations(self, count: float) -> Work:
        """What evaluating points takes, without a gradient: about half of a step of as many."""
        work = self.work("evaluation", 1)
        return work._replace(amount=count / 2 / self.config.batch_size)

    def problem(
        self, num_draws: int = 2, particles: int = 1, points: int = 1, predictive_points: int = 1
    ) -> FitProblem:
        """The data as the model sees them, and the model; the numbers are those of final evaluations."""
        from amortized_bayes.comparing.problem import FitProblem, Held
        from amortized_bayes.experiments.setup import build_model

        config, images = self.config, self.images
        return FitProblem(
            data=images.train,
            new_model=lambda: build_model(config, images, self.seed),
            options=self.options,
            seed=self.seed,
            epochs=config.epochs,
            budgets=list_budgets(config.epochs, config.rungs),
            depth=config.depth,
            own_steps=config.own_steps,
            num_draws=num_draws,
            local_reparametrization=config.decoder == "bayesian",
            published=config.init == "published",
            name=f"{_stream_name(self.dataset)}_seed{self.seed}",
            held=Held(
                *(images.grey_train, images.test, images.grey_test),
                *(particles, points, predictive_points),
                shown_places(images),
            ),
        )

    def options(self, fit: Fit, rates: Rates | None = None) -> FitOptions:
        """How to fit a guide; ``rates`` instead of its own. Wide encoders take smaller steps."""
        from amortized_bayes.inference.options import FitOptions, WarmUp

        config, chosen = self.config, rates or rates_of(self.config, fit.guide)
        plain = config.objective != "elbo"  # plain draws, whose weights have no KL of their own
        undrawn = config.local_reparametrization and config.decoder == "bayesian" and not plain
        warm_up = WarmUp(config.warm_up) if config.warm_up and not plain else None
        options = (FitOptions.recipe if config.decay else FitOptions)(
            batch_size=config.batch_size,
            learning_rate=chosen.local,
            shared_learning_rate=chosen.shared,
            shared_scale_learning_rate=chosen.shared / SCALES_SLOWER if config.decay else None,
            row_learning_rate=chosen.local,
            row_steps=config.row_steps,
            local_reparametrization=undrawn,
            quadrature_nodes=config.quadrature_nodes if undrawn else 0,
            center_input=config.center,
            kl_weight=warm_up,
            shared_kl_weight=warm_up,
            capture=config.compile_step,
            objective=config.objective,
            num_particles=config.num_particles if plain else 1,
        )
        return options.at_width(fit.k) if config.decay else options

    def watch(self, stage: str) -> Watch:
        """What reports the progress of a fit to the lab."""
        options = self.options(self._widest)
        # what a fit climbs is no ELBO until the warm-up ends
        name = "annealed ELBO" if options.annealed else options.bound_name

        def watch(done: int, total: int, elbo: float) -> None:
            self.lab.watch(stage, done, total, f"{name} {elbo:.2f} nats per point")

        return watch

    def _shape(self) -> tuple[int, ...]:
        return self.lab.dataset(self.dataset, self.seed).train.pixels.shape

    def _seconds_per_step(self) -> float:
        """Evaluations included."""
        from amortized_bayes.comparing.starting import start_fit
        from amortized_bayes.experiments.lab import seconds_per_step

        training = start_fit(self.problem(), self._widest).training
        planned = self.config.epochs * training.batches.per_epoch
        return EVALUATION * seconds_per_step(training, TIMED_STEPS, planned)

    @property
    def _widest(self) -> Fit:
        wide = next((guide for guide in self.config.guides if GUIDES[guide].has_width), None)
        return Fit(self.config.guides[0]) if wide is None else Fit(wide, max(self.config.widths))


def starts_others(fit: Fit) -> bool:
    """Whether some guide starts at the answer of this one, so that its state is kept."""
    return any(entry.starts_from == fit.guide for entry in GUIDES.values())


def _step_size(config: FitSettings, fit: Fit, sizes: Sizes) -> float:
    """How much a step of a fit computes per data point, in multiplications; rough, for forecasts alone."""
    decoder = _weights(_decoder_widths(config, sizes)) * (2 if config.decoder == "bayesian" else 1)
    model = decoder + PIXEL * sizes.observed
    encoder = _weights(_encoder_widths(config, fit, sizes)) if GUIDES[fit.guide].has_width else 0
    again = ROW_STEP * (config.row_steps - 1) if GUIDES[fit.guide].per_point else 0.0
    steps = OWN_STEP * config.own_steps if GUIDES[fit.guide].own_steps == "always" else 0.0
    return model * (1 + again + steps) + encoder


def _decoder_widths(config: FitSettings, sizes: Sizes) -> list[int]:
    return [config.latent_dim, *config.hidden, sizes.observed]


def _encoder_widths(config: FitSettings, fit: Fit, sizes: Sizes) -> list[int]:
    return [sizes.observed, *[fit.k or 1] * config.depth, 2 * config.latent_dim]


def _weights(widths: list[int]) -> int:
    return sum(i * o + o for i, o in pairwise(widths))


def fit_disk(config: FitSettings, fit: Fit, sizes: Sizes) -> float:
    """Bytes that a fit leaves: the ELBO of each point with every budget and, if others start there, its state."""
    found = 4 * sizes.num_data * (len(list_budgets(config.epochs, config.rungs)) + 1)
    if not starts_others(fit):
        return found
    entry, outputs = GUIDES[fit.guide], 2 * config.latent_dim
    local = _weights(_encoder_widths(config, fit, sizes)) if entry.has_width else outputs
    local = sizes.num_data * outputs if entry.per_point else local
    decoder = _weights(_decoder_widths(config, sizes)) * (2 if config.decoder == "bayesian" else 1)
    copies = 3 if config.decay else 4  # itself, two moments, an average
    return found + 4 * copies * (local + decoder)


def shown_places(images: ImageData, most: int = 10) -> list[int]:
    """Places of the test images to be shown: the first of each class, or the first ones where there are no classes."""
    labels = images.source.test.labels
    if labels is None:
        return list(range(min(most, len(images.test))))
    labels = labels[: len(images.test)].tolist()
    return [labels.index(label) for label in sorted(set(labels))[:most]]


def _stream_name(dataset: str) -> str:
    """Name of a data set in those of random streams; files of equal names in other folders have other ones."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(dataset).stem)[:60]
    if name != dataset and dataset.endswith((".npz", ".npy")):
        name = f"{name.strip('-') or 'data'}-{sha256(dataset.encode()).hexdigest()[:8]}"
    return name
