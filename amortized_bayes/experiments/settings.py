"""Settings that several experiments share: which VAE is trained. No torch.

The setting of *paper* is that of Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML
2018): encoder 784-200-200, 50 latents, mirrored decoder, ELU, Bernoulli pixels, batches of 100, Adam with Burda's
schedule over 3,280 epochs, entropy annealing over 400. *quick* is the same model with fewer and longer steps and
without annealing: a few minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from amortized_bayes.configuration import Above, AtLeast, SettingError, Settings, flag
from amortized_bayes.data.catalogue import DATASETS
from amortized_bayes.data.catalogue import display_name as dataset_name
from amortized_bayes.flows import FAMILIES
from amortized_bayes.likelihoods import CHOICES, LIKELIHOODS, with_scale
from amortized_bayes.limits import Natural, Seed
from amortized_bayes.types import Factor

__all__ = [
    "BERNOULLI",
    "CHANNELS",
    "DATASET_HELP",
    "DEEP_CHANNELS",
    "ENCODERS",
    "TABLE_4_MODEL",
    "VAE_PRESETS",
    "EncoderName",
    "Family",
    "LikelihoodName",
    "VAEConfig",
    "check_names",
    "data_factors",
    "dataset_name",
    "datasets_of",
    "image_substitutes",
    "model_factors",
    "objective_factors",
    "same_model",
    "serves",
]

ENCODERS: dict[str, tuple[int, ...]] = {
    "linear": (),
    "small": (100,),
    "standard": (200, 200),
    "wide": (500, 500),
    "large": (500, 500, 500),
}
"""Hidden layers of the dense encoders."""
CHANNELS: dict[str, tuple[int, int]] = {"small": (16, 32), "standard": (32, 64), "wide": (64, 128)}
"""Channels of the convolutional ones."""
DEEP_CHANNELS: dict[str, tuple[int, int, int]] = {
    "small": (32, 64, 128),
    "standard": (64, 128, 256),
    "wide": (128, 256, 512),
}
"""Channels of the deep convolutional ones; those of the decoder are the standard ones in reverse."""
DATASET_HELP = f"{', '.join(DATASETS)}, or the path of an .npz or .npy file."
"""What ``--dataset`` may be."""

BERNOULLI = "bernoulli"
"""Family of a model whose latents are bits."""

if TYPE_CHECKING:
    EncoderName = Family = LikelihoodName = ModelFamily = str
else:  # choices of flags, from the dictionaries
    EncoderName = Literal[tuple(ENCODERS)]
    LikelihoodName = Literal[CHOICES]
    Family = Literal[FAMILIES]
    ModelFamily = Literal[(*FAMILIES, BERNOULLI)]


@dataclass(frozen=True)
class VAEConfig(Settings):
    """Train a VAE, or a decoder with a posterior over its weights.

    Args:
        dataset: The data set.
        binarization: Draw binary pixels once, by seed (fixed), draw them anew at each visit (dynamic), or set them
            where the grey value is above one half (threshold). With auto, fashion-mnist and each colour channel of
            cifar10 are thresholded, as in the paper, and other data sets are drawn once. Gaussian and binomial
            likelihoods take the grey values as they are.
        network: Type of the networks. They are dense, have two convolutions (convolutional), or three with batch norm,
            as in the paper's model of CIFAR-10 (deep-convolutional). With auto, those of cifar10 are
            deep-convolutional and others dense.
        encoder: Size of the encoder. Its hidden layers have 100 units (small), 200 and 200 (standard), or 500 and
            500 (wide), or three times 500 (large), or it has more channels; a linear encoder has no hidden layers,
            whatever the networks.
        family: Family of q(z|x), a Gaussian or a flow. A contextual flow gets its parameters from the encoder. With
            bernoulli, latents are fair bits, q is a product of Bernoullis, and gradients are those of DisARM.
        num_flows: Number of flow layers; of pairs of couplings in an auxiliary flow.
        flow_hidden: Width of the two hidden layers of each network inside the flow.
        decoder: Decoder with point-estimated weights (a VAE) or Bayesian (a mean-field Gaussian over its weights).
        likelihood: Likelihood of the pixels. A binomial one takes grey values as counts, of 255 for bytes.
        gaussian_scale: Standard deviation of the Gaussian likelihood, fixed at 1 or learned.
        activation: Activation between the layers of encoder and decoder.
        latent_dim: Number of latent variables per image (D).
        hidden: Widths of the dense decoder's hidden layers. Without a value the decoder is linear.
        epochs: Number of passes over the training images.
        batch_size: Number of images per step.
        learning_rate: Learning rate of Adam at the start.
        schedule: How the learning rate falls. Burda's stages are scaled to the number of epochs.
        entropy_annealing: Number of epochs over which the weight of log q alone rises from 0 to 1.
        kl_warm_up: Number of epochs over which the weight of the whole KL divergence rises from 0 to 1.
        objective: What training maximizes: the ELBO (elbo), the importance-weighted bound (iwae), or that bound for the
            decoder and the wake phase of reweighted wake-sleep for the encoder (rws).
        num_particles: Number of draws of each image per step, with iwae and rws.
        semi_amortized_steps: Number of gradient steps per image from the encoder's answer (semi-amortized VI);
            the encoder is trained through them.
        early_stopping: Stop when the ELBO of validation images no longer improves, and keep the best iterate.
        num_validation: Number of training images held out for early stopping, at most a tenth of them.
        patience: Number of evaluations without a better validation ELBO before stopping, out of fifty in all.
        num_train: Number of training images, after a shuffle by seed; all if there are fewer.
        num_test: Number of test images, after a shuffle by seed; all if there are fewer.
        keep_epochs: Epochs after which a copy of the model is kept, for experiments that follow its training.
        seed: Random seed for images, pixels, starting values and draws.
    """

    dataset: Annotated[str, tyro.conf.arg(help=DATASET_HELP)] = "binarized-mnist"
    binarization: Literal["auto", "fixed", "dynamic", "threshold"] = "auto"
    network: Literal["auto", "dense", "convolutional", "deep-convolutional"] = "auto"
    encoder: EncoderName = "standard"
    family: ModelFamily = "gaussian"
    num_flows: Annotated[int, AtLeast(1, 1_000)] = 2
    flow_hidden: Natural = 100
    decoder: Literal["point", "bayesian"] = "point"
    likelihood: LikelihoodName = "bernoulli"
    gaussian_scale: Literal["fixed", "learned"] = "fixed"
    activation: Literal["elu", "tanh"] = "elu"
    latent_dim: Natural = 50
    hidden: Annotated[tuple[int, ...], AtLeast(1, math.inf)] = (200, 200)
    epochs: Annotated[int, AtLeast(1)] = 60
    batch_size: Annotated[int, AtLeast(1)] = 250
    learning_rate: Annotated[float, Above(0)] = 2e-3
    schedule: Literal["burda", "cosine", "constant"] = "cosine"
    entropy_annealing: Annotated[int, AtLeast(0)] = 0
    kl_warm_up: Annotated[int, AtLeast(0)] = 0
    objective: Literal["elbo", "iwae", "rws"] = "elbo"
    num_particles: Annotated[int, AtLeast(2)] = 8
    semi_amortized_steps: Annotated[int, AtLeast(0, 1_000)] = 0
    early_stopping: bool = True
    num_validation: Annotated[int, AtLeast(1)] = 5_000
    patience: Annotated[int, AtLeast(1)] = 10
    num_train: Annotated[int, AtLeast(2)] = 60_000
    num_test: Annotated[int, AtLeast(2)] = 10_000
    keep_epochs: Annotated[tuple[int, ...], AtLeast(1)] = ()
    seed: Seed = 0

    def check(self) -> None:
        """Refuse settings that contradict each other."""
        if any(epoch > self.epochs for epoch in self.keep_epochs):
            raise SettingError(f"expected --keep-epochs of at most {self.epochs} epochs, got {max(self.keep_epochs)}")
        if self.keep_epochs and self.early_stopping:
            raise SettingError(
                "expected --no-early-stopping with --keep-epochs: a training that stops early may not reach them"
            )
        for name in ("entropy_annealing", "kl_warm_up"):
            if getattr(self, name) > self.epochs:
                raise SettingError(f"expected {flag(name)} of at most {self.epochs} epochs, got {getattr(self, name)}")
        if self.architecture == "deep-convolutional" and self.decoder == "bayesian":
            raise SettingError(
                "expected --decoder point for deep-convolutional networks, whose batch norm has no posterior, got "
                "'bayesian'"
            )
        self._check_objective()
        if self.likelihood not in LIKELIHOODS:
            raise SettingError(f"expected --likelihood {' or '.join(CHOICES)}, got {self.likelihood!r}")
        if self.binarization != "auto" and not LIKELIHOODS[self.likelihood].binary:
            raise SettingError(
                f"expected --binarization auto for --likelihood {self.likelihood}, which takes grey values as they "
                f"are, got {self.binarization!r}"
            )
        known = DATASETS.get(self.dataset)
        if known and not known.grey and self.binarization not in ("auto", "fixed"):
            grey = f"; --dataset {known.labels_from} has grey values" if known.labels_from else ""
            raise SettingError(
                f"expected --binarization fixed for {self.dataset}, which is binary already, got "
                f"{self.binarization!r}{grey}"
            )

    def _check_objective(self) -> None:
        """Refuse what does not go with an objective, or with per-image steps."""
        found = f"--objective {self.objective}"
        if self.objective != "elbo" and self.decoder == "bayesian":
            raise SettingError(
                f"expected --decoder point with {found}, whose particles have one decoder, got 'bayesian'"
            )
        for name in ("entropy_annealing", "kl_warm_up"):
            if self.objective != "elbo" and getattr(self, name):
                raise SettingError(f"expected {flag(name)} 0 with {found}, which has no KL, got {getattr(self, name)}")
        if self.family == BERNOULLI and (self.objective != "elbo" or self.entropy_annealing or self.kl_warm_up):
            plain = "--objective elbo without --entropy-annealing and --kl-warm-up"
            raise SettingError(f"expected {plain} with --family bernoulli, whose gradient is of the plain ELBO")
        if self.family == BERNOULLI and self.decoder == "bayesian":
            raise SettingError("expected --decoder point with --family bernoulli, got 'bayesian'")
        if self.objective == "rws" and self.family != "gaussian":
            raise SettingError(f"expected --family gaussian with {found}, which scores draws anew, got {self.family!r}")
        if self.semi_amortized_steps:
            steps = "--semi-amortized-steps, which are of Gaussians"
            if self.family != "gaussian":
                raise SettingError(f"expected --family gaussian with {steps}, got {self.family!r}")
            if self.architecture == "deep-convolutional":
                raise SettingError(
                    "expected --semi-amortized-steps 0 for deep-convolutional networks, whose batch norm mixes images, "
                    f"got {self.semi_amortized_steps}"
                )

    def require_continuous(self) -> None:
        """Refuse bits, of an experiment that searches among Gaussians and flows.

        Raises:
            SettingError: latents that are bits.
        """
        if self.family == BERNOULLI:
            raise SettingError("expected --family gaussian or a flow here, got 'bernoulli': `gaps` measures bits")

    @property
    def architecture(self) -> Literal["dense", "convolutional", "deep-convolutional"]:
        """Type of the networks, where ``network`` leaves it to the data set."""
        if self.network != "auto":
            return self.network
        return DATASETS[self.dataset].network if self.dataset in DATASETS else "dense"

    @property
    def pixels(self) -> Literal["fixed", "dynamic", "threshold", "grey"]:
        """How grey values become pixels; ``grey``: they stay as they are."""
        if not LIKELIHOODS[self.likelihood].binary:
            return "grey"
        if self.binarization != "auto":
            return self.binarization
        return DATASETS[self.dataset].binarization if self.dataset in DATASETS else "fixed"


def data_factors(config: VAEConfig) -> dict[str, Factor]:
    """What rows that compare settings of one model share: its data set and its seed."""
    return {"dataset": dataset_name(config.dataset), "seed": config.seed}


def model_factors(config: VAEConfig) -> dict[str, Factor]:
    """What tells a trained model from others in rows; the later factors only where they are not the default."""
    factors: dict[str, Factor] = {
        "dataset": dataset_name(config.dataset),
        "family": config.family,
        "encoder": config.encoder,
        "annealed": config.entropy_annealing > 0,
        "seed": config.seed,
    }
    factors |= {"network": config.architecture} if config.architecture != "dense" else {}
    factors |= {"decoder": config.decoder} if config.decoder != "point" else {}
    likelihood = with_scale(config.likelihood, config.gaussian_scale)
    factors |= {"likelihood": likelihood} if likelihood != "bernoulli" else {}
    factors |= {"kl_warm_up": True} if config.kl_warm_up else {}
    return factors | objective_factors(config)


def objective_factors(config: Any) -> dict[str, Factor]:
    """What tells another objective than the plain ELBO, in rows."""
    factors: dict[str, Factor] = {}
    if config.objective != "elbo":
        factors |= {"objective": config.objective, "num_particles": config.num_particles}
    steps = getattr(config, "semi_amortized_steps", 0)
    return factors | ({"semi_amortized_steps": steps} if steps else {})


def same_model(a: VAEConfig, b: VAEConfig) -> bool:
    """Whether two configurations train the same model: settings that have no effect in either may differ.

    Example:
        >>> same_model(VAEConfig(), VAEConfig(num_flows=7, binarization="fixed"))
        True
    """
    return _effective(a) == _effective(b)


def serves(trained: VAEConfig, wanted: VAEConfig) -> bool:
    """Whether training one configuration gives the model of another, and the copies that the other keeps on the way.

    Example:
        >>> plain = VAEConfig(early_stopping=False)
        >>> kept = replace(plain, keep_epochs=(1, 60))
        >>> serves(kept, plain), serves(plain, kept)
        (True, False)
    """
    return same_model(trained, wanted) and set(wanted.keep_epochs) <= set(trained.keep_epochs)


def _effective(config: VAEConfig) -> dict[str, Any]:
    """The settings that have an effect, by name."""
    idle = {
        "num_flows": config.family in ("gaussian", BERNOULLI),
        "flow_hidden": config.family in ("gaussian", BERNOULLI),
        "gaussian_scale": with_scale(config.likelihood, "learned") == config.likelihood,
        "hidden": config.architecture != "dense",
        "num_particles": config.objective == "elbo",
        "num_validation": not config.early_stopping,
        "patience": not config.early_stopping,
        "keep_epochs": True,
    }
    values = {f.name: getattr(config, f.name) for f in fields(config) if not idle.get(f.name, False)}
    return values | {"binarization": config.pixels, "network": config.architecture}


VAE_PRESETS: dict[str, VAEConfig] = {
    "quick": VAEConfig(),
    "paper": VAEConfig(
        epochs=3_280,
        batch_size=100,
        learning_rate=1e-3,
        schedule="burda",
        entropy_annealing=400,
        early_stopping=False,
    ),
}
"""Settings by name; the models of all quick presets are this one, or differ from it only in what they compare."""
TABLE_4_MODEL = replace(
    VAE_PRESETS["paper"], activation="tanh", batch_size=20, entropy_annealing=0, kl_warm_up=100, early_stopping=True
)
"""The VAE of Tables 4 and 5; it stops early on validation images, which its encoders need, and is not annealed."""


def check_names(datasets: Collection[str]) -> None:
    """Refuse data sets that rows and figures could not tell apart: files of one name.

    Raises:
        SettingError: two files of the same name.
    """
    if len({Path(dataset).stem for dataset in datasets}) != len(datasets):
        raise SettingError(f"expected --dataset with files of different names, got {list(datasets)}")


def datasets_of(config: Any) -> tuple[str, ...]:
    """The data sets of an experiment's settings, which may stand in those of its model."""
    found = config.dataset if hasattr(config, "dataset") else config.model.dataset
    return (found,) if isinstance(found, str) else found


def image_substitutes(config: Any, given: Collection[str]) -> Iterator[tuple[Any, str]]:
    """Settings with other images where the default ones are unavailable, each with a note."""
    del given
    wanted = " and ".join(datasets_of(config))
    for name, words in (("mnist", "MNIST, binarized once by seed,"), ("digits", "scikit-learn's digits (8x8)")):
        note = f"using {words} instead of {wanted}, which is unavailable"
        holder = config.model if hasattr(config, "model") else config
        changed = replace(holder, dataset=name if isinstance(holder.dataset, str) else (name,))
        yield (changed if holder is config else replace(config, model=changed)), note
