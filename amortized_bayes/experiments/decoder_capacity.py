"""How the decoder's capacity moves the approximation gap.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.4 and Table 5:
decoders of 0, 2 and 4 hidden layers, log p(x) and the best factorized Gaussian of each point, on training points. A
richer decoder has posteriors that a Gaussian fits better.

``python run_experiments.py decoder-capacity`` runs preset *quick* on fixed binarized MNIST: three models of 60 epochs,
100 points each, about ten minutes on two cores. Expect gaps that fall as layers are added; published: 3.90, 1.83, 1.63
nats per point. *paper* has the settings of Tables 4 and 5 (tanh, batches of 20, KL warm-up over 100 epochs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from amortized_bayes.configuration import AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.bounds_settings import PAPER_BOUNDS, BoundsConfig
from amortized_bayes.experiments.settings import TABLE_4_MODEL, VAEConfig, data_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Column, Job, Points, Table

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]


@dataclass(frozen=True)
class Config(Settings):
    """Train decoders of several depths and measure what a Gaussian loses there (Cremer et al. 2018, Table 5).

    Args:
        model: Settings of the VAE; the width of its first hidden layer is that of all.
        layers: Numbers of hidden layers of the decoder.
        points: Training points at which bounds are estimated.
        bounds: How the bounds are estimated.
    """

    model: VAEConfig = field(default_factory=VAEConfig)
    layers: Annotated[tuple[int, ...], Different(), AtLeast(0, 100)] = (0, 2, 4)
    points: Annotated[int, AtLeast(2)] = 100
    bounds: BoundsConfig = field(default_factory=lambda: BoundsConfig(best_families=("gaussian",)))

    def check(self) -> None:
        """Convolutional decoders have another number of layers, and bits another best q."""
        self.model.require_continuous()
        if self.model.architecture != "dense":
            raise SettingError(
                f"expected --network dense, whose hidden layers are counted, got {self.model.architecture}"
            )


PRESETS = {
    "quick": Config(),
    "paper": Config(TABLE_4_MODEL, points=1_000, bounds=replace(PAPER_BOUNDS, best_families=("gaussian",))),
}
TABLES = (
    Table(
        ("decoder_layers",),
        ("log_p_lower", Column("elbo_star", {"searched": "gaussian"}), "approximation_gap", "certificate_gap"),
        "{dataset}: how deep the decoder is, and what the best Gaussian loses",
        published="cremer2018_table5",
    ),
    Table(("decoder_layers",), ("iwae", "elbo"), "{dataset}: more bounds", wide=True),
)
FIGURES = {
    "decoder_capacity": (
        Points(
            "decoder_layers",
            "approximation_gap",
            hue="dataset",
            title="{dataset}: what the best Gaussian loses, by depth of the decoder",
        ),
        Points("decoder_layers", "log_p_lower", hue="dataset"),
    )
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A job per decoder."""
    from amortized_bayes.experiments.bounds import bounds_job

    for layers in config.layers:
        model = replace(config.model, hidden=config.model.hidden[:1] * layers)
        yield bounds_job({**data_factors(model), "decoder_layers": layers}, model, config.points, config.bounds, lab)
