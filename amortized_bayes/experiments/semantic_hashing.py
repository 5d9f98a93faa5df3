"""Semantic hashing of 20 Newsgroups: documents as a few bits, what their inference costs, and how well they retrieve.

After Shekhovtsov, Schlesinger & Flach (*VAE Approximation Error: ELBO and Exponential Families*, ICLR 2022) and its
reproduction (Kyrylov et al., ReScience C 9(2), 2023). Fair bits, a decoder of words, an encoder of counts, trained by
DisARM. The epoch is chosen on a validation split; the test split is looked at once. Up to 16 bits all codes are summed:
ELBO, evidence and both gaps are exact, but for the best product of bits of each document, which is the best of eleven
climbs. Beyond, gaps are differences of lower bounds: IWAE, and the ELBO of a search for each document alone.

``python run_experiments.py semantic-hashing`` runs preset *quick*: linear encoder and decoder with 8 to 64 bits, about
eight minutes on two cores. Expect the published negative ELBO of the test split (a document's own code length off) to
fall as bits are added. *paper* is the published grid of 36 runs, 1,500 epochs each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from amortized_bayes.data.documents import corpus_name
from amortized_bayes.experiments.hashing_settings import Choice, Config
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Job, Lines, Measured, Points, Table, Work
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "datasets", "jobs", "substitutes"]

PRESETS = {
    "quick": Config(),
    "paper": Config(
        depths=(0, 1, 2),
        encoders=("linear", "hidden", "linear-frequencies"),
        epochs=1_000,
        fine_epochs=500,
        evaluations=150,
        points=1_000,
        particles=5_000,
        local_steps=2_000,
        estimator_draws=1_000,
    ),
}
MODEL = ("bits", "decoder_layers", "encoder", "input")
TABLES = (
    Table(
        MODEL,
        ("document_nelbo", "document_nelbo_saved", "final_elbo", "final_kl", "precision_at_100"),
        "{dataset}: held-out documents",
        where={"split": "test", "estimator": None},
        published="shekhovtsov2022_hashing",
    ),
    Table(
        (*MODEL, "split"),
        ("exact_log_p", "exact_elbo_star", "exact_elbo", "exact_approximation_gap", "exact_amortization_gap"),
        "{dataset}: gaps by summing all codes; the best product of each document is the best of eleven climbs",
        where={"estimator": None},
    ),
    Table(
        (*MODEL, "split"),
        ("iwae", "elbo_star", "elbo", "approximation_gap", "amortization_gap"),
        "{dataset}: differences of lower bounds, where codes are too many to be summed",
        where={"estimator": None, "split": ("train", "test")},
    ),
    Table(
        ("bits", "decoder_layers", "encoder", "input", "estimator"),
        ("gradient_variance", "seconds_per_step"),
        "{dataset}: gradients with respect to a document's log odds, from two codes each",
        where={"split": None},
    ),
    Table(
        (*MODEL, "split"),
        ("document_nelbo", "final_elbo", "precision_at_100", "best_epoch"),
        "{dataset}: all splits",
        where={"estimator": None},
        wide=True,
    ),
)
LINEAR = {"decoder_layers": 0, "split": "test"}
ESTIMATORS = {"split": None, "decoder_layers": 0}
FIGURES = {
    "hashing": (
        Points("bits", "document_nelbo", "encoder", where=LINEAR, title="Documents as a few bits: test split"),
        Points("bits", "precision_at_100", "encoder", where=LINEAR),
    ),
    "hashing_training": Lines(
        "step",
        ("validation_elbo",),
        "bits",
        clock="epochs",
        bands=False,
        title="Training: ELBO of the validation split",
    ),
    "hashing_estimators": (
        Points("bits", "gradient_variance", "estimator", where=ESTIMATORS, log="y", title="Gradients of bits"),
        Points("bits", "seconds_per_step", "estimator", where=ESTIMATORS, log="y"),
    ),
}


def datasets(config: Config, lab: Lab) -> tuple[str, ...]:
    """The documents."""
    del lab
    return (config.dataset,)


def substitutes(config: Config, given: Collection[str]) -> list[tuple[Config, str]]:
    """Documents drawn from topics, where those of 20 Newsgroups are unavailable."""
    small = {"num_validation": 200, "bits": (4, 8, 32), "epochs": 100}
    plain = Config()
    kept = {name for name in small if name in given or getattr(config, name) != getattr(plain, name)}
    changes = {name: value for name, value in small.items() if name not in kept}
    note = "using documents drawn from topics instead of 20 Newsgroups, which are unavailable"
    return [(replace(config, dataset="drawn-topics", **changes), note)]


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """Each model: trained, then measured, and compared with that of fewer bits."""
    last: tuple[Choice, str] | None = None
    for choice in config.choices():
        factors: dict[str, Factor] = {
            "dataset": corpus_name(config.dataset),
            "seed": choice.seed,
            "bits": choice.bits,
            "decoder_layers": choice.depth,
            "encoder": choice.encoder,
            "input": choice.sees,
        }
        unit = partial(_epoch_seconds, config, choice, lab)
        epochs = config.epochs + config.fine_epochs * config.fine_particles
        work = [Work("training", epochs, unit, "a few steps of training"), _measuring(config, choice)]
        one = Job(factors, partial(_run, config, choice, lab), work=work, disk=1.5e5 * (choice.bits + 10))
        yield one
        if last is not None and last[0]._replace(bits=choice.bits) == choice:
            pair = last[1], one.key
            yield Job(factors, partial(_compare, *pair, lab), name="comparison", after=pair)
        last = choice, one.key


def _epoch_seconds(config: Config, choice: Choice, lab: Lab) -> float:
    from amortized_bayes.experiments.hashing import epoch_seconds

    return lab.cached(("hashing", choice._replace(seed=0)), lambda: epoch_seconds(config, choice, lab))


def _measuring(config: Config, choice: Choice) -> Work:
    """Gaps, by summing codes or searching, and estimators."""
    sums = 2.0 ** min(choice.bits, 16) * 1.5e-6
    searches = config.local_steps * 1e-3 + config.particles * 1e-4
    found = config.points * (sums if choice.bits <= 16 else searches) + 0.2 * config.estimator_draws
    return Work("measuring", 1, lambda: 10 + found, "habit")


def _compare(fewer: str, more: str, lab: Lab) -> Iterator[Measured]:
    from amortized_bayes.experiments.hashing import compare

    return compare(fewer, more, lab)


def _run(config: Config, choice: Choice, lab: Lab) -> Iterator[Measured | Arrays | Checkpoint]:
    from amortized_bayes.experiments.hashing import run

    return run(config, choice, lab)
