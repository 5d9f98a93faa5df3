"""Which sites ask for enumeration, which can have it, and what to do about those that cannot."""

from __future__ import annotations

from typing import Any

from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import Independent

from amortized_bayes.errors import ProgramError
from amortized_bayes.shared_draw import plate_frame

__all__ = ["OTHERWISE", "is_enumerated", "is_marked", "without"]

HOW = "infer={'enumerate': 'parallel'}"
UNOBSERVED = "_unobserved"
"""How Pyro ends the names of latents that it makes of a site with ``obs_mask``."""
OTHERWISE = "marginalize it or observe it"


def is_enumerated(site: Any) -> bool:
    """Whether a site of a trace holds all its values at once."""
    return site["type"] == "sample" and site["infer"].get("_enumerate_dim") is not None


def is_marked(site: Any, plate: str) -> bool:
    """Whether a latent site asks for enumeration.

    Raises:
        ValueError: it does, and cannot be enumerated point by point.
    """
    infer, name = site["infer"] or {}, site["name"]
    if infer.get("enumerate") is None or site["is_observed"] or isinstance(site["fn"], _Subsample):
        return False
    if infer["enumerate"] != "parallel" or infer.get("num_samples") is not None:
        got = infer["enumerate"] if infer.get("num_samples") is None else f"num_samples={infer['num_samples']}"
        raise ProgramError(f"expected {HOW} at site {name!r}, for all its values at once, got {got!r}")
    if not _can_be_enumerated(site["fn"]):
        raise ProgramError(
            f"site {name!r} ({type(site['fn']).__name__}) cannot be enumerated: its values are not finitely many, or "
            f".to_event() joins several; {OTHERWISE}"
        )
    if plate_frame(site, plate) is None:
        raise ProgramError(
            f"the enumerated site {name!r} is outside plate {plate!r}: points depend on each other through it; "
            f"{OTHERWISE}"
        )
    return True


def without(site: Any) -> str:
    """What to do about a discrete latent that is not summed out; empty for a continuous one."""
    if not site["fn"].support.is_discrete:
        return ""
    if site["infer"].get("enumerate") is not None:
        return f"it cannot be summed out here; {OTHERWISE}"
    if site["name"].endswith(UNOBSERVED) and _can_be_enumerated(site["fn"]):
        return f"Pyro drops {HOW} of a site with `obs_mask`: use `pyro.infer.config_enumerate(model)`, or {OTHERWISE}"
    if isinstance(site["fn"], Independent) and _can_be_enumerated(site["fn"].base_dist):
        return f"give each of its values a site of its own, marked {HOW}, to have them summed out, or {OTHERWISE}"
    return f"mark it {HOW} to have it summed out, or {OTHERWISE}" if _can_be_enumerated(site["fn"]) else OTHERWISE


def _can_be_enumerated(fn: Any) -> bool:
    try:
        return bool(fn.has_enumerate_support) and fn.enumerate_support(expand=False) is not None
    except NotImplementedError:
        return False
