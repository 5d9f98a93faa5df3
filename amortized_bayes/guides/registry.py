r"""Guides by name: what ``sweep``, ``tune`` and ``compare`` fit, and all that they need to know of each.

A guide is one entry of ``GUIDES`` (docs/add_a_guide.md). Flags, tables, figures and tuning read names and labels here,
so this file loads no torch: what builds a guide imports its class when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amortized_bayes.guides.local import LocalGuide
    from amortized_bayes.types import LatentSite

__all__ = [
    "ALREADY",
    "GUIDES",
    "SHARES",
    "Fit",
    "GuideEntry",
    "GuideSpec",
    "Rates",
    "guide_entry",
    "list_budgets",
    "list_fits",
]


SHARES = (0.5, 0.8, 0.9, 0.95)
"""Shares of the gap between constant VI and the reference that a fit is timed to."""


ALREADY = "closed by the smallest budget already"
"""Said of a share whose time is not known but for that it is shorter than all budgets."""


class Fit(NamedTuple):
    """One guide, by its name in ``GUIDES``; ``k`` is ``None`` unless it is fitted for each width."""

    guide: str
    k: int | None = None

    @property
    def factors(self) -> dict[str, str | int]:
        """What tells it from other fits, as factors of a row."""
        return {"guide": self.guide} if self.k is None else {"guide": self.guide, "k": self.k}


class Rates(NamedTuple):
    """Learning rates of one guide.

    Args:
        shared: learning rate of q(theta) and of the model's parameters.
        local: learning rate of what gives the local factors: the encoder (A-VI), the rows (F-VI), the shared vector
            (constant VI).
    """

    shared: float
    local: float


class GuideSpec(NamedTuple):
    """What a guide is built from; torch's global generator stands at a place of the guide's own.

    Args:
        sites: local latent sites of the model.
        data: (N, ...), what it will be fitted to.
        width: k, where the guide has one.
        depth: hidden layers of an encoder.
        shared: guide of the shared sites, ``None`` where there are none.
        plate: name of the plate over data points.
        start: locations and log scales to start at, (N, 2 D), for entries that start at another guide's answer.
        published: start as the code of Margossian & Blei (2024) does, instead of at the q(z) that all guides share.
        center: encoders see the data minus their mean.
    """

    sites: Sequence[LatentSite]
    data: Tensor
    width: int = 1
    depth: int = 1
    shared: nn.Module | None = None
    plate: str = "data"
    start: Tensor | None = None
    published: bool = False
    center: bool = False

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.data)

    @property
    def observed(self) -> int:
        """P, size of one data point, flattened."""
        return self.data[0].numel()

    @property
    def latent_dim(self) -> int:
        """D, on the unconstrained space."""
        from amortized_bayes.guides.local import unconstrained_shape

        return sum(math.prod(unconstrained_shape(site)) for site in self.sites)


@dataclass(frozen=True)
class GuideEntry:
    """A guide as experiments and :func:`~amortized_bayes.compare` know it.

    Args:
        label: its name for readers.
        build: makes the guide.
        rates: learning rates that it is fitted with where nothing else is asked for.
        tuned_over: local rates that ``tune`` tries, each with every shared rate.
        has_width: whether it is fitted once for each width k.
        per_point: whether its parameters are the training points' own, so that test points need fresh ones.
        is_reference: whether the best of its fits may be the reference of the family gap.
        never_active: whether all points have the same q, so that its fits are vacuous by nature.
        starts_from: the guide whose best fit it starts at; such an entry is fitted along with its two guides, is no
            value of ``--guides``, and is timed against no other.
        like: the guide that it is otherwise, whose learning rates it has: for such an entry, the other of the two.
        own_steps: when per-point steps follow the guide's answer: while it is trained too (semi-amortized VI)
            or only when it is asked (refinement). Its parameters start where those of the guide that it is like do.
    """

    label: str
    build: Callable[[GuideSpec], LocalGuide]
    rates: Rates
    tuned_over: tuple[float, ...]
    has_width: bool = False
    per_point: bool = False
    is_reference: bool = False
    never_active: bool = False
    starts_from: str = ""
    like: str = ""
    own_steps: Literal["never", "always", "asked"] = "never"


def _constant(spec: GuideSpec) -> LocalGuide:
    from amortized_bayes.guides.constant import Constant

    start = _published_rows(1, spec)[0] if spec.published else None
    return Constant(spec.sites, spec.num_data, start=start, shared=spec.shared, plate=spec.plate)


def _amortized(spec: GuideSpec) -> LocalGuide:
    import torch
    from torch import nn

    from amortized_bayes.guides.amortized import Amortized
    from amortized_bayes.guides.local import initial_parameters
    from amortized_bayes.networks import MLP, Center, FlatPoints

    sizes = [spec.observed, *[spec.width] * spec.depth, 2 * spec.latent_dim]
    # published encoders start like any network of torch's, ours at the common q(z)
    network = MLP(sizes, None if spec.published else initial_parameters(spec.latent_dim))
    mean = [Center(spec.data.to(torch.get_default_dtype()).mean(0))] if spec.center else []
    encoder = nn.Sequential(*mean, FlatPoints(), network)
    return Amortized(spec.sites, spec.num_data, spec.observed, encoder=encoder, shared=spec.shared, plate=spec.plate)


def _factorized(spec: GuideSpec) -> LocalGuide:
    from amortized_bayes.guides.factorized import Factorized

    start = spec.start
    if start is None and spec.published:
        start = _published_rows(spec.num_data, spec)
    return Factorized(spec.sites, spec.num_data, start=start, shared=spec.shared, plate=spec.plate)


def _published_rows(count: int, spec: GuideSpec) -> Tensor:
    """Location ~ N(0, 1) and log scale ~ N(0, 1) - 1, as in the code of Margossian & Blei (2024)."""
    import torch

    location, log_scale = torch.randn(count, spec.latent_dim), torch.randn(count, spec.latent_dim) - 1
    return torch.cat([location, log_scale], 1)


GUIDES: dict[str, GuideEntry] = {
    "constant": GuideEntry(
        *("constant VI", _constant, Rates(6.4e-2, 8e-3)),
        tuned_over=(8e-3, 1.6e-2, 3.2e-2),
        never_active=True,
    ),
    "amortized": GuideEntry("A-VI", _amortized, Rates(3.2e-2, 1.6e-2), tuned_over=(4e-3, 8e-3, 1.6e-2), has_width=True),
    "semi-amortized": GuideEntry(
        *("semi-amortized VI", _amortized, Rates(3.2e-2, 1.6e-2)),
        tuned_over=(),
        has_width=True,
        like="amortized",
        own_steps="always",
    ),
    "refined": GuideEntry(
        *("refined A-VI", _amortized, Rates(3.2e-2, 1.6e-2)),
        tuned_over=(),
        has_width=True,
        like="amortized",
        own_steps="asked",
    ),
    "factorized": GuideEntry(
        *("F-VI", _factorized, Rates(3.2e-2, 0.4)),
        tuned_over=(0.1, 0.2, 0.4),  # rows are visited once an epoch only
        per_point=True,
        is_reference=True,
    ),
    "factorized-from-amortized": GuideEntry(
        *("F-VI from A-VI", _factorized, Rates(3.2e-2, 0.4)),
        tuned_over=(),
        per_point=True,
        is_reference=True,
        starts_from="amortized",
        like="factorized",
    ),
}
"""Every guide that can be fitted by name. Rates are from ``python run_experiments.py tune`` (docs/tuning.md)."""


def guide_entry(name: str) -> GuideEntry:
    """The entry of a guide; one that is not in ``GUIDES`` is a user's own, and is its name."""
    return GUIDES[name] if name in GUIDES else GuideEntry(name, _own, Rates(3.2e-2, 1.6e-2), tuned_over=())


def _own(spec: GuideSpec) -> LocalGuide:
    raise TypeError("a guide of the user's own is not built")


def list_fits(
    guides: tuple[str, ...], widths: tuple[int, ...], own: Sequence[str] = (), *, stepping: bool = True
) -> list[Fit]:
    """All fits of guides, in the order in which they are run: what starts at another guide's fit comes last.

    ``own`` are names of guides of the user's own; ``stepping`` says whether guides with per-point steps may
    be among them.

    Raises:
        ValueError: a name that is not in ``GUIDES``, or of a guide that comes along with others.

    Example:
        >>> [fit.guide for fit in list_fits(("amortized", "factorized"), (4,))]
        ['amortized', 'factorized', 'factorized-from-amortized']
    """
    known = [
        name for name, entry in GUIDES.items() if not entry.starts_from and (stepping or entry.own_steps == "never")
    ]
    for guide in guides:
        if guide not in known:
            raise ValueError(f"expected guides among {', '.join(known)}, got {guide!r}")
    fits = [Fit(guide, k) for guide in guides for k in (widths if GUIDES[guide].has_width else (None,))]
    along = [name for name, entry in GUIDES.items() if entry.starts_from in guides and entry.like in guides]
    return [*fits, *map(Fit, own), *map(Fit, along)]


def list_budgets(epochs: int, rungs: int) -> list[int]:
    """Epochs of the fits that start afresh: a half, a quarter, ... of all, rising.

    Example:
        >>> list_budgets(100, 3), list_budgets(2, 3)
        ([12, 25, 50], [1])
    """
    return sorted({max(1, epochs // 2**i) for i in range(1, rungs + 1)})
