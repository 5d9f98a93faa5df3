r"""Stochastic variational inference: one loop for every family, timed, captured, and reported step by step.

The loss of a step is the negative ELBO per data point,

.. math::
    -\frac{1}{B} \sum_{b} \text{local}_b - \frac{1}{N} \text{shared},

so that a batch's gradient does not grow with N; or that of an importance-weighted bound, with gradients of its own
(:mod:`~amortized_bayes.inference.importance`). Steps have a constant rate and reports are made on averaged iterates,
which need no known end; or a schedule lets the rates fall, and the last iterate is reported (``average=None``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from amortized_bayes.capture import Captured
from amortized_bayes.divergence import CHECK_EVERY, Divergence
from amortized_bayes.expectations import check_quadrature, expected_log_weights
from amortized_bayes.inference.bernoulli_elbo import BernoulliELBO
from amortized_bayes.inference.capturing import Whole, captured_step, pays
from amortized_bayes.inference.importance import ImportanceWeighted
from amortized_bayes.inference.options import FitOptions, StepRecord
from amortized_bayes.inference.streams import Batches, Stream, cuda_devices
from amortized_bayes.inference.variables import Variables
from amortized_bayes.limits import Seed, limited
from amortized_bayes.memory import check_memory
from amortized_bayes.points import PointRows
from amortized_bayes.sparse_rows import SparseRows
from amortized_bayes.tiling import at_places
from amortized_bayes.types import Guide, Model

__all__ = ["Training"]

GradientsOf = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
"""Gradients of a loss with respect to tensors, ``None`` where it does not depend on one."""


class Training:
    """A model and a guide being fitted to data: parameters, optimisers, averages and the captured step.

    Every parameter that requires a gradient is fitted. Tables of rows are fitted row by row.

    Args:
        model: Pyro program called as ``model(x, index)``, or ``model(x)`` with ``pass_index=False``.
        guide: Pyro program called likewise.
        data: (N, ...), on the device; integer data are converted batch by batch. Or rows of several tensors, which the
            programs get as they are, or sparse rows, which stay so and whose steps are not captured.
        options: how to fit.
        seed: random seed for batches and draws.
        plate: name of the plate over data points.
        pass_index: whether the programs take the indices of the points; those that do not get them from their plate.
        transform: applied to each batch, such as fresh binarization; draws by torch's global generator are the run's.

    Raises:
        ValueError: no data, a batch larger than the data, nothing to fit, quadrature where it would be wrong, or a
            guide without the gradients of the objective.

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

    @limited
    def __init__(
        self,
        model: Model,
        guide: Guide,
        data: Tensor | PointRows | SparseRows,
        options: FitOptions,
        seed: Seed = 0,
        *,
        plate: str = "data",
        pass_index: bool = True,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if not 1 <= options.batch_size <= len(data):
            raise ValueError(
                f"expected a batch size of 1 to {len(data)} (the data), got {options.batch_size}: set "
                "`FitOptions(batch_size=...)`"
            )
        self.model, self.guide, self.data, self.options, self.seed = model, guide, data, options, seed
        self.plate, self.pass_index, self.transform = plate, pass_index, transform
        self.dtype = data.dtype if data.is_floating_point() else torch.get_default_dtype()
        leaves, self._form = pytree.tree_flatten(data)
        self._width = len(leaves)
        self.steps = 0
        self.seconds = 0.0
        self.first_loss: float | None = None
        self.captured: Captured | None = None
        self.capture_seconds = 0.0
        self._captured_rows: Captured | None = None
        self._uncapturable = isinstance(data, SparseRows)  # whose batches differ in size
        self._check_memory()
        self.variables = Variables(model, guide, options, self._call)
        if options.quadrature_nodes:
            self._call(self._check_quadrature)
        self.batches = Batches(len(data), options.batch_size, seed, data.device)
        self.stream = Stream(seed, data)
        self.importance = self._importance() if options.weighted else None
        self.bernoulli = self._bernoulli() if not options.weighted and options.objective != "elbo" else None

    def _check_memory(self) -> None:
        """Refuse layers whose outputs for a batch do not fit, each with its gradient and what its activation keeps."""
        modules = [
            m for program in (self.model, self.guide) if isinstance(program, nn.Module) for m in program.modules()
        ]
        outputs = sum(module.out_features for module in modules if isinstance(module, nn.Linear))
        rows, particles = self.options.batch_size * self.options.num_particles, self.options.num_particles
        size = 3 * outputs * rows * self.dtype.itemsize
        points = f"{self.options.batch_size:,} points" + (f" with {particles:,} particles" if particles > 1 else "")
        what = f"a batch of {points} through layers of {outputs:,} units in all"
        check_memory(size, what, self.data.device)

    def _call(self, program: Callable[..., object]) -> None:
        index = torch.arange(min(2, len(self.data)), device=self.data.device)
        with torch.random.fork_rng(devices=cuda_devices(self.data)), self._places(index):
            program(self._inputs_of(index), *([index] if self.pass_index else []))

    def _places(self, index: Tensor) -> AbstractContextManager[Any]:
        """What tells programs that do not take the places of their points where these are, through their plate."""
        return nullcontext() if self.pass_index else at_places(self.plate, index)

    def _check_quadrature(self, *args: Any) -> None:
        check_quadrature(self.model, self.guide, *args, plate=self.plate)

    def _importance(self) -> ImportanceWeighted:
        """The objective's draws and gradients, tried on the first batch."""
        objective = self.options.objective
        assert objective in ("iwae", "rws")
        counts = self.options.num_particles, len(self.data)
        found = ImportanceWeighted(self.model, self.guide, self.plate, objective, *counts)
        self._on_first_batch(found.settle)
        return found

    def _bernoulli(self) -> BernoulliELBO:
        """The ELBO of a guide with bits, tried on the first batch."""
        objective = self.options.objective
        assert objective not in ("elbo", "iwae", "rws")
        found = BernoulliELBO(objective, self.options.num_particles, self.plate, self.options.temperature)
        self._on_first_batch(lambda args, _: found.estimate(self.model, self.guide, *args))
        return found

    def _on_first_batch(self, trial: Callable[[tuple[Any, ...], Tensor], object]) -> None:
        """Try on the side what takes arguments of the programs, and places of the points."""
        index, buffers = self.batches[0], [(buffer, buffer.clone()) for _, buffer in self._buffers()]
        with torch.random.fork_rng(devices=cuda_devices(self.data)), self._places(index):
            trial((self._inputs_of(index), *([index] if self.pass_index else [])), index)
        for buffer, value in buffers:
            buffer.copy_(value)

    def _batch(self, index: Tensor) -> Any:
        return self.data.index_select(0, index).to(self.dtype)

    def loss_and_gradients(self, *inputs: Tensor) -> list[Tensor]:
        """Loss per point of a batch, and its gradients: of parameters as they are, of rows times B.

        The loss is the negative ELBO, or the negative importance-weighted bound.

        Inputs are the data, each of their tensors, and places ``(B,)``; then the weights of log prior, log q and the
        shared part, ``(3,)``, where the options anneal, and rows.
        """
        loss, rows, gradients_of = self._loss(*inputs)
        wanted = [*self.variables.parameters, *rows]
        found = gradients_of(wanted)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, wanted, strict=True)]
        count = len(self.variables.parameters)
        return [loss.detach(), *gradients[:count], *(g * len(inputs[self._width]) for g in gradients[count:])]

    def moving_step(self, numbers: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Loss per point of a batch, gradients of rows times B, and what the step moves, as it is after it.

        This is what is compiled. It takes :meth:`Variables.numbers` before the inputs of :meth:`loss_and_gradients`.
        The batch is gathered outside: inside, Inductor would write it anew for each kernel that is not its own.
        """
        loss, *gradients = self.loss_and_gradients(*inputs)
        count = len(self.variables.parameters)
        return [loss, *gradients[count:], *self.variables.moved(gradients[:count], numbers)]

    def row_gradients(self, *inputs: Tensor) -> list[Tensor]:
        """Loss per point of a batch, and its gradients with respect to rows alone, times B."""
        loss, rows, gradients_of = self._loss(*inputs)
        found, count = zip(gradients_of(rows), rows, strict=True), len(inputs[self._width])
        return [loss.detach(), *((torch.zeros_like(row) if g is None else g) * count for g, row in found)]

    def _loss(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...], GradientsOf]:
        """Loss per point, rows that stand for those of tables, and what gives gradients of the loss."""
        own, (index, *more) = inputs[: self._width], inputs[self._width :]
        x = pytree.tree_unflatten(own, self._form)
        annealing, given = (more[0], more[1:]) if self.options.annealed else (None, more)
        rows = tuple(r.detach().requires_grad_() for r in given)
        with self.variables.bound(rows), self._places(index):
            if self.importance is not None:
                bound = self.importance.bound((x, *([index] if self.pass_index else [])), index)
                return -bound.value, rows, bound.gradients
            if self.bernoulli is not None:
                found = self.bernoulli.estimate(self.model, self.guide, x, *([index] if self.pass_index else []))
                loss, climbed = (-found.per_point(surrogate=s, num_data=len(self.data)) for s in (False, True))
                return loss, rows, partial(torch.autograd.grad, climbed, allow_unused=True)
            weights = expected_log_weights(
                self.model,
                self.guide,
                x,
                *([index] if self.pass_index else []),
                plate=self.plate,
                num_data=len(self.data),
                analytic_kl=self.options.expected_kl,
                local_reparametrization=self.options.local_reparametrization,
                quadrature_nodes=self.options.quadrature_nodes,
            )
        local, shared = weights.local, weights.shared.mean() / len(self.data)
        if annealing is not None:
            local = weights.log_likelihood + annealing[0] * weights.log_prior - annealing[1] * weights.log_q
            shared = annealing[2] * shared
        loss = -(local.mean() + shared)
        return loss, rows, partial(torch.autograd.grad, loss, allow_unused=True)

    def prepare(self, num_steps: int, begin: int = 0) -> None:
        """Capture the step, if that is wanted and possible, for a run of ``num_steps``; say so once if it is not.

        ``begin`` steps have been taken before that run; taking the steps one at a time works too.
        """
        if self.captured is not None or self._uncapturable or self.options.capture == "off":
            return
        if not pays(self.options.capture, max(num_steps, begin) * self._row_steps):
            return
        start = time.perf_counter()
        first, second = (self._inputs(self.batches[step], done) for step, done in ((0, 0.0), (1, 0.5)))
        with torch.random.fork_rng(devices=cuda_devices(self.data)):
            torch.manual_seed(0)
            restore = [buffer for _, buffer in self._buffers()]
            how, evaluations = self.options.capture, num_steps * self._row_steps
            numbers, count = self.variables.numbers(1.0, self.dtype, self.data.device), len(self.variables.parameters)
            compared = 1 + len(self.variables.row_adams) + count  # up to the first moments, which show the gradients
            into = self.variables.moving()
            batches = ((numbers, *first), (numbers, *second))
            whole = Whole(self.moving_step, *batches, into, compared) if count else None
            self.captured = captured_step(self.loss_and_gradients, first, second, how, evaluations, restore, whole)
            if not count:
                self._captured_rows = self.captured  # which gives the gradients of rows, and no others
            elif self.captured is not None and self._row_steps > 1:
                how = "inductor" if self.captured.backend == "inductor" else "replay"
                self._captured_rows = captured_step(self.row_gradients, first, second, how, evaluations, restore)
        self._uncapturable = self.captured is None
        self.capture_seconds = time.perf_counter() - start

    @property
    def _row_steps(self) -> int:
        return self.options.row_steps if self.variables.row_adams else 1

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Tensors that running the programs may change, such as batch-norm statistics."""
        programs = (("model", self.model), ("guide", self.guide))
        modules = [(name, program) for name, program in programs if isinstance(program, nn.Module)]
        return [(f"{name}.{key}", buffer) for name, module in modules for key, buffer in module.named_buffers()]

    def _inputs(self, index: Tensor, done: float = 0.0) -> list[Tensor]:
        leaves, rows = pytree.tree_leaves(self._inputs_of(index)), self.variables.rows(index)
        if not self.options.annealed:
            return [*leaves, index, *rows]
        # as a tensor: a captured step would keep a Python number as it was when captured
        weights = torch.tensor(self.options.weights_at(done), dtype=self.dtype).to(index.device, non_blocking=True)
        return [*leaves, index, weights, *rows]

    def _inputs_of(self, index: Tensor) -> Any:
        x = self._batch(index)
        return self.transform(x) if self.transform else x

    def run(
        self,
        num_steps: int,
        report_at: Iterable[int] = (),
        begin: int | None = None,
        due: Callable[[], bool] = lambda: False,
    ) -> Iterator[StepRecord]:
        """Take ``num_steps`` more steps and yield a record at the last and at each step in ``report_at``.

        Steps are counted from the start of the first run. Only steps are timed, not what the caller
        does between records. ``begin`` is the step at which the interrupted run began, for schedules.
        A record is also yielded after any step where ``due`` says so, for a caller that saves :meth:`state` at times.

        Raises:
            Divergence: the loss is not finite, or a thousand times worse than at the start; or a parameter is not
                finite at a record.
        """
        stop = self.steps + num_steps
        marks = {m for m in report_at if self.steps < m <= stop} | {stop}
        begin = self.steps if begin is None else begin
        self.prepare(stop - begin, begin)  # of the whole run: what is left of it must not be carried out otherwise
        losses: list[Tensor] = []
        validate = is_validation_enabled()
        start = time.perf_counter()
        with pyro.validation_enabled(False), self.stream:
            while self.steps < stop:
                losses.append(self._step((self.steps - begin) / (stop - begin)))
                self.steps += 1
                marked = self.steps in marks or due()
                if marked or len(losses) == CHECK_EVERY:
                    last = self._check(losses)
                    losses = []
                    if marked:
                        self.variables.check_finite(self.steps)  # so that what is kept at a record can be gone on from
                        self.seconds += time.perf_counter() - start
                        with self.stream.paused(), pyro.validation_enabled(validate):
                            yield StepRecord(self.steps, self.seconds, -last)
                        start = time.perf_counter()

    def _step(self, done: float) -> Tensor:
        multiplier = self.options.schedule(done) if self.options.schedule else 1.0
        index = self.batches[self.steps]
        whole = self.captured is not None and bool(self.captured.into)
        inputs = self._inputs(index, done)
        first_row = len(inputs) - len(self.variables.row_adams)
        for _ in range(self._row_steps - 1):
            outputs = (self._captured_rows or self.row_gradients)(*inputs)
            self.variables.step_rows(index, inputs[first_row:], outputs[1:], multiplier)
            inputs[first_row:] = self.variables.rows(index)
        if self.captured is not None and whole:
            loss, *gradients = self.captured(self.variables.numbers(multiplier, self.dtype, index.device), *inputs)
            self.variables.average.count += 1
            self.variables.step_rows(index, inputs[first_row:], gradients, multiplier)
            return loss
        outputs = (self.captured or self.loss_and_gradients)(*inputs)
        self.variables.step(index, inputs[first_row:], outputs[1:], multiplier)
        return outputs[0].clone()

    def _check(self, losses: list[Tensor]) -> float:
        values = torch.stack(losses).tolist()
        first = self.first_loss = values[0] if self.first_loss is None else self.first_loss
        limit = 1000 * max(1.0, abs(first))
        for offset, value in enumerate(values):
            if not (math.isfinite(value) and value < limit):
                raise Divergence(self.steps - len(values) + offset + 1, value)
        return values[-1]

    def averaged(self) -> AbstractContextManager[None]:
        """Replace the last iterates by the averaged ones inside the context, for evaluation."""
        return self.variables.averaged()

    def settle(self) -> None:
        """Replace the last iterates by the averaged ones permanently."""
        self.variables.settle()

    def size(self) -> tuple[int, int]:
        """Parameters that give local factors, and bytes that fitting them holds; see :meth:`Variables.size`."""
        return self.variables.size()

    def state(self) -> dict[str, Tensor]:
        """Everything that a later run needs to continue as if it had not stopped; clone it before continuing."""
        first_loss = math.nan if self.first_loss is None else self.first_loss
        return {
            "steps": torch.tensor(self.steps),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "first_loss": torch.tensor(first_loss, dtype=torch.float64),
            **{f"buffer.{key}": buffer for key, buffer in self._buffers()},
            **self.stream.state(),
            **self.variables.state(),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore a state from :meth:`state`.

        Raises:
            ValueError: the state of another model or guide.
        """
        self.variables.load_state(state)
        self.stream.load_state(state)
        self.steps, self.seconds = int(state["steps"]), float(state["seconds"])
        first_loss = float(state["first_loss"])
        self.first_loss = None if math.isnan(first_loss) else first_loss
        for key, buffer in self._buffers():
            buffer.copy_(state.get(f"buffer.{key}", buffer))
