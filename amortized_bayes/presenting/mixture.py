"""``gmm`` as a figure and in words: how joint training bends a decoder, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from amortized_bayes import labels, plotting, selection
from amortized_bayes.presenting.cells import cell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from amortized_bayes.presenting.view import RunView

__all__ = ["bent_decoder", "mixture"]

NOTHING = 1e-6
"""Nats per point below which a gap counts as zero: four codes are summed in float64."""


def mixture(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """Data and posteriors at the largest scale and skew, for the first seed, and the path of the means."""
    if not {"skew", "scale", "seed"} <= set(rows.columns):
        return None
    scale, seed = float(rows["scale"].max()), int(rows["seed"].min())
    skew = float(selection.where(rows, {"scale": scale})["skew"].max())
    place = {"scale": scale, "seed": seed, "skew": skew}
    known = run.find(place, "optima")
    if not known:
        return None
    arrays = run.arrays(known[0])
    trained = run.find(place)
    path = run.arrays(trained[0])["means"].reshape(-1, 4, 2) if trained else None
    decoders = [
        plotting.MixtureDecoder(heading, arrays[f"means_{name}"].reshape(4, 2), arrays[f"gap_{name}"], arrays[bits])
        for name, heading in (("true", "true decoder"), ("joint_optimum", "optimum of joint training"))
        for bits in [f"bits_{name}"]
    ]
    heading = f"What joint training does to a decoder: {labels.describe({'skew': skew, 'scale': scale})}"
    return plotting.mixture_figure(arrays["x"], arrays["codes"], arrays["axis"], decoders, path, heading)


def bent_decoder(finals: pd.DataFrame) -> Iterator[str]:
    """For each skew and scale, what joint training gains and loses, at its optimum and as trained."""
    seeds = selection.num_seeds(finals)
    for key, part in selection.groups(finals, ("scale", "skew")):
        where = labels.describe(key)
        where = where[0].upper() + where[1:]
        truth = _known(part, "exact_approximation_gap", {"decoder": "true", "split": "train"}, seeds)
        if truth is not None and abs(truth.value) < NOTHING:
            yield f"{where}: the true posterior factorizes at all points, so there is nothing to show."
            continue
        for what, factors in {
            "the optimum of joint training": {"decoder": "joint optimum", "split": "population"},
            "joint training": {"stage": "joint", "split": "test"},
        }.items():
            gained, lost = (
                _known(part, metric, factors, seeds) for metric in ("exact_elbo_gained", "exact_log_p_lost")
            )
            if gained is None or lost is None or not math.isfinite(gained.value + lost.value):
                continue
            signs = [selection.is_positive(found) for found in (gained, lost)]
            said: dict[Any, str] = {
                (True, True): "raises the ELBO and lowers the likelihood",
                (True, False): "raises ELBO and likelihood",
                (False, True): "lowers ELBO and likelihood",
            }
            verdict = said.get(tuple(signs), "has an uncertain effect")
            change = lost._replace(value=-lost.value)
            yield (
                f"{where}: on new points {what} {verdict}: ELBO {_signed('exact_elbo_gained', gained)}, log p(x) "
                f"{_signed('exact_log_p_lost', change)} nats per point."
            )


def _known(rows: pd.DataFrame, metric: str, factors: dict[str, str], seeds: int) -> selection.Found | None:
    own = selection.where(rows, {"stage": None, "decoder": None, **factors})
    return selection.mean(own, metric, factors, seeds)


def _signed(metric: str, found: selection.Found) -> str:
    return f"+{cell(metric, found)}" if found.value >= 0 else cell(metric, found)
