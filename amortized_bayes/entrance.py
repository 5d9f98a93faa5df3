"""The one way in: what every public call makes of a model, a guide and the arguments that their author gave them.

Arguments may be tensors, numpy arrays, dicts and lists of them, and whatever else the programs take. Inside, there are
rows with a row per data point, programs that take these, and the name of one plate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pyro
import torch

from amortized_bayes.calls import MOST_NUMBERS, PerPointNames, bind_points, with_index
from amortized_bayes.guides.autoguides import PerPointGuide, as_per_point
from amortized_bayes.point_programs import PointProgram
from amortized_bayes.points import PointData, PointRows
from amortized_bayes.signatures import check_arguments, check_keywords, takes
from amortized_bayes.snapshots import snapshot
from amortized_bayes.training_mode import in_evaluation_mode
from amortized_bayes.types import Model

__all__ = ["Entered", "enter"]

UNMEASURED = ("fit", "fit_steps", "latent_sites")
"""Public calls that measure no density: modules may be in training mode."""


class Entered(NamedTuple):
    """Programs that are called with ``args`` and ``kwargs``, and their plate over data points.

    Args:
        model: takes rows.
        guide: likewise; what was passed instead of a program (Gaussians, ``None``) is as it was.
        args: the rows of all points.
        kwargs: none, unless programs of rows were passed already.
        plate: its name.
        data: the arguments that the rows are of; ``None`` where programs of rows were passed.
        subsample: as of :class:`~amortized_bayes.calls.Bound`.
    """

    model: Any
    guide: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plate: str
    data: PointData | None = None
    subsample: str = ""

    def check_estimates(self, *, apart: bool) -> None:
        """Refuse estimates from more than one run, or of points taken ``apart``, where there are none.

        Raises:
            ValueError: the model draws its own points, or log p of a point changes with those that it is given with.
        """
        if self.subsample:
            raise ValueError(self.subsample)
        if apart and self.data is not None and self.data.mixed:
            raise ValueError(
                "log p(x, z) of a point changes with its neighbours, such as by batch norm or a mean over the data: "
                "expected a model in evaluation mode (model.eval()), that is given what it computes from all points"
            )


def enter(
    call: Callable[..., Any],
    model: Model,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    plate: str | None = None,
    per_point: PerPointNames = None,
    whole: bool = False,
) -> Entered:
    """Find rows and plate, and make both programs take rows; programs that do already are taken at their word.

    Args:
        call: the public call, whose options are no arguments of the model.
        model: Pyro program.
        guide: Pyro program, or what stands for it.
        args: positional arguments of both.
        kwargs: their keyword arguments.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        whole: whether a model that closes over data may be run on all of its points together.

    Raises:
        TypeError: arguments that model or guide do not take, such as an option that is misspelt.
        ValueError: as :func:`~amortized_bayes.calls.bind_points`; a guide with dropout or batch norm in training mode.
    """
    if isinstance(model, PointProgram):
        return Entered(model, guide, args, kwargs, plate or "data")
    check_keywords(call, model, kwargs)
    measured = call.__name__ not in UNMEASURED
    bound = bind_points(
        model, args, kwargs, plate=plate, per_point=per_point, any_size=True, whole=whole, measured=measured
    )
    data, plate = bound.data, bound.plate
    given = with_index(data, model)
    program = PointProgram(model, given, hide=[plate] if data.counted else [])
    if callable(guide):
        guide = as_per_point(guide, plate)
        drop = ["index"] if len(given.names) > len(data.names) and not takes(guide, "index") else []
        taken, named = given.arguments()
        check_arguments(guide, taken, {name: value for name, value in named.items() if name not in drop}, "guide")
        own, guide = guide, PointProgram(guide, given, drop=drop)
        if measured and not isinstance(own, PerPointGuide):  # autoguides have no modules of layers
            _check_mode(guide, own, given.rows)
    return Entered(program, guide, (given.rows,), {}, plate, given, bound.subsample)


def _check_mode(guide: PointProgram, own: Any, rows: PointRows) -> None:
    """Refuse a guide with dropout or batch norm in training mode; ``own`` is the program that it was.

    Run on as many points as models are tried on. What is wrong with it otherwise is said where it is run in earnest.
    """
    numbers = sum(tensor[0].numel() for tensor in rows.tensors)
    some = rows[: max(2, MOST_NUMBERS // max(1, numbers))]
    store, put_back = pyro.get_param_store(), snapshot(own)
    known = set(store.keys())
    try:
        with torch.no_grad(), torch.random.fork_rng(), in_evaluation_mode("a guide", "q(z)"), suppress(Exception):
            guide(some)
    finally:
        put_back()
        for name in set(store.keys()) - known if len(some) < len(rows) else ():
            del store[name]  # a table of these points alone
