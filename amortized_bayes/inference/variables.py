"""Everything that a fit changes: parameters, rows of tables, their optimisers and averages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from amortized_bayes.divergence import Divergence
from amortized_bayes.guides.mean_field import MeanField
from amortized_bayes.inference.optim import IterateAverage, RowAdam
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.networks import row_tables
from amortized_bayes.program_errors import said_of
from amortized_bayes.types import Guide, Model

__all__ = ["Variables"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's first and second moments, as torch names them."""


class Variables:
    """Parameters of a model and a guide with Adam, tables of rows with row-sparse Adam, and averages of both.

    Args:
        model: Pyro program; every parameter of it that requires a gradient is fitted.
        guide: Pyro program, likewise; its ``shared`` module, if it has one, is fitted at the rate of shared latents.
        options: rates, and how iterates are averaged.
        call: runs a program once, so that parameters in Pyro's param store exist.

    Raises:
        ValueError: nothing to fit.
    """

    def __init__(
        self, model: Model, guide: Guide, options: FitOptions, call: Callable[[Callable[..., object]], None]
    ) -> None:
        tables = row_tables(guide) if isinstance(guide, nn.Module) else []
        tables = [table for table in tables if table.weight.requires_grad]
        local, shared, scales = _parameters(model, guide, call, {id(t.weight) for t in tables})
        if not (local or shared or scales or tables):
            raise ValueError("expected a parameter to fit in model or guide, got none")
        self.parameters = [*local, *shared, *scales]
        self.num_local = len(local)
        average, betas = options.average if options.average_rows else None, (0.9, options.adam_beta2)
        self.row_adams = [RowAdam(table, options.row_learning_rate, betas, average=average) for table in tables]
        of_scales = options.shared_scale_learning_rate
        rates = (options.learning_rate, options.shared_learning_rate)
        rates = (*rates, options.shared_learning_rate if of_scales is None else of_scales)
        groups = [{"params": g, "lr": rate} for g, rate in zip((local, shared, scales), rates, strict=True) if g]
        self.rates = [g["lr"] for g in groups]
        self.adam = torch.optim.Adam(groups, betas=betas, eps=options.adam_eps, fused=True) if groups else None
        if self.adam is not None:  # before the first step, so that a captured one can close over the moments
            for parameter in self.parameters:
                moments = {key: torch.zeros_like(parameter.detach()) for key in MOMENTS}
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)  # whatever the default is
                self.adam.state[parameter] = {"step": count, **moments}
        self.average = IterateAverage([*self.parameters], options.average)

    def rows(self, index: Tensor) -> list[Tensor]:
        """Rows of the points ``index`` (B,) in each table, detached."""
        return [adam.table.weight.detach().index_select(0, index) for adam in self.row_adams]

    @contextmanager
    def bound(self, rows: Sequence[Tensor]) -> Iterator[None]:
        """Let ``rows`` stand for the tables' rows of the current batch."""
        with ExitStack() as stack:
            for adam, own in zip(self.row_adams, rows, strict=True):
                stack.enter_context(adam.table.bind(own))
            yield

    def step(self, index: Tensor, rows: Sequence[Tensor], gradients: Sequence[Tensor], multiplier: float) -> None:
        """Move parameters and the batch's rows against their gradients, and take both into the averages."""
        count = len(self.parameters)
        if self.adam is not None:
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * multiplier
            for parameter, gradient in zip(self.parameters, gradients[:count], strict=True):
                parameter.grad = gradient
            self.adam.step()
        self.step_rows(index, rows, gradients[count:], multiplier)
        self.average.update()

    def check_finite(self, step: int) -> None:
        """Refuse parameters that are no numbers: a loss shows that a step late, and after the last step not at all.

        Raises:
            Divergence: one is not finite after ``step``.
        """
        tensors = [t.detach() for t in (*self.parameters, *(adam.table.weight for adam in self.row_adams))]
        if all(math.isfinite(total) for total in torch.stack([t.sum().double() for t in tensors]).tolist()):
            return  # sums first, which cost less than a look at each entry
        for tensor in tensors:
            bad = tensor.numel() - int(tensor.isfinite().sum())
            if bad:
                words = f"{bad:,} parameters of {tensor.numel():,} in a tensor are not finite after step {step}"
                raise Divergence(step, math.nan, words)

    def numbers(self, multiplier: float, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What :meth:`moved` needs of the next step: the average's weight, 1/√(1 - β2^t), a rate a group; (2 + G,)."""
        count = self.average.count + 1
        beta1, beta2 = (0.0, 0.0) if self.adam is None else self.adam.defaults["betas"]
        rates = [rate * multiplier / (1 - beta1**count) for rate in self.rates]
        numbers = [self.average.weight(count), 1 / math.sqrt(1 - beta2**count), *rates]
        return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)

    def moving(self) -> list[Tensor]:
        """What :meth:`moved` gives anew: first moments, second moments, parameters and averages."""
        moments = [] if self.adam is None else [self.adam.state[p][key] for key in MOMENTS for p in self.parameters]
        return [*moments, *self.parameters, *(self.average.averaged or ())]

    @torch.no_grad()
    def moved(self, gradients: Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
        """:meth:`step` of the parameters as arithmetic without side effects, which a compiler fuses with the gradients.

        A caller that writes the values into :meth:`moving` counts the step with ``average.count``.
        """
        if self.adam is None:
            return []
        (beta1, beta2), eps = self.adam.defaults["betas"], self.adam.defaults["eps"]
        rates = [rate for g, rate in zip(self.adam.param_groups, numbers[2:], strict=True) for _ in g["params"]]
        firsts, seconds, values = [], [], []
        for parameter, gradient, rate in zip(self.parameters, gradients, rates, strict=True):
            first, second = (self.adam.state[parameter][key] for key in MOMENTS)
            firsts.append(first + (1 - beta1) * (gradient - first))
            seconds.append(beta2 * second + (1 - beta2) * gradient * gradient)
            denominator = seconds[-1].sqrt() * numbers[1] + eps
            values.append(parameter.detach() - rate * (firsts[-1] / denominator))
        averages = [a + numbers[0] * (p - a) for a, p in zip(self.average.averaged or (), values, strict=False)]
        return [*firsts, *seconds, *values, *averages]

    def step_rows(self, index: Tensor, rows: Sequence[Tensor], gradients: Sequence[Tensor], multiplier: float) -> None:
        """Move the batch's rows alone."""
        for adam, own, gradient in zip(self.row_adams, rows, gradients, strict=True):
            adam.step(index, own, gradient, multiplier)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged iterates, where averages are kept, in place of the last ones, for evaluation."""
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
        """Put the averaged iterates, where averages are kept, in place of the last ones for good."""
        for parameter, value in self._averages():
            parameter.copy_(value)

    def size(self) -> tuple[int, int]:
        """Parameters that give local factors (encoder, rows or shared vector), and bytes that fitting them holds.

        Bytes are those of parameters, Adam's moments, averages and row counts.
        """
        tables = [adam.table.weight for adam in self.row_adams]
        counts = sum(adam.count.numel() * adam.count.element_size() for adam in self.row_adams)
        kept = self.average.averaged is not None and all(adam.averaged is not None for adam in self.row_adams)
        copies = 4 if kept else 3
        own = [*self.parameters[: self.num_local], *tables]
        return sum(p.numel() for p in own), copies * sum(p.numel() * p.element_size() for p in own) + counts

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state` goes on as if nothing had happened."""
        named = {"average.count": torch.tensor(self.average.count)}
        named |= {f"averaged.{i}": averaged for i, averaged in enumerate(self.average.averaged or ())}
        for i, parameter in enumerate(self.parameters):
            named |= {f"parameter.{i}": parameter.detach()}
            moments = self.adam.state[parameter] if self.adam is not None else {}
            moments = {**moments, "step": torch.tensor(float(self.average.count))}  # a compiled step counts there alone
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
        self.average.count = int(state["average.count"])
        for i, averaged in enumerate(self.average.averaged or ()):
            averaged.copy_(state[f"averaged.{i}"])
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(state[f"parameter.{i}"])
            for key, value in self.adam.state[parameter].items() if self.adam is not None else ():
                value.copy_(state[f"adam.{i}.{key}"])  # in place, since a captured step holds these tensors
        for i, adam in enumerate(self.row_adams):
            adam.load_state({k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"rows.{i}.")})

    def _averages(self) -> list[tuple[Tensor, Tensor]]:
        averaged = self.average.averaged
        pairs = [] if averaged is None else list(zip(self.parameters, averaged, strict=True))
        return [*pairs, *((a.table.weight, a.averaged) for a in self.row_adams if a.averaged is not None)]


def _parameters(
    model: Model, guide: Guide, call: Callable[[Callable[..., object]], None], rows: set[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that give local factors, all others but log scales of q(theta), and these; without tables.

    They are those of modules, and those of the param store that a program asks for: others are of other runs.
    """
    shared_guide = getattr(guide, "shared", None)
    shared_ids = {id(p) for p in shared_guide.parameters()} if isinstance(shared_guide, nn.Module) else set()
    scale_ids = {id(p) for p in shared_guide.log_scales.values()} if isinstance(shared_guide, MeanField) else set()
    of_guide, of_model = (_trainable(program, rows) for program in (guide, model))
    local = [p for p in of_guide if id(p) not in shared_ids]
    shared = [p for p in of_guide if id(p) in shared_ids] + of_model
    known = {id(p) for p in (*local, *shared)} | rows
    asked = dict.fromkeys(name for program in (guide, model) for name in _params_asked_for(program, call))
    params = pyro.get_param_store()._params
    store: list[Any] = [params[name] for name in asked if name in params]
    store = [p for p in store if id(p) not in known and p.requires_grad]
    others = shared + store
    return local, [p for p in others if id(p) not in scale_ids], [p for p in others if id(p) in scale_ids]


def _params_asked_for(program: Callable[..., object], call: Callable[[Callable[..., object]], None]) -> list[str]:
    """Names of the ``pyro.param`` statements of a run of a program."""
    traced = poutine.trace(program)
    with torch.no_grad(), said_of("model or guide", (), {}):
        call(traced)
    return traced.trace.param_nodes


def _trainable(program: object, rows: set[int]) -> list[nn.Parameter]:
    if not isinstance(program, nn.Module):
        return []
    return [p for p in program.parameters() if p.requires_grad and id(p) not in rows]
