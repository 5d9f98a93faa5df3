"""Fits of a comparison as arrays: what its file and its ``DataTree`` hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.comparing.between import Rung
from amortized_bayes.comparing.fitted import FittedGuide
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.per_point import PointValues
from amortized_bayes.reports.report import Group

__all__ = ["array_groups", "pack_fits", "unpack_fits"]

TERMS = ("value", "standard_error", "log_likelihood", "kl", "shared")
PLAIN = ("name", "k", "step", "seconds", "active_units", "reason")


def pack_fits(fits: Sequence[FittedGuide]) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """Tensors of each fit, and the rest of it as JSON can hold it."""
    groups, rest = {}, []
    for number, fitted in enumerate(fits):
        of_fit = {} if fitted.elbo is None else {name: getattr(fitted.elbo, name).cpu() for name in TERMS}
        plain = {name: getattr(fitted, name) for name in PLAIN}
        plain["shared_error"] = 0.0 if fitted.elbo is None else fitted.elbo.shared_error
        plain["rungs"] = []
        for place, rung in enumerate(fitted.rungs):
            values, error = _values(rung)
            plain["rungs"].append([*rung[:3], error])
            if rung.elbo is not fitted.elbo:
                of_fit[f"rung{place}"] = values
        groups[f"fit{number}"] = of_fit
        rest.append(plain)
    return groups, rest


def unpack_fits(
    groups: Mapping[str, Mapping[str, Tensor]], rest: Sequence[Mapping[str, Any]]
) -> tuple[FittedGuide, ...]:
    """Made from what ``pack_fits`` gave."""
    return tuple(_unpack(groups.get(f"fit{number}", {}), plain) for number, plain in enumerate(rest))


def _unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> FittedGuide:
    elbo = None
    if "value" in tensors:
        elbo = Elbo(*(tensors[name] for name in TERMS), shared_error=plain["shared_error"])
    rungs = []
    for place, (epochs, step, seconds, error) in enumerate(plain["rungs"]):
        values = tensors.get(f"rung{place}")
        top = elbo if values is None else PointValues(values, error)
        assert top is not None
        rungs.append(Rung(epochs, step, seconds, top))
    own = {name: plain[name] for name in PLAIN if name in plain}  # files from before reasons were kept
    return FittedGuide(**own, elbo=elbo, rungs=tuple(rungs))


def array_groups(fits: Sequence[FittedGuide], num_data: int) -> dict[str, Group]:
    """ELBO and KL of each fit and point, and the ELBO with each budget; NaN where a fit has none."""
    budgets = sorted({rung.epochs for fitted in fits for rung in fitted.rungs})
    labels = {"fit": [fitted.label for fitted in fits]}
    elbo, kl = (np.full((len(fits), num_data), math.nan) for _ in range(2))
    ladder = np.full((len(fits), len(budgets), num_data), math.nan)
    step, seconds = (np.full((len(fits), len(budgets)), math.nan) for _ in range(2))
    for i, fitted in enumerate(fits):
        if fitted.elbo is not None:
            elbo[i], kl[i] = fitted.elbo.value.cpu().numpy(), fitted.elbo.kl.cpu().numpy()
        for rung in fitted.rungs:
            at = (i, budgets.index(rung.epochs))
            ladder[at], step[at], seconds[at] = _values(rung)[0].numpy(), rung.step, rung.seconds
    return {
        "fits": Group({"elbo": (("fit", "point"), elbo), "kl": (("fit", "point"), kl)}, labels),
        "budgets": Group(
            {
                "elbo": (("fit", "epochs", "point"), ladder),
                "step": (("fit", "epochs"), step),
                "seconds": (("fit", "epochs"), seconds),
            },
            {**labels, "epochs": budgets},
        ),
    }


def _values(rung: Rung) -> tuple[Tensor, float]:
    """ELBO of each point with one budget, and the error that the points share."""
    values = getattr(rung.elbo, "value", rung.elbo)
    return torch.as_tensor(values).detach().cpu(), float(getattr(rung.elbo, "shared_error", 0.0))
