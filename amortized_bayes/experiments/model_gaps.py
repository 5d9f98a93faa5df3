"""Gaps of models trained with different families, encoders and objectives, on training points.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.2 and Tables 2 and 3.
A model's own family stands in the middle of its gaps; the best q of the other families are reported beside it.

``python run_experiments.py model-gaps`` runs preset *quick* on fixed binarized MNIST: four models of 60 epochs, 100
points each, about 15 minutes on two cores, less where a model was trained before. Expect an amortization gap of one to
three nats, larger than the approximation gap. *paper* has the published settings, but for the searches for q*, which
start at the encoder's answer: days on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, Settings
from amortized_bayes.experiments.bounds_settings import PAPER_BOUNDS, BoundsConfig
from amortized_bayes.experiments.settings import Family, VAEConfig, check_names, model_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import GAPS, SEARCHED, Bars, Job, Table
from amortized_bayes.limits import Natural, Seed

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "jobs", "models", "substitutes"]

ANNEALED_PART = 400 / 3280
"""Part of the run over which the paper anneals the entropy."""


@dataclass(frozen=True)
class Config(Settings):
    """Train models with and without flows and entropy annealing, and measure gaps (Cremer et al. 2018, Tables 2 and 3).

    Args:
        dataset: Data sets; one or more of binarized-mnist, mnist, fashion-mnist, cifar10, digits, or a path.
        families: Families of q(z|x).
        encoders: Capacities of the encoder.
        annealing: Whether to train with entropy annealing; both by default.
        epochs: Passes over the training images for each model.
        batch_size: Images per step.
        learning_rate: Initial learning rate of Adam.
        schedule: How the learning rate falls.
        early_stopping: Keep the iterate that is best on validation images.
        num_flows: Number of flow layers; of pairs of couplings in an auxiliary flow.
        flow_hidden: Width of the two hidden layers of each network inside a flow.
        points: Training points at which gaps are measured.
        bounds: How the bounds are estimated.
        seed: Random seed for images, pixels, starting values and draws.
    """

    dataset: Annotated[tuple[str, ...], Different()] = ("binarized-mnist",)
    families: Annotated[tuple[Family, ...], Different()] = ("gaussian", "auxiliary")
    encoders: Annotated[tuple[Literal["small", "standard", "wide"], ...], Different()] = ("standard",)
    annealing: Annotated[tuple[bool, ...], Different()] = (True, False)
    epochs: Annotated[int, AtLeast(1)] = 60
    batch_size: Annotated[int, AtLeast(1)] = 250
    learning_rate: Annotated[float, Above(0)] = 2e-3
    schedule: Literal["burda", "cosine", "constant"] = "cosine"
    early_stopping: bool = True
    num_flows: Annotated[int, AtLeast(1, 1_000)] = 2
    flow_hidden: Natural = 100
    points: Annotated[int, AtLeast(2)] = 100
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    seed: Seed = 0

    def check(self) -> None:
        """Gaps of a family need the best q of that family, and data sets different names."""
        check_names(self.dataset)
        self.bounds.require(self.families)


PRESETS = {
    "quick": Config(),
    "paper": Config(
        dataset=("binarized-mnist", "fashion-mnist"),
        families=("gaussian", "auxiliary", "realnvp", "realnvp-contextual"),
        encoders=("standard", "wide"),
        epochs=3_280,
        batch_size=100,
        learning_rate=1e-3,
        schedule="burda",
        early_stopping=False,
        points=1_000,
        bounds=PAPER_BOUNDS,
    ),
}


def models(config: Config) -> list[VAEConfig]:
    """The models that are compared."""
    shared: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(VAEConfig) if hasattr(config, f.name)}
    annealing = max(1, round(ANNEALED_PART * config.epochs))
    return [
        VAEConfig(
            **{**shared, "dataset": dataset},
            family=family,
            encoder=encoder,
            entropy_annealing=annealing if annealed else 0,
        )
        for dataset in config.dataset
        for encoder in config.encoders
        for family in config.families
        for annealed in config.annealing
    ]


TABLES = (
    Table(
        ("family", "encoder", "annealed"),
        (*GAPS, "certificate_gap"),
        "{dataset}: gaps of models on training points",
        published="cremer2018_models",
    ),
    Table(
        ("family", "encoder", "annealed"),
        ("log_p_lower", "iwae", *SEARCHED, "elbo"),
        "{dataset}: bounds of models on training points",
        published="cremer2018_models",
        wide=True,
    ),
)
FINDINGS = ("encoder_or_family",)
FIGURES = {
    "model_gaps": (
        Bars(
            ("family", "encoder", "annealed"),
            GAPS[:2],
            apart="dataset",
            title="Gaps of models of each family, encoder and objective",
        ),
    )
}


def jobs(config: Config, lab: Lab) -> list[Job]:
    """A job per model."""
    from amortized_bayes.experiments.bounds import bounds_job

    return [bounds_job(model_factors(model), model, config.points, config.bounds, lab) for model in models(config)]
