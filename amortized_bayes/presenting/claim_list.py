"""Published claims: each with its source, what was published, and the tests that decide it.

A claim is tested on data sets of which something was published, and on those that it is not about but whose answer a
reader would ask for (``published`` says ``"not tried"``). Nothing here names a number of ours.
"""

from __future__ import annotations

from amortized_bayes.guides.registry import Fit
from amortized_bayes.presenting.approximation_claims import APPROXIMATION_CLAIMS
from amortized_bayes.presenting.claim import Claim
from amortized_bayes.presenting.claim_tests import (
    Closes,
    Dead,
    Largest,
    Less,
    Quotient,
    Shown,
    Signed,
    Term,
    Times,
)
from amortized_bayes.presenting.image_claims import IMAGE_CLAIMS
from amortized_bayes.types import Factor

__all__ = ["CLAIMS", "Claim"]


MB = "Margossian & Blei (UAI 2024)"
AB = "Amortized-Bayes (public code)"
CREMER = "Cremer, Li & Duvenaud (ICML 2018)"
MF = "Mattei & Frellsen (2018)"
VARIANTS = ("gaussian", "realnvp", "realnvp-contextual", "larger-encoder", "larger-decoder")
FLIPS = (10, 50, 100)


def _fit(metric: str, guide: str, k: int | None = None) -> Term:
    return Term(metric, {"guide": guide, "k": k})


def _series(metric: str, sees: str, k: int) -> Term:
    return Term(metric, {"guide": "amortized", "sees": sees, "k": k})


def _model(metric: str, family: str = "gaussian", annealed: bool = False, **more: Factor) -> Term:
    return Term(metric, {"family": family, "encoder": "standard", "annealed": annealed, **more})


def _encoder(metric: str, encoder: str, family: str = "gaussian") -> Term:
    return Term(metric, {"encoder": encoder, "family": family})


def _variant(metric: str, variant: str, **more: Factor) -> Term:
    return Term(metric, {"variant": variant, **more})


def _refit(metric: str, images: str, flips: int) -> Term:
    return Term(metric, {"set": images, "flips": flips})


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
        {"saw": "240.9 s against 202.0 s for 30,000 iterations"},
        # the width of the published f is not known
        (Quotient(_series("seconds_per_step", "own-and-next", 16), _fit("seconds_per_step", "factorized"), 1.1, 1.3),),
    ),
    Claim(
        "A linear f does what F-VI does",
        MB,
        "when-and-why",
        {"linear": "-ELBO 6088.0 of A-VI, 6090.3 of F-VI, of 10,000 points"},
        (Quotient(_series("exact_family_gap", "own", 0), _fit("exact_family_gap", "constant"), 0, 0.01),),
    ),
    Claim(
        "With equal starts and rates A-VI is hardly faster",
        f"{MB}, from its arrays",
        "when-and-why",
        {"linear": "165 iterations against 180 of F-VI"},
        (
            Quotient(_fit("steps_to_share", "factorized"), _series("steps_to_share", "own", 0), 0.9, 1.3),
        ),  # steps are looked at a tenth apart
    ),
    Claim(
        "A wide f of its own point does what F-VI does, a narrow one does not",
        f"{MB}, from its arrays",
        "when-and-why",
        {"nonlinear": "-ELBO 35,638.7 with k = 1, 32,386.0 with k = 16, 32,398.9 of F-VI, of 10,000 points"},
        (
            Less(_series("exact_family_gap", "own", 16), _series("exact_family_gap", "own", 1)),
            Quotient(_series("exact_family_gap", "own", 16), _fit("exact_family_gap", "constant"), 0, 0.02),
        ),
    ),
    Claim(
        "f of the next point alone cannot do what F-VI does, f of both points can",
        f"{MB}, from its arrays",
        "when-and-why",
        {"saw": "-ELBO 885-892 of the next point, 553.05-553.08 of both, 553.08 of F-VI, of 1,000 points"},
        (
            Less(_series("exact_family_gap", "own-and-next", 16), _series("exact_family_gap", "next", 16)),
            Quotient(_series("exact_family_gap", "own-and-next", 16), _fit("exact_family_gap", "constant"), 0, 0.01),
        ),
    ),
    Claim(
        "No f of its own point does what F-VI does; f of a wider window comes nearer",
        MB,
        "when-and-why",
        {"random-walk": "proved", "gaussian-process": "proved"},
        (
            Less(_series("exact_family_gap", "neighbours", 16), _series("exact_family_gap", "own", 16)),
            Less(_series("exact_family_gap", "window", 16), _series("exact_family_gap", "neighbours", 16)),
        ),
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
    Claim(
        "On new points the encoder loses more than on training points",
        f"{CREMER}, section 5.5",
        "learning-dynamics",
        {"fashion-mnist": "drawn, no number printed", "binarized-mnist": "not tried"},
        tuple(Signed(_variant("generalization_gap", variant)) for variant in VARIANTS),
    ),
    Claim(
        "A larger encoder overfits",
        f"{CREMER}, section 5.5",
        "learning-dynamics",
        {"fashion-mnist": "drawn, no number printed", "binarized-mnist": "not tried"},
        (Less(_variant("generalization_gap", "gaussian"), _variant("generalization_gap", "larger-encoder")),),
    ),
    Claim(
        "A contextual flow has larger gradients in the encoder than a flow with parameters of its own",
        f"{CREMER}, section 5.5",
        "gradient-norms",
        {"fashion-mnist": "drawn, no number printed", "binarized-mnist": "not tried"},
        (
            Less(
                _variant("gradient_rms", "realnvp", part="encoder"),
                _variant("gradient_rms", "realnvp-contextual", part="encoder"),
            ),
        ),
    ),
    *APPROXIMATION_CLAIMS,
    *IMAGE_CLAIMS,
    Claim(
        "An encoder refit to noisy images serves other images too",
        MF,
        "refit",
        {"binarized-mnist": "IWAE of B from -820.1 to -755.6 in 100 epochs, 50 pixels", "fashion-mnist": "not tried"},
        tuple(Signed(_refit("refit_gain", "B", flips)) for flips in FLIPS),
    ),
    Claim(
        "In the end refitting helps the images alone that it sees",
        MF,
        "refit",
        {
            "binarized-mnist": "50 pixels: A rises to the end; B goes from -755.6 to -758.1 in the second half",
            "fashion-mnist": "not tried",
        },
        tuple(
            test
            for flips in FLIPS
            for test in (Signed(_refit("late_gain", "A", flips)), Signed(_refit("late_gain", "B", flips), -1))
        ),
    ),
)
"""All claims, those of one source together."""
