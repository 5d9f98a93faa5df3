r"""Semi-amortized VI: an encoder's answer, T per-point steps from there, and an encoder trained for both.

Kim, Wiseman, Miller, Sontag & Rush (*Semi-Amortized Variational Autoencoders*, ICML 2018). Steps are the natural
gradients of :func:`~amortized_bayes.inference.refine.refine`, at a constant rate:

.. math:: \mu \leftarrow \mu + \rho\, \sigma^2 \nabla_\mu L, \qquad
    \log\sigma \leftarrow \log\sigma + \tfrac{1}{2} \rho \nabla_{\log\sigma} L,

each no longer than a scale of q. A step estimates its gradient from S draws :math:`\mu + \sigma\varepsilon_s`, whose
noise is fixed when the guide is made, the same for all points, in pairs of opposite signs and with
:math:`\frac{1}{S} \sum_s \varepsilon_{sd}^2 = 1`. So q is one Gaussian for each point, however often the guide is run
and whatever other points are in the batch, and exact are the gradients of a log density that is a sum of quadratics in
single latents.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Generic, Literal, TypeVar

import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amortized_bayes.calls import PerPointNames, named_rows
from amortized_bayes.guides.local import LocalGuide, unconstrained_shape
from amortized_bayes.inference.families import Diagonal
from amortized_bayes.inference.refine import LONGEST
from amortized_bayes.inference.settings import PAIRS
from amortized_bayes.joint import LocalSite, LogJoint
from amortized_bayes.limits import AtLeast, Positive, Seed, limited
from amortized_bayes.point_programs import told_rows
from amortized_bayes.points import PointData
from amortized_bayes.seeding import torch_generator
from amortized_bayes.signatures import signature_of
from amortized_bayes.types import Model

__all__ = ["OWN_STEPS", "SemiAmortized"]

T = TypeVar("T")
OWN_STEPS: dict[str, Any] = {"num_samples": 2, "learning_rate": 0.4, "gradients": "guide"}
"""The steps of experiments; no part of a run's key, so said here, whatever the guide's defaults become."""


class SemiAmortized(LocalGuide):
    """The q of another guide after T steps on each point's own ELBO.

    It is called as the model is, with the same arguments, and is fitted, scored and diagnosed like any guide. The model
    is held, not owned: its parameters do not belong to the guide, and are fitted with the model, if at all. Latents
    outside the plate are held at the median of q(theta), through which no gradient of the steps passes, so that q(z) is
    independent of theta like that of other guides. The noise and the rate of the steps are part of the guide's state,
    so that a guide that is loaded takes the steps that it was trained for.

    Args:
        model: Pyro program whose ELBO the steps climb: the one that the guide is fitted to.
        guide: where the steps start, an ``Amortized`` guide for example; it is fitted too.
        steps: T; 0 leaves the guide as it is.
        num_samples: S, draws of each q per step, in pairs: an even number.
        learning_rate: learning rate of the steps; 1 leads to the mean of a Gaussian posterior in one step where q has
            its scales, and overshoots where latents are correlated. More draws allow a higher rate.
        gradients: where gradients pass through the steps, by second derivatives: to the guide and to the model
            (``all``), or to the ``guide`` alone, so that the model gets the gradient of its ELBO at the refined q. Or
            nowhere (``straight``): the guide gets the gradient with respect to the refined locations and log scales as
            if it were with respect to its own.
        seed: random seed for the noise.
        per_point: names or positions of the model's arguments with a row per point, ``index`` apart; by default those
            that the call found or was told (``elbo(..., per_point=)``). Needed where the guide is run by itself, or by
            ``pyro.infer.SVI``, with more than one tensor: the number of rows may agree by chance.

    Raises:
        TypeError: an option that does not exist, or of another type, or a guide that is not a ``LocalGuide``.
        ValueError: a number out of range, a guide whose q is no factorized Gaussian or whose ``shared`` has no
            median, or gradients to the guide alone beside a model that is no module. When it is called: no argument
            with rows, several tensors without ``per_point``, or a model whose batch norm is in training mode, where a
            point's q would depend on others.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.ones(4, 3)
        >>> plain = ab.Amortized(ab.latent_sites(model, x).local, num_data=4, observed=3, width=8)
        >>> guide = ab.SemiAmortized(model, plain, steps=3)
        >>> bool((ab.elbo(model, guide, x).value > ab.elbo(model, plain, x).value).all())
        True
    """

    noise: Tensor
    rate: Tensor

    @limited
    def __init__(
        self,
        model: Model,
        guide: LocalGuide,
        steps: Annotated[int, AtLeast(0, 1_000)] = 1,
        *,
        num_samples: Annotated[int, AtLeast(2), PAIRS] = 2,
        learning_rate: Positive = 0.4,
        gradients: Literal["all", "guide", "straight"] = "all",
        seed: Seed = 0,
        per_point: PerPointNames = None,
    ) -> None:
        if not isinstance(guide, LocalGuide):
            raise TypeError(f"expected a guide such as Amortized to start the steps at, got {type(guide).__name__}")
        if isinstance(guide, SemiAmortized) or type(guide).sample is not LocalGuide.sample:
            raise ValueError(f"expected a guide whose q is a factorized Gaussian, got {type(guide).__name__}")
        if gradients == "guide" and not isinstance(model, nn.Module):
            raise ValueError(
                f"expected a module as model with gradients='guide', got {type(model).__name__}: its parameters are "
                "held fixed in the steps"
            )
        if guide.shared is not None and not callable(getattr(guide.shared, "median", None)):
            raise ValueError(
                "expected a guide of latents outside the plate with a median, such as MeanField, got "
                f"{type(guide.shared).__name__}"
            )
        super().__init__(guide.sites, guide.num_data, shared=guide.shared, plate=guide.plate)
        self.guide, self.steps, self.gradients = guide, steps, gradients
        self.per_point = _names(per_point)
        self._held = _Held(model)
        half = torch.empty(steps, num_samples // 2, 1, self.latent_dim)
        half.normal_(generator=torch_generator(seed, "semi-amortized"))
        half = half / half.square().mean(1, keepdim=True).sqrt()
        self.register_buffer("noise", torch.cat([half, -half], 1))  # (T, S, 1, D)
        self.register_buffer("rate", torch.tensor(float(learning_rate)))

    @property
    def model(self) -> Model:
        """The model whose ELBO the steps climb."""
        return self._held.value

    @property
    def learning_rate(self) -> float:
        """Learning rate of the steps."""
        return self.rate.item()

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
        """Sample every latent site, called as the model is."""
        given = {} if index is None else {"index": index}
        x, places = self.read(*args, **kwargs, **given)
        if self.shared is not None:
            self.shared()
        plate = self.plate_over(x, places)  # not entered yet: the model has its own
        rows = self._after_steps(x, plate.indices, args, {**kwargs, **given})
        with plate:
            self.sample_at(rows)

    def read(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What the guide that the steps start at sees."""
        return self.guide.read(*args, **kwargs)

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """As of a model called with ``x``, or with ``x`` and ``index``."""
        return self._after_steps(x, index, (x,), {"index": index})

    def answer(self, data: Any, index: Tensor) -> Tensor:
        """Locations and log scales after the steps, ``(B, 2 D)``, of data as the guide is called with."""
        return self._after_steps(self.read(data, index)[0], index, (data,), {"index": index})

    def _after_steps(self, x: Tensor, index: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Locations and log scales, ``(B, 2 D)``."""
        rows = self.guide.locate(x, index)
        if not self.steps:
            return rows
        _check_apart(self.model)
        through = self.gradients != "straight" and torch.is_grad_enabled()
        refined = rows if through else rows.detach()
        joint = self._density(len(rows), index, args, kwargs)
        inputs, family = joint.inputs(self.noise.shape[1]), Diagonal(rows.new_ones(self.latent_dim))
        fixed_too = self.model.parameters() if self.gradients == "guide" and isinstance(self.model, nn.Module) else ()
        with (
            torch.enable_grad(),
            _held_fixed(fixed_too),
            poutine.block(),
        ):  # the model runs by itself, whoever listens to the guide
            for noise in self.noise.to(rows.dtype):
                refined = self._step(family, refined, noise, joint, inputs, through=through)
        return refined if through else refined.detach() + (rows - rows.detach())

    def _step(
        self,
        family: Diagonal,
        rows: Tensor,
        noise: Tensor,
        joint: LogJoint,
        inputs: tuple[Tensor, ...],
        *,
        through: bool,
    ) -> Tensor:
        drawn = family.draw(rows, noise)
        z = drawn.z if through else drawn.z.detach()
        if not z.requires_grad:
            z.requires_grad_()
        log_prior, log_likelihood = joint.terms(z.flatten(0, 1), *inputs)
        total = (log_prior + log_likelihood).sum()  # no mean: a point's steps know nothing of how many there are
        (slope,) = torch.autograd.grad(total, [z], create_graph=through)
        white = self.rate * family.whiten(rows, drawn.pull(slope))
        return family.move(rows, family.unwhiten(rows, white.clamp(-LONGEST, LONGEST)), None)

    def _density(self, count: int, index: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LogJoint:
        """Log p(x, z) of the points that the guide is called with, in the guide's order of latents."""
        data = self._rows(args, self._taken(args, kwargs))
        if len(data) != count:
            raise ValueError(f"expected arguments with a row for each of the {count} points, got {data.describe()}")
        shared: Any = self.shared
        fixed = {} if shared is None else shared.median()
        joint = LogJoint(self.model, (data.leaves, data.spec, data.is_data), index, self.plate, fixed)
        joint.sites = tuple(
            LocalSite(
                *(site.name, torch.Size((*site.around, *site.event_shape)), unconstrained_shape(site), site.support),
                slice(start, start + size),
            )
            for site, start, size in zip(self.sites, self.starts, self.sizes, strict=True)
        )
        return joint

    def _rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PointData:
        """Arguments of the model, and which of them hold rows: by their names, whatever their lengths."""
        given = PointData.of(self.model, args, kwargs)
        tensors = [isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in given.leaves]
        places = [tensor and name == "index" for tensor, name in zip(tensors, given.names, strict=True)]
        if sum(tensors) == sum(places):
            raise ValueError(
                "expected an argument with the data points along its first dimension, got none: steps of each point's "
                "own need the data passed to the model"
            )
        if self.per_point is not None:
            chosen = named_rows(given.with_data(places), self.per_point)
            return chosen.with_data([*map(operator.or_, chosen.is_data, places)])
        if sum(tensors) > 1 + sum(places):
            told = {**(told_rows() or {}), "index": True}
            named = [told.get(name) if tensor else False for name, tensor in zip(given.names, tensors, strict=True)]
            if None not in named:
                return given.with_data([bool(has_rows) for has_rows in named])
            raise ValueError(
                f"expected per_point, the names of the arguments with a row per point, with several tensors, got "
                f"{given.describe()}"
            )
        return given.with_data(tensors)

    def _taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments without places that the model does not take, or has already."""
        signature = signature_of(self.model)
        names = [] if signature is None else list(signature.parameters)
        if "index" in kwargs and "index" not in names[len(args) :]:
            return {name: value for name, value in kwargs.items() if name != "index"}
        return kwargs


@contextmanager
def _held_fixed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient to parameters through what is computed inside the context."""
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def _check_apart(model: Model) -> None:
    """Refuse a model in which points of a batch change each other's log p, and that steps would change."""
    for layer in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            state = "in training mode" if layer.training else "without running statistics"
            raise ValueError(
                f"expected a model with batch norm in evaluation mode (model.eval()), whose points do not change each "
                f"other's steps, got {type(layer).__name__} {state}"
            )


def _names(per_point: PerPointNames) -> tuple[str | int, ...] | None:
    """Names or positions.

    Raises:
        TypeError: others, or none.
    """
    if per_point is None:
        return None
    if isinstance(per_point, str | int):
        return (per_point,)
    names = tuple(per_point) if isinstance(per_point, Iterable) else ()
    if not names or not all(isinstance(name, str | int) for name in names):
        raise TypeError(f"expected per_point with names or positions of arguments, got {per_point!r}")
    return names


class _Held(Generic[T]):
    """Something that a module refers to and does not own; a copy of the module refers to the same."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held[T]:
        return _Held(memo.get(id(self.value), self.value))  # copied along: then to the copy
