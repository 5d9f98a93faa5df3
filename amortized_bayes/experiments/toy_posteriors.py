"""With two latents the posterior can be seen, and its evidence is a sum over a grid.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.1. A VAE with two
latents is trained and its decoder held fixed; for each family an encoder is trained, and the best q of each point
searched. Gaps are exact but for the draws of q: log p(x) is the sum of p(x, z) over a grid.

``python run_experiments.py toy-posteriors`` runs preset *quick* on fixed binarized MNIST: about six minutes on two
cores. Expect that the best flow of a point loses a tenth of a nat less than the best Gaussian, and that encoders lose
several nats more. *paper* has the published decoder, 2-100-784 with tanh, and more points and steps; epochs, batch size
and learning rate are not printed there, and are 200, 100 and 1e-3 here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from amortized_bayes.configuration import AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.bounds_settings import QFamily
from amortized_bayes.experiments.settings import VAEConfig, data_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Arrays, Column, Drawn, Job, Measured, Table
from amortized_bayes.flows import FLOWS

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]

NUM_FLOWS = 4
"""Layers of the flows of two latents."""


@dataclass(frozen=True)
class Config(Settings):
    """Draw true posteriors of a model with two latents beside each family's (Cremer et al. 2018, 5.1).

    Args:
        model: Settings of the VAE; its decoder is held fixed afterwards.
        families: Families of q; each amortized, and the best for each point.
        encoder_epochs: Passes over the training images for the encoder of each family.
        points: Points that are measured; the first four are drawn.
        grid: Cells of the grid along each side.
        steps: Steps of the searches for the best q.
    """

    model: VAEConfig = field(default_factory=lambda: VAEConfig(latent_dim=2))
    families: Annotated[tuple[QFamily, ...], Different("gaussian")] = ("gaussian", "auxiliary", "realnvp")
    encoder_epochs: Annotated[int, AtLeast(1)] = 10
    points: Annotated[int, AtLeast(4)] = 50
    grid: Annotated[int, AtLeast(20, 5_000)] = 300
    steps: Annotated[int, AtLeast(10)] = 1_000

    def check(self) -> None:
        """Two continuous latents, or there is nothing to draw."""
        self.model.require_continuous()
        if self.model.latent_dim != 2:
            raise SettingError(f"expected --latent-dim of 2, got {self.model.latent_dim}")


PRESETS = {
    "quick": Config(),
    "paper": Config(
        VAEConfig(
            latent_dim=2,
            hidden=(100,),
            activation="tanh",
            encoder="small",
            epochs=200,
            batch_size=100,
            learning_rate=1e-3,
        ),
        encoder_epochs=100,
        points=1_000,
        steps=5_000,
    ),
}
TABLES = (
    Table(
        ("family",),
        (Column("inference_gap", heading="amortized loses"), Column("approximation_gap", heading="best q loses")),
        "{dataset}: a model with two latents, seed {seed}",
    ),
)
FIGURES = {"toy_posteriors": Drawn("toy_posteriors")}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """The true posteriors, then for each family its encoder and the best q of each point."""
    model = config.model
    truth = Job(
        data_factors(model),
        partial(_truth, config, lab),
        name="posterior",
        needs=[model],
        work=[lab.evaluation_work("grid", model, config.points * (config.grid**2 + 150**2) / 3)],
        disk=4 * 8.0 * config.grid**2,
    )
    yield truth
    for family in config.families:
        fit = {"epochs": config.encoder_epochs, "schedule": "cosine", "kl_warm_up": 0, "entropy_annealing": 0}
        wanted = replace(model, family=family, num_flows=NUM_FLOWS, **fit)
        cost = 10 * (2 if family == "gaussian" else FLOWS[family].search_cost) * config.steps * config.points
        for name, run, work in (
            ("amortized", _amortized, lab.training_work("encoder", wanted, config.encoder_epochs)),
            ("best", _best, lab.evaluation_work(f"q* {family}", model, cost)),
        ):
            factors, measure = {**truth.factors, "family": family}, partial(run, config, wanted, truth.key, lab)
            yield Job(factors, measure, name, work=[work], needs=[model], after=[truth.key], disk=2e6)


def _truth(config: Config, lab: Lab) -> Iterator[Measured | Arrays]:
    from amortized_bayes.experiments.bounds import some_points
    from amortized_bayes.experiments.grid import log_evidence_on_grid

    trained = lab.trained(config.model)
    places, x = some_points(trained, "train", config.points, config.model.seed)
    grid = log_evidence_on_grid(trained.model, x, config.grid, lab)
    yield Arrays({"places": places, **grid._asdict()})


def _amortized(config: Config, wanted: VAEConfig, truth: str, lab: Lab) -> Iterator[Measured | Arrays]:
    """What an encoder of this family loses."""
    from amortized_bayes.experiments.encoders import measured_encoder
    from amortized_bayes.experiments.grid import DRAWN, draws_of, gap_to

    guide, x, found, known = measured_encoder(config.model, wanted, truth, lab)
    yield gap_to(known["log_p"], found, "inference_gap")
    yield Arrays({"elbo": found["elbo"], "draws": draws_of(guide, x[:DRAWN], wanted.seed, wanted.family)})


def _best(config: Config, wanted: VAEConfig, truth: str, lab: Lab) -> Iterator[Measured | Arrays]:
    """What the best q of this family loses at each point."""
    from amortized_bayes.experiments.bounds import same_points
    from amortized_bayes.experiments.grid import best_gaussian, best_of_family, gap_to

    trained, x, known = same_points(config.model, truth, lab)
    gaussian = lab.cached(
        ("best gaussian", config), lambda: best_gaussian(trained, x, known, config.steps, lab)
    )  # where the flows' searches start
    found = best_of_family(trained, wanted, x, gaussian, config.steps, lab)
    yield gap_to(known["log_p"], found, "approximation_gap")
    yield Arrays(found)
