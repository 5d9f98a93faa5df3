"""What a diagnosis does where the latents of a point are bits: all codes are summed where they are few, else drawn."""

from __future__ import annotations

from collections.abc import Callable

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.diagnosis.estimates import Estimates, guide_weights, weighed
from amortized_bayes.entrance import Entered
from amortized_bayes.enumeration import is_marked
from amortized_bayes.inference.bit_search import rounding
from amortized_bayes.inference.mean_field import best_product, elbo_of_codes
from amortized_bayes.joint import (
    Bernoullis,
    Drawn,
    LogJoint,
    bits_of,
    code_tables,
    codes_of,
    global_seed,
    marked_and_drawn,
)
from amortized_bayes.seeding import torch_generator
from amortized_bayes.traces import sample_sites, trace_guide
from amortized_bayes.types import Guide, Model

__all__ = ["drawing", "summed_estimates"]


def drawing(entered: Entered, seed: int) -> Model:
    """The model, in which bits that it marks for enumeration and the guide draws are drawn."""
    args, kwargs, plate = entered.args, entered.kwargs, entered.plate
    with torch.no_grad(), global_seed(seed, "marks"):
        alone = poutine.trace(entered.model).get_trace(*args, **kwargs)
        if not any(is_marked(site, plate) for site in sample_sites(alone)):
            return entered.model
        names = marked_and_drawn(alone, trace_guide(entered.guide, args, kwargs, plate), plate)
    return Drawn(names)(entered.model) if names else entered.model


@torch.no_grad()
def summed_estimates(
    joint: LogJoint, guide: Guide, num_particles: int, seed: int, progress: Callable[[int, int], None]
) -> Estimates:
    """ELBO, log p(x) and q* of each point, with errors of rounding; IWAE, k̂ and ESS of draws, as of other models.

    A guide whose bits depend on each other has its ELBO by draws too. Both bounds on log p(x) are log p(x).
    """
    own = bits_of(joint, guide)
    generator = torch_generator(seed, "q*", device=joint.device)
    parts, columns = list[tuple[Tensor, ...]](), list[Tensor]()
    for number, (points, table) in enumerate(code_tables(joint)):
        starts = table.new_zeros(0, len(points), joint.dim)
        elbo = torch.full_like(table[:, 0], torch.nan)
        if own is not None:
            some = Bernoullis(own.logits[points])
            starts, elbo = some.logits[None].double(), elbo_of_codes(table, some.logits)
            with global_seed(seed, "weights", number):
                z, log_q = some.sample(num_particles)
            columns.append(table.gather(1, codes_of(z).T).T - log_q.double())
        best = best_product(table, starts, generator)
        parts.append((elbo, table.logsumexp(1), best.elbo, best.residual))
        progress(int(points[-1]) + 1, joint.num_points)
    log_w = guide_weights(joint, guide, num_particles, seed) if own is None else torch.cat(columns, -1)
    elbo, log_p, elbo_star, residual = (torch.cat(part) for part in zip(*parts, strict=True))
    found = weighed(log_w.cpu())
    error = rounding(log_p, joint.dtype)
    if own is not None:
        found["elbo"] = (elbo, error)
    found |= {name: (log_p, error) for name in ("log_p_lower", "log_p_upper")}
    return found | {"elbo_star": (elbo_star, error), "residual": (residual, torch.zeros_like(residual))}
