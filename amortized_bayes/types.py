"""Words and shapes shared by the whole package.

Shape legend, used in every docstring::

    S  particles (draws of the local latents)      B  data points in a batch
    T  draws of the shared latents                 N  data points in all
    D  latent size of one data point               P  observed size of one data point
    C  Markov chains                               k  encoder width

Logs are in nats. A bound is an ``elbo`` (higher is better), the loss is ``nelbo = -elbo``. Values per data
point have shape ``(B,)``; totals say ``total_``. A spread is a ``scale`` (a standard deviation) or a
``variance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Size
    from torch.distributions.constraints import Constraint

__all__ = ["ROW_FIELDS", "Dataset", "Factor", "Guide", "Images", "LatentSite", "Model", "NestedPlate", "Row"]

Factor = str | int | float | bool
"""What a number may depend on: a data set, a seed, an encoder's width, a budget."""

ROW_FIELDS = (
    "experiment",
    "factors",
    "step",
    "seconds",
    "metric",
    "value",
    "standard_error",
    "error_over",
    "status",
    "note",
)
"""What a line of ``rows.jsonl`` holds; in a data frame and in ``summary.csv`` each factor is a column of its own."""


class Row(NamedTuple):
    """One measured number: the unit of every result on disk.

    ``factors`` are all that tells it from other numbers of its metric (``dataset``, ``seed``, ``guide``, ``k``, ...);
    a factor that does not apply is left out. ``standard_error`` is ``None`` where there is none; ``error_over`` says
    what the error is taken over: ``"points"`` (the data points are the sample), ``"monte carlo"`` (draws from the
    guide) or ``"seeds"``. ``status`` is ``"ok"``, ``"vacuous"`` (no latent is active) or ``"failed"``
    (``metric`` is then ``"failure"`` and ``step`` says where). ``note`` carries what a reader must know about the
    number, such as a data set used instead of another.
    """

    experiment: str
    factors: Mapping[str, Factor]
    step: int
    seconds: float
    metric: str
    value: float | None
    standard_error: float | None = None
    error_over: str | None = None
    status: str = "ok"
    note: str = ""


class Images(NamedTuple):
    """One split of a data set. ``pixels`` is ``(N, P)``: ``uint8`` grey values, or ``float32`` for real vectors."""

    pixels: np.ndarray
    labels: np.ndarray | None


class Dataset(NamedTuple):
    """A data set in memory, on the CPU, as numpy arrays.

    ``image_shape`` is ``(channels, height, width)``, in which order pixels lie in a row, or ``None`` for vectors; grey
    images have 1 channel. ``grey_levels`` is the value of white (255 for MNIST, 16 for the embedded digits, 1 for what
    already lies in [0, 1]); grey pixels in [0, 1] are ``pixels / grey_levels``. ``sha256`` maps each file that was read
    to its checksum. ``note`` is empty, or says what must be known about it: that it is a part of another, say.
    """

    name: str
    train: Images
    test: Images
    image_shape: tuple[int, int, int] | None
    grey_levels: int
    sha256: dict[str, str]
    source: str
    note: str = ""


class NestedPlate(NamedTuple):
    """A plate in which a site lies beside that over data points."""

    name: str
    size: int
    dim: int


class LatentSite(NamedTuple):
    """A latent sample site of a model, as a guide must provide it.

    ``event_shape`` is the shape of one draw for one data point (or of the one shared draw), on the constrained space
    given by ``support``. A local site has the plate over data points at ``dim`` of its batch dimensions; ``around`` are
    the sizes of the others, from the left, of which ``plates`` names those that are plates.
    """

    name: str
    event_shape: Size
    support: Constraint
    dim: int = -1
    around: tuple[int, ...] = ()
    plates: tuple[NestedPlate, ...] = ()


class Model(Protocol):
    """A Pyro program with one plate over data points.

    Called as ``model(x)`` or ``model(x, index)``; ``x`` is ``(B, ...)`` and ``index`` is ``(B,)``, the places of
    these points among all N. Sample sites inside the plate are local, those outside are shared by all points.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        ...


class Guide(Protocol):
    """A Pyro program with the plate of its model that samples every latent site of the model.

    Called with the arguments of the model.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        ...
