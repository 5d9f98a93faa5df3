r"""Exact expectations over the sites that a guide enumerates.

Of the ELBO's terms, each is averaged over the enumerated sites it depends on, directly or through others,

.. math::
    E_q[f] = \sum_y q(y \mid x) \, f(y, z_y), \qquad z_y \sim q(z \mid x, y),

so that gradients reach q(y|x), which a draw of y would keep from them (Kingma, Mohamed, Rezende & Welling,
*Semi-supervised Learning with Deep Generative Models*, 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.enumeration.marks import OTHERWISE, is_enumerated
from amortized_bayes.enumeration.summing import own_log_prob

__all__ = ["Expectation"]


class _Factor(NamedTuple):
    name: str
    log_q: Tensor
    plates: frozenset[str]


class Expectation:
    """Averages over the enumerated sites of a guide's trace.

    Raises:
        ValueError: enumerated sites inside ``pyro.markov``, which use dimensions anew.
    """

    def __init__(self, trace: poutine.Trace) -> None:
        self.factors: dict[int, _Factor] = {}
        sites: list[Any] = [site for site in trace.nodes.values() if is_enumerated(site)]
        for site in sites:
            if site["infer"].get("_markov_scope") is not None:
                raise ValueError(
                    f"the guide enumerates {site['name']!r} inside pyro.markov; leave it to the model, or {OTHERWISE}"
                )
            plates = frozenset(f.name for f in site["cond_indep_stack"])
            self.factors[site["infer"]["_enumerate_dim"]] = _Factor(site["name"], own_log_prob(site), plates)

    def __call__(self, name: str, values: Tensor, plates: Iterable[str]) -> Tensor:
        """Average the values of a term inside ``plates``: enumerated dimensions come out as 1.

        Raises:
            ValueError: a term outside some plate of an enumerated site that it depends on.
        """
        wanted, found, around = self._dims(values), set[int](), set(plates)
        while wanted - found:
            dim = min(wanted - found)
            found.add(dim)
            wanted |= self._dims(self.factors[dim].log_q)
        if not found:
            return values
        for factor in (self.factors[dim] for dim in found):
            if missing := factor.plates - around:
                raise ValueError(
                    f"{name!r} depends on {factor.name!r}, which the guide enumerates inside plate {min(missing)!r}, "
                    f"and is outside of it; leave {factor.name!r} to the model, or {OTHERWISE}"
                )
        weights = sum((self.factors[dim].log_q for dim in found), start=torch.zeros(())).exp()
        possible = torch.where(weights > 0, values, values.new_zeros(()))  # 0 log 0 is 0
        return (weights * possible).sum(sorted(found), keepdim=True)

    def _dims(self, values: Tensor) -> set[int]:
        return {dim for dim in self.factors if values.dim() >= -dim and values.shape[dim] > 1}
