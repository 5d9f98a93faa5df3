"""Points of ``gaps`` in blocks, each a job: the certificate first, all points together last.

A block has the seed of its key and reads the certificate's job, so that its numbers are the same in any process, and in
any order. It holds the images of its own points alone as floats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from amortized_bayes.configuration import SettingError
from amortized_bayes.diagnosis import Diagnosis, Groundwork, diagnose_block, join_blocks, prepare_blocks
from amortized_bayes.diagnosis.estimates import Estimates
from amortized_bayes.experiments.bounds import choose, images_at
from amortized_bayes.experiments.diagnosing import diagnosis_settings, diagnosis_work, guide_to_measure
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Job, job_key
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.seeding import torch_seed
from amortized_bayes.types import Factor

__all__ = ["MOST_BLOCKS", "block_jobs", "joined", "num_blocks", "point_places"]

MOST_BLOCKS = 2_000
"""Of a split."""
PREPARED, MEASURED = "certificate", "estimates"
"""Names of jobs, before the factors of their split."""


def num_blocks(config: Any, model: VAEConfig, split: str, lab: Lab) -> int:
    """How many blocks the points of a split make.

    Raises:
        SettingError: more than anybody means.
    """
    if config.points <= config.block_size:
        return 1
    count = _num_points(config, model, split, lab)
    if count > MOST_BLOCKS * config.block_size:
        raise SettingError(
            f"expected --block-size of {math.ceil(count / MOST_BLOCKS):,} or more for {count:,} points, in "
            f"{MOST_BLOCKS:,} blocks at most, got {config.block_size}"
        )
    return math.ceil(count / config.block_size)


def block_jobs(config: Any, model: VAEConfig, split: str, factors: Mapping[str, Factor], lab: Lab) -> Iterator[Job]:
    """The job of the certificate, and a job for each block, of about equally many points."""
    count = _num_points(config, model, split, lab)
    simulated = min(config.simulated, count)
    first = Job(
        factors,
        lambda: _prepare(config, split, factors, lab),
        name=PREPARED,
        work=diagnosis_work(config, model, split, lab, simulated=simulated),
        reads=[config.checkpoint],
    )
    yield first
    for block, places in enumerate(_cut(np.arange(count), config)):
        own = {**factors, "block": block}
        yield Job(
            own,
            partial(_measure, config, split, own, first.key, lab),
            name=MEASURED,
            work=diagnosis_work(config, model, split, lab, points=len(places)),
            reads=[config.checkpoint],
            after=[first.key],
            disk=200.0 * len(places),
        )


def joined(config: Any, keys: Sequence[str], lab: Lab) -> tuple[np.ndarray, Diagnosis]:
    """Places of all points, and the report on them, from the jobs of :func:`block_jobs`.

    Raises:
        ArithmeticError: one of them failed.
    """
    first, *blocks = keys
    found = [lab.arrays(key) for key in blocks]
    places = np.concatenate([arrays["places"] for arrays in found])
    estimates, ground = map(_as_estimates, found), _groundwork(first, lab)
    return places, join_blocks(estimates, ground, settings=diagnosis_settings(config), seed=config.seed)


def point_places(config: Any, split: str, trained: Trained) -> np.ndarray:
    """Places of the points of a split that are measured, ``(B,)``, rising."""
    return choose(getattr(trained.data, split), config.points, config.seed, "gaps", split)


def _num_points(config: Any, model: VAEConfig, split: str, lab: Lab) -> int:
    return min(config.points, len(getattr(lab.images(model), split)))


def _cut(places: np.ndarray, config: Any) -> list[np.ndarray]:
    return np.array_split(places, math.ceil(len(places) / config.block_size))


def _prepare(config: Any, split: str, factors: Mapping[str, Factor], lab: Lab) -> Iterator[Checkpoint]:
    trained = lab.checkpoint(lab.run_named(config.checkpoint))
    places = point_places(config, split, trained)
    # From all over, since places rise and data may be sorted: these points are what simulated ones are compared with.
    evenly = np.linspace(0, len(places) - 1, min(config.simulated, len(places))).round().astype(int)
    some = images_at(getattr(trained.data, split), places[evenly])
    ground = prepare_blocks(
        trained.model,
        guide_to_measure(config, trained),
        some,
        settings=diagnosis_settings(config),
        seed=torch_seed(config.seed, job_key(factors, PREPARED)),
        progress=lambda stage, done, total: lab.watch(f"{split} {stage}", done, total),
    )
    tensors, text = ground.pack()
    yield Checkpoint({name: value.cpu().numpy() for name, value in tensors.items()}, {"groundwork": text})


def _measure(config: Any, split: str, factors: Mapping[str, Factor], first: str, lab: Lab) -> Iterator[Arrays]:
    start = time.process_time()
    trained = lab.checkpoint(lab.run_named(config.checkpoint))
    places = _cut(point_places(config, split, trained), config)[int(factors["block"])]
    found = diagnose_block(
        trained.model,
        guide_to_measure(config, trained),
        images_at(getattr(trained.data, split), places),
        ground=_groundwork(first, lab),
        settings=diagnosis_settings(config),
        seed=torch_seed(config.seed, job_key(factors, MEASURED)),
        progress=lambda stage, done, total: lab.watch(f"{split} {stage}", done, total),
    )
    values = {name: value.numpy() for name, (value, _) in found.items()}
    errors = {f"{name}_error": error.numpy() for name, (_, error) in found.items()}
    seconds = np.array(time.process_time() - start)  # of the processor, since this process took the block up
    yield Arrays({"places": places, "seconds": seconds, **values, **errors})


def _groundwork(key: str, lab: Lab) -> Groundwork:
    tensors = {name: torch.from_numpy(value).to(lab.device) for name, value in lab.tensors(key).items()}
    return Groundwork.unpack(tensors, lab.texts(key)["groundwork"])


def _as_estimates(arrays: Mapping[str, np.ndarray]) -> Estimates:
    names = [name for name in arrays if f"{name}_error" in arrays]
    return {name: (torch.from_numpy(arrays[name]), torch.from_numpy(arrays[f"{name}_error"])) for name in names}
