"""One draw of the latents outside the plate, for all that is to rest on the same."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

__all__ = ["SharedDraw", "plate_frame"]


def plate_frame(site: Any, plate: str) -> Any:
    """The plate's frame in a site's stack of plates, ``None`` for a site outside the plate.

    A plate without a size gets that of the site's distribution, and keeps -1 where this has no row per point.
    """
    frame = next((f for f in site["cond_indep_stack"] if f.name == plate), None)
    if frame is None or not isinstance(frame.size, int) or frame.size >= 0 or site["type"] != "sample":
        return frame
    shape = site["fn"].batch_shape
    size = shape[frame.dim] if len(shape) >= -frame.dim else -1
    return frame._replace(size=size, full_size=size)


class SharedDraw(Messenger):
    """One draw of the latents outside the plate, made by whatever runs first in it and met again by all that follows.

    So all chunks of points see the same draw, as all points of a batch do. ``values`` are those drawn, by name: none
    where the guide has no such site, or where its weights are never drawn (local reparametrization).
    """

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.values: dict[str, Tensor] = {}
        self._open: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample)
        if given or plate_frame(msg, self.plate) is not None:
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        else:
            self._open.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._open:
            self._open.remove(msg["name"])
            self.values[msg["name"]] = msg["value"]
