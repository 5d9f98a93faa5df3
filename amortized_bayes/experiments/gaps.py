"""Where a trained model loses its nats: the decomposition on training and test points, overall and by class.

``python run_experiments.py gaps CHECKPOINT`` runs preset *quick*: 300 points of each split, in about four minutes on
two cores for the model of ``train``. Expect gaps of one to four nats, the amortization gap the larger one. Preset
*paper* has the settings of Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018):
1,000 points, 100 chains from the prior over 10,000 temperatures with 10 leapfrog steps each, IWAE with 5,000 particles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.checkpoints import CheckpointName, checkpoint_config, datasets, prepare
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.spec import (
    GAPS,
    Arrays,
    Bars,
    Drawn,
    Ecdf,
    File,
    Gaps,
    Job,
    Ladder,
    Measured,
    Scatter,
    Table,
)
from amortized_bayes.flows import CONTEXTUAL
from amortized_bayes.limits import Seed

if TYPE_CHECKING:
    from amortized_bayes.diagnosis import Diagnosis
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.trained import Trained

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "datasets", "jobs", "prepare"]


@dataclass(frozen=True)
class Config(Settings):
    """Measure where a trained model loses nats, family or amortization, on training and test points and by class.

    Args:
        checkpoint: Run of `train` to measure: its path, its name, or latest.
        splits: Which points to measure.
        points: Points of each split, after a seeded shuffle; all if there are fewer.
        block_size: Points per job. More points of a split than that are cut into blocks of about equal size, which run
            side by side, in any process or on any machine, after a job for the certificate.
        particles: Draws from the guide for ELBO, IWAE, k-hat and effective sample size.
        own_steps: Gradient steps per point from the encoder's answer before it is measured: refinement at test time
            (Krishnan et al. 2018).
        restarts: Runs of the search for the best q of each point; with two or more, their gain is reported too.
        local_steps: Steps of each of these runs.
        chains: AIS chains per point.
        temperatures: AIS temperatures to begin with; raised until the certificate reaches the target.
        leapfrog: Gradients per temperature.
        start: Where chains start: at the guide's q, widened, or at the prior.
        mass: Masses of the chains, from the scales of the guide's q (guide) or 1 (unit).
        target_gap: Largest mean gap, in nats, between the two bounds on simulated points.
        max_temperatures: Largest number of temperatures.
        simulated: Points drawn from the model for the certificate.
        shared_draws: Draws of a Bayesian decoder's weights, each held fixed.
        seed: Random seed for all draws.
    """

    checkpoint: CheckpointName = "latest"
    splits: Annotated[tuple[Literal["train", "test"], ...], Different()] = ("train", "test")
    points: Annotated[int, AtLeast(2)] = 300
    block_size: Annotated[int, AtLeast(10)] = 1_000
    particles: Annotated[int, AtLeast(25)] = 1_000
    own_steps: Annotated[int, AtLeast(0, 1_000)] = 0
    restarts: Annotated[int, AtLeast(1)] = 2
    local_steps: Annotated[int, AtLeast(10)] = 300
    chains: Annotated[int, AtLeast(2)] = 16
    temperatures: Annotated[int, AtLeast(1)] = 120
    leapfrog: Annotated[int, AtLeast(1)] = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    target_gap: Annotated[float, Above(0)] = 0.1
    max_temperatures: Annotated[int, AtLeast(1)] = 1_000
    simulated: Annotated[int, AtLeast(2)] = 100
    shared_draws: Annotated[int, AtLeast(1)] = 3
    seed: Seed = 0

    def check(self) -> None:
        """The temperatures to begin with are among those that may be used."""
        if self.temperatures > self.max_temperatures:
            raise SettingError(f"expected --temperatures of at most {self.max_temperatures}, got {self.temperatures}")


PRESETS = {
    "quick": Config(),
    "paper": Config(
        points=1_000,
        particles=5_000,
        restarts=5,
        local_steps=3_000,
        chains=100,
        temperatures=10_000,
        max_temperatures=10_000,
        leapfrog=10,
        start="prior",
        mass="unit",
        simulated=200,
    ),
}
LOG_P = ("log_p_lower", "exact_log_p")
"""By AIS, or, of few bits, by the sum over all codes: a model has one of them."""
TABLES = (
    Table(
        (),
        ("elbo", "elbo_star", "iwae", *LOG_P, *GAPS, "optimization_gap", "certificate_gap"),
        "{model}",
        across="split",
    ),
    Table(("label",), GAPS, "gaps by class: {model}", apart=("dataset", "split")),
    Table(
        (),
        ("k_hat", "ess", "residual", "acceptance", "doubtful"),
        "how far the estimates can be trusted: {model}",
        across="split",
        wide=True,
    ),
)
FIGURES = {
    "gaps": (
        Bars(("split",), GAPS[:2], title="Where the nats go: {model}"),
        Gaps("split", GAPS[:2]),
    ),
    "bounds": (
        *(
            Ladder(("elbo", "elbo_star", "iwae", log_p), "split", title="The ladder of bounds: {model}")
            for log_p in LOG_P
        ),
        Scatter("k_hat", "inference_gap", "split", edge=(0.7, "weights unreliable beyond")),
    ),
    "ecdf": Ecdf(GAPS, "split", title="How many points lose how much: {model}"),
    "difficulty": tuple(
        Scatter(log_p, "amortization_gap", "split", title="What q* gains, by how difficult a point is: {model}")
        for log_p in LOG_P
    ),
    "extremes": Drawn("pictures", {"heading": "Points with the largest and the smallest inference gap"}),
    "gaps_by_class": (Bars(("label",), GAPS[:2], apart="split", title="Gaps by class: {model}"),),
}
FINDINGS = ("notes",)
EXTREMES = 10
"""Images of each kind that are shown."""


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A job per split; of many points, a job for what they share, one for each block of them, and one for all."""
    from amortized_bayes.experiments.diagnosing import check_own_steps, diagnosis_work
    from amortized_bayes.experiments.gap_blocks import block_jobs, num_blocks

    model = checkpoint_config(config.checkpoint, lab)
    check_own_steps(config, model)
    refined = {"own_steps": config.own_steps} if config.own_steps else {}
    for split in config.splits:
        factors = {**model_factors(model), **refined, "split": split}
        parts: list[Job] = []
        if num_blocks(config, model, split, lab) > 1:
            parts = list(block_jobs(config, model, split, factors, lab))
            yield from parts
        counts = {"points": config.points, "simulated": min(config.simulated, config.points)}
        yield Job(
            factors,
            partial(_split, config, split, [job.key for job in parts], lab),
            work=[] if parts else diagnosis_work(config, model, split, lab, **counts),
            reads=[config.checkpoint],
            after=[job.key for job in parts],
            disk=200.0 * config.points,
        )


def _split(config: Config, split: str, parts: Sequence[str], lab: Lab) -> Iterator[Measured | Arrays | File]:
    """All points of a split together, measured here or by other jobs."""
    from amortized_bayes.experiments.bounds import class_rows
    from amortized_bayes.experiments.diagnosing import report_arrays, report_rows
    from amortized_bayes.experiments.gap_blocks import joined

    trained = lab.checkpoint(lab.run_named(config.checkpoint))
    places, report = joined(config, parts, lab) if parts else _diagnosed(config, split, trained, lab)
    arrays, labels = report_arrays(report), lab.labels(trained, split, places)
    pictures = _extremes(trained, split, places, arrays["inference_gap"], config.seed)
    yield from report_rows(report, trained.config.family.removesuffix(CONTEXTUAL))
    yield from class_rows(arrays, labels.get("labels"))
    yield File(f"diagnosis_{split}.safetensors", report.to_bytes())
    yield Arrays({"places": places, **arrays, **labels, **pictures})


def _diagnosed(config: Config, split: str, trained: Trained, lab: Lab) -> tuple[np.ndarray, Diagnosis]:
    """Places of the points of a split, and the report on them."""
    from amortized_bayes.diagnosis import diagnose
    from amortized_bayes.experiments.bounds import images_at
    from amortized_bayes.experiments.diagnosing import diagnosis_settings, guide_to_measure
    from amortized_bayes.experiments.gap_blocks import point_places

    places = point_places(config, split, trained)
    return places, diagnose(
        trained.model,
        guide_to_measure(config, trained),
        images_at(getattr(trained.data, split), places),
        settings=diagnosis_settings(config),
        seed=config.seed,
        progress=lambda stage, done, total: lab.watch(f"{split} {stage}", done, total),
    )


def _extremes(trained: Trained, split: str, places: np.ndarray, gap: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Images of the points that lose most and least, the worst first, with reconstructions; vectors have none."""
    from amortized_bayes.data import to_pictures
    from amortized_bayes.experiments.bounds import images_at
    from amortized_bayes.experiments.trained import reconstruct

    shape = trained.data.image_shape
    if shape is None:
        return {}
    order = gap.argsort()
    order, found = order[np.isfinite(gap[order])], {}
    for name, chosen in (("largest_gap", order[::-1][:EXTREMES]), ("smallest_gap", order[:EXTREMES])):
        images = images_at(getattr(trained.data, split), places[chosen])
        found[f"picture_{name}"] = to_pictures(images.cpu().numpy(), shape)
        found[f"picture_{name}_reconstruction"] = to_pictures(reconstruct(trained, images, seed).cpu().numpy(), shape)
    return found
