"""What a fitted model makes of the data when every latent is set to its mean: predictions, errors, active units."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple, cast

import pyro.poutine as poutine
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution
from torch.overrides import TorchFunctionMode

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.limits import limited
from amortized_bayes.per_point import ACTIVE_VARIANCE
from amortized_bayes.program_errors import said_of
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.signatures import own_options
from amortized_bayes.traces import PairedTraces, match_traces, sample_sites
from amortized_bayes.types import Guide, Model

__all__ = [
    "MeanPrediction",
    "active_units",
    "hidden_units_in_use",
    "local_values",
    "mean_latents",
    "mean_prediction",
    "mean_squared_error",
]


class MeanPrediction(NamedTuple):
    """Mean of the observed site, ``(B, ...)``, and means of the local latents, flattened, ``(B, D)``."""

    observed: Tensor
    latents: Tensor


@own_options
@limited
@torch.no_grad()
def mean_prediction(
    model: Model,
    guide: Guide,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    **kwargs: Any,
) -> MeanPrediction:
    """Set every latent, shared ones too, to the mean of its factor in the guide, and decode.

    A constrained site is set to its transformed location, which is its median. Arguments are those of
    :func:`~amortized_bayes.elbo`.

    Raises:
        ValueError: not exactly one observed site inside the plate, or a guide that does not fit the model.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.mean_prediction(model, guide, x).observed.shape
        torch.Size([4, 3])
    """
    entered = enter(mean_prediction, model, guide, args, kwargs, plate=plate, per_point=per_point, whole=True)
    model, guide, args, kwargs, plate, *_ = entered
    with _Means(), said_of("guide", args, kwargs):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    with said_of("model, with the guide's means,", args, kwargs):
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    traces = PairedTraces(guide_trace, model_trace, plate)
    match_traces(traces)
    observed = list(traces.local_sites(model_trace, observed=True))
    if len(observed) != 1:
        raise ValueError(f"expected one observed site in plate {plate!r}, got {[s['name'] for s in observed]}")
    return MeanPrediction(observed[0]["fn"].mean, _local_values(guide_trace, plate))


@torch.no_grad()
def mean_latents(guide: Guide, *args: Any, plate: str = "data", **kwargs: Any) -> Tensor:
    """Means of the local latents, flattened, ``(B, D)``, as in :func:`mean_prediction` but without decoding.

    Raises:
        ValueError: a guide without a latent in the plate.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.evaluation.errors import mean_latents
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> guide = ab.Constant(ab.latent_sites(model, torch.zeros(4, 3)).local, num_data=4)
        >>> mean_latents(guide, torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    with _Means():
        return _local_values(poutine.trace(guide).get_trace(*args, **kwargs), plate)


@torch.no_grad()
def local_values(guide: Guide, *args: Any, plate: str = "data", mean: bool, **kwargs: Any) -> Tensor:
    """Means of the local latents, or one draw of them, flattened, ``(B, D)``."""
    if mean:
        return mean_latents(guide, *args, plate=plate, **kwargs)
    return _local_values(poutine.trace(guide).get_trace(*args, **kwargs), plate)


def _local_values(trace: poutine.Trace, plate: str) -> Tensor:
    """Values of the latents inside the plate, with the plate's dimension first, flattened, ``(B, D)``."""
    found = []
    for site in sample_sites(trace):
        frame = plate_frame(site, plate)
        if frame is not None and not (site["is_observed"] or site["infer"].get("is_auxiliary")):
            value = site["value"].movedim(frame.dim - len(site["fn"].event_shape), 0)
            found.append(value.reshape(len(value), -1))
    if not found:
        raise ValueError(f"expected a guide with a latent in plate {plate!r}, got none")
    return torch.cat(found, 1)


@limited
def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of each data point averaged over its entries, ``(B,)``.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> import torch
        >>> from amortized_bayes import mean_squared_error
        >>> mean_squared_error(torch.zeros(2, 4), torch.ones(2, 4))
        tensor([1., 1.])
    """
    if prediction.shape != target.shape:
        raise ValueError(f"expected target of shape {tuple(prediction.shape)}, got {tuple(target.shape)}")
    if prediction.dim() < 2:
        raise ValueError(f"expected prediction of shape (B, ...), got {tuple(prediction.shape)}")
    return (prediction - target).square().flatten(1).mean(1)


@limited
def active_units(latent_means: Tensor, scales: Tensor | None = None) -> int:
    """Number of latents whose mean varies over points by more than 0.01, from means ``(N, D)``; 0 for constant VI.

    That is for latents whose prior has variance 1 (Burda, Grosse & Salakhutdinov, ICLR 2016). With ``scales``
    ``(N, D)`` of the posteriors it is for any: 0.01 is then a share of the variance of the aggregated posterior, which
    is that of the means and the mean of theirs.

    Raises:
        ValueError: other shapes, fewer points than two, or numbers that are nan or no floats.

    Example:
        >>> import torch
        >>> from amortized_bayes import active_units
        >>> active_units(torch.stack([torch.linspace(-1, 1, 10), torch.zeros(10)], 1))
        1
    """
    if latent_means.dim() != 2 or len(latent_means) < 2:
        raise ValueError(f"expected latent_means of shape (N, D), N of 2 or more, got {tuple(latent_means.shape)}")
    if scales is not None and scales.shape != latent_means.shape:
        raise ValueError(f"expected scales of shape {tuple(latent_means.shape)}, got {tuple(scales.shape)}")
    for name, given in (("latent_means", latent_means), ("scales", scales)):
        if given is not None and (not given.is_floating_point() or given.isnan().any()):
            raise ValueError(f"expected {name} of floats, got {given.dtype} or numbers that are nan")
    variance = latent_means.var(0)
    whole = 1.0 if scales is None else variance + scales.square().mean(0)
    return int((variance > ACTIVE_VARIANCE * whole).sum())


@torch.no_grad()
def hidden_units_in_use(model: Model, guide: Guide, *args: Any, **kwargs: Any) -> int | None:
    """Number of the model's hidden units that make its dense layers' outputs vary over points; ``None`` without any.

    A unit that feeds a layer by weights w is in use if the variance over points of what it adds, summed over the
    outputs, exceeds 0.01: Var(h) |w|^2, with all latents at their means. A Bayesian decoder prunes the others, whose
    weights stay at the prior.

    Args:
        model: Pyro program.
        guide: Pyro program that samples every latent site of the model.
        args: arguments of both programs.
        kwargs: keyword arguments of both programs.
    """
    with _Means():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    with _DenseLayers() as layers:
        poutine.replay(model, trace=trace)(*args, **kwargs)
    if len(layers.seen) < 2:
        return None
    seen = [(h.flatten(0, -2), weight) for h, weight in layers.seen[1:]]
    spreads = [h.var(0, correction=min(1, len(h) - 1)) * weight.square().sum(0) for h, weight in seen]
    return sum(int((spread > ACTIVE_VARIANCE).sum()) for spread in spreads)


class _DenseLayers(TorchFunctionMode):
    """Remembers inputs and weights of each dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and len(args) > 1:
            self.seen.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


class _Means(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["value"] is None and not isinstance(msg["fn"], _Subsample):
            msg["value"] = _center(msg["fn"])


def _center(distribution: Any) -> Tensor:
    """The mean, or, of a discrete value that has one, the mode: labels are indices, of which there is no mean."""
    if isinstance(distribution, Independent):
        return _center(distribution.base_dist)
    if isinstance(distribution, MaskedDistribution):
        return _center(distribution.base_dist)
    if distribution.support.is_discrete:
        with suppress(NotImplementedError):
            return cast(Tensor, distribution.mode).nan_to_num(nan=0.0)  # a fair coin has none
    if isinstance(distribution, TransformedDistribution):
        value: Any = _center(distribution.base_dist)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    return cast(Tensor, distribution.mean)
