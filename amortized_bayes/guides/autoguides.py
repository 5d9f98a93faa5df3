r"""Pyro's joint autoguides as guides of data points: the same Gaussian, without what ties points to each other.

``AutoDiagonalNormal``, ``AutoMultivariateNormal`` and ``AutoLowRankMultivariateNormal`` draw all latents of all points
from one Gaussian, so that a single point has no density of its own. Its marginals and conditionals are Gaussian too:

.. math:: q(\theta) \prod_n q(z_n \mid \theta), \qquad
    q(z_n \mid \theta) = N(\mu_n + \Sigma_{n\theta} \Sigma_{\theta\theta}^{-1} (\theta - \mu_\theta),
    \Sigma_{nn} - \Sigma_{n\theta} \Sigma_{\theta\theta}^{-1} \Sigma_{\theta n}),

on the unconstrained space. Given theta the points of the model are independent, so that
:math:`KL(q \| p) = KL(\prod_n q_n \| p) + KL(q \| \prod_n q_n)`: leaving out what ties points never lowers the ELBO,
and changes nothing for a diagonal covariance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Size, Tensor, nn
from torch.distributions import biject_to
from torch.utils import _pytree as pytree

from amortized_bayes.guides.conditionals import SAID, JointGaussian, free_value
from amortized_bayes.limits import limited
from amortized_bayes.signatures import check_keywords
from amortized_bayes.types import Guide, LatentSite

__all__ = ["INSTEAD", "PerPointGuide", "as_per_point", "check_batches", "per_point_guide"]

logger = logging.getLogger(__name__)

JOINT = (AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
TIED = 0.01
"""A correlation between two points above this is said."""
LOOKED_AT = 1_000
"""Latents of points among which correlations are looked for."""

INSTEAD = "fit it with pyro.infer.SVI and call diagnose(model, guide, ...)"

_said: WeakSet[Any] = WeakSet()


@limited
def per_point_guide(autoguide: Guide, *args: Any, plate: str = "data", **kwargs: Any) -> Guide:
    """A joint autoguide as a guide of data points; any other guide as it is.

    ``elbo``, ``iwae``, ``log_weights`` and ``diagnose`` do this by themselves.

    Args:
        autoguide: an ``AutoDiagonalNormal``, ``AutoMultivariateNormal`` or ``AutoLowRankMultivariateNormal``. Its
            parameters are read at each call, so that it may be trained on.
        args: arguments of the model, with which an autoguide is set up that was not run yet.
        plate: name of the plate over data points.
        kwargs: keyword arguments of the model.

    Raises:
        ValueError: a guide without a density (``AutoDelta``, ``AutoLaplaceApproximation``), one set up on a part of the
            data, or latents in further plates.

    Example:
        >>> import torch
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> guide = ab.per_point_guide(AutoMultivariateNormal(model), x)
        >>> ab.elbo(model, guide, x).value.shape
        torch.Size([4])
    """
    check_keywords(per_point_guide, getattr(autoguide, "model", autoguide), kwargs)
    if isinstance(autoguide, JOINT) and autoguide.prototype_trace is None:
        with torch.no_grad(), torch.random.fork_rng(), pyro.poutine.block():
            autoguide(*args, **kwargs)
    return as_per_point(autoguide, plate)


def as_per_point(guide: Guide, plate: str) -> Guide:
    """A joint autoguide that was fitted as a guide of data points; any other guide as it is.

    Raises:
        ValueError: as :func:`per_point_guide`, and an autoguide that was not run yet.
    """
    if not isinstance(guide, AutoGuide):
        return guide
    if isinstance(guide, AutoLaplaceApproximation):
        raise ValueError(
            "AutoLaplaceApproximation is a point without a density until it is completed: expected the guide that its "
            "`.laplace_approximation(x)` returns"
        )
    if isinstance(guide, AutoDelta):
        raise ValueError(
            "AutoDelta puts all mass on one point and has no density: what it maximizes is log p(x, z), which bounds "
            "nothing; expected a guide with a density, such as AutoNormal"
        )
    if isinstance(guide, AutoGuideList) and any(isinstance(part, (*JOINT, AutoDelta)) for part in guide):
        kinds = ", ".join(type(part).__name__ for part in guide)
        raise ValueError(
            f"expected one autoguide of all latents, got a list of {kinds}: the draws of a part tie all points"
        )
    if not isinstance(guide, JOINT):
        return guide
    if guide.prototype_trace is None:
        raise ValueError(f"{type(guide).__name__} was never run: expected a fitted guide, or one run once, guide(x)")
    found = PerPointGuide(guide, plate)
    if guide not in _said:
        _said.add(guide)
        if (tied := found.strongest_tie()) > TIED:
            words = (
                "%s ties points (correlations up to %.2f given shared latents): as a guide of data points it is the "
            )
            logger.warning(words + "product of what it says of each, whose ELBO is no lower", _kind(guide), tied)
    return found


def check_batches(guide: Guide, name: str) -> None:
    """Refuse an autoguide that cannot be fitted to batches of points.

    Raises:
        ValueError: an autoguide that draws all points at once.
    """
    if isinstance(guide, AutoGuide):
        raise ValueError(
            f"{name} is an {_kind(guide)}, which draws all points at once: {INSTEAD}, or pass an AutoDiagonalNormal, "
            "AutoMultivariateNormal or AutoLowRankMultivariateNormal"
        )


class PerPointGuide(nn.Module):
    """The guide ``q(theta) prod_n q(z_n | theta)`` of a joint autoguide, see :func:`per_point_guide`."""

    def __init__(self, autoguide: Any, plate: str) -> None:
        super().__init__()
        self.autoguide, self.plate = autoguide, plate
        self.shared, self.local, self.num_data, self.dim = _read_sites(autoguide, plate)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample every latent site, for the points of the plate."""
        leaves = pytree.tree_leaves((args, kwargs))
        rows = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
        size = self.num_data if self.num_data in rows or not rows else rows[0]  # fewer in a chunk of the points
        places = _Places(self.plate, size)
        with ExitStack() as plates:

            def enter() -> Tensor:
                with places:  # a plate gets its points when it is made
                    points = pyro.plate(self.plate, size, dim=self.dim)
                index = plates.enter_context(points)
                if places.default and size != self.num_data:
                    raise ValueError(
                        f"expected all {self.num_data} points that {_kind(self.autoguide)} was fitted to, got {size}"
                    )
                assert index is not None
                return index

            self._sample(enter)

    def at(self, index: Tensor) -> None:
        """Sample every latent site, for the points at these places, ``(B,)``."""
        with ExitStack() as plates:

            def enter() -> Tensor:
                plates.enter_context(pyro.plate(self.plate, self.num_data, dim=self.dim, subsample=index))
                return index

            self._sample(enter)

    def _sample(self, enter: Callable[[], Tensor]) -> None:
        gaussian = _joint(self.autoguide)
        known: list[Tensor] = []  # places of what was drawn, on the flat vector
        drawn: list[Tensor] = []
        for part in self.shared:
            answer = gaussian.given(part.places, torch.cat(known) if known else None)
            value = pyro.sample(part.site.name, answer.distribution(part.site, torch.cat(drawn) if drawn else None))
            known.append(part.places)
            drawn.append(free_value(part.site, value))
        index = enter()
        known = [places.expand(self.num_data, -1) for places in known]
        drawn = [values.expand(len(index), -1) for values in drawn]
        say = partial(self._say, gaussian, [*known], [*drawn], index)
        infer: Any = {SAID: say} if gaussian.rows is not None else {}
        for part in self.local:
            answer = gaussian.given(part.places, torch.cat(known, -1) if known else None)
            values = torch.cat(drawn, -1) if drawn else None
            own = answer.at(index).distribution(part.site, values, -self.dim - 1)
            value = pyro.sample(part.site.name, own, infer=infer.copy())
            known.append(part.places)
            drawn.append(free_value(part.site, value).reshape(len(index), -1))

    def _say(
        self, gaussian: JointGaussian, known: list[Tensor], drawn: list[Tensor], index: Tensor
    ) -> tuple[list[str], Tensor, Tensor, bool]:
        """The Gaussian of all sites of the points at ``index`` together, see :data:`SAID`."""
        places = torch.cat([part.places for part in self.local], -1)
        answer = gaussian.given(places, torch.cat(known, -1) if known else None).at(index)
        loc = answer.mean(torch.cat(drawn, -1) if drawn else None)
        low_rank = gaussian.rows is not None and gaussian.rows.shape[-1] < loc.shape[-1] - 1
        return [part.site.name for part in self.local], loc, answer.scale_tril, low_rank

    @torch.no_grad()
    def strongest_tie(self) -> float:
        """The largest correlation between latents of two points, given the shared ones; of some of them, if many."""
        gaussian = _joint(self.autoguide)
        if gaussian.rows is None:
            return 0.0
        all_places = torch.cat([part.places for part in self.local], 1)
        few = all_places[: max(2, LOOKED_AT // all_places.shape[1])]
        given = torch.cat([part.places for part in self.shared]) if self.shared else None
        tril = gaussian.given(few.reshape(-1), given).scale_tril
        covariance = tril @ tril.mT
        scale = covariance.diagonal().sqrt()
        owner = torch.arange(len(few)).repeat_interleave(few.shape[1])
        others = owner[:, None] != owner
        correlation = (covariance / scale[:, None] / scale)[others.to(covariance.device)]
        return correlation.abs().max().item() if correlation.numel() else 0.0


class _Part(NamedTuple):
    """A site, and where it lies on the flat vector: ``(k,)``, or ``(N, k)`` inside the plate."""

    site: LatentSite
    places: Tensor


def _joint(autoguide: Any) -> JointGaussian:
    q = autoguide.get_posterior()
    if isinstance(autoguide, AutoLowRankMultivariateNormal):
        return JointGaussian(q.loc, q._unbroadcasted_cov_diag, q._unbroadcasted_cov_factor)
    if isinstance(autoguide, AutoMultivariateNormal):
        return JointGaussian(q.loc, torch.zeros_like(q.loc), q._unbroadcasted_scale_tril)
    return JointGaussian(q.base_dist.loc, q.base_dist.scale.square(), None)


class _Places(Messenger):
    """Sees whether the plate's points are the default, or were given by a handler around the guide."""

    def __init__(self, plate: str, size: int) -> None:
        super().__init__()
        self.plate, self.size, self.default = plate, size, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and msg["value"] is None:
            msg["fn"] = _Default(self)


class _Default(_Subsample):
    def __init__(self, places: _Places) -> None:
        super().__init__(places.size, None)
        self.places = places

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        self.places.default = True
        return super().sample(sample_shape)


def _read_sites(autoguide: Any, plate: str) -> tuple[list[_Part], list[_Part], int, int]:
    """Sites outside and inside the plate, N, and the plate's dimension."""
    shared, local, num_data, dim, start = [], [], 0, -1, 0
    for name, site in autoguide.prototype_trace.iter_stochastic_nodes():
        shape: Size = autoguide._unconstrained_shapes[name]
        size = math.prod(shape)
        places = torch.arange(start, start + size, device=autoguide.loc.device).reshape(shape)
        start += size
        frames: Mapping[str, Any] = {f.name: f for f in autoguide._cond_indep_stacks[name]}
        support = site["fn"].support
        events = len(biject_to(support).inverse_shape(site["fn"].event_shape))
        if plate not in frames:
            latent = _latent(name, site["value"].shape, support)
            shared.append(_Part(latent, places.reshape(-1)))
            continue
        frame, others = frames[plate], sorted(set(frames) - {plate})
        if others:
            raise ValueError(f"expected {name!r} inside plate {plate!r} alone, got it inside {others} as well")
        if frame.full_size not in (None, -1, frame.size):
            raise ValueError(
                f"{_kind(autoguide)} was set up on {frame.size} of {frame.full_size} points, whose latents it "
                "would give to any others; expected one set up on all data, or AutoNormal"
            )
        num_data, dim = frame.size, frame.dim
        places = places.movedim(dim - events, 0).reshape(frame.size, -1)
        local.append(_Part(_latent(name, site["fn"].event_shape, support), places))
    if not local:
        raise ValueError(f"expected latents inside plate {plate!r}, got an autoguide of none")
    return shared, local, num_data, dim


def _latent(name: str, shape: Size, support: Any) -> LatentSite:
    missing = len(shape) - support.event_dim
    return LatentSite(name, shape, dist.constraints.independent(support, missing) if missing > 0 else support)


def _kind(autoguide: Any) -> str:
    return type(autoguide).__name__
