"""Names for readers: one for each metric, factor and value, in tables, figures and sentences alike.

Guides, data sets and families are named by their own registries. What has no entry is shown under its own name, and
after what has one: a new guide, family or metric appears everywhere without a line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from amortized_bayes.data.catalogue import label_of
from amortized_bayes.data.documents import CORPORA
from amortized_bayes.flows import FAMILIES
from amortized_bayes.guides.registry import GUIDES

__all__ = [
    "FACTORS",
    "METRICS",
    "SEES",
    "SEES_LABELS",
    "Metric",
    "axis_label",
    "dataset_label",
    "describe",
    "factor_label",
    "guide_label",
    "is_missing",
    "metric_label",
    "metric_name",
    "names",
    "order",
    "value_label",
]

NATS = "nats per point"


class Metric(NamedTuple):
    """How a metric is shown.

    Args:
        heading: above its column.
        name: in figures and sentences, where the heading is short for it.
        digits: after the decimal point.
        unit: unit of what is shown.
        scale: what is shown over what was measured.
    """

    heading: str
    name: str = ""
    digits: int = 2
    unit: str = NATS
    scale: float = 1.0


METRICS: dict[str, Metric] = {
    "elbo": Metric("ELBO"),
    "elbo_star": Metric("L(q*)", "L(q*), ELBO of the best q of each point"),
    "iwae": Metric("IWAE"),
    "log_p_lower": Metric("log p (AIS)", "log p(x) by AIS, a lower bound"),
    "approximation_gap": Metric("approx. gap", "approximation gap"),
    "amortization_gap": Metric("amort. gap", "amortization gap"),
    "inference_gap": Metric("inference gap", "inference gap, both"),
    "optimization_gap": Metric("optimization gap", "optimization gap: best restart over one search"),
    "generalization_gap": Metric("generalization gap"),
    "certificate_gap": Metric("AIS certificate", "AIS certificate: gap on simulated points"),
    "sandwich_gap": Metric("log p bounds apart", "upper less lower bound on log p(x) of the truth"),
    "k_hat": Metric("k-hat", unit=""),
    "ess": Metric("effective sample size", digits=0, unit=""),
    "residual": Metric("residual", "what the search reports to be missing", digits=3),
    "acceptance": Metric("acceptance", "acceptance of HMC", unit=""),
    "doubtful": Metric("doubtful points, %", digits=0, unit="%", scale=100.0),
    "certified": Metric("certified", digits=0, unit=""),
    "converged": Metric("q* converged", digits=0, unit=""),
    "family_gap": Metric("family gap"),
    "exact_family_gap": Metric("family gap", "family gap, from F-VI's exact optimum", 3),
    "family_gap_of_linear": Metric("linear mean", "family gap of the best f with a linear mean and one scale", 3),
    "forecast": Metric("forecast", "forecast of the family gap", 3),
    "forecast_exact": Metric("exact loss", "ELBO lost by the f that was fitted to F-VI's optimum", 3),
    "log_p_exact": Metric("log p(x)"),
    "elbo_optimum": Metric("F-VI's optimum", "ELBO of F-VI's optimum"),
    "final_elbo": Metric("ELBO"),
    "final_elbo_monte_carlo": Metric("ELBO (MC)", "ELBO, by Monte Carlo alone"),
    "final_iwae": Metric("IWAE"),
    "final_iwae_gain": Metric("IWAE - ELBO"),
    "kl": Metric("KL", "KL of z from its prior"),
    "reconstruction": Metric("reconstruction", "reconstruction, the mean of log p(x|z) under q"),
    "gradient_norm": Metric("gradient norm", digits=1, unit=""),
    "gradient_rms": Metric("norm/√parameters", "gradient norm/√parameters", 4, ""),
    "gradient_ratio": Metric("encoder/decoder", "gradient norm, encoder/decoder", unit=""),
    "gradient_rms_ratio": Metric("encoder/decoder, over √parameters", "norm/√parameters, encoder/decoder", unit=""),
    "final_kl": Metric("KL", "KL of z from its prior"),
    "final_kl_shared": Metric("KL of weights", "KL of the weights from their prior"),
    "active_units": Metric("active units", digits=0, unit=""),
    "hidden_units": Metric("hidden units", "hidden units of the decoder in use", 0, ""),
    "mse_train": Metric("train MSE", "training MSE", 4, "per pixel, grey in [0, 1]"),
    "mse_test": Metric("test MSE", "test MSE", 4, "per pixel, grey in [0, 1]"),
    "final_mse_train": Metric("train MSE", "training MSE", 4, "per pixel, grey in [0, 1]"),
    "final_mse_test": Metric("test MSE", "test MSE", 4, "per pixel, grey in [0, 1]"),
    "test_log_likelihood": Metric("test log lik.", "test log likelihood"),
    "test_kl": Metric("test KL", "KL of z from its prior on test points"),
    "log_predictive": Metric("test log pred.", "test log predictive density"),
    "seconds_per_step": Metric("ms per step", "time per step", 2, "ms", 1e3),
    "capture_seconds": Metric("capture, s", "time to capture the step", 1, "s"),
    "num_parameters": Metric("parameters", "parameters of the guide", 0, ""),
    "memory_bytes": Metric("memory, MiB", "memory", 1, "MiB", 2.0**-20),
    "elbo_reference": Metric("reference ELBO", "ELBO of the best F-VI found"),
    "unconverged_by": Metric("not converged by", "what the last doubling of the epochs gained"),
    "tune_elbo": Metric("ELBO"),
    "behind_reference": Metric("behind reference", "nats behind the reference", digits=3),
    "gap_closed": Metric("gap closed", "gap between constant VI and the reference that is closed", 1, "%", 100.0),
    "share_closed": Metric("gap closed", "gap between constant VI and the reference that is closed", 1, "%", 100.0),
    "steps_to_share": Metric("steps to share", "steps until a share of the gap is closed", 0, ""),
    "seconds_to_share": Metric("s to share", "time until a share of the gap is closed", 1, "s"),
    "refit_gain": Metric("gained by refitting", "IWAE gained by refitting"),
    "recovered": Metric("recovered", "nats recovered over the encoder's own answer"),
    "recovered_share": Metric("of the best q's", "share of what the best q of each point recovers", 0, "%", 100.0),
    "seconds_per_point": Metric("ms a point", "time per point at test time", 2, "ms", 1e3),
    "training_seconds": Metric("training, s", "time of further training", 0, "s"),
    "late_gain": Metric("in its second half", "IWAE gained by the second half of refitting"),
    "evaluations": Metric("evaluations", "decoder evaluations", 0, "per point"),
    "exact_elbo": Metric("ELBO", "ELBO, exact", 4),
    "exact_elbo_star": Metric("L(q*)", "L(q*), ELBO of the best q of each point, exact", 4),
    "exact_log_p": Metric("log p(x)", "log p(x), exact", 4),
    "exact_approximation_gap": Metric("approx. gap", "approximation gap, exact", 4),
    "exact_amortization_gap": Metric("amort. gap", "amortization gap, exact", 4),
    "exact_elbo_gained": Metric("ELBO gained", "ELBO gained, exact", 4),
    "exact_log_p_lost": Metric("log p lost", "log p(x) lost, exact", 4),
    "exact_kl_to_original": Metric("KL from true posterior", "KL from the true posterior, exact", 4),
    "document_nelbo": Metric("document NELBO", "negative ELBO less own code length", 1),
    "document_nelbo_saved": Metric("saved by more bits", "negative ELBO saved, against the next fewer bits", 1),
    "validation_elbo": Metric("ELBO", "ELBO, validation documents", 1),
    "precision_at_100": Metric("precision@100", "", 3, ""),
    "best_epoch": Metric("best epoch", digits=0, unit=""),
    "gradient_variance": Metric("gradient variance", "", 4, "nats²"),
    "odds_ratio": Metric("J(x)", "log odds ratio of the two bits, root mean square", 3, ""),
    "log_p": Metric("log p(x), at least", "log p(x) by importance sampling, a lower bound"),
    "kl_to_original": Metric("KL from true posterior, at least", "KL from the true posterior, a lower bound"),
    "log_p_lost": Metric("log p lost", "log p(x) lost, of lower bounds"),
    "elbo_gained": Metric("ELBO gained"),
    "log_p_of_truth": Metric("log p(x|z) of the truth", "log p(x|z) at the latents that x was drawn from"),
    "log_q_of_truth": Metric("log q(z|x) of the truth", "log q(z|x) at the latents that x was drawn from"),
    "log_p_above": Metric("log p(x), at most", "log p(x) of the truth, an upper bound"),
    "learned_sigma": Metric("σ", "standard deviation of the pixels", 4, ""),
    "accuracy": Metric("accuracy", "accuracy of the classifier on held-out images", 1, "%", 100.0),
    "frechet_classifier": Metric("Fréchet distance (classifier)", "Fréchet distance (classifier features)", 3, unit=""),
    "frechet_discriminator": Metric(
        "Fréchet distance (discriminator)", "Fréchet distance (discriminator features)", 3, unit=""
    ),
    "frechet_inception": Metric("FID", "Fréchet distance (Inception features)", 3, unit=""),
    "restart_variance": Metric("variance over restarts", digits=4, unit="nats²"),
}
"""Metrics that have a name of their own; others are called as in the rows, without underscores."""

FACTORS = {
    "dataset": "data set",
    "guide": "guide",
    "sees": "f sees",
    "k": "width k",
    "epochs": "epochs",
    "share": "share of the gap",
    "likelihood": "likelihood",
    "decoder": "decoder",
    "family": "family",
    "encoder": "encoder",
    "annealed": "entropy annealing",
    "network": "network",
    "variant": "variant",
    "method": "method",
    "part": "parameters",
    "kl_warm_up": "KL warm-up",
    "objective": "objective",
    "num_particles": "particles",
    "semi_amortized_steps": "own steps",
    "bits": "bits",
    "input": "input",
    "estimator": "gradient",
    "skew": "skew",
    "scale": "scale",
    "stage": "trained",
    "own_steps": "own steps",
    "split": "points",
    "label": "class",
    "start": "start",
    "spread": "spread",
    "budget": "steps",
    "searched": "best q among",
    "decoder_layers": "decoder layers",
    "flips": "flipped pixels",
    "set": "images",
    "shared_rate": "rate of q(theta)",
    "local_rate": "local rate",
    "seed": "seed",
}
"""Factors that the experiments use, in the order in which they describe a line."""

SERIES_LABELS = {
    "linear": "linear model",
    "nonlinear": "nonlinear model",
    "two-levels": "two levels",
    "saw": "saw series",
    "random-walk": "random walk",
    "gaussian-process": "Gaussian process",
}
"""Models of ``models/series.py``, which stand where data sets do: data are drawn from them."""
SEES: Mapping[str, tuple[str, ...]] = {
    "linear": ("own",),
    "nonlinear": ("own",),
    "two-levels": ("first-member", "own"),
    "saw": ("own", "next", "own-and-next"),
    "random-walk": ("own", "neighbours", "window", "whole"),
    "gaussian-process": ("own", "neighbours", "window", "whole"),
}
"""What an f may see in each of them; by the last it can do what F-VI does."""
SEES_LABELS = {
    "own": "own point",
    "first-member": "one member of five",
    "next": "next point",
    "own-and-next": "own and next point",
    "neighbours": "own point and neighbours",
    "window": "window of nine",
    "whole": "whole series",
}
MIXTURE_LABELS = {"gaussian-mixture": "Gaussian mixture of two bits"}
"""Models with discrete latents, from which data are drawn too."""
STAGES = {"encoder": "encoder alone", "joint": "jointly"}
"""What is trained, a stage after the other."""
FLAGS = {
    "annealed": ("plain", "annealed"),
    "kl_warm_up": ("no KL warm-up", "KL warm-up"),
}
"""What truth values are called, where "yes" would say too little."""
METHODS = {
    "natural": "refinement, natural gradients",
    "adam": "refinement, Adam",
    "qstar-encoder": "best q, from the encoder's answer",
    "qstar-prior": "best q, from the prior",
    "elbo": "trained further, ELBO",
    "semi-amortized": "trained further, semi-amortized",
    "iwae": "trained further, IWAE",
    "rws": "trained further, RWS",
    "wider": "wider encoder",
}
"""Ways to win back what an encoder loses."""
ORDERS: Mapping[str, tuple[Any, ...]] = {
    "split": ("train", "validation", "test"),
    "family": FAMILIES,
    "searched": FAMILIES,
    "encoder": ("linear", "hidden", "small", "standard", "wide", "large"),
    "method": tuple(METHODS),
    "start": ("encoder", "prior", "reference"),
    "input": ("counts", "frequencies", "tfidf"),
    "estimator": ("disarm", "arm", "reinforce", "straight-through", "enumerated"),
    "stage": tuple(STAGES),
    "decoder": ("true", "joint optimum", "maximum likelihood"),
    "sees": ("first-member", *(name for name in SEES_LABELS if name != "first-member")),
}
"""Values in the order in which people read them; others follow, in the order of the rows."""


def metric_label(metric: str) -> Metric:
    """How a metric is shown."""
    return METRICS.get(metric, Metric(metric.replace("_", " "), unit="nats per point" if "gap" in metric else ""))


def axis_label(metric: str) -> str:
    """The name of a metric with its unit: ``"amortization gap (nats per point)"``."""
    unit = metric_label(metric).unit
    return f"{metric_name(metric)} ({unit})" if unit else metric_name(metric)


def metric_name(metric: str) -> str:
    """The name of a metric in figures and sentences, and of a line in a table."""
    shown = metric_label(metric)
    return shown.name or shown.heading


def factor_label(factor: str) -> str:
    """The name of a factor."""
    return FACTORS.get(factor, factor.replace("_", " "))


def guide_label(guide: str, k: int | None = None) -> str:
    """The name of a guide: ``"A-VI, k = 16"``, ``"F-VI"``, ``"constant VI"``."""
    name = GUIDES[guide].label if guide in GUIDES else guide
    return name if k is None else f"{name}, k = {k}"


def dataset_label(dataset: str) -> str:
    """The name of a data set; an array of the user's is named by its file."""
    if dataset in CORPORA:
        return CORPORA[dataset].label
    return SERIES_LABELS.get(dataset) or MIXTURE_LABELS.get(dataset) or label_of(dataset)


def value_label(factor: str, value: Any) -> str:
    """The name of a factor's value."""
    if is_missing(value):
        return ""
    if factor in FLAGS:
        return FLAGS[factor][bool(value)]
    if factor == "guide":
        return guide_label(str(value))
    if factor == "dataset":
        return dataset_label(str(value))
    if factor == "method":
        return METHODS.get(str(value), str(value))
    if factor == "stage":
        return STAGES.get(str(value), str(value))
    if factor == "sees":
        return SEES_LABELS.get(str(value), str(value))
    if factor == "share":
        return f"{value:.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if factor == "budget" else str(value)


def names(key: Mapping[str, Any]) -> dict[str, str]:
    """What the values of a line are called; a guide and its width are one name."""
    shown = {name: value_label(name, value) for name, value in key.items() if not (name == "k" and "guide" in key)}
    if "guide" in key:
        k = key.get("k")
        shown["guide"] = guide_label(str(key["guide"]), None if is_missing(k) else k)
    return shown


def describe(factors: Mapping[str, Any]) -> str:
    """What tells a line from others, in words: ``"digits, A-VI, k = 16, seed 1"``."""
    known = {name: value for name, value in factors.items() if not is_missing(value)}
    words = []
    for name in sorted(known, key=lambda n: list(FACTORS).index(n) if n in FACTORS else len(FACTORS)):
        text = value_label(name, known[name])
        if name == "k":
            text = f"k = {known[name]}"
        elif name in ("encoder", "split", "decoder", "likelihood", "network"):
            text = f"{text} {FACTORS[name]}"
        elif name not in ("dataset", "guide", "family", "variant", "start", *FLAGS):
            text = f"{factor_label(name)} {text}"
        words.append(text)
    return ", ".join(words)


def order(factor: str, values: Iterable[Any]) -> list[Any]:
    """Distinct values as people read them: known ones in their order, numbers rising, others as they come."""
    distinct = [value for value in dict.fromkeys(values) if not is_missing(value)]
    known = (*GUIDES, "reference") if factor == "guide" else ORDERS.get(factor, ())
    numbers = bool(distinct) and all(isinstance(value, int | float) for value in distinct)
    places = {value: place for place, value in enumerate(sorted(distinct) if numbers else distinct)}
    return sorted(distinct, key=lambda v: (known.index(v) if v in known else len(known), places[v]))


def is_missing(value: Any) -> bool:
    """Whether a row does not have a factor: ``None``, nan, or a missing value of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value
