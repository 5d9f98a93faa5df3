"""What an experiment is: jobs that measure, and tables and figures of what they measured. No torch.

An experiment is one file of this folder and one line of ``EXPERIMENTS``. The file holds::

    a docstring     the command that runs it, the expected time and the expected numbers
    Config          a frozen dataclass derived from ``Settings``: the flags, and the run's ``config.yaml``
    PRESETS         settings by name, "quick" among them
    jobs            (config, lab) -> the jobs, cheap to list: work and torch come when a job runs
    TABLES          tables, the headline first          FIGURES     by file name, what each shows

and, where they are needed, ``FINDINGS``, functions from rows to sentences, or names of those that presenting has;
``prepare(config, lab)``, which completes a new run's configuration; ``substitutes(config, given)``, settings to use
with other data than the default ones, where these are unavailable or others are asked for by name;
``datasets(config, lab)``, names of the data sets whose checksums are kept; and ``factors(config)``, what all rows
share. :mod:`~amortized_bayes.experiments.running` runs any of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from amortized_bayes.flows import FLOWS
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    import numpy as np

    from amortized_bayes.experiments.settings import VAEConfig

__all__ = [
    "GAPS",
    "SEARCHED",
    "Arrays",
    "Bars",
    "Checkpoint",
    "Column",
    "Drawn",
    "Ecdf",
    "FailedAt",
    "File",
    "Gaps",
    "Job",
    "Ladder",
    "Lines",
    "Measured",
    "Panel",
    "Points",
    "Scatter",
    "Shown",
    "Table",
    "Work",
    "job_key",
    "measured",
]

GAPS = ("approximation_gap", "amortization_gap", "inference_gap")
"""The gaps of Cremer, Li & Duvenaud (2018); the first two add up to the third."""


class Measured(NamedTuple):
    """A number that a job found; it becomes a row with the factors of the run, of the job, and its own.

    Args:
        metric: what was measured.
        value: in nats unless the metric says otherwise.
        error: standard error, ``None`` where there is none.
        error_over: what the error is taken over: points, monte carlo or seeds.
        factors: what tells it from other numbers of its job (``split``, ``budget``, ...).
        step: step of a curve.
        seconds: since the start of what is measured.
        status: ok, or vacuous.
        note: what a reader must know about it.
    """

    metric: str
    value: float | None
    error: float | None = None
    error_over: str | None = None
    factors: Mapping[str, Factor] = {}
    step: int = 0
    seconds: float = 0.0
    status: str = "ok"
    note: str = ""


def measured(metric: str, found: tuple[float, float], **factors: Factor) -> Measured:
    """A mean over points with its standard error, nan where one point alone gives none."""
    value, error = found
    known = (error, "points") if math.isfinite(error) else (None, None)
    return Measured(metric, value, *known, factors=factors)


class Arrays(NamedTuple):
    """Arrays for figures and for other jobs, kept as ``arrays/<key>.npz``; images among them are of ``step``."""

    arrays: Mapping[str, np.ndarray]
    step: int = 0


class Checkpoint(NamedTuple):
    """Tensors from which a job, or another one, goes on, and texts: ``checkpoints/<key>[.<name>].safetensors``."""

    tensors: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = {}
    name: str = ""


class File(NamedTuple):
    """A file of the run's own."""

    name: str
    data: bytes


class Shown(NamedTuple):
    """What those who look on may see of a job on its way: images and numbers by name, at a step. Nothing is kept."""

    step: int
    images: Mapping[str, np.ndarray] = {}
    numbers: Mapping[str, float] = {}


class FailedAt(ArithmeticError):
    """What a job found at ``step`` is no result."""

    def __init__(self, step: int, words: str) -> None:
        super().__init__(words)
        self.step = step


class Work(NamedTuple):
    """A part of a job, for the forecast and the progress.

    Args:
        stage: the name under which the job reports its progress.
        amount: how much of it there is, in any unit.
        unit_seconds: how long a unit takes, measured when it is first asked for.
        basis: where that comes from, in words.
    """

    stage: str
    amount: float
    unit_seconds: Callable[[], float]
    basis: str = ""


@dataclass(frozen=True)
class Job:
    """What is kept, failed or run again as a whole, and may run in any process.

    Args:
        factors: what tells it from the other jobs: its key, and columns of its rows.
        name: tells it from a job of the same factors that does something else (``comparison``); it is in the key alone.
        run: does the work; yields numbers, and what is to be kept beside them. An ``ArithmeticError`` is recorded as a
            failure, with its ``step`` if it has one, and the other jobs go on.
        work: its parts, with their costs.
        needs: models that must be trained before it runs; trained once and shared by all runs.
        reads: finished runs of ``train`` that it reads, as the settings name them.
        after: keys of the jobs whose results it reads.
        disk: bytes that it leaves.
    """

    factors: Mapping[str, Factor]
    run: Callable[[], Iterable[Measured | Arrays | Checkpoint | File]]
    name: str = ""
    work: Sequence[Work] = ()
    needs: Sequence[VAEConfig] = ()
    reads: Sequence[str] = ()
    after: Sequence[str] = ()
    disk: float = 0.0

    @property
    def key(self) -> str:
        """Its name: for files, and for resuming."""
        return job_key(self.factors, self.name)


def job_key(factors: Mapping[str, Factor], name: str = "") -> str:
    """Name of a job, ``comparison+dataset=digits+seed=0``, such that it can be that of a file."""
    plain = "+".join([*([name] if name else []), *(f"{factor}={value}" for factor, value in factors.items())]) or "all"
    safe = re.sub(r"[^A-Za-z0-9_.=+-]", "-", plain)
    if safe == plain and len(safe) <= 100:
        return safe
    return f"{safe[:90]}-{sha256(plain.encode()).hexdigest()[:8]}"


Where = Mapping[str, Factor | tuple[Factor, ...] | None]
"""Which rows: by factor, the value or values that it may have; ``None`` for rows that do not have it."""


class Column(NamedTuple):
    """A column of a table that shows a metric for certain factors only, of ``searched="planar"`` say.

    Args:
        metric: its metric.
        where: which of its rows.
        heading: above it; made from both where it is empty.
    """

    metric: str
    where: Mapping[str, Factor | tuple[Factor, ...] | None] = {}
    heading: str = ""


SEARCHED = tuple(Column("elbo_star", {"searched": family}) for family in ("gaussian", *FLOWS))
"""A column per family of which the best q of each point may be searched."""


@dataclass(frozen=True)
class Table:
    """Values of metrics, a line per distinct combination of factors.

    Several seeds are averaged, unless ``rows`` name the seed; the error is then over seeds.

    Args:
        rows: factors that name a line, ``()`` where there is one line.
        columns: metrics, each with all rows of a line or with some of them; ``"status"`` is a column too, which says
            what is vacuous or failed, and is added where something is.
        title: what it shows; braces name factors, ``"{dataset}: gaps"``, and ``{model}`` is all that its rows share.
        across: a factor whose values become columns, with one line per metric instead (train beside test).
        apart: factors for each of whose values there is a table.
        where: which rows.
        published: name of a file of ``presenting/published``, joined on the factors that it has.
        wide: printed only where it is asked for (``--wide``).
    """

    rows: tuple[str, ...]
    columns: tuple[str | Column, ...]
    title: str = ""
    across: str = ""
    apart: tuple[str, ...] = ("dataset",)
    where: Where = field(default_factory=dict)
    published: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Points:
    """Means with error bars against a factor, one series per value of ``hue``."""

    x: str
    y: str
    hue: str = ""
    apart: str = ""
    log: str = ""
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves against step or seconds, one per value of ``hue``, or one per metric; bands over seeds.

    Steps of other things than gradients have a name, ``clock``. Without ``bands`` there are none: errors over points
    say nothing about curves that differ by little at each of the same points.

    Values of the factor ``style`` are told apart by the kind of line, those of ``hue`` by colour and marker. Panels of
    the values of ``apart`` have one y axis, unless ``own_scale`` says that their shapes compare and not their sizes.
    """

    x: str
    y: tuple[str, ...]
    hue: str = ""
    style: str = ""
    apart: str = ""
    own_scale: bool = False
    log: str = ""
    clock: str = ""
    bands: bool = True
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Bars:
    """Parts of a whole on top of each other, with error bars, at each combination of the factors ``x``."""

    x: tuple[str, ...]
    parts: tuple[str, ...]
    apart: str = ""
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Gaps:
    """One dot per data point, from the arrays of jobs: the metrics ``y`` for each value of the factor ``x``."""

    x: str
    y: tuple[str, ...]
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Scatter:
    """One dot per data point, from the arrays of jobs: the metric ``y`` against ``x``, coloured by the factor ``hue``.

    ``edge`` is a value of ``x`` to be marked by a line, with words for the legend.
    """

    x: str
    y: str
    hue: str
    edge: tuple[float, str] | None = None
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Ecdf:
    """Share of data points below a value, from the arrays of jobs: a line for each metric ``y`` and value of ``hue``.

    Values of the factor ``hue`` are told apart by colour and marker, metrics by the kind of line.
    """

    y: tuple[str, ...]
    hue: str
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Ladder:
    """Bounds from the loosest to the tightest, from arrays of jobs: distances to the last one, paired by data point."""

    metrics: tuple[str, ...]
    hue: str
    where: Where = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Drawn:
    """A figure that seaborn cannot draw: a function of ``presenting.drawn``, given the run and its rows."""

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)


Panel = Points | Lines | Bars | Gaps | Scatter | Ecdf | Ladder | Drawn
