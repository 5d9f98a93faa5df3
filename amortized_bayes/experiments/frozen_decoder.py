"""``frozen-decoder``: the gaps of one decoder under encoders of every family and size.

After Cremer, Li & Duvenaud (ICML 2018), section 5.3 and Table 4. The estimate of log p(x) and the best q of each family
belong to the decoder and the points alone, so they are made once and shared by all encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from amortized_bayes.data import load_dataset
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.gap_study import GAPS, class_rows
from amortized_bayes.experiments.point_bounds import (
    PointBounds,
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
from amortized_bayes.experiments.setup import find_labels
from amortized_bayes.experiments.suboptimality import FrozenDecoderConfig, frozen_base, frozen_encoders
from amortized_bayes.experiments.trained import Trained, obtain
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["SHARED", "run_frozen_decoder"]

SHARED = "shared"
"""Key of what belongs to the decoder."""


def run_frozen_decoder(
    config: FrozenDecoderConfig,
    folder: RunFolder,
    *,
    out: Path,
    device: torch.device,
    data_dir: Path | None = None,
    watch: Watch = lambda *_: None,
) -> Iterator[Row]:
    """Fit and measure the encoders that an open, writable run does not hold yet, and yield the new rows.

    Raises:
        TrainingFailed: the VAE diverged.
        ValueError: data that cannot be had.
    """
    folder.drop_unfinished_rows()
    trained = obtain(frozen_base(config), out, device=device, data_dir=data_dir, watch=watch)
    places = choose(trained.data.train, config.points, config.seed)
    if SHARED not in folder.done():
        yield from _store(folder, SHARED, _shared_rows(config, trained, folder, places, data_dir, watch))
    shared = folder.load_arrays(SHARED)
    fits = frozen_encoders(config)
    for number, (encoder, family) in enumerate(fits):
        key = f"{family}_{encoder}"
        if key not in folder.done():
            label = f"{number + 1}/{len(fits)} {encoder} {family}"
            yield from _store(
                folder, key, _encoder_rows(config, trained, folder, shared, (encoder, family), watch, label)
            )


def _shared_rows(
    config: FrozenDecoderConfig,
    trained: Trained,
    folder: RunFolder,
    places: np.ndarray,
    data_dir: Path | None,
    watch: Watch,
) -> Iterator[Row]:
    """Log p̂ and the best q of each family."""
    x = at(trained.data.train, places)
    found = best_bounds(trained.model, trained.guide, x, config.bounds, config.seed, watch)
    evidence, (gap, error) = evidence_bounds(trained.model, trained.guide, x, config.bounds, config.seed, watch)
    found |= evidence
    labels = find_labels(trained.data, "train", places, partial(load_dataset, data_dir=data_dir, download=False))
    folder.save_arrays(SHARED, places=places, **found, **({} if labels is None else {"labels": labels}))
    start = _start(config, trained, "decoder", "gaussian")
    yield from measure_rows(start, found, {})
    yield start._replace(metric="certificate_gap", value=gap, standard_error=error, error_over="points")


def _encoder_rows(
    config: FrozenDecoderConfig,
    trained: Trained,
    folder: RunFolder,
    shared: PointBounds,
    fit: tuple[str, str],
    watch: Watch,
    label: str,
) -> Iterator[Row]:
    """L[q] of one encoder and its gaps, overall and by class."""
    encoder, family = fit
    wanted = replace(trained.config, encoder=encoder, family=family)
    start = _start(config, trained, encoder, family)
    try:
        guide = fit_encoder(
            trained, wanted, config.encoder_epochs, config.learning_rate, lambda done, total: watch(label, done, total)
        )
        found = guide_elbo(trained.model, guide, at(trained.data.train, shared["places"]), config.seed)
        refuse_infinite(found)
    except ArithmeticError as error:
        step = getattr(error, "step", 0)
        yield start._replace(metric="failure", status="failed", step=step, note=str(error))
        return
    state = {name: value.detach().cpu().numpy() for name, value in guide.state_dict().items()}
    folder.save_tensors(f"{family}_{encoder}", state, {"encoder": encoder, "family": family})
    middle = family.removesuffix("-contextual")
    gaps = gap_of({**shared, **found}, middle)
    arrays = {**found, **{name: gap.value.numpy() for name, gap in gaps.items()}}
    folder.save_arrays(f"{family}_{encoder}", **arrays)
    yield from measure_rows(start, found, gaps)
    for number, values in class_rows(arrays, shared.get("labels")).items():
        for name in GAPS:
            mean, error = values[name]
            metric = f"class{number}_{name}"
            yield start._replace(metric=metric, value=mean, standard_error=error, error_over="points")


def _start(config: FrozenDecoderConfig, trained: Trained, encoder: str, family: str) -> Row:
    model = trained.config.name if encoder == "decoder" else f"{encoder} encoder"
    return Row("frozen-decoder", trained.data.name, model, family, None, config.seed, 0, 0.0, "", None)


def _store(folder: RunFolder, key: str, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        folder.append(row, key)
        yield row
    folder.mark_done(key)
