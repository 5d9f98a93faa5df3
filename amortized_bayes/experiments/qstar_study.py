"""How far q* can be trusted: restarts, initial spreads and starts, against one search that is given far more.

``python run_experiments.py qstar CHECKPOINT``. For each start (the encoder's answer, or the prior), each spread of
restarts about it and each budget of steps, q* is looked for afresh, so that every number belongs to a search whose step
fell to zero within that budget. All are scored on fresh samples and compared, point by point, with a reference search
of many more steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import tyro

from amortized_bayes.experiments.checking import SettingError, at_least, different, flag
from amortized_bayes.types import Row

if TYPE_CHECKING:
    from torch import Tensor

    from amortized_bayes.experiments.trained import Trained
    from amortized_bayes.joint import Gaussian
    from amortized_bayes.results import RunFolder

__all__ = ["QSTAR_PRESETS", "QStarConfig", "Search", "run_qstar", "searches"]

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class QStarConfig:
    """Measure how reliable the best q of a point is.

    Args:
        preset: The setting that all other flags start from.
        checkpoint: Run of `train` to look at: its path, its name, or latest.
        split: Points to look at.
        points: After a seeded shuffle; all if there are fewer.
        restarts: Searches a point from each start, all from moved means.
        spreads: By how many scales of q those means are moved.
        starts: The encoder's answer, and the prior.
        budgets: Steps of a search.
        samples: Draws of each q a step.
        reference_steps: Steps of the reference, which starts at the encoder's answer.
        reference_samples: Draws of each q a step of the reference.
        score: Fresh draws that each q is scored on.
        seed: Of all draws.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = "latest"
    preset: Literal["quick", "paper"] = "quick"
    split: Literal["train", "test"] = "train"
    points: int = 50
    restarts: int = 3
    spreads: tuple[float, ...] = (0.5, 2.0)
    starts: tuple[Literal["encoder", "prior"], ...] = ("encoder", "prior")
    budgets: tuple[int, ...] = (30, 100, 300, 1_000)
    samples: int = 10
    reference_steps: int = 5_000
    reference_samples: int = 20
    score: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"points": 2, "restarts": 2, "samples": 4, "reference_steps": 10, "reference_samples": 4}
        at_least(self, least | {"score": 2, "seed": 0})
        for name in ("samples", "reference_samples"):
            if getattr(self, name) % 2:
                raise SettingError(
                    f"expected an even {flag(name)}, since draws come in pairs, got {getattr(self, name)}"
                )
        different(self, ("spreads", "starts", "budgets"))
        if len({f"{spread:g}" for spread in self.spreads}) < len(self.spreads):  # files are named so
            raise SettingError(f"expected --spreads that differ in six digits, got {list(self.spreads)}")
        if min(self.budgets) < 10:
            raise SettingError(f"expected --budgets of 10 or more, got {list(self.budgets)}")
        if not all(0 <= spread < math.inf for spread in self.spreads):
            raise SettingError(f"expected --spreads of 0 or more, got {list(self.spreads)}")


QSTAR_PRESETS: dict[str, QStarConfig] = {
    "quick": QStarConfig(),
    "paper": QStarConfig(
        preset="paper",
        points=1_000,
        restarts=10,
        spreads=(0.5, 1.0, 2.0),
        budgets=(30, 100, 300, 1_000, 3_000, 10_000),
        reference_steps=20_000,
        reference_samples=100,
        score=5_000,
    ),
}
"""Settings by name."""


class Search(NamedTuple):
    """One kind of search: where it starts, how far restarts are moved, and how many steps it has."""

    start: str
    spread: float
    steps: int

    @property
    def key(self) -> str:
        """Its name, for files and for resuming."""
        return f"{self.start}_spread{self.spread:g}_steps{self.steps}"


def searches(config: QStarConfig) -> list[Search]:
    """All searches, cheap ones first."""
    return [Search(a, b, c) for c in config.budgets for a in config.starts for b in config.spreads]


def run_qstar(
    config: QStarConfig, trained: Trained, folder: RunFolder, *, watch: Watch = lambda *_: None
) -> Iterator[Row]:
    """Run the searches that an open, writable run does not hold yet, keep them there, and yield their rows.

    ``arrays/<search>.npz`` holds what each search found, ``(R, B)`` for R restarts.

    Raises:
        ValueError: as :func:`~amortized_bayes.inference.optimize.optimize_local`.
    """
    from amortized_bayes.experiments.point_bounds import at, choose
    from amortized_bayes.joint import draw_shared, global_seed

    folder.drop_unfinished_rows()
    images = trained.data.train if config.split == "train" else trained.data.test
    places = choose(images, config.points, config.seed, "qstar")
    x = at(images, places)
    with global_seed(config.seed, "shared"):
        fixed = draw_shared(trained.guide, x)[0]
    todo = [Search("reference", 0.0, config.reference_steps), *searches(config)]
    for number, search in enumerate(todo):
        if search.key in folder.done():
            continue
        label = f"{number + 1}/{len(todo)} {search.start}, spread {search.spread:g}, {search.steps} steps"
        begin = time.perf_counter()
        found = _search(config, trained, x, fixed, search, lambda done, total, l=label: watch(l, done, total))
        folder.save_arrays(search.key, places=places, **found)
        reference = folder.load_arrays(todo[0].key)["elbo_star"]
        for row in _rows(trained, search, found, reference, time.perf_counter() - begin):
            folder.append(row, search.key)
            yield row
        folder.mark_done(search.key)


def _search(
    config: QStarConfig,
    trained: Trained,
    x: Tensor,
    fixed: dict[str, Tensor],
    search: Search,
    watch: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """All restarts at once, as so many points: what was found, ``(R, B)`` each."""
    from amortized_bayes.inference.optimize import LocalSettings, optimize_local

    reference = search.start == "reference"
    settings = LocalSettings(
        num_samples=config.reference_samples if reference else config.samples,
        max_steps=search.steps,
        tolerance=0.0,  # a search uses up its budget
        num_score=config.score,
    )
    restarts = 1 if reference else config.restarts
    found = optimize_local(
        trained.model,
        _start(config, trained, x, fixed, search, restarts),
        x.repeat(restarts, 1),
        settings=settings,
        fixed=fixed,
        seed=config.seed,
        progress=watch,
    )
    parts = {"elbo_star": found.elbo_star, "error": found.standard_error, "residual": found.residual}
    parts |= {"residual_error": found.residual_error, "evaluations": found.evaluations}
    return {name: value.double().cpu().numpy().reshape(restarts, -1) for name, value in parts.items()}


def _start(
    config: QStarConfig, trained: Trained, x: Tensor, fixed: dict[str, Tensor], search: Search, restarts: int
) -> Gaussian:
    """Where each restart begins, ``(R B, D)``: means moved at random about the encoder's answer or the prior's."""
    import torch

    from amortized_bayes.joint import Gaussian, gaussian_start, global_seed, log_joint
    from amortized_bayes.seeding import torch_generator

    with global_seed(config.seed, "start"):
        q = gaussian_start(log_joint(trained.model, x, fixed=fixed), trained.guide, num_fit=100)
    if search.start == "prior":
        q = Gaussian(torch.zeros_like(q.loc), torch.ones_like(q.scale))
    generator = torch_generator(config.seed, "restarts", search.start, device=x.device)
    moved = torch.empty(restarts, *q.loc.shape, device=x.device, dtype=q.loc.dtype).normal_(generator=generator)
    loc = q.loc + search.spread * q.scale * moved
    return Gaussian(loc.flatten(0, 1), q.scale.repeat(restarts, 1))


def _rows(
    trained: Trained, search: Search, found: dict[str, np.ndarray], reference: np.ndarray, seconds: float
) -> Iterator[Row]:
    """Means over restarts, with errors over points; the spread over restarts is freed of the scoring's own noise."""
    import torch

    from amortized_bayes.experiments.measure import over_points

    start = ("qstar", trained.data.name, trained.config.name, search.start, None, trained.config.seed, search.steps)
    values: dict[str, np.ndarray] = {
        "elbo_star": found["elbo_star"].mean(0),
        "residual": found["residual"].mean(0),
        "evaluations": found["evaluations"].mean(0),
    }
    if search.start != "reference":
        values["behind_reference"] = (reference - found["elbo_star"]).mean(0)
        noise = np.square(found["error"]).mean(0)
        values["restart_variance"] = found["elbo_star"].var(0, ddof=1) - noise
    for metric, value in values.items():
        measure = over_points(torch.from_numpy(value))
        yield Row(*start, seconds, f"spread{search.spread:g}_{metric}", *measure)
