r"""Products of Bernoullis over the bits of a point: what is read off a guide, what chains start at, and all codes.

.. math:: q(z) = \prod_d \sigma(\alpha_d)^{z_d}\, \sigma(-\alpha_d)^{1 - z_d}, \qquad z \in \{0, 1\}^D .
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
import torch.nn.functional as F
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Generator, Tensor

from amortized_bayes.enumeration import is_marked
from amortized_bayes.joint.density import LocalSite, LogJoint, are_bits, plate_to_front
from amortized_bayes.joint.replay import rows_at_once
from amortized_bayes.traces import PairedTraces, sample_sites, unwrapped

__all__ = [
    "Bernoullis",
    "Drawn",
    "FilledBits",
    "code_tables",
    "code_values",
    "codes_of",
    "fitted_bits",
    "marked_and_drawn",
    "read_bits",
]

LARGEST = 8.0
"""Log odds of a start, at most: each code has to be within reach of a chain."""
TABLE = 2**26
"""Bytes of a table of codes, at most, or those of one point."""


class Bernoullis(NamedTuple):
    """A product of Bernoullis for each point: log odds ``(B, D)``."""

    logits: Tensor

    @property
    def inverse_mass(self) -> Tensor:
        """Of chains that walk here, ``(B, D)``: the same for all bits."""
        return torch.ones_like(self.logits)

    def widened(self, factor: float) -> Bernoullis:
        """To the power 1/factor², which makes the scales of a Gaussian so many times larger, and nowhere near 0."""
        return Bernoullis((self.logits / factor**2).clamp(-LARGEST, LARGEST))

    def sample(self, num: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(S, B, D)`` and their log probabilities ``(S, B)``."""
        noise = torch.empty(num, *self.logits.shape, dtype=self.logits.dtype, device=self.logits.device)
        z = (noise.uniform_(generator=generator) < self.logits.sigmoid()).to(self.logits.dtype)
        return z, self.score(z, self.logits)[0]

    @staticmethod
    def score(z: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of z, ``(C, B, D)``, and its gradient where it is continued linearly between 0 and 1."""
        log_q = torch.where(z > 0.5, F.logsigmoid(logits), F.logsigmoid(-logits)).sum(-1)
        return log_q, logits.expand_as(z)


class FilledBits(Messenger):
    """Gives the bits that a guide draws one value; ``names`` are those that were met."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample)
        fn = msg["fn"]
        while isinstance(fn, (dist.Independent, MaskedDistribution)):
            fn = fn.base_dist
        if not given and isinstance(fn, dist.Bernoulli):
            self.names.add(msg["name"])
            msg["value"] = torch.full_like(fn.logits, self.value)


class Drawn(Messenger):
    """Takes the marks of enumeration off latents that a guide draws.

    Args:
        names: of these sites.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and msg["infer"]:
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}


def marked_and_drawn(model: poutine.Trace, guide: poutine.Trace, plate: str) -> set[str]:
    """Bits that a model run by itself marks for enumeration, and the guide draws: its draws are what is measured."""
    return {
        site["name"]
        for site in sample_sites(model)
        if site["name"] in guide.nodes and are_bits(site["fn"].support) and is_marked(site, plate)
    }


def read_bits(sites: tuple[LocalSite, ...], runs: tuple[PairedTraces, PairedTraces]) -> Bernoullis | None:
    """The guide's q where it is a product of Bernoullis; ``None`` elsewhere.

    Args:
        sites: of the bits.
        runs: of the guide, in one of which all of its bits are 0, and in the other 1.
    """
    found = [_logits(sites, traces) for traces in runs]
    first, second = found
    return None if first is None or second is None or not torch.equal(first, second) else Bernoullis(first)


def fitted_bits(draws: Tensor) -> Bernoullis:
    """Log odds of each bit among draws ``(S, B, D)``, half a draw added to either value."""
    ones, count = draws.sum(0), len(draws)
    return Bernoullis(((ones + 0.5) / (count - ones + 0.5)).log())


def _logits(sites: tuple[LocalSite, ...], traces: PairedTraces) -> Tensor | None:
    nodes: Any = traces.guide.nodes
    local = {s["name"] for observed in (False, True) for s in traces.local_sites(traces.guide, observed=observed)}
    if local != {site.name for site in sites}:
        return None
    columns = []
    for site in sites:
        node = nodes[site.name]
        fn = unwrapped(node["fn"])
        if not isinstance(fn, dist.Bernoulli):
            return None
        logits = plate_to_front(node, traces.plate, fn.logits.expand(node["value"].shape))
        columns.append(logits.reshape(len(logits), -1))
    return torch.cat(columns, -1)


def code_tables(joint: LogJoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Log p(x, z) of every code, for some points after the others: their places ``(b,)`` and ``(b, 2^D)`` in nats.

    In float64; the last bit of a code is the lowest. Memory is bounded, whatever the number of points.
    """
    rows = rows_at_once(joint)
    points = max(1, min(rows, TABLE // (8 * 2**joint.dim)))
    codes = torch.arange(2**joint.dim, device=joint.device)
    for some in torch.arange(joint.num_points, device=joint.device).split(points):
        part = joint.select(some)
        with torch.no_grad():
            blocks = (code_values(block, joint.dim).to(joint.dtype) for block in codes.split(max(1, rows // len(some))))
            found = [part(z[:, None].expand(-1, len(some), -1)).double() for z in blocks]
        yield some, torch.cat(found).T.contiguous()


def code_values(codes: Tensor, num_bits: int) -> Tensor:
    """Bits of codes, ``(...)`` whole numbers to ``(..., D)`` zeros and ones, of which the last is the lowest."""
    return codes[..., None] >> torch.arange(num_bits - 1, -1, -1, device=codes.device) & 1


def codes_of(z: Tensor) -> Tensor:
    """What :func:`code_values` gives the bits of: ``(..., D)`` to ``(...)``."""
    return (z.long() << torch.arange(z.shape[-1] - 1, -1, -1, device=z.device)).sum(-1)
