"""Joint training bends a decoder until its posterior fits the encoder's family: four Gaussians named by two bits.

After Shekhovtsov, Schlesinger & Flach (*VAE Approximation Error: ELBO and Exponential Families*, ICLR 2022) and its
reproduction (Kyrylov et al., ReScience C 9(2), 2023). Data are drawn from a mixture; an encoder that gives two
independent bits is fitted to its decoder, then both are trained. Evidence, ELBO, best product of each point and all
gaps are exact: four codes are summed. Beside training stand the optimum that it climbs to, found by variational EM, and
maximum likelihood, found by EM. The skew leads from a centred square, whose posterior factorizes, to the published
means.

``python run_experiments.py gmm`` runs preset *quick*: about a minute on two cores. Expect that joint training raises
the ELBO of new points by 0.056 nats per point and lowers their log p(x) by 0.004, that the gap of 0.064 all but closes,
and that at skew 0, and with the printed scale of 0.01, nothing happens. *paper* trains at every skew, with five seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.spec import Arrays, Column, Drawn, Job, Measured, Points, Table, Work, measured
from amortized_bayes.per_point import mean_over_points, paired_difference

if TYPE_CHECKING:
    from torch import Tensor

    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.models import TwoBitMixture

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "datasets", "jobs"]

DATASET = "gaussian-mixture"
SITES = ("first", "second")
SQUARE = (((1.0, 1.0), (1.0, -1.0)), ((-1.0, 1.0), (-1.0, -1.0)))
PUBLISHED = (((1.0, 1.0), (1.0, -1.0)), ((0.0, 0.0), (-1.0, 0.0)))
"""Means of the bits 00 and 01, 10 and 11."""
DECODERS = ("true", "joint optimum", "maximum likelihood")
"""Whose numbers are found without training."""
SHOWN_POINTS = 250
"""Of each code, in the figure."""
GRID = 120
"""Cells along each side of the map of the gap."""
STEP_SECONDS = 1.2e-3
"""Of a compiled step, and of compiling it: on one thread of two cores."""
COMPILING_SECONDS = 15.0


@dataclass(frozen=True)
class Config(Settings):
    """Train a mixture's decoder jointly with an encoder that cannot fit it (Shekhovtsov et al. 2022).

    Args:
        skews: Positions of the means from a centred square (0), whose posterior factorizes, to the published ones (1).
        trained: Skews at which encoder and decoder are trained, with the first scale; the others get the optima alone.
        scales: Standard deviations of the points; the first with all skews, others with the last skew.
        points: Training points per component, and as many new points.
        population: Points per component that stand for the population.
        width: Units of the encoder's two hidden layers.
        encoder_steps: Steps of Adam for the encoder alone.
        joint_steps: Steps for encoder and decoder.
        encoder_rate: Learning rate of the first stage.
        joint_rate: Learning rate of the second.
        batch_size: Points per step.
        checkpoints: Number of measurements in each stage, on new points; training points are measured at its end.
        seeds: One run per seed; seeds choose data, first weights and batches.
    """

    skews: Annotated[tuple[float, ...], Different(), AtLeast(0, 1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trained: Annotated[tuple[float, ...], Different(), AtLeast(0, 1)] = (1.0,)
    scales: Annotated[tuple[float, ...], Different(), AtLeast(1e-3, 1e3)] = (1.0, 0.01)
    points: Annotated[int, AtLeast(10, 250_000)] = 2_000
    population: Annotated[int, AtLeast(10, 2_500_000)] = 50_000
    width: Annotated[int, AtLeast(1, 10_000)] = 64
    encoder_steps: Annotated[int, AtLeast(1)] = 10_000
    joint_steps: Annotated[int, AtLeast(1)] = 10_000
    encoder_rate: Annotated[float, Above(0)] = 1e-3
    joint_rate: Annotated[float, Above(0)] = 1e-4
    batch_size: Annotated[int, AtLeast(1)] = 500
    checkpoints: Annotated[int, AtLeast(1)] = 12
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (0,)

    def check(self) -> None:
        """Something to measure, and training only where there is a decoder."""
        if not self.skews or not self.scales or not self.seeds:
            raise SettingError("expected a skew, a scale and a seed at least")
        if strangers := [skew for skew in self.trained if skew not in self.skews]:
            raise SettingError(f"expected --trained among --skews, got {strangers[0]:g}")
        if self.batch_size > 4 * self.points:
            raise SettingError(f"expected --batch-size of at most {4 * self.points:,} points, got {self.batch_size:,}")


PRESETS = {
    "quick": Config(),
    "paper": Config(trained=(0.0, 0.25, 0.5, 0.75, 1.0), seeds=(0, 1, 2, 3, 4)),
}
TABLES = (
    Table(
        ("scale", "skew", "decoder"),
        (
            "exact_log_p",
            "exact_elbo_star",
            "exact_approximation_gap",
            "exact_elbo_gained",
            "exact_log_p_lost",
        ),
        "{dataset}, by summing four codes: the true decoder, the optimum of joint training, maximum likelihood",
        where={"split": "train", "stage": None},
    ),
    Table(
        ("scale", "skew", "decoder"),
        ("exact_log_p", "exact_approximation_gap", "exact_log_p_lost"),
        "{dataset}: the same decoders at new points, as many as tell values of the population",
        where={"split": "population"},
        wide=True,
    ),
    Table(
        ("scale", "skew", "stage"),
        ("exact_elbo", "exact_log_p", "exact_approximation_gap", "exact_amortization_gap", "exact_kl_to_original"),
        "{dataset}: after each stage of training",
        where={"split": "train", "decoder": None},
        published="shekhovtsov2022_gmm",
    ),
    Table(
        ("scale", "skew", "stage"),
        ("exact_elbo", "exact_log_p", Column("exact_elbo_gained", {"stage": "joint"}), "exact_log_p_lost"),
        "{dataset}: new points from the true decoder after each stage of training",
        where={"split": "test"},
    ),
)
OPTIMA = {"stage": None, "split": "population", "scale": 1.0}
COURSE = {"split": "test", "skew": 1.0, "scale": 1.0}
FIGURES = {
    "gmm": Drawn("mixture"),
    "gmm_training": Drawn("stages", {"where": COURSE, "prefix": "exact_"}),
    "gmm_skew": (
        Points(
            "skew",
            "exact_approximation_gap",
            "decoder",
            where=OPTIMA,
            title="From a centred square (0) to the published means (1): what the optimum of joint training does",
        ),
        Points("skew", "exact_log_p_lost", "decoder", where=OPTIMA),
    ),
}
FINDINGS = ("bent_decoder",)


def datasets(config: Config, lab: Lab) -> tuple[str, ...]:
    """No data: they are drawn from the model."""
    del config, lab
    return ()


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """The optima of each mixture, and its training where that is wanted."""
    for seed in config.seeds:
        for place, scale in enumerate(config.scales):
            for skew in config.skews if place == 0 else config.skews[-1:]:
                factors = {"dataset": DATASET, "seed": seed, "skew": skew, "scale": scale}
                given = partial(_mixture, skew, scale), config, lab, seed
                work = Work("optima", 1, partial(_optima_seconds, config), "habit")
                yield Job(factors, partial(_optima, *given), name="optima", work=[work], disk=1e6)
                if skew in config.trained and place == 0:
                    steps = config.encoder_steps + config.joint_steps
                    stages = [Work("training", steps + COMPILING_SECONDS / STEP_SECONDS, lambda: STEP_SECONDS, "habit")]
                    yield Job(factors, partial(_train, *given), work=stages, disk=1e5)


def _optima_seconds(config: Config) -> float:
    return 1 + 5e-4 * config.points + 1e-5 * config.population


def _mixture(skew: float, scale: float) -> TwoBitMixture:
    """The mixture, on its way from the square to the published means."""
    import torch

    from amortized_bayes.models import TwoBitMixture

    square, published = (torch.tensor(means) for means in (SQUARE, PUBLISHED))
    return TwoBitMixture(square + skew * (published - square), scale)


def _optima(make: Any, config: Config, lab: Lab, seed: int) -> Iterator[Measured | Arrays]:
    """What is lost by the true decoder, by the optimum of joint training, and by that of the likelihood."""
    import numpy as np
    import torch

    truth: TwoBitMixture = make()
    x, codes = truth.simulate(config.points, seed)
    decoders = dict(zip(DECODERS, (truth, truth.joint_optimum(x), truth.maximum_likelihood(x)), strict=True))
    population, _ = truth.simulate(config.population, seed, "population")
    odds = float(truth.log_odds_ratio(population).square().mean().sqrt())
    yield Measured("odds_ratio", odds, factors={"decoder": "true", "split": "population"})
    for split, points in {"train": x, "population": population}.items():
        before = truth.log_evidence(points), truth.best_factorized(points).elbo
        for name, decoder in decoders.items():
            log_p, best = decoder.log_evidence(points), decoder.best_factorized(points).elbo
            place = {"decoder": name, "split": split}
            yield measured("exact_log_p", mean_over_points(log_p), **place)
            yield measured("exact_elbo_star", mean_over_points(best), **place)
            yield measured("exact_approximation_gap", paired_difference(log_p, best), **place)
            yield measured("exact_log_p_lost", paired_difference(before[0], log_p), **place)
            yield measured("exact_elbo_gained", paired_difference(best, before[1]), **place)
    lab.watch("optima", 1, 1)
    axis = torch.linspace(-3, 3, GRID)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    shown = torch.cat([(codes == code).nonzero()[:SHOWN_POINTS, 0] for code in range(4)])
    arrays = {"x": x[shown].numpy(), "codes": codes[shown].numpy(), "axis": axis.numpy()}
    for name, decoder in decoders.items():
        gap = decoder.log_evidence(grid) - decoder.best_factorized(grid).elbo
        posterior = decoder.posterior(grid)
        short = name.replace(" ", "_")
        arrays[f"means_{short}"] = decoder.means.detach().numpy()
        arrays[f"gap_{short}"] = gap.reshape(GRID, GRID).numpy()
        bits = torch.stack([posterior[:, 1].sum(1), posterior[:, :, 1].sum(1)], -1)
        arrays[f"bits_{short}"] = bits.reshape(GRID, GRID, 2).numpy()
    yield Arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()})


def _train(make: Any, config: Config, lab: Lab, seed: int) -> Iterator[Measured | Arrays]:
    """Both stages, with everything measured on the way."""
    import numpy as np
    import torch

    from amortized_bayes.experiments.protocol import Bounds, Stage, Subject, follow
    from amortized_bayes.guides import AmortizedBits
    from amortized_bayes.inference.fit import fit_steps
    from amortized_bayes.inference.options import FitOptions
    from amortized_bayes.networks import MLP
    from amortized_bayes.seeding import torch_seed

    model: TwoBitMixture = make()
    data = {split: model.simulate(config.points, seed, split)[0] for split in ("train", "test")}
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "gmm", "encoder"))
        guide = AmortizedBits(SITES, MLP([2, config.width, config.width, 2], activation="relu"))

    def stage(name: str, num_steps: int, rate: float, decoder_rate: float) -> Stage:
        options = FitOptions(
            batch_size=config.batch_size, learning_rate=rate, shared_learning_rate=decoder_rate, average=None
        )

        def run(marks: Sequence[int]) -> Iterator[Any]:
            return fit_steps(
                model, guide, data["train"], num_steps=num_steps, options=options, seed=seed, report_at=marks
            )

        return Stage(name, num_steps, run)

    stages = (
        stage("encoder", config.encoder_steps, config.encoder_rate, 0.0),
        stage("joint", config.joint_steps, config.joint_rate, config.joint_rate),
    )
    bounds = Bounds(_elbo, _elbo_star, _log_p, exact=True)
    ends = {"encoder": config.encoder_steps, "joint": config.encoder_steps + config.joint_steps}
    path = []

    def watch(name: str, done: int, of: int) -> None:
        lab.watch("training", ends[name] - of + done, ends["joint"], name)

    for found in follow(Subject(model, make(), guide, data, bounds), stages, config.checkpoints, watch):
        at_end = found.step == ends[found.stage]
        yield from (row for row in found.rows if at_end or row.factors["split"] == "test")
        path.append((found.step, model.means.detach().clone().numpy()))
    steps, means = zip(*path, strict=True)
    yield Arrays({"steps": np.array(steps), "means": np.stack(means)})


def _elbo(model: TwoBitMixture, guide: Any, x: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return model.factorized_elbo(x, guide.logits(x))


def _elbo_star(model: TwoBitMixture, guide: Any, x: Tensor) -> Tensor:
    del guide
    return model.best_factorized(x).elbo


def _log_p(model: TwoBitMixture, guide: Any, x: Tensor) -> Tensor:
    del guide
    return model.log_evidence(x)
