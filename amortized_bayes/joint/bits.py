r"""Products of Bernoullis over the bits of a point: what is read off a guide, what chains start at, and all codes.

.. math:: q(z) = \prod_d \sigma(\alpha_d)^{z_d}\, \sigma(-\alpha_d)^{1 - z_d}, \qquad z \in \{0, 1\}^D .
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from amortized_bayes.seeding import torch_generator
from amortized_bayes.traces import PairedTraces, sample_sites, unwrapped

__all__ = [
    "Bernoullis",
    "Drawn",
    "FilledBits",
    "code_tables",
    "code_values",
    "codes_of",
    "first_dependent",
    "fitted_bits",
    "logits_by_site",
    "marked_and_drawn",
]

LARGEST = 8.0
"""Log odds of a start, at most: each code has to be within reach of a chain."""
TABLE = 2**26
"""Bytes of a table of codes, at most, or those of one point."""
NUM_PATTERNS = 8
"""Random codes at which a guide is run, so that what goes by two bits of one point shows in all but one of 256."""


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

    @property
    def entropy(self) -> Tensor:
        """Of each point, ``(..., )`` of log odds ``(..., D)``, in nats."""
        certain = self.logits.isinf()  # which add nothing, and no gradient
        alpha = self.logits.masked_fill(certain, 0.0)
        return (F.softplus(alpha) - alpha * alpha.sigmoid()).masked_fill(certain, 0.0).sum(-1)

    @staticmethod
    def score(z: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of z, ``(C, B, D)``, and its gradient where it is continued linearly between 0 and 1."""
        log_q = torch.where(z > 0.5, F.logsigmoid(logits), F.logsigmoid(-logits)).sum(-1)
        return log_q, logits.expand_as(z)


class FilledBits(Messenger):
    """Gives the bits that a guide draws one value, or random ones; ``names`` are those that were met.

    Args:
        fill: 0 or 1 for all bits, or what draws each of them as a fair coin.
    """

    def __init__(self, fill: float | Generator) -> None:
        super().__init__()
        self.fill = fill
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample)
        fn = msg["fn"]
        while isinstance(fn, (dist.Independent, MaskedDistribution)):
            fn = fn.base_dist
        if not given and isinstance(fn, dist.Bernoulli):
            self.names.add(msg["name"])
            msg["value"] = self._filled(fn.logits)

    def _filled(self, logits: Tensor) -> Tensor:
        if isinstance(self.fill, Generator):
            return torch.empty(logits.shape).bernoulli_(0.5, generator=self.fill).to(logits)
        return torch.full_like(logits, self.fill)


class Drawn(Messenger):
    """Takes the marks of enumeration off latents that a guide draws.

    Args:
        names: names of these sites.
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


def first_dependent(run: Callable[[FilledBits], Mapping[str, Tensor]]) -> tuple[Mapping[str, Tensor], str | None]:
    """What a guide gives with all of its bits 0, and the first name of what moves when they are others.

    Others are all ones, and ``NUM_PATTERNS`` random codes, the same each time: what goes by the difference of two bits
    is the same at all zeros and at all ones. Draws other than bits are the same in each run.

    Args:
        run: runs the guide with these bits; gives what must not depend on one, by name.
    """
    generator = torch_generator(0, "bit patterns")
    devices = list(range(torch.cuda.device_count()))
    first: Mapping[str, Tensor] | None = None
    for fill in (0.0, 1.0, *(generator for _ in range(NUM_PATTERNS))):
        with torch.no_grad(), torch.random.fork_rng(devices=devices), FilledBits(fill) as filling:
            found = run(filling)
        first = found if first is None else first
        for name in {**first, **found}:
            if name not in first or name not in found or not torch.equal(first[name], found[name]):
                return first, name
    assert first is not None
    return first, None


def fitted_bits(draws: Tensor) -> Bernoullis:
    """Log odds of each bit among draws ``(S, B, D)``, half a draw added to either value."""
    ones, count = draws.sum(0), len(draws)
    return Bernoullis(((ones + 0.5) / (count - ones + 0.5)).log())


def logits_by_site(sites: tuple[LocalSite, ...], traces: PairedTraces) -> dict[str, Tensor]:
    """Log odds ``(B, D)`` of a guide's sites in the order of the model's; none where they are not all Bernoulli."""
    nodes: Any = traces.guide.nodes
    local = {s["name"] for observed in (False, True) for s in traces.local_sites(traces.guide, observed=observed)}
    if local != {site.name for site in sites}:
        return {}
    found = {}
    for site in sites:
        node = nodes[site.name]
        fn = unwrapped(node["fn"])
        if not isinstance(fn, dist.Bernoulli):
            return {}
        logits = plate_to_front(node, traces.plate, fn.logits.expand(node["value"].shape))
        found[site.name] = logits.reshape(len(logits), -1)
    return found


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
