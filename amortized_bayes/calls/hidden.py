"""Latents that ``poutine.block`` hides inside a model, so that no guide can give them a value.

Each run draws them anew from their priors. Where log p of a point moves with them, weights belong to another posterior
than that of the latents in sight: that of both, with a q that is the prior for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.subsample_messenger import _Subsample

__all__ = ["hidden_draws"]


@contextmanager
def hidden_draws() -> Iterator[list[str]]:
    """The names of the latents that are drawn and hidden meanwhile, each once.

    What hides a site is the last to hear of it, so a handler outside cannot, and ``BlockMessenger`` itself is asked.
    """
    names: list[str] = []
    process: Any = BlockMessenger._process_message

    def listening(self: BlockMessenger, msg: Any) -> None:
        process(self, msg)
        drawn = msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None
        if msg["stop"] and drawn and not isinstance(msg["fn"], _Subsample) and msg["name"] not in names:
            names.append(msg["name"])

    BlockMessenger._process_message = listening  # of the class: programs make handlers of their own
    try:
        yield names
    finally:
        BlockMessenger._process_message = process
