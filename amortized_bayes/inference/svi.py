r"""Stochastic variational inference: one loop for every family, timed, captured, and reported step by step.

The loss of a step is the negative ELBO a data point,

.. math::
    -\frac{1}{B} \sum_{b} \text{local}_b - \frac{1}{N} \text{shared},

so that a batch's gradient does not grow with N. Steps have a constant rate, unless a schedule is
given; reports are made on averaged iterates, which need no schedule and no known end.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from amortized_bayes.capture import Captured, CaptureError, capture, compiler_available
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.inference.optim import IterateAverage, RowAdam
from amortized_bayes.inference.streams import Batches, Stream, cuda_devices
from amortized_bayes.networks import row_tables
from amortized_bayes.types import Guide, Model

__all__ = ["Divergence", "FitOptions", "StepRecord", "Training", "cosine", "fit", "settling"]

logger = logging.getLogger(__name__)

CHECK_EVERY = 100
"""Losses are looked at every so many steps, since each look makes a GPU wait."""
COMPILE_SECONDS = 13.0
"""What compiling a step takes, on two cores; compiling pays when it saves more over the run."""
COMPILE_SAVING = 0.2
"""Part of a replayed step that compiling saves on a CPU (`benchmarks/step.py`)."""


def cosine(done: float) -> float:
    """Step size that falls from 1 to 0 as half a cosine, as a function of the part of the run that is done."""
    return 0.5 * (1 + math.cos(math.pi * done))


def settling(done: float) -> float:
    """Schedule for a fit that starts near its optimum: a fifth of the rate, falling to 0 as half a cosine."""
    return 0.2 * cosine(done)


class Divergence(ArithmeticError):
    """The loss stopped being a number, or ran far above its start, at ``step``.

    Example:
        >>> from amortized_bayes import Divergence
        >>> Divergence(step=12, value=float("nan")).step
        12
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"loss of {value:.6g} nats a point at step {step}")
        self.step = step
        self.value = value


class StepRecord(NamedTuple):
    """A fit after ``step`` steps that took ``seconds``; ``elbo`` is the last batch's noisy value, nats a point."""

    step: int
    seconds: float
    elbo: float


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Args:
        batch_size: B; the points left over at the end of an epoch are left out of it.
        learning_rate: of the networks and shared vectors that give the local parameters.
        shared_learning_rate: of everything else: q(theta), and parameters of the model.
        row_learning_rate: of rows of tables (factorized VI), which are visited once an epoch.
        analytic_kl: see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        average: eta of the averaged iterates, see :class:`~amortized_bayes.inference.optim.IterateAverage`.
        capture: ``auto`` (replay; compiled where that pays), ``replay``, ``inductor`` or ``off``.
        schedule: multiplies all rates, as a function of the part of the run that is done.

    Example:
        >>> from amortized_bayes import FitOptions
        >>> FitOptions(batch_size=50).learning_rate
        0.004
    """

    batch_size: int = 250
    learning_rate: float = 4e-3
    shared_learning_rate: float = 4e-3
    row_learning_rate: float = 0.1
    analytic_kl: bool = True
    local_reparametrization: bool = False
    average: float = 8.0
    capture: str = "auto"
    schedule: Callable[[float], float] | None = None


class Training:
    """A model and a guide being fitted to data: parameters, optimisers, averages and the captured step.

    Every parameter that requires a gradient is fitted. Tables of rows are fitted row by row.

    Args:
        model: Pyro program called as ``model(x, index)``, or ``model(x)`` with ``pass_index=False``.
        guide: Pyro program called likewise.
        data: (N, ...), on the device; integer data are converted batch by batch.
        options: how to fit.
        seed: of batches and draws.
        plate: name of the plate over data points.
        pass_index: whether the programs take the places of the points.

    Raises:
        ValueError: no data, a batch larger than the data, or nothing to fit.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> training = ab.Training(model, guide, x, ab.FitOptions(batch_size=2))
        >>> [record.step for record in training.run(6, report_at=[3])]
        [3, 6]
        >>> with training.averaged():
        ...     value, error = ab.elbo(model, guide, x).mean()
    """

    def __init__(
        self,
        model: Model,
        guide: Guide,
        data: Tensor,
        options: FitOptions,
        seed: int = 0,
        *,
        plate: str = "data",
        pass_index: bool = True,
    ) -> None:
        if not 1 <= options.batch_size <= len(data):
            raise ValueError(f"expected a batch size of 1 to {len(data)} (the data), got {options.batch_size}")
        self.model, self.guide, self.data, self.options, self.seed = model, guide, data, options, seed
        self.plate, self.pass_index = plate, pass_index
        self.dtype = data.dtype if data.is_floating_point() else torch.get_default_dtype()
        self.steps = 0
        self.seconds = 0.0
        self.first_loss: float | None = None
        self.captured: Captured | None = None
        self._uncapturable = False
        self._collect_parameters()
        self.batches = Batches(len(data), options.batch_size, seed, data.device)
        self.stream = Stream(seed, data)

    def _collect_parameters(self) -> None:
        tables = row_tables(self.guide) if isinstance(self.guide, nn.Module) else []
        tables = [table for table in tables if table.weight.requires_grad]
        rows = {id(t.weight) for t in tables}
        local, shared = _parameters(self.model, self.guide, self._call, rows)
        if not (local or shared or tables):
            raise ValueError("expected a parameter to fit in model or guide, got none")
        self.parameters = [*local, *shared]
        self.num_local = len(local)
        self.row_adams = [
            RowAdam(table, self.options.row_learning_rate, average=self.options.average) for table in tables
        ]
        groups = [
            {"params": group, "lr": rate}
            for group, rate in ((local, self.options.learning_rate), (shared, self.options.shared_learning_rate))
            if group
        ]
        self.rates = [g["lr"] for g in groups]
        self.adam = torch.optim.Adam(groups, fused=True) if groups else None
        self.average = IterateAverage([*self.parameters], self.options.average)

    def _call(self, program: Callable[..., object]) -> None:
        index = torch.arange(min(2, len(self.data)), device=self.data.device)
        program(self._batch(index), *([index] if self.pass_index else []))

    def _batch(self, index: Tensor) -> Tensor:
        return self.data[index].to(self.dtype)

    def loss_and_gradients(self, x: Tensor, index: Tensor, *rows: Tensor) -> list[Tensor]:
        """Negative ELBO a point of a batch, and its gradients: of parameters as they are, of rows times B."""
        rows = tuple(r.detach().requires_grad_() for r in rows)
        with ExitStack() as stack:
            for adam, bound in zip(self.row_adams, rows, strict=True):
                stack.enter_context(adam.table.bind(bound))
            weights = expected_log_weights(
                self.model,
                self.guide,
                x,
                *([index] if self.pass_index else []),
                plate=self.plate,
                num_data=len(self.data),
                analytic_kl=self.options.analytic_kl,
                local_reparametrization=self.options.local_reparametrization,
            )
        loss = -(weights.local.mean() + weights.shared.mean() / len(self.data))
        gradients = torch.autograd.grad(loss, [*self.parameters, *rows], allow_unused=True)
        full = [
            g if g is not None else torch.zeros_like(p)
            for g, p in zip(gradients, [*self.parameters, *rows], strict=True)
        ]
        return [loss.detach(), *full[: len(self.parameters)], *(g * len(x) for g in full[len(self.parameters) :])]

    def prepare(self, num_steps: int) -> None:
        """Capture the step, if that is wanted and possible, for a run of ``num_steps``; say so once if it is not."""
        if self.captured is not None or self._uncapturable or self.options.capture == "off":
            return
        first, second = (self._inputs(self.batches[step]) for step in (0, 1))
        backend = "inductor" if self.options.capture == "inductor" else "replay"
        try:
            with torch.random.fork_rng(devices=cuda_devices(self.data)):
                torch.manual_seed(0)
                self.captured = self._capture(first, second, backend)
                if self.options.capture == "auto" and self._compiling_pays(num_steps, first):
                    self.captured = self._capture(first, second, "inductor")
        except CaptureError as error:
            how = "uncaptured" if self.captured is None else "replayed, not compiled"
            logger.warning("the step runs %s, which is slower and gives the same numbers: %s", how, error)
            self._uncapturable = self.captured is None

    def _capture(self, first: list[Tensor], second: list[Tensor], backend: str) -> Captured:
        restore = [buffer for _, buffer in self._buffers()]
        return capture(self.loss_and_gradients, first, second, backend=backend, restore=restore)

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Tensors that running the programs may change, such as batch-norm statistics."""
        programs = (("model", self.model), ("guide", self.guide))
        modules = [(name, program) for name, program in programs if isinstance(program, nn.Module)]
        return [(f"{name}.{key}", buffer) for name, module in modules for key, buffer in module.named_buffers()]

    def _compiling_pays(self, num_steps: int, inputs: list[Tensor]) -> bool:
        if self.data.is_cuda or self.captured is None:
            return False
        start = time.perf_counter()
        for _ in range(5):
            self.captured(*inputs)
        step = (time.perf_counter() - start) / 5
        pays = num_steps * step * COMPILE_SAVING > COMPILE_SECONDS
        if pays and not compiler_available():
            logger.warning("no C++ compiler found: the step is replayed, not compiled")
            return False
        return pays

    def _inputs(self, index: Tensor) -> list[Tensor]:
        return [self._batch(index), index, *(adam.table.weight.detach()[index] for adam in self.row_adams)]

    def run(self, num_steps: int, report_at: Iterable[int] = ()) -> Iterator[StepRecord]:
        """Take ``num_steps`` more steps and yield a record at the last and at each step in ``report_at``.

        Steps are counted from the start of the first run. Only steps are timed, not what the caller
        does between records.

        Raises:
            Divergence: the loss is not finite, or a thousand times worse than at the start.
        """
        self.prepare(num_steps)
        stop = self.steps + num_steps
        marks = {m for m in report_at if self.steps < m <= stop} | {stop}
        begin = self.steps
        losses: list[Tensor] = []
        validate = is_validation_enabled()
        start = time.perf_counter()
        with pyro.validation_enabled(False), self.stream:
            while self.steps < stop:
                losses.append(self._step((self.steps - begin) / num_steps))
                self.steps += 1
                if self.steps in marks or len(losses) == CHECK_EVERY:
                    last = self._check(losses)
                    losses = []
                    if self.steps in marks:
                        self.seconds += time.perf_counter() - start
                        with self.stream.paused(), pyro.validation_enabled(validate):
                            yield StepRecord(self.steps, self.seconds, -last)
                        start = time.perf_counter()

    def _step(self, done: float) -> Tensor:
        multiplier = self.options.schedule(done) if self.options.schedule else 1.0
        index = self.batches[self.steps]
        inputs = self._inputs(index)
        outputs = (self.captured or self.loss_and_gradients)(*inputs)
        count = len(self.parameters)
        if self.adam is not None:
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * multiplier
            for parameter, gradient in zip(self.parameters, outputs[1 : 1 + count], strict=True):
                parameter.grad = gradient
            self.adam.step()
        for adam, rows, gradient in zip(self.row_adams, inputs[2:], outputs[1 + count :], strict=True):
            adam.step(index, rows, gradient, multiplier)
        self.average.update()
        return outputs[0].clone()

    def _check(self, losses: list[Tensor]) -> float:
        values = torch.stack(losses).tolist()
        first = self.first_loss = values[0] if self.first_loss is None else self.first_loss
        limit = 1000 * max(1.0, abs(first))
        for offset, value in enumerate(values):
            if not (math.isfinite(value) and value < limit):
                raise Divergence(self.steps - len(values) + offset + 1, value)
        return values[-1]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged iterates in place of the last ones, for evaluation."""
        pairs = self._averages()
        last = [p.detach().clone() for p, _ in pairs]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, last, strict=True):
                    parameter.copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the averaged iterates in place of the last ones for good."""
        for parameter, value in self._averages():
            parameter.copy_(value)

    def size(self) -> tuple[int, int]:
        """Parameters that give local factors (encoder, rows or shared vector), and bytes that fitting them holds.

        Bytes are those of parameters, Adam's moments, averages and row counts.
        """
        tables = [adam.table.weight for adam in self.row_adams]
        counts = sum(adam.count.numel() * adam.count.element_size() for adam in self.row_adams)
        own = [*self.parameters[: self.num_local], *tables]
        return sum(p.numel() for p in own), sum(4 * p.numel() * p.element_size() for p in own) + counts

    def state(self) -> dict[str, Tensor]:
        """Everything that a later run needs to go on from here as if it had not stopped."""
        named = {"steps": torch.tensor(self.steps), "seconds": torch.tensor(self.seconds, dtype=torch.float64)}
        named["average.count"] = torch.tensor(self.average.count)
        first_loss = math.nan if self.first_loss is None else self.first_loss
        named["first_loss"] = torch.tensor(first_loss, dtype=torch.float64)
        named |= self.stream.state() | {f"buffer.{key}": buffer for key, buffer in self._buffers()}
        for i, (parameter, averaged) in enumerate(zip(self.parameters, self.average.averaged, strict=True)):
            named |= {f"parameter.{i}": parameter.detach(), f"averaged.{i}": averaged}
            moments = self.adam.state.get(parameter, {}) if self.adam is not None else {}
            named |= {f"adam.{i}.{key}": value for key, value in moments.items()}
        for i, adam in enumerate(self.row_adams):
            named |= {f"rows.{i}.{key}": value for key, value in adam.state().items()}
        return named

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state from :meth:`state`.

        Raises:
            ValueError: the state of another model or guide.
        """
        expected = {f"parameter.{i}": tuple(p.shape) for i, p in enumerate(self.parameters)}
        expected |= {f"rows.{i}.weight": tuple(a.table.weight.shape) for i, a in enumerate(self.row_adams)}
        got = {k: tuple(v.shape) for k, v in state.items() if re.fullmatch(r"parameter\.\d+|rows\.\d+\.weight", k)}
        if expected != got:
            raise ValueError(f"expected a state with tensors {expected}, got {got}")
        self.steps, self.seconds = int(state["steps"]), float(state["seconds"])
        first_loss = float(state["first_loss"])
        self.average.count = int(state["average.count"])
        self.first_loss = None if math.isnan(first_loss) else first_loss
        self.stream.load_state(state)
        for key, buffer in self._buffers():
            buffer.copy_(state.get(f"buffer.{key}", buffer))
        for i, (parameter, averaged) in enumerate(zip(self.parameters, self.average.averaged, strict=True)):
            parameter.copy_(state[f"parameter.{i}"])
            averaged.copy_(state[f"averaged.{i}"])
            moments = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"adam.{i}.")}
            if self.adam is not None and moments:
                self.adam.state[parameter] = {k: v.to(parameter.device).clone() for k, v in moments.items()}
        for i, adam in enumerate(self.row_adams):
            adam.load_state({k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"rows.{i}.")})

    def _averages(self) -> list[tuple[Tensor, Tensor]]:
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.parameters, self.average.averaged, strict=True))
        return pairs + [(a.table.weight, a.averaged) for a in self.row_adams if a.averaged is not None]


def fit(
    model: Model,
    guide: Guide,
    data: Tensor,
    num_steps: int,
    options: FitOptions | None = None,
    *,
    seed: int = 0,
    report_at: Iterable[int] = (),
    plate: str = "data",
    pass_index: bool = True,
) -> Iterator[StepRecord]:
    """Fit a guide, and the parameters of its model, and leave the averaged iterates in them.

    Args:
        model: Pyro program called as ``model(x, index)``, or ``model(x)`` with ``pass_index=False``.
        guide: Pyro program called likewise.
        data: (N, ...).
        num_steps: steps to take.
        options: how to fit.
        seed: of batches and draws.
        report_at: steps to report, beside the last.
        plate: name of the plate over data points.
        pass_index: whether the programs take the places of the points.

    Raises:
        Divergence: the loss is not finite.
        ValueError: bad options.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> [record.step for record in ab.fit(model, guide, x, 6, ab.FitOptions(batch_size=2))]
        [6]
    """
    training = Training(model, guide, data, options or FitOptions(), seed, plate=plate, pass_index=pass_index)
    yield from training.run(num_steps, report_at)
    training.settle()


def _parameters(
    model: Model, guide: Guide, call: Callable[[Callable[..., object]], None], rows: set[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that give local factors, and all others, of modules and of the param store, without tables."""
    shared_guide = getattr(guide, "shared", None)
    shared_ids = {id(p) for p in shared_guide.parameters()} if isinstance(shared_guide, nn.Module) else set()
    of_guide, of_model = (_trainable(program, rows) for program in (guide, model))
    local = [p for p in of_guide if id(p) not in shared_ids]
    shared = [p for p in of_guide if id(p) in shared_ids] + of_model
    known = {id(p) for p in (*local, *shared)} | rows
    with torch.no_grad():
        for program in (guide, model):
            call(poutine.block(program))  # inside a handler Pyro does not warn of observed sites
    store: list[Any] = [p for p in pyro.get_param_store()._params.values() if id(p) not in known and p.requires_grad]
    return local, shared + store


def _trainable(program: object, rows: set[int]) -> list[nn.Parameter]:
    if not isinstance(program, nn.Module):
        return []
    return [p for p in program.parameters() if p.requires_grad and id(p) not in rows]
