"""``test-set-gaps``: three gaps of models trained with different families, encoders and objectives.

After Cremer, Li & Duvenaud (ICML 2018), Tables 2 and 3, on training points as there. A model's own family stands in the
middle of its gaps; the best q of the other families are reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch

from amortized_bayes.experiments.point_bounds import (
    Watch,
    at,
    best_bounds,
    choose,
    evidence_bounds,
    gap_of,
    guide_elbo,
    measure_rows,
    refuse_infinite,
)
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.suboptimality import TestSetGapsConfig, set_models
from amortized_bayes.experiments.trained import TrainingFailed, obtain
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["model_key", "run_set_gaps"]


def run_set_gaps(
    config: TestSetGapsConfig,
    folder: RunFolder,
    *,
    out: Path,
    device: torch.device,
    data_dir: Path | None = None,
    watch: Watch = lambda *_: None,
) -> Iterator[Row]:
    """Train what ``out`` does not hold yet, measure what ``folder`` does not hold yet, and yield the new rows.

    A model whose training diverged, or whose estimates cannot be made, is recorded as failed, and the rest go on.

    Raises:
        ValueError: data that cannot be had.
    """
    folder.drop_unfinished_rows()
    models = set_models(config)
    for number, wanted in enumerate(models):
        key = model_key(wanted)
        if key in folder.done():
            continue
        label = f"{number + 1}/{len(models)} {wanted.name}"
        for row in _model_rows(config, wanted, folder, key, out, device, data_dir, _prefixed(watch, label)):
            folder.append(row, key)
            yield row
        folder.mark_done(key)


def model_key(model: VAEConfig) -> str:
    """Name of a model, for files and for resuming."""
    annealed = "annealed" if model.entropy_annealing else "plain"
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(model.dataset).stem)[:60]
    if model.dataset.endswith((".npz", ".npy")):  # files in different folders may have one name
        name = f"{name}-{sha256(model.dataset.encode()).hexdigest()[:8]}"
    return f"{name}_{model.family}_{model.encoder}_{annealed}_seed{model.seed}"


def _model_rows(
    config: TestSetGapsConfig,
    wanted: VAEConfig,
    folder: RunFolder,
    key: str,
    out: Path,
    device: torch.device,
    data_dir: Path | None,
    watch: Watch,
) -> Iterator[Row]:
    start = Row("test-set-gaps", wanted.dataset, wanted.name, wanted.family, None, wanted.seed, 0, 0.0, "", None)
    try:
        trained = obtain(wanted, out, device=device, data_dir=data_dir, watch=watch)
        places = choose(trained.data.train, config.points, config.seed)
        x = at(trained.data.train, places)
        found = guide_elbo(trained.model, trained.guide, x, config.seed)
        found |= best_bounds(trained.model, trained.guide, x, config.bounds, config.seed, watch)
        evidence, certificate = evidence_bounds(trained.model, trained.guide, x, config.bounds, config.seed, watch)
        found |= evidence
        refuse_infinite(found)
    except (TrainingFailed, ArithmeticError) as error:
        step = getattr(error, "step", 0)
        yield start._replace(metric="failure", status="failed", step=step, note=str(error))
        return
    folder.save_arrays(key, places=places, **found)
    family = wanted.family.removesuffix("-contextual")
    gaps = gap_of(found, family)
    yield from measure_rows(start, found, gaps)
    gap, error = certificate
    yield start._replace(metric="certificate_gap", value=gap, standard_error=error, error_over="points")


def _prefixed(watch: Watch, label: str) -> Watch:
    return lambda stage, done, total: watch(f"{label}: {stage}", done, total)
