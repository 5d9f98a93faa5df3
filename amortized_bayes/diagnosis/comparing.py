"""Constant, amortized and factorized guides, built from anybody's Pyro model, fitted and compared."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from amortized_bayes.diagnosis.comparison import Comparison, FittedGuide
from amortized_bayes.evaluation.bounds import Elbo, elbo, mean_over_points
from amortized_bayes.guides import Amortized, Constant, Factorized, LocalGuide, MeanField
from amortized_bayes.inference.options import Divergence, FitOptions, StepRecord, settling
from amortized_bayes.inference.svi import Training
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites, latent_sites
from amortized_bayes.types import Model

__all__ = ["compare"]


def compare(
    model: Model,
    x: Tensor,
    widths: Sequence[int] = (1, 16, 64),
    *,
    depth: int = 1,
    epochs: int = 200,
    options: FitOptions | None = None,
    plate: str = "data",
    num_draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Fit constant, amortized (each width) and factorized guides, built from the model's own trace, and compare them.

    Shared latents get a mean-field Gaussian, started at a draw from their priors; parameters of the model are fitted
    beside each guide and put back to their start before the next. All families start from the same q(z).

    Args:
        model: Pyro program called as ``model(x)``, or ``model(x, index)`` if it has a parameter of that name, with
            continuous latent sites inside one plate over data points. It must take any number of points.
        x: data, (N, ...).
        widths: encoder widths k.
        depth: hidden layers of the encoder.
        epochs: passes over the data for each fit; A-VI and F-VI get as many again, to see what that gains.
        options: how to fit; the batch is made smaller where there are fewer points.
        plate: name of the plate over data points.
        num_draws: draws for the final ELBO.
        seed: of starts, batches and draws.
        progress: show a bar on a terminal.

    Raises:
        ValueError: no such plate, discrete latents, data that are no finite tensor, or widths below 1.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> import amortized_bayes
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)
        >>> x = torch.randn(100, 3)
        >>> report = amortized_bayes.compare(model, x, widths=(4,), epochs=5, progress=False)
        >>> report.to_frame()["guide"].tolist()
        ['constant', 'amortized', 'factorized', 'factorized-from-amortized']
    """
    _check_data(x)
    if not widths or min(widths) < 1:
        raise ValueError(f"expected widths of 1 or more, got {list(widths)}")
    for name, value, least in (("depth", depth, 0), ("epochs", epochs, 1), ("num_draws", num_draws, 1)):
        if value < least:
            raise ValueError(f"expected {name} of {least} or more, got {value}")
    chosen = options or FitOptions()
    chosen = replace(chosen, batch_size=min(chosen.batch_size, len(x)))
    torch.manual_seed(torch_seed(seed, "start"))
    program = model if "index" in inspect.signature(_callable(model)).parameters else _WithoutIndex(model, plate)
    index = torch.arange(len(x), device=x.device)
    sites = latent_sites(program, x[:2], index[:2], plate=plate)
    if not sites.local:
        raise ValueError(f"expected a latent site in plate {plate!r}, got none")
    runner = _Runner(program, x, index, sites, chosen, depth, epochs, num_draws, plate, seed)
    return Comparison(tuple(runner.run(widths, progress)), len(x), seed)


class _Runner:
    """Fits one guide after another, from the same start."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        index: Tensor,
        sites: LatentSites,
        options: FitOptions,
        depth: int,
        epochs: int,
        num_draws: int,
        plate: str,
        seed: int,
    ) -> None:
        self.model, self.x, self.index, self.sites, self.options = model, x, index, sites, options
        self.depth, self.epochs, self.num_draws, self.plate, self.seed = depth, epochs, num_draws, plate, seed
        self.put_back = _snapshot(model)

    def run(self, widths: Sequence[int], progress: bool) -> Iterator[FittedGuide]:
        kinds: list[tuple[str, int | None]] = [("constant", None), *(("amortized", k) for k in widths)]
        kinds += [("factorized", None), ("factorized-from-amortized", None)]
        best: tuple[float, LocalGuide, Callable[[], None]] | None = None
        with Progress(console=Console(stderr=True), disable=not (progress and Console(stderr=True).is_terminal)) as bar:
            task = bar.add_task("compare", total=len(kinds))
            for guide_name, k in kinds:
                bar.update(task, description=guide_name if k is None else f"{guide_name} k = {k}")
                if guide_name == "factorized-from-amortized" and best is None:
                    yield FittedGuide(guide_name, None, 0, 0.0, None, [])
                    continue
                self.put_back()
                if guide_name == "factorized-from-amortized" and best is not None:
                    best[2]()
                guide = self._guide(guide_name, k, best[1] if best else None)
                fitted = self._fit(guide_name, k, guide)
                value = fitted.elbo.mean()[0] if fitted.elbo is not None else -math.inf
                if guide_name == "amortized" and fitted.elbo is not None and (best is None or value > best[0]):
                    best = (value, guide, _snapshot(self.model))
                bar.advance(task)
                yield fitted
        self.put_back()

    def _guide(self, name: str, k: int | None, start: LocalGuide | None) -> LocalGuide:
        torch.manual_seed(torch_seed(self.seed, "guide", name, k or 0))
        shared = MeanField(self.sites.shared, locs=self.sites.shared_draw) if self.sites.shared else None
        common: dict[str, Any] = {"shared": shared, "plate": self.plate}
        count = len(self.x)
        if name == "constant":
            return Constant(self.sites.local, count, **common).to(self.x)
        if name == "amortized":
            observed = self.x[0].numel()
            return Amortized(self.sites.local, count, observed, k or 1, self.depth, **common).to(self.x)
        rows = None
        if name == "factorized-from-amortized" and start is not None:
            with torch.no_grad():
                rows = start.locate(self.x, self.index)
            if shared is not None and start.shared is not None:
                shared.load_state_dict(start.shared.state_dict())
        return Factorized(self.sites.local, count, start=rows, **common).to(self.x)

    def _fit(self, name: str, k: int | None, guide: LocalGuide) -> FittedGuide:
        # F-VI from A-VI is a reference: let its step fall, so that its rows settle
        options = replace(self.options, schedule=settling) if name == "factorized-from-amortized" else self.options
        training = Training(self.model, guide, self.x, options, self.seed, plate=self.plate)
        num_steps = self.epochs * training.batches.per_epoch
        marks = {max(1, round(num_steps ** (i / 19))) for i in range(20)}
        curve: list[tuple[int, float, float]] = []
        record = StepRecord(0, 0.0, math.nan)
        try:
            for record in training.run(num_steps, marks):
                with training.averaged():
                    curve.append((record.step, record.seconds, self._elbo(guide, 1).mean()[0]))
            with training.averaged():
                found = self._elbo(guide, self.num_draws)
        except Divergence as error:
            return FittedGuide(name, k, error.step, record.seconds, None, curve)
        if not math.isfinite(found.mean()[0]):
            return FittedGuide(name, k, record.step, record.seconds, None, curve)
        gained = self._gained(training, guide, num_steps, found) if name in ("amortized", "factorized") else None
        return FittedGuide(name, k, record.step, record.seconds, found, curve, gained)

    def _gained(self, training: Training, guide: LocalGuide, num_steps: int, found: Elbo) -> float | None:
        """What as many steps again gain, or nothing if they diverge; the guide is left as it was before them."""
        state = {name: tensor.clone() for name, tensor in training.state().items()}
        gained = None
        with suppress(Divergence):
            for _ in training.run(num_steps):
                pass
            with training.averaged():
                gained = mean_over_points(self._elbo(guide, self.num_draws).value - found.value)[0]
        training.load_state(state)
        training.settle()
        return gained

    def _elbo(self, guide: LocalGuide, num_draws: int) -> Elbo:
        # a guide that diverged gives nan, which is looked for afterwards
        with pyro.validation_enabled(False):
            return elbo(
                self.model,
                guide,
                self.x,
                self.index,
                num_draws=num_draws,
                plate=self.plate,
                num_data=len(self.x),
                analytic_kl=self.options.analytic_kl,
                local_reparametrization=self.options.local_reparametrization,
            )


class _WithoutIndex(nn.Module):
    """A model that does not take the places of its points and whose plate counts the batch."""

    def __init__(self, model: Model, plate: str) -> None:
        super().__init__()
        self.model = model
        self.plate = plate

    def forward(self, x: Tensor, index: Tensor) -> Any:
        del index
        return poutine.block(self.model, hide=[self.plate])(x)


def _callable(model: Any) -> Any:
    return model.forward if isinstance(model, nn.Module) else model


def _snapshot(model: Any) -> Callable[[], None]:
    """Remember the parameters of a model, and of the param store, and return what puts them back."""
    modules = list(model.parameters()) + list(model.buffers()) if isinstance(model, nn.Module) else []
    tensors = [*modules, *pyro.get_param_store()._params.values()]
    values = [t.detach().clone() for t in tensors]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

    return put_back


def _check_data(x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"expected data as a tensor of floats, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() < 1 or len(x) < 2:
        raise ValueError(f"expected data of shape (N, ...) with two points or more, got {tuple(x.shape)}")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(f"expected finite data, got {bad} values that are nan or infinite")
