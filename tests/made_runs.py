"""Finished runs with made-up numbers, one of each experiment: what presenting reads, without fitting anything."""

import itertools

import numpy as np

from amortized_bayes.experiments.spec import job_key
from amortized_bayes.results import RunFolder
from amortized_bayes.results.rows import to_frame
from amortized_bayes.types import Row

GAPS = ("approximation_gap", "amortization_gap", "inference_gap")
STEPS = (1, 3, 10, 30, 100, 300, 1000)
SEARCHED = ("gaussian", "planar", "realnvp", "auxiliary")


class Made:
    """Rows and arrays of a run, job by job."""

    def __init__(self, experiment, seed=0):
        self.experiment, self.jobs, self.random = experiment, [], np.random.default_rng(seed)

    def job(self, factors, measured, arrays=None, name="", status="ok", **more):
        """``measured``: metric, value, its own factors, and what else a row has."""
        rows = [
            self.row({**factors, **own}, metric, value, **{**more, **rest}) for metric, value, own, rest in measured
        ]
        self.jobs.append((job_key(factors, name), rows, arrays or {}, status))

    def row(self, factors, metric, value, error=0.1, step=0, status="ok", note="", seconds=None):
        known = error if value is not None else None
        over = None if known is None else "points"
        time = 0.002 * step if seconds is None else seconds
        return Row(self.experiment, factors, step, time, metric, value, known, over, status, note)

    def frame(self):
        return to_frame(row._asdict() for _, rows, _, _ in self.jobs for row in rows)

    def save(self, out, config=None, **environment):
        run = RunFolder.create(out, self.experiment, {"seed": 0, **(config or {})}, environment)
        with run:
            for key, rows, arrays, status in self.jobs:
                for row in rows:
                    run.append(row, key)
                if arrays:
                    run.save_arrays(key, **arrays)
                run.mark_done(key, status)
            run.finish()
        return run


def plain(**values):
    return [(metric, value, {}, {}) for metric, value in values.items()]


BUDGETS = {5: 56.0, 10: 24.0, 20: 8.0, 40: 0.0}
"""Epochs of 25 steps, and how many nats further behind a fit is with so many."""
SHARES = (0.5, 0.8, 0.9, 0.95)
WHOLE = 105.0
"""Nats between constant VI and the reference."""
USUAL = {"factorized": 3.0, "factorized-from-amortized": 0.0, "mixture": 0.4, "better": -0.25, "constant": WHOLE}


def gap_of(guide, k, seed=0):
    """Nats behind the reference, which is F-VI from A-VI."""
    return 0.0 if guide == "factorized-from-amortized" else (60.0 / k if k else USUAL[guide]) + 0.02 * seed


def fit_of_sweep(guide, k, seed, vacuous, failed):
    """Rows of a fit, as a job of the sweep and the comparison yield them."""
    gap, whole = gap_of(guide, k, seed), gap_of("constant", None, seed)
    slower = 1.25 * (1 + 0.02 * seed) if guide == "factorized" else 1.0
    budgets = {e: far for e, far in BUDGETS.items() if not (guide == "factorized-from-amortized" and e < 20)}
    status = {"status": "vacuous" if vacuous or guide == "constant" else "ok"}
    timed = status["status"] == "ok" and guide != "factorized-from-amortized"
    rows = []
    for epochs, far in budgets.items():
        if failed and epochs > 5:
            break
        values = {"elbo": -(100 + gap + far), "kl": 12.0, "active_units": 12.0, "mse_train": 0.01 + 0.001 * far}
        values |= {"behind_reference": gap + far}
        values |= {"mse_test": 0.011 + 0.001 * far} if "factorized" not in guide or epochs == max(BUDGETS) else {}
        values |= {"share_closed": 1 - (gap + far) / whole} if status["status"] == "ok" else {}
        at = {"step": 25 * epochs, "seconds": 0.05 * epochs * slower, **status}
        rows += [(metric, value, {"epochs": epochs}, at) for metric, value in values.items()]
    if failed:
        return [*rows, ("failure", None, {}, {"step": 200, "status": "failed", "note": "the loss is inf"})]
    at = {"step": 1000, "seconds": 2.0 * slower, **status}
    finals = {
        "final_elbo": -(100 + gap),
        "family_gap": gap,
        "final_kl": 0.2 if guide == "constant" else 12.0,
        "final_iwae_gain": 1.2,
        "active_units": 12.0 if status["status"] == "ok" else 0.0,
        "final_mse_train": 0.02,
        "final_mse_test": 0.03,
        "log_predictive": -101.0,
        "seconds_per_step": 0.002 + 1e-5 * (k or 0),
        "num_parameters": 20_000.0 * (100 if "factorized" in guide else 1),
        "memory_bytes": 320_000.0 * (100 if "factorized" in guide else 1),
    }
    finals |= {} if guide == "factorized-from-amortized" else {"unconverged_by": 8.0}
    rows += [(metric, value, {}, at) for metric, value in finals.items()]
    if status["status"] == "ok":
        rows.append(("gap_closed", 1 - gap / whole, {}, {**at, "error": None}))
    for share in SHARES if timed else ():
        steps = next((25.0 * e for e, far in budgets.items() if gap + far <= (1 - share) * whole), None)
        own = {"steps_to_share": steps, "seconds_to_share": steps and 0.002 * steps * slower}
        rows += [(metric, value, {"share": share}, {**at, "error": None}) for metric, value in own.items()]
    return rows


def sweep(datasets=("mnist",), seeds=(0,), widths=(1, 16, 256), guides=(), failing=None, note="", vacuous=()):
    """A sweep; ``guides`` are more guides, ``failing`` one that fails with its last seed, ``vacuous`` fits are dead."""
    made = Made("sweep")
    usual = [("constant", None), *(("amortized", k) for k in widths), ("factorized", None)]
    fits = [*usual, ("factorized-from-amortized", None), *((guide, None) for guide in guides)]
    for dataset, seed in itertools.product(datasets, seeds):
        place = {"dataset": dataset, "seed": seed}
        for guide, k in fits:
            failed = (guide, k) == failing and seed == seeds[-1]
            rows = fit_of_sweep(guide, k, seed, (guide, k) in vacuous, failed)
            rows = [(metric, value, own, {"note": note, **more}) for metric, value, own, more in rows]
            pixels = made.random.random((6, 8, 8))
            arrays = {"elbo_40": np.zeros(1000), "original": pixels, "reconstruction": 0.9 * pixels}
            factors = {**place, "guide": guide, **({"k": k} if k else {})}
            made.job(factors, rows, {} if failed else arrays, status="failed" if failed else "ok")
        status = "vacuous" if ("factorized-from-amortized", None) in vacuous else "ok"
        best = {"step": 1000, "status": status, "note": "; ".join(filter(None, (note, "F-VI from A-VI")))}
        made.job(place, [("elbo_reference", -100.0, {"guide": "reference"}, best)], name="comparison")
    return made


def per_point(made, size=60, scale=1.0):
    approximation = made.random.gamma(2, 0.7 * scale, size)
    amortization = made.random.gamma(2, 0.5 * scale, size)
    values = (approximation, amortization, approximation + amortization)
    return dict(zip(GAPS, values, strict=True)) | {"labels": np.arange(size) % 10}


def gap_rows(arrays):
    """Means overall and by class, as experiments yield them."""
    rows = []
    for name in GAPS:
        rows.append((name, float(arrays[name].mean()), {}, {}))
        for label in np.unique(arrays["labels"]):
            rows.append((name, float(arrays[name][arrays["labels"] == label].mean()), {"label": int(label)}, {}))
    return rows


MODEL = {"dataset": "binarized-mnist", "family": "gaussian", "encoder": "standard", "annealed": False, "seed": 0}


def train(vacuous=False, note=""):
    made = Made("train")
    rows = []
    status = "vacuous" if vacuous else "ok"
    for step in (*STEPS, 3000, 10000):
        for split, level in {"train": -100, "validation": -102, "test": -104}.items():
            rows.append(("elbo", level - 400 / (1 + step / 3), {"split": split}, {"step": step, "note": note}))
        rows.append(("kl", 20 * step / (step + 30), {"split": "train"}, {"step": step, "note": note}))
    last = {"step": 10000, "status": status, "note": note}
    for split in ("train", "test"):
        rows += [("final_elbo", -101.0, {"split": split}, last)]
        rows += [("final_kl", 0.3 if vacuous else 20.0, {"split": split}, last)]
    rows += [("final_iwae", -95.0, {"split": "train"}, last), ("active_units", 20.0, {}, last)]
    made.job(MODEL, rows)
    return made


def gaps(negative=False):
    made = Made("gaps")
    for split in ("train", "test"):
        arrays = per_point(made)
        rows = gap_rows(arrays)
        rows += plain(elbo=-92.0, elbo_star=-91.0, elbo_best=-90.9, iwae=-90.0, log_p_lower=-89.5, k_hat=0.4, ess=90.0)
        rows += [("optimization_gap", -0.3 if negative else 0.1, {}, {"error": 0.1})]
        rows += [("certificate_gap", 0.05, {}, {"note": "AIS is within 0.05 nats on simulated points"})]
        verdict = {"note": f"most nats are lost by the encoder on {split} points"}
        rows = [(m, v, f, verdict if m == "inference_gap" and not f else r) for m, v, f, r in rows]
        made.job({**MODEL, "split": split}, rows, arrays)
    return made


def diagnosis(dataset="fashion-mnist", certified=1.0, converged=1.0, note="train: widen the encoder"):
    """A run of gaps with everything that such a run keeps."""
    made, random = Made("gaps"), np.random.default_rng(0)
    for split in ("train", "test"):
        amortization, approximation = random.gamma(2.0, 1.0, 30), random.gamma(1.0, 0.5, 30)
        log_p = random.normal(-90, 8, 30)
        arrays = {
            "elbo": log_p - amortization - approximation,
            "elbo_star": log_p - approximation,
            "iwae": log_p - 0.2,
            "log_p_lower": log_p,
            "amortization_gap": amortization,
            "approximation_gap": approximation,
            "inference_gap": amortization + approximation,
            "k_hat": random.uniform(0.2, 1.4, 30),
            "places": np.arange(100, 130),
            "labels": np.arange(30) % 10,
            "picture_largest_gap": random.random((5, 6, 6)),
            "picture_largest_gap_reconstruction": random.random((5, 6, 6)),
        }
        rows = plain(**{name: float(arrays[name].mean()) for name in list(arrays)[:6]})
        rows += [("inference_gap", 3.0, {}, {"note": note}), ("certificate_gap", 0.03, {}, {"note": "bounds meet"})]
        rows += [("amortization_gap", 2.0 + label, {"label": label}, {}) for label in range(10)]
        rows += plain(certified=certified, converged=converged)
        made.job({"dataset": dataset, "seed": 0, "split": split}, rows, arrays)
    return made


def qstar():
    made = Made("qstar")
    shape = (3, 20)
    best = -90 + made.random.standard_normal(20)
    reference = {**MODEL, "start": "reference", "budget": 3000}
    ones = {"residual": np.zeros((1, 20)), "evaluations": np.full((1, 20), 3e4)}
    made.job(reference, plain(elbo_star=-90.0), {"elbo_star": best[None], **ones})
    for start, spread, budget in itertools.product(("encoder", "prior"), (0.5, 2.0), (30, 100, 300)):
        level = (1 if start == "encoder" else 3) * 100 / budget
        behind = level * made.random.gamma(2, 0.5, shape)
        arrays = {"elbo_star": best - behind, "residual": 0.5 * behind, "evaluations": np.full(shape, 12.0 * budget)}
        values = plain(
            elbo_star=-90 - level,
            evaluations=12.0 * budget,
            behind_reference=level,
            residual=level / 2,
            restart_variance=0.01,
        )
        made.job({**MODEL, "start": start, "spread": spread, "budget": budget}, values, arrays)
    return made


def stars():
    return [("elbo_star", -91.0 + place / 4, {"searched": q}, {}) for place, q in enumerate(SEARCHED)]


def model_gaps(datasets=("binarized-mnist", "digits")):
    made = Made("model-gaps")
    for dataset, family, annealed in itertools.product(datasets, ("gaussian", "auxiliary"), (True, False)):
        factors = {**MODEL, "dataset": dataset, "family": family, "annealed": annealed}
        values = plain(
            log_p_lower=-89.5,
            iwae=-90.0,
            elbo=-92.2,
            approximation_gap=1.5,
            amortization_gap=1.2,
            inference_gap=2.7,
            certificate_gap=0.05,
        )
        made.job(factors, [*values, *stars()], per_point(made))
    return made


def frozen_decoder(dataset="binarized-mnist", failing=False):
    made = Made("frozen-decoder")
    place = {"dataset": dataset, "seed": 0}
    made.job(place, [*plain(log_p_lower=-85.0, iwae=-86.0, certificate_gap=0.04), *stars()], name="decoder")
    for (size, encoder), family in itertools.product(
        enumerate(("linear", "small", "standard", "wide")), ("gaussian", "realnvp", "auxiliary")
    ):
        factors = {**place, "encoder": encoder, "family": family}
        if failing and (encoder, family) == ("wide", "realnvp"):
            made.job(factors, [("failure", None, {}, {"status": "failed", "step": 7, "note": "nan"})], status="failed")
            continue
        arrays = per_point(made, scale=30 / 4**size)
        made.job(factors, [*plain(elbo=-100.0), *gap_rows(arrays)], arrays)
    return made


def toy_posteriors():
    made = Made("toy-posteriors")
    place = {"dataset": "digits", "seed": 0}
    axis = np.linspace(-3, 3, 80)
    axes = np.stack([np.stack([axis, axis])] * 4)
    bumps = [np.exp(-0.5 * ((axis[:, None] - p / 3) ** 2 + (axis[None] + p / 4) ** 2) / 0.3) for p in range(4)]
    area = (axis[1] - axis[0]) ** 2
    density = np.stack([b / b.sum() / area for b in bumps])
    made.job(place, [], {"axes": axes, "density": density, "log_p": np.full(20, -90.0)}, name="posterior")
    for family in ("gaussian", "auxiliary", "realnvp"):
        for name, gap, loss in (("amortized", "inference_gap", 0.5), ("best", "approximation_gap", 0.1)):
            draws = made.random.standard_normal((2000, 4, 2)) * 0.5
            arrays = {"draws": draws, "elbo": np.full(20, -90.0 - loss)}
            made.job({**place, "family": family}, plain(**{gap: loss}), arrays, name=name)
    return made


def decoder_capacity(dataset="binarized-mnist"):
    made = Made("decoder-capacity")
    for layers, best in {0: -104.0, 2: -87.0, 4: -84.0}.items():
        rows = [*plain(log_p_lower=best + 2, iwae=best + 1, elbo=best - 1, approximation_gap=2.0)]
        rows.append(("elbo_star", best, {"searched": "gaussian"}, {}))
        made.job({"dataset": dataset, "seed": 0, "decoder_layers": layers}, rows)
    return made


def tune():
    made = Made("tune")
    for (guide, k), shared, local in itertools.product(
        (("amortized", 64), ("factorized", None)), (0.004, 0.008), (0.05, 0.2)
    ):
        factors = {"dataset": "mnist", "seed": 9, "guide": guide, **({"k": k} if k else {})}
        made.job({**factors, "shared_rate": shared, "local_rate": local}, plain(tune_elbo=-110 + 10 * local - shared))
    return made


RUNS = {
    "sweep": lambda: sweep(("mnist", "fashion-mnist")),
    "tune": tune,
    "train": train,
    "gaps": gaps,
    "qstar": qstar,
    "model-gaps": model_gaps,
    "frozen-decoder": frozen_decoder,
    "toy-posteriors": toy_posteriors,
    "decoder-capacity": decoder_capacity,
}
