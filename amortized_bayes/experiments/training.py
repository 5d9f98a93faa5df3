"""Train a model by configuration into a run: from its last checkpoint, with looks on the way, to its final rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor

from amortized_bayes.data import load_dataset
from amortized_bayes.evaluation.bounds import Elbo, elbo, iwae
from amortized_bayes.evaluation.errors import active_units, mean_prediction
from amortized_bayes.experiments.measure import Measure, over_points, vacuous
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import ImageData, build_vae, load_vae_images, vae_options
from amortized_bayes.guides import LocalGuide
from amortized_bayes.inference.options import Divergence, StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import global_seed
from amortized_bayes.models import DeepGenerative
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["KEY", "state_of", "train"]

KEY = "model"
"""The only fit of a training run, and its checkpoint."""
NUM_LOOKS = 50
"""Evaluations on the way."""
CURVE_POINTS = 2_000
IWAE_POINTS = 1_000
IWAE_PARTICLES = 50

Watch = Callable[[int, int, str], None]
"""Called with steps taken, steps to take, and where the fit stands, in words."""


def train(
    config: VAEConfig,
    folder: RunFolder,
    *,
    device: torch.device,
    data_dir: Path | None = None,
    watch: Watch = lambda *_: None,
    on_look: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Iterator[Row]:
    """Train into an open, writable run, from its last checkpoint if it has one, and yield the run's rows at the end.

    Args:
        config: what to train.
        folder: the run.
        device: where to run.
        data_dir: where to look for data first.
        watch: called while it runs.
        on_look: called with each look's step and numbers.

    Raises:
        ValueError: data that cannot be had, or a checkpoint of another architecture.
    """
    folder.drop_unfinished_rows()
    data = load_vae_images(config, load_dataset(config.dataset, data_dir=data_dir, seed=config.seed), device)
    model, guide = build_vae(config, data)
    source, transform = data.fitted
    training = Training(model, guide, source, vae_options(config), config.seed, transform=transform)
    rows: list[Row] = []
    best: tuple[float, int] = (-math.inf, 0)
    if (folder.path / "checkpoints" / "training.safetensors").exists():
        rows, best = _take_up(folder, training)
    try:
        patient = not config.early_stopping or _looks_since(config, training, best[1]) < config.patience
        for record in _remaining(config, training, watch) if patient else ():
            with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
                found = _look(config, data, model, guide, record.step)
                _refuse_infinite(record.step, found)
                score = found.get("validation_elbo", Measure(None)).value
                if score is not None and score > best[0]:
                    best = (score, record.step)
                    folder.save_tensors("best", state_of(model, guide))
            rows += _rows(config, data, record, found)
            on_look(record.step, {name: m.value for name, m in found.items() if m.value is not None})
            _keep(folder, training, rows, best)
            if config.early_stopping and _looks_since(config, training, best[1]) >= config.patience:
                break
        yield from _finish(config, folder, data, model, guide, training, rows)
    except Divergence as error:
        failure = Row(
            *("train", data.name, config.name, "amortized", None, config.seed, error.step, training.seconds, "failure"),
            None,
            status="failed",
            note=str(error),
        )
        for row in [*rows, failure]:
            folder.append(row, KEY)
            yield row
    folder.mark_done(KEY)


def _remaining(config: VAEConfig, training: Training, watch: Watch) -> Iterator[StepRecord]:
    """Take the steps that are left and yield the records of looks."""
    total = config.epochs * training.batches.per_epoch
    looks = {round(total * (i + 1) / NUM_LOOKS) for i in range(NUM_LOOKS)} - {0}
    ticks = {round(total * i / 500) for i in range(1, 500)}
    if training.steps >= total:
        return
    for record in training.run(total - training.steps, looks | ticks, begin=0):
        watch(record.step, total, f"ELBO {record.elbo:.1f}")
        if record.step in looks:
            yield record


def _looks_since(config: VAEConfig, training: Training, step: int) -> float:
    return (training.steps - step) / max(1, config.epochs * training.batches.per_epoch / NUM_LOOKS)


def _look(
    config: VAEConfig, data: ImageData, model: DeepGenerative, guide: LocalGuide, step: int
) -> dict[str, Measure]:
    """ELBO of each split, with draws of its own: no look depends on other splits, nor on where a run was taken up."""
    found = {}
    for name, images in (("", data.train), ("validation_", data.validation), ("test_", data.test)):
        if images is None:
            continue
        with global_seed(config.seed, "look", step, name):
            value = _elbo(config, model, guide, images[:CURVE_POINTS], len(data.train), 1)
        found[f"{name}elbo"] = over_points(_of_split(value, name))
        found |= {"kl": over_points(value.kl)} if not name else {}
    return found


def _of_split(value: Elbo, name: str) -> Tensor:
    """The ELBO a training point; of held-out points its local part alone, which counts no decoder weights."""
    return value.log_likelihood - value.kl if name else value.value


def _elbo(
    config: VAEConfig, model: DeepGenerative, guide: LocalGuide, images: Tensor, num_data: int, num_draws: int
) -> Elbo:
    index = torch.arange(len(images), device=images.device)
    local = config.decoder == "bayesian" and config.network == "dense"
    options = {"num_draws": num_draws, "num_data": num_data, "local_reparametrization": local}
    return elbo(model, guide, images.float(), index, **options)


def _finish(
    config: VAEConfig,
    folder: RunFolder,
    data: ImageData,
    model: DeepGenerative,
    guide: LocalGuide,
    training: Training,
    rows: list[Row],
) -> Iterator[Row]:
    """Keep the averaged iterate (the best one with early stopping), evaluate it, and write all rows."""
    training.settle()
    if config.early_stopping:
        best = folder.load_tensors("best")
        for prefix, module in (("model", model), ("guide", guide)):
            own = {k.split(".", 1)[1]: torch.from_numpy(v) for k, v in best.items() if k.startswith(f"{prefix}.")}
            module.load_state_dict(own)
    with pyro.validation_enabled(False), global_seed(config.seed, "final"):
        found = _final(config, data, model, guide)
    record = StepRecord(training.steps, training.seconds, math.nan)
    _refuse_infinite(record.step, found)
    found["seconds_per_step"] = Measure(training.seconds / max(1, training.steps))
    status = "vacuous" if vacuous(found) else "ok"
    rows = [*rows, *(row._replace(status=status) for row in _rows(config, data, record, found))]
    folder.save_tensors(KEY, state_of(model, guide), {"model": config.name})
    for row in rows:
        folder.append(row, KEY)
        yield row


def _final(config: VAEConfig, data: ImageData, model: DeepGenerative, guide: LocalGuide) -> dict[str, Measure]:
    """Numbers for the table, of all points but for IWAE and active units."""
    found: dict[str, Measure] = {}
    for name, images in (("", data.train), ("test_", data.test)):
        value = _elbo(config, model, guide, images, len(data.train), 1)
        found[f"final_{name}elbo"] = over_points(_of_split(value, name))
        found[f"final_{name}kl"] = over_points(value.kl)
    some = torch.arange(min(IWAE_POINTS, len(data.train)), device=data.train.device)
    bound = iwae(model, guide, data.train[some].float(), some, num_particles=IWAE_PARTICLES, num_data=len(data.train))
    found["final_iwae"] = over_points(bound.value)
    latents = mean_prediction(model, guide, data.train[some].float(), some).latents
    found["active_units"] = Measure(active_units(latents))
    return found


def _refuse_infinite(step: int, found: dict[str, Measure]) -> None:
    """Steps may stay finite while what they lead to is not."""
    for measure in found.values():
        if measure.value is not None and not math.isfinite(measure.value):
            raise Divergence(step, measure.value)


def _rows(config: VAEConfig, data: ImageData, record: StepRecord, found: dict[str, Measure]) -> list[Row]:
    start = ("train", data.name, config.name, "amortized", None, config.seed, record.step, record.seconds)
    return [Row(*start, metric, *measure) for metric, measure in found.items()]


def _keep(folder: RunFolder, training: Training, rows: list[Row], best: tuple[float, int]) -> None:
    """Save everything that going on needs, the rows so far among it."""
    state = {name: value.detach().cpu().numpy() for name, value in training.state().items()}
    texts = {"rows": json.dumps([row._asdict() for row in rows]), "best": json.dumps(best)}
    folder.save_tensors("training", state, texts)


def _take_up(folder: RunFolder, training: Training) -> tuple[list[Row], tuple[float, int]]:
    training.load_state({k: torch.from_numpy(np.asarray(v)) for k, v in folder.load_tensors("training").items()})
    texts = folder.load_metadata("training")
    score, step = json.loads(texts["best"])
    return [Row(**row) for row in json.loads(texts["rows"])], (float(score), int(step))


def state_of(model: DeepGenerative, guide: LocalGuide) -> dict[str, np.ndarray]:
    """Weights of both by name, ``model.network.0.weight`` and so on."""
    return {
        f"{prefix}.{name}": value.detach().cpu().numpy()
        for prefix, module in (("model", model), ("guide", guide))
        for name, value in module.state_dict().items()
    }
