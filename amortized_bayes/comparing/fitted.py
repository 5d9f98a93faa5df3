"""One guide of a comparison: how it was fitted, and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from amortized_bayes.comparing.between import Rung
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.guides.registry import Fit, guide_entry
from amortized_bayes.per_point import is_vacuous
from amortized_bayes.snapshots import Snapshot

__all__ = ["FittedGuide", "with_own_states"]

GONE = "Pyro's param store has lost the model's parameters since this guide was fitted: compare again"


class FittedGuide(NamedTuple):
    """One guide's result.

    Args:
        name: name of the guide.
        k: its width, where it has one.
        step: steps taken; where a fit failed, at which.
        seconds: that they took.
        elbo: ELBO of each point; ``None`` for a fit that failed.
        rungs: the fit with each budget, the last with all epochs.
        active_units: latents that carry something.
        program: the fitted guide; ``None`` for a fit that failed, and in a report that was loaded.
        model_state: parameters that the model was fitted to beside the guide; ``None`` where it has none.
        reason: why a fit failed; empty for one that did not.
    """

    name: str
    k: int | None
    step: int
    seconds: float
    elbo: Elbo | None
    rungs: tuple[Rung, ...]
    active_units: int = 0
    program: Any = None
    model_state: Snapshot | None = None
    reason: str = ""

    @property
    def guide(self) -> Any:
        """The fitted guide, called as the model is. It runs beside the model that it was fitted with: see ``apply``.

        Raises:
            ValueError: a fit that failed, or a report that was loaded.
        """
        if self.program is None:
            why = "its fit failed" if self.elbo is None else "a file of a report holds numbers and no programs"
            raise ValueError(f"there is no guide {self.label}: {why}")
        return self.program

    def apply(self) -> FittedGuide:
        """Put the model's own parameters where they were fitted to beside this guide, and return the fit.

        ``compare`` leaves a model as it was; ``diagnose(model, report.best.apply().guide, x)`` is of the fitted one.

        Raises:
            ValueError: a fit that failed, a report that was loaded, or a param store that was cleared since.
        """
        assert self.guide is not None
        if self.model_state is not None:
            if not self.model_state.lives():
                raise ValueError(GONE)
            self.model_state()
        return self

    @property
    def fit(self) -> Fit:
        """Guide and width."""
        return Fit(self.name, self.k)

    @property
    def label(self) -> str:
        """Guide and width, for readers."""
        label = guide_entry(self.name).label
        return label if self.k is None else f"{label}, k = {self.k}"

    @property
    def status(self) -> str:
        """Ok, vacuous or failed."""
        if self.elbo is None:
            return "failed"
        return "vacuous" if is_vacuous(self.active_units) else "ok"

    @property
    def seconds_per_step(self) -> float:
        """Of its own steps: one that goes on from another's answer has those that led there below its first rung."""
        before, top = self.rungs[-2:]
        return (top.seconds - before.seconds) / max(1, top.step - before.step)


def with_own_states(fits: Sequence[FittedGuide], start: Snapshot) -> list[FittedGuide]:
    """Fits with those tensors of their models alone that they moved, and guides that run beside no others.

    Args:
        fits: ``model_state`` has all tensors of the model.
        start: where all fits began.
    """
    wholes, found = [start, *(fit.model_state for fit in fits if fit.model_state)], []
    for fit in fits:
        own = None if fit.model_state is None else fit.model_state.since(start)
        if own:
            _refuse_others(fit.program, own, [whole.like(own) for whole in wholes])
        found.append(fit._replace(model_state=own or None))
    return found


def _refuse_others(guide: nn.Module, fitted: Snapshot, known: Sequence[Snapshot]) -> None:
    """Let a guide run beside the parameters that its model was fitted to, or any that are not ``known`` as others."""

    def check(*_: Any) -> None:
        if get_proxy_mode() is not None:  # it was looked at before, when the step was run
            return
        if not fitted.lives():
            raise ValueError(GONE)
        if fitted.holds():
            return
        if any(other.holds() for other in known):
            raise ValueError(
                "this guide was fitted beside parameters of its model that are at other values now: put them there "
                "by `.apply()` of the fit that the guide is of, as in `report.best.apply()`"
            )

    guide.register_forward_pre_hook(check)
