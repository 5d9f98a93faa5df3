"""The gaps of one decoder under encoders of every family and size.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.3 and Table 4. The
estimate of log p(x) and the best q of each family belong to the decoder and the points alone, so they are made once and
shared by all encoders.

``python run_experiments.py frozen-decoder`` runs preset *quick* on fixed binarized MNIST: twelve encoders, about 15
minutes on two cores, less where the model of ``train`` is there. Expect the amortization gap of a linear encoder to
fall from some 36 nats (gaussian) to 14 (auxiliary). *paper* has the settings of Table 4 (tanh, batches of 20, KL
warm-up over 100 epochs); encoders, searches for q* and the number of epochs of the model are not printed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.bounds_settings import PAPER_BOUNDS, BoundsConfig
from amortized_bayes.experiments.settings import TABLE_4_MODEL, EncoderName, Family, VAEConfig, data_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import GAPS, SEARCHED, Arrays, Checkpoint, Job, Measured, Points, Table

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]


@dataclass(frozen=True)
class Config(Settings):
    """Train a VAE, hold its decoder fixed, and train encoders of all kinds for it (Cremer et al. 2018, Table 4).

    Args:
        model: Settings of the VAE; the encoders share its seed, batch size and learning rate.
        encoders: Capacities of the encoders.
        families: Families of q(z|x).
        encoder_epochs: Passes over the training images for each encoder, at most; it stops early on validation images.
        encoder_schedule: How the learning rate of an encoder falls, as `--schedule` of the VAE.
        encoder_kl_warm_up: Number of epochs of an encoder over which the weight of the KL divergence rises from 0 to 1.
        points: Training points at which gaps are measured.
        bounds: How the bounds are estimated.
    """

    model: VAEConfig = field(default_factory=VAEConfig)
    encoders: Annotated[tuple[EncoderName, ...], Different()] = ("linear", "small", "standard", "wide")
    families: Annotated[tuple[Family, ...], Different()] = ("gaussian", "auxiliary", "realnvp")
    encoder_epochs: Annotated[int, AtLeast(1)] = 30
    encoder_schedule: Literal["burda", "cosine", "constant"] = "cosine"
    encoder_kl_warm_up: Annotated[int, AtLeast(0)] = 0
    points: Annotated[int, AtLeast(2)] = 100
    bounds: BoundsConfig = field(default_factory=BoundsConfig)

    def check(self) -> None:
        """Gaps of a family need the best q of that family, and a warm-up ends with the fit at the latest."""
        self.bounds.require(self.families)
        self.model.require_continuous()
        if self.encoder_kl_warm_up > self.encoder_epochs:
            most = f"at most {self.encoder_epochs} epochs"
            raise SettingError(f"expected --encoder-kl-warm-up of {most}, got {self.encoder_kl_warm_up}")


PRESETS = {
    "quick": Config(),
    "paper": Config(
        model=TABLE_4_MODEL,
        families=("gaussian", "planar", "realnvp", "auxiliary", "realnvp-contextual"),
        encoder_epochs=400,
        points=1_000,
        bounds=replace(PAPER_BOUNDS, best_families=("gaussian", "planar", "auxiliary", "realnvp")),
    ),
}
TABLES = (
    Table(
        ("encoder", "family"),
        ("elbo", *GAPS),
        "{dataset}: encoders trained for one decoder",
        published="cremer2018_table4",
    ),
    Table(
        (),
        ("log_p_lower", *SEARCHED),
        "{dataset}: what belongs to the decoder",
        where={"encoder": None},
        published="cremer2018_table4",
    ),
    Table((), ("iwae", "certificate_gap"), "{dataset}: more of the decoder", where={"encoder": None}, wide=True),
)
FINDINGS = ("encoder_or_family",)
FIGURES = {
    "frozen_decoder": (
        Points(
            "encoder",
            "amortization_gap",
            hue="family",
            log="y",
            title="One decoder on {dataset}: what encoders of each family lose",
            where={"label": None},
        ),
        Points("label", "amortization_gap", hue="encoder", log="y", where={"family": "gaussian"}),
    )
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """What belongs to the decoder, then an encoder per job."""
    from amortized_bayes.experiments.bounds import bounds_work, decoder_bounds

    model = config.model
    decoder = Job(
        data_factors(model),
        partial(decoder_bounds, model, config.points, config.bounds, lab),
        name="decoder",
        work=bounds_work(config.bounds, model, config.points, lab),
        needs=[model],
        disk=16.0 * config.points * (4 + len(config.bounds.best_families)),
    )
    yield decoder
    for family in config.families:
        for encoder in config.encoders:
            wanted = replace(
                model,
                family=family,
                encoder=encoder,
                epochs=config.encoder_epochs,
                schedule=config.encoder_schedule,
                kl_warm_up=config.encoder_kl_warm_up,
                entropy_annealing=0,
            )
            yield Job(
                {**decoder.factors, "encoder": encoder, "family": family},
                partial(_encoder, config, wanted, decoder.key, lab),
                work=[lab.training_work("encoder", wanted, config.encoder_epochs)],
                needs=[model],
                after=[decoder.key],
                disk=4e6,
            )


def _encoder(config: Config, wanted: VAEConfig, decoder: str, lab: Lab) -> Iterator[Measured | Arrays | Checkpoint]:
    """Fit one encoder; L[q] and its gaps, overall and by class."""
    from amortized_bayes.experiments.bounds import guide_bounds
    from amortized_bayes.experiments.encoders import measured_encoder

    guide, _, found, shared = measured_encoder(config.model, wanted, decoder, lab, config.bounds.score)
    yield from guide_bounds(found, shared, wanted.family)
    yield Checkpoint({name: value.detach().cpu().numpy() for name, value in guide.state_dict().items()})
