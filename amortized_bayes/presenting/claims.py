"""Published claims beside what runs find: each with its source, what was published, and the tests that decide it.

A claim is tested on data sets of which something was published, and on those that it is not about but whose answer a
reader would ask for (``published`` says ``"not tried"``). Nothing here names a number of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes import selection
from amortized_bayes.guides.registry import Fit
from amortized_bayes.presenting.claim_tests import (
    Closes,
    Dead,
    Largest,
    Less,
    Quotient,
    Shown,
    Term,
    Test,
    Times,
    verdict,
)
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMS", "Claim", "Line", "claims_found", "tell_claim"]


@dataclass(frozen=True)
class Claim:
    """Something that was claimed, and how it is tested.

    Args:
        text: the claim.
        source: who made it, and where it can be read.
        experiment: whose rows decide it.
        published: what was published, by data set.
        tests: its parts.
        preset: of the runs that it is about.
    """

    text: str
    source: str
    experiment: str
    published: Mapping[str, str]
    tests: tuple[Test, ...]
    preset: str = "quick"


class Line(NamedTuple):
    """A claim on one data set, and what a run says of it."""

    dataset: str
    claim: Claim
    measured: str
    verdict: str


ANSWERS = {True: "yes", False: "no", None: "open"}
MB = "Margossian & Blei (UAI 2024)"
AB = "Amortized-Bayes (public code)"
CREMER = "Cremer, Li & Duvenaud (ICML 2018)"


def _fit(metric: str, guide: str, k: int | None = None) -> Term:
    return Term(metric, {"guide": guide, "k": k})


def _model(metric: str, family: str = "gaussian", annealed: bool = False, **more: Factor) -> Term:
    return Term(metric, {"family": family, "encoder": "standard", "annealed": annealed, **more})


def _encoder(metric: str, encoder: str, family: str = "gaussian") -> Term:
    return Term(metric, {"encoder": encoder, "family": family})


CLAIMS = (
    Claim(
        "A-VI closes the gap to F-VI from k = 64 on",
        MB,
        "sweep",
        {"mnist": "claimed; no result stored", "fashion-mnist": "yes: train MSE .0245 for k = 64, .0265 for F-VI"},
        (Closes(64), Closes(256)),
    ),
    Claim(
        "k = 1 does not close the gap, but does better than constant VI",
        MB,
        "sweep",
        {
            "mnist": "claimed; no result stored",
            "fashion-mnist": "train MSE .0510 for k = 1, .0868 for constant VI, .0265 for F-VI",
        },
        (
            Less(
                _fit("final_mse_train", "amortized", 1),
                Term("final_mse_train", {"guide": "constant", "k": None}, sound=False),
            ),
            Less(_fit("final_mse_train", "factorized"), _fit("final_mse_train", "amortized", 1)),
        ),
    ),
    Claim(
        "A width between 1 and 64 is enough",
        MB,
        "sweep",
        {"mnist": "not tried", "fashion-mnist": "not tried"},
        (Closes(4), Closes(16)),
    ),
    Claim(
        "A-VI ends with a lower train MSE than F-VI",
        MB,
        "sweep",
        {"fashion-mnist": ".0245 for k = 64, .0265 for F-VI, which is impossible at the optimum"},
        (Less(_fit("final_mse_train", "amortized", 64), _fit("final_mse_train", "factorized")),),
    ),
    Claim(
        "F-VI needs 1.2 to 1.4 times the iterations of A-VI",
        AB,
        "sweep",
        {"mnist": "1.2-1.4, to train MSE < 0.07"},
        (Times("steps", 1.2, 1.4),),
    ),
    Claim(
        "F-VI needs 1.7 to 2.2 times the iterations of A-VI",
        AB,
        "sweep",
        {"fashion-mnist": "1.7-2.2, to train MSE < 0.07"},
        (Times("steps", 1.7, 2.2),),
    ),
    Claim(
        "F-VI needs 1.5 to 1.6 times the iterations of A-VI",
        f"{MB}, from its arrays",
        "sweep",
        {"fashion-mnist": "1.5-1.6, to train MSE < 0.03; 2.3-2.4, to F-VI's own final MSE"},
        (Times("steps", 1.5, 1.6),),
    ),
    Claim(
        "A-VI is 2 to 3 times faster in iterations",
        AB,
        "sweep",
        {"mnist": "claimed; true of one of four readings", "fashion-mnist": "claimed; true of one of four readings"},
        (Times("steps", 2, 3),),
    ),
    Claim(
        "A-VI is 2 to 3 times faster in seconds",
        AB,
        "sweep",
        {"mnist": "claimed; no time was measured", "fashion-mnist": "claimed; no time was measured"},
        (Times("seconds", 2, 3),),
    ),
    Claim(
        "A step of A-VI costs 19% more than one of F-VI",
        f"{MB}, from its arrays",
        "when-and-why",
        {"saw-series": "240.9 s against 202.0 s for 30,000 iterations"},
        (Quotient(_fit("seconds_per_step", "amortized", 64), _fit("seconds_per_step", "factorized"), 1.1, 1.3),),
    ),
    Claim(
        "Test MSE of F-VI",
        MB,
        "sweep",
        {"mnist": "none published", "fashion-mnist": "none published"},
        (Shown(_fit("final_mse_test", "factorized")),),
    ),
    Claim(
        "In the published setting A-VI and F-VI both ignore z",
        f"rerun of {AB}",
        "sweep",
        {"mnist": "KL falls from 123 to 25 nats in half of the run, train MSE that of the mean image"},
        (Dead(Fit("amortized", 64)), Dead(Fit("factorized"))),
        "paper",
    ),
    Claim(
        "The encoder loses as much as the family, or more",
        f"{CREMER}, Table 2",
        "model-gaps",
        {
            "binarized-mnist": "amortization gap 1.34, approximation gap 1.43",
            "fashion-mnist": "amortization gap 4.22, approximation gap 3.06",
        },
        (Less(_model("approximation_gap"), _model("amortization_gap")),),
    ),
    Claim(
        "A model trained with a flow has a smaller approximation gap",
        f"{CREMER}, Table 2",
        "model-gaps",
        {
            "binarized-mnist": "1.44 (auxiliary flow) against 1.43 (Gaussian)",
            "fashion-mnist": "1.69 (auxiliary flow) against 3.06 (Gaussian)",
        },
        (
            Less(_model("approximation_gap", "auxiliary"), _model("approximation_gap")),
            Less(_model("approximation_gap", "auxiliary", annealed=True), _model("approximation_gap", annealed=True)),
        ),
    ),
    Claim(
        "Without entropy annealing the decoder fits the Gaussian better",
        f"{CREMER}, Tables 2 and 3",
        "model-gaps",
        {
            "binarized-mnist": "approximation gap 1.02 without, 1.43 with annealing",
            "fashion-mnist": "approximation gap 1.29 without, 3.06 with annealing",
        },
        (Less(_model("approximation_gap"), _model("approximation_gap", annealed=True)),),
    ),
    Claim(
        "A decoder trained with an annealed flow is far from Gaussian posteriors",
        f"{CREMER}, Tables 2 and 3",
        "model-gaps",
        {
            "binarized-mnist": "best Gaussian -113.5 with, -92.3 without annealing",
            "fashion-mnist": "best Gaussian -132.5 with, -105.8 without annealing",
        },
        (
            Less(
                _model("elbo_star", "auxiliary", annealed=True, searched="gaussian"),
                _model("elbo_star", "auxiliary", searched="gaussian"),
            ),
        ),
    ),
    Claim(
        "A wider encoder lowers the amortization gap",
        f"{CREMER}, Tables 2 to 4",
        "frozen-decoder",
        {"binarized-mnist": "1.34 to 1.11 (other models)", "fashion-mnist": "4.22 to 3.09 (other models)"},
        (
            Less(_encoder("amortization_gap", "standard"), _encoder("amortization_gap", "linear")),
            Less(_encoder("amortization_gap", "wide"), _encoder("amortization_gap", "standard")),
        ),
    ),
    Claim(
        "A flow lowers the amortization gap of a linear encoder",
        f"{CREMER}, Table 4",
        "frozen-decoder",
        {
            "binarized-mnist": "43.2 (Gaussian), 13.1 (auxiliary flow), 12.9 (real NVP)",
            "fashion-mnist": "not tried",
        },
        tuple(
            Less(_encoder("amortization_gap", "linear", flow), _encoder("amortization_gap", "linear"))
            for flow in ("auxiliary", "realnvp")
        ),
    ),
    Claim(
        "A deeper decoder has a smaller approximation gap",
        f"{CREMER}, Table 5",
        "decoder-capacity",
        {"binarized-mnist": "3.90, 1.83, 1.63 with 0, 2, 4 layers", "fashion-mnist": "not tried"},
        tuple(
            Less(Term("approximation_gap", {"decoder_layers": b}), Term("approximation_gap", {"decoder_layers": a}))
            for a, b in ((0, 2), (2, 4))
        ),
    ),
    Claim(
        "Digit 5 is the hardest to amortize",
        "thesis built on Cremer et al.",
        "gaps",
        {"binarized-mnist": "named hardest, from 10 points per class"},
        (Largest(Term("amortization_gap", {"split": "train"}), "label", 5),),
    ),
)
"""All claims, those of one source together."""


def claims_found(experiment: str, finals: pd.DataFrame, preset: str = "") -> Iterator[Line]:
    """Yield what a run says of every claim about its experiment, on each data set that it has.

    Args:
        experiment: of the run.
        finals: its final rows.
        preset: of the run; claims about another one are left out. Empty means all.
    """
    for claim in CLAIMS:
        if claim.experiment != experiment or (preset and claim.preset not in ("quick", preset)):
            continue
        for dataset in claim.published:
            rows = selection.where(finals, {"dataset": dataset})
            if len(rows):
                yield tell_claim(claim, dataset, rows)


def tell_claim(claim: Claim, dataset: str, rows: pd.DataFrame) -> Line:
    """What the final rows of one data set say of a claim."""
    parts = [part for test in claim.tests for part in test.told(rows)]
    marked = len({part.holds for part in parts}) > 1
    words = [f"{part.words} ({ANSWERS[part.holds]})" if marked else part.words for part in parts]
    words = "; ".join(dict.fromkeys(words)) or "nothing measured"
    only_shown = all(isinstance(test, Shown) for test in claim.tests)
    return Line(dataset, claim, words, "nothing claimed" if only_shown else verdict(parts))
