"""One draw of several local sites: the sites of a point as parts of an auxiliary vector, each moved to its support.

Autoguides of a point, easy guides and many guides by hand draw one Gaussian of all sites together and hand its parts on
as point masses. Which part goes where is seen from the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from amortized_bayes.joint.density import LocalSite, plate_to_front
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import PairedTraces

__all__ = ["places_in_z", "taken_from"]


def taken_from(source: Any, sites: Sequence[LocalSite], traces: PairedTraces) -> Tensor | None:
    """Where in z the entries of an auxiliary site's value are found, ``(k,)``; ``None`` unless each is in one place.

    The sites that are made of them must have the log densities of their moves alone.
    """
    drawn = _rows(source, traces.plate, source["value"])
    places = torch.full((drawn.shape[1],), -1)
    for site in sites:
        node: Any = traces.guide.nodes[site.name]
        free = _rows(node, traces.plate, biject_to(site.support).inv(node["value"]))
        entries = _nearest(free, drawn)
        if not _is_moved(drawn[:, entries], node, site, traces):
            continue
        if (places[entries] >= 0).any() or len(entries.unique()) < len(entries):
            return None
        places[entries] = torch.arange(site.place.start, site.place.stop)
    return None if (places < 0).any() else places


def places_in_z(sites: Sequence[LocalSite]) -> Tensor:
    """Entries of z that sites take, one after the other."""
    return torch.cat([torch.arange(site.place.start, site.place.stop) for site in sites])


def _rows(node: Any, plate: str, value: Tensor) -> Tensor:
    front = plate_to_front(node, plate, value)
    return front.reshape(len(front), -1)


def _nearest(free: Tensor, drawn: Tensor) -> Tensor:
    """The entry of ``drawn`` that each entry of ``free`` is nearest to, over all points: ``(m,)``."""
    return torch.stack(list(_distances(free, drawn))).argmin(-1).cpu()


def _distances(free: Tensor, drawn: Tensor) -> Iterator[Tensor]:
    for column in free.T:  # one at a time, since a vector may be long
        yield (drawn - column[:, None]).abs().nan_to_num(nan=torch.inf).sum(0)


def _is_moved(free: Tensor, node: Any, site: LocalSite, traces: PairedTraces) -> bool:
    """Whether a point mass is this unconstrained value, ``(B, m)``, moved by the support's bijection."""
    bijection, frame = biject_to(site.support), plate_frame(node, traces.plate)
    batch = node["value"].dim() - node["fn"].event_dim
    free = free.reshape(len(free), *site.free_shape).movedim(0, batch + frame.dim)
    value = bijection(free)
    if value.shape != node["value"].shape or not torch.allclose(value, node["value"], rtol=1e-4, atol=1e-5):
        return False
    volume = bijection.log_abs_det_jacobian(free, value)
    volume = volume.flatten(batch).sum(-1) if volume.dim() > batch else volume
    own = traces.log_prob(node)
    return torch.allclose(own, -traces.sum_to_plate(node, volume).to(own), rtol=1e-4, atol=1e-4)
