"""How to fit, and what a fit reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from amortized_bayes.limits import AtLeast, Below, Count, NotNegative, Positive, limited

__all__ = ["FitOptions", "Schedule", "StepRecord", "WarmUp", "burda", "cosine", "linear", "settling"]

OF_ELBO = (
    *("analytic_kl", "local_reparametrization", "quadrature_nodes", "entropy_weight", "kl_weight", "shared_kl_weight"),
)
"""Options that replace draws by expectations, or weigh terms of the ELBO: importance weights have neither."""
RATED_WIDTH = 64
"""Encoders wider than this take smaller steps than learning rates say."""

Schedule = Callable[[float], float]
"""A number as a function of the part of the run that is done, in [0, 1]."""


def check_particles(objective: str, num_particles: int) -> None:
    """Refuse numbers of particles that a gradient for Bernoulli latents does not have."""
    if objective == "reinforce" and num_particles < 2:
        raise ValueError(
            "expected num_particles of 2 or more with objective 'reinforce': the baseline of a draw is the others' mean"
        )
    if objective == "enumerated" and num_particles > 1:
        raise ValueError(f"expected num_particles of 1 with objective 'enumerated', got {num_particles}")


@limited
@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Args:
        batch_size: B; the points left over at the end of an epoch are left out of it.
        learning_rate: learning rate of the networks and shared vectors that give the local parameters; 0 leaves them as
            they are.
        shared_learning_rate: learning rate of everything else: q(theta), and parameters of the model.
        shared_scale_learning_rate: learning rate of the log scales of q(theta); ``None`` for ``shared_learning_rate``.
        row_learning_rate: learning rate of rows of tables (factorized VI), which are visited once an epoch.
        row_steps: steps of the rows of a batch at each visit; everything else moves with the last of them (stochastic
            VI fits local factors before it moves shared ones: Hoffman, Blei, Wang & Paisley, 2013).
        analytic_kl: see :func:`~amortized_bayes.expectations.expected_log_weights`; by default with ``elbo``.
        local_reparametrization: likewise.
        quadrature_nodes: likewise; needs local reparametrization.
        center_input: encoders see the data minus their mean, which moves into their first bias (LeCun, Bottou, Orr &
            Müller, 1998); read by those who build guides.
        average: eta of the averaged iterates, see :class:`~amortized_bayes.inference.optim.IterateAverage`; ``None``
            to keep no averages and use the last iterate.
        average_rows: average rows of tables as well, which holds another table.
        capture: ``auto`` (replayed from 200 steps, compiled where that pays), ``replay``, ``inductor`` or ``off``.
        schedule: multiplies all rates. Rates that fall to 0 need no average (Defazio et al., 2023).
        entropy_weight: multiplies the local log q alone (entropy annealing: E[log p(x, z) - λ log q(z | x)]).
        kl_weight: multiplies log q and log prior, local ones (KL warm-up: E[log p(x | z)] - β KL; Bowman et al., 2016;
            Sønderby et al., 2016).
        shared_kl_weight: multiplies those of shared latents.
        adam_beta2: decay of Adam's second moments, those of rows too.
        adam_eps: added to Adam's denominators (not to those of rows).
        objective: what is maximized: ``elbo``; ``iwae``, the importance-weighted bound of ``num_particles`` draws, with
            the guide's gradient doubly reparametrized (Tucker et al., 2019); or ``rws``, reweighted wake-sleep, which
            fits the model by that bound and the guide by its wake phase (Bornschein & Bengio, 2015). See
            :mod:`~amortized_bayes.inference.importance`. Or the ELBO of a guide with Bernoulli latents, by a gradient
            of :class:`~amortized_bayes.inference.bernoulli_elbo.BernoulliELBO`: ``disarm``, ``arm``, ``reinforce``,
            ``straight-through`` or ``enumerated``. All but ``elbo`` take plain draws: no analytic KL, local
            reparametrization, quadrature or weights of terms.
        num_particles: K, draws of each point per step, with ``iwae`` (1 is the ELBO), ``rws`` and ``reinforce`` (2 or
            more), ``straight-through``, and pairs of draws with ``disarm`` and ``arm``.
        temperature: temperature of the relaxed draws of ``straight-through``.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range, quadrature without local reparametrization, or an option that the
            objective does not have.

    Example:
        >>> from amortized_bayes import FitOptions
        >>> FitOptions(batch_size=50).learning_rate
        0.004
    """

    batch_size: Count = 250
    learning_rate: NotNegative = 4e-3
    shared_learning_rate: NotNegative = 4e-3
    shared_scale_learning_rate: NotNegative | None = None
    row_learning_rate: NotNegative = 0.1
    row_steps: Count = 1
    analytic_kl: bool | None = None
    local_reparametrization: bool = False
    quadrature_nodes: Annotated[int, AtLeast(0, 100)] = 0
    center_input: bool = False
    average: NotNegative | None = 8.0
    average_rows: bool = True
    capture: Literal["auto", "replay", "inductor", "off"] = "auto"
    schedule: Schedule | None = None
    entropy_weight: Schedule | None = None
    kl_weight: Schedule | None = None
    shared_kl_weight: Schedule | None = None
    adam_beta2: Annotated[float, AtLeast(0), Below(1)] = 0.999
    adam_eps: NotNegative = 1e-8
    objective: Literal["elbo", "iwae", "rws", "disarm", "arm", "reinforce", "straight-through", "enumerated"] = "elbo"
    num_particles: Count = 1
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        if self.quadrature_nodes and not self.local_reparametrization:
            raise ValueError(
                "expected quadrature_nodes of 1 or more with local_reparametrization, or 0, got "
                f"{self.quadrature_nodes} with local_reparametrization={self.local_reparametrization}"
            )
        if self.objective == "elbo":
            if self.num_particles > 1:
                raise ValueError(f"expected num_particles of 1 with objective 'elbo', got {self.num_particles}")
            return
        if self.objective == "rws" and self.num_particles < 2:
            raise ValueError("expected num_particles of 2 or more with objective 'rws': the weight of one draw is 1")
        check_particles(self.objective, self.num_particles)
        if found := [name for name in OF_ELBO if getattr(self, name)]:
            raise ValueError(f"expected objective 'elbo' with {found[0]}, got {self.objective!r}")

    @classmethod
    def recipe(cls, **changes: Any) -> FitOptions:
        """The settings that converged fastest (docs/tuning.md): falling rates, KL warm-up, centered input, row steps.

        The last iterate is the result, so that no averages are kept. Quadrature and local reparametrization, which not
        every model allows, are left to ``changes``. Only the ELBO has a warm-up.

        Example:
            >>> FitOptions.recipe(batch_size=50).schedule(0.25)
            0.75
        """
        found: dict[str, Any] = {
            "learning_rate": 1.6e-2,
            "shared_learning_rate": 3.2e-2,
            "shared_scale_learning_rate": 8e-3,
            "row_learning_rate": 0.4,
            "row_steps": 2,
            "center_input": True,
            "average": None,
            "schedule": linear,
            "kl_weight": WarmUp(0.2),
            "shared_kl_weight": WarmUp(0.2),
            "adam_beta2": 0.99,
        }
        if changes.get("objective", "elbo") != "elbo":
            del found["kl_weight"], found["shared_kl_weight"]
        return cls(**found | changes)

    @property
    def expected_kl(self) -> bool:
        """Whether the ELBO has KL divergences in closed form, where there are any."""
        return self.analytic_kl is not False

    @property
    def bound_name(self) -> str:
        """Which bound a fit climbs, for curves.

        Example:
            >>> FitOptions(objective="iwae", num_particles=8).bound_name
            'IWAE bound (K = 8)'
        """
        return f"IWAE bound (K = {self.num_particles})" if self.weighted else "ELBO"

    @property
    def weighted(self) -> bool:
        """Whether the objective is an importance-weighted bound."""
        return self.objective in ("iwae", "rws")

    @property
    def annealed(self) -> bool:
        """Whether the objective changes in the course of a run."""
        return any(weight is not None for weight in (self.entropy_weight, self.kl_weight, self.shared_kl_weight))

    def weights_at(self, done: float) -> tuple[float, float, float]:
        """Weights of the local log prior, the local log q and the shared part when ``done`` of the run is done."""
        of_kl = self.kl_weight(done) if self.kl_weight else 1.0
        of_shared = self.shared_kl_weight(done) if self.shared_kl_weight else 1.0
        return of_kl, of_kl * (self.entropy_weight(done) if self.entropy_weight else 1.0), of_shared

    def at_width(self, k: int | None) -> FitOptions:
        """How to fit an encoder of width k: beyond 64 its steps are smaller by the root of the ratio.

        Example:
            >>> FitOptions(learning_rate=0.01).at_width(256).learning_rate
            0.005
        """
        if k is None or k <= RATED_WIDTH:
            return self
        return replace(self, learning_rate=self.learning_rate * math.sqrt(RATED_WIDTH / k))

    @property
    def settled(self) -> FitOptions:
        """Options for continuing where a fit ended: by the plain ELBO and, if rates fell, with half of them."""
        weights = ("entropy_weight", "kl_weight", "shared_kl_weight")
        plain = {name: _one for name in weights if getattr(self, name) is not None}
        return replace(self, schedule=settling if self.schedule else None, **plain)


class StepRecord(NamedTuple):
    """A fit after ``step`` steps that took ``seconds``; ``elbo`` is the last batch's noisy value, nats per point.

    With another objective it is the importance-weighted bound that ``FitOptions.bound_name`` names. While terms are
    annealed it is the annealed objective, which lies above the ELBO: during a warm-up it falls.
    """

    step: int
    seconds: float
    elbo: float


def cosine(done: float) -> float:
    """Step size that falls from 1 to 0 as half a cosine, as a function of the part of the run that is done."""
    return 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """Step size that falls from 1 to 0 in a straight line, as a function of the part of the run that is done."""
    return 1 - done


def settling(done: float) -> float:
    """Schedule for a fit that starts near its optimum: half the rate, falling to 0 in a straight line."""
    return 0.5 * linear(done)


@limited
@dataclass(frozen=True)
class WarmUp:
    """A weight that rises from 0 to 1 in a straight line over the first ``share`` of a run.

    Raises:
        ValueError: a share outside [0, 1): the weight would never be 1.

    Example:
        >>> WarmUp(0.2)(0.1), WarmUp(0.2)(0.5)
        (0.5, 1.0)
    """

    share: Annotated[float, AtLeast(0), Below(1)]

    def __call__(self, done: float) -> float:
        """The weight when the part ``done`` of the run is done."""
        return min(1.0, done / self.share) if self.share > 0 else 1.0


def burda(done: float) -> float:
    """Schedule 10^(-i/7) for 3^i parts of 3,280, i = 0 ... 7 (Burda, Grosse & Salakhutdinov, ICLR 2016)."""
    stage, end = 0, 1
    while stage < 7 and done * 3280 >= end:
        stage += 1
        end += 3**stage
    return 10 ** (-stage / 7)


def _one(done: float) -> float:
    del done
    return 1.0
