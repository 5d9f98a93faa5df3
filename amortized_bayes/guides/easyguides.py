"""``pyro.contrib.easyguide``: guides that keep their plates from one run to the next when a run fails."""

from __future__ import annotations

from typing import Any

from pyro.contrib.easyguide import EasyGuide
from torch import nn

__all__ = ["forget_plates"]


def forget_plates(program: Any) -> None:
    """Let the next run of the easy guides in a program make plates of its own size: after a failed run they do not."""
    for module in program.modules() if isinstance(program, nn.Module) else ():
        if isinstance(module, EasyGuide):
            module.plates.clear()
