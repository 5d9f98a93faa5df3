"""A diagnosis in blocks of points, each of which may be measured anywhere: what they share first, the report last.

::

    ground = prepare_blocks(model, guide, x[:200], settings=settings, seed=0)
    found = [diagnose_block(model, guide, some, ground=ground, seed=1 + n) for n, some in enumerate(x.split(1000))]
    report = join_blocks(found, ground, settings=settings)

A block's numbers depend on its points, its seed and the groundwork alone, not on where or in which order blocks are
measured. No call sees all points: a million of them need the memory of one block, and of some twenty numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from amortized_bayes.calls import PerPointNames
from amortized_bayes.diagnosis.estimates import Estimates
from amortized_bayes.diagnosis.report import Diagnosis
from amortized_bayes.diagnosis.settings import DiagnosisSettings
from amortized_bayes.diagnosis.stages import (
    Groundwork,
    check_parameters,
    check_reached,
    lay_groundwork,
    measure,
    report_on,
    subject_of,
)
from amortized_bayes.diagnosis.telling import Telling
from amortized_bayes.entrance import Entered, enter
from amortized_bayes.limits import Seed, limited
from amortized_bayes.progress import Watch, watched
from amortized_bayes.signatures import own_options
from amortized_bayes.trees import leaves_of
from amortized_bayes.types import Guide, Model

__all__ = ["diagnose_block", "join_blocks", "prepare_blocks"]


@own_options
@limited
def prepare_blocks(
    model: Model,
    guide: Guide,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    settings: DiagnosisSettings | None = None,
    seed: Seed = 0,
    progress: bool | Watch = True,
    **kwargs: Any,
) -> Groundwork:
    """Find what all blocks share: draws of the shared latents, the family of q*, temperatures, and the certificate.

    Args:
        model: as of :func:`~amortized_bayes.diagnosis.run.diagnose`.
        guide: likewise; a function of the data.
        args: a few of the points, at least as many as the certificate simulates, and such as the others are: at random
            where these are in an order.
        plate: as of ``diagnose``.
        per_point: likewise.
        settings: how to estimate.
        seed: random seed for all draws.
        progress: as of ``diagnose``.
        kwargs: keyword arguments of both programs.

    Raises:
        TypeError: as ``diagnose``.
        ValueError: likewise, or a guide with per-point parameters, which others do not have.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.diagnosis import diagnose_block, join_blocks, prepare_blocks
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(8, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=8, observed=3, width=8)
        >>> settings = ab.DiagnosisSettings(num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 1000))
        >>> ground = prepare_blocks(model, guide, x[:4], settings=settings)
        >>> blocks = [diagnose_block(model, guide, x[i : i + 4], ground=ground, settings=settings) for i in (0, 4)]
        >>> join_blocks(blocks, ground, settings=settings).num_points
        8
    """
    chosen = settings or DiagnosisSettings()
    check_parameters(model, guide)
    entered = _enter(prepare_blocks, model, guide, args, kwargs, plate=plate, per_point=per_point)
    with watched(progress) as told:
        return lay_groundwork(subject_of(entered, chosen, seed, Telling(told, None, seed)), for_blocks=True)


@own_options
@limited
def diagnose_block(
    model: Model,
    guide: Guide,
    *args: Any,
    ground: Groundwork,
    plate: str | None = None,
    per_point: PerPointNames = None,
    settings: DiagnosisSettings | None = None,
    seed: Seed = 0,
    progress: bool | Watch = True,
    **kwargs: Any,
) -> Estimates:
    """Estimate everything at the points of one block: by name, values and standard errors, ``(T, b)`` each, in nats.

    Args:
        model: as of :func:`prepare_blocks`.
        guide: likewise.
        args: the points of this block.
        ground: what the blocks share.
        plate: as of :func:`prepare_blocks`.
        per_point: likewise.
        settings: those of :func:`prepare_blocks`.
        seed: random seed for all draws of this block; a different one for each block.
        progress: as of :func:`prepare_blocks`.
        kwargs: keyword arguments of both programs.

    Raises:
        TypeError: as :func:`prepare_blocks`.
        ValueError: likewise.
    """
    entered = _enter(diagnose_block, model, guide, args, kwargs, plate=plate, per_point=per_point)
    with watched(progress) as told:
        subject = subject_of(entered, settings or DiagnosisSettings(), seed, Telling(told, None, seed))
        check_reached(subject)
        return measure(subject, ground)


@limited
def join_blocks(
    blocks: Iterable[Estimates], ground: Groundwork, *, settings: DiagnosisSettings | None = None, seed: Seed = 0
) -> Diagnosis:
    """The report on all points together, in the order of the blocks.

    Args:
        blocks: what :func:`diagnose_block` gave.
        ground: what the blocks share.
        settings: those of :func:`prepare_blocks`.
        seed: random seed of the run, for the report.

    Raises:
        ValueError: no blocks, or blocks of different estimates, as of runs with other settings.
    """
    found = list(blocks)
    if not found:
        raise ValueError("expected one block of points or more, got none")
    names = list(found[0])
    draws = [[len(values) for values, _ in block.values()] for block in found]
    if any(list(block) != names for block in found) or any(own != draws[0] for own in draws):
        raise ValueError("expected blocks that were measured with the same settings, got different estimates")
    together: Estimates = {}
    for name in names:
        value, error = (torch.cat([block[name][part] for block in found], -1) for part in (0, 1))
        together[name] = (value, error)
    return report_on(together, ground, settings or DiagnosisSettings(), seed, blocks=len(found))


def _enter(
    call: Callable[..., Any], model: Model, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], **named: Any
) -> Entered:
    """Both programs as functions of the rows of some of the points.

    Raises:
        ValueError: the model needs their places among all, which rows do not tell.
    """
    entered = enter(call, model, guide, args, kwargs, **named)
    if entered.data is not None and len(entered.data.leaves) > len(leaves_of((args, kwargs))):
        raise ValueError("expected index=, the places of these points among all, which the model asks for, got none")
    return entered
