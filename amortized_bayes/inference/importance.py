r"""Importance-weighted training: the bound of K particles, and the gradients that fit a guide by it.

With weights :math:`w_k = p(x, z_k) / q(z_k \mid x)` of K draws, normalized :math:`\bar w_k = w_k / \sum_j w_j`, the
bound of a point is :math:`\log \frac{1}{K} \sum_k w_k` (Burda, Grosse & Salakhutdinov, *Importance Weighted
Autoencoders*, ICLR 2016). In both objectives the model's parameters follow its gradient,
:math:`\sum_k \bar w_k \nabla_\theta \log p(x, z_k)`. The guide's follow

- ``iwae``: the same bound, doubly reparametrized (Tucker, Lawson, Gu & Maddison, *Doubly Reparameterized Gradient
  Estimators for Monte Carlo Objectives*, ICLR 2019),

  .. math::
      \sum_k \bar w_k^2 \, \frac{\partial \log w_k}{\partial z_k} \, \nabla_\phi z_k(\phi, \epsilon_k),

  whose signal does not drown in noise as K grows, unlike that of the plain gradient (Rainforth et al., *Tighter
  Variational Bounds are Not Necessarily Better*, ICML 2018). For K = 1 it is the path gradient of the ELBO (Roeder,
  Wu & Duvenaud, *Sticking the Landing*, NeurIPS 2017);
- ``rws``: the wake phase of reweighted wake-sleep (Bornschein & Bengio, *Reweighted Wake-Sleep*, ICLR 2015),
  :math:`\sum_k \bar w_k \nabla_\phi \log q(z_k \mid x)` with z_k held fixed, which for many particles goes to the
  gradient of :math:`-KL(p(z \mid x) \| q(z \mid x))`. Nothing is reparametrized, so that discrete draws are served.

Every draw is cut off from how it was made: densities see a leaf in its place. Gradients with respect to the leaves are
taken first, multiplied by another weight, and pulled back through the draws, the last one first. So neither latents
that depend on each other nor parameters that model and guide share count a term twice.

A flow is cut at its base, whose parameters get the gradient above; its layers enter the weights as functions of the
base's draw and get the plain gradient, :math:`\bar w_k` times that of :math:`\log w_k`, which needs no inverse.
Latents outside the plate, one draw for all points, keep the plate's bound one on the evidence:
:math:`\frac{1}{B} \sum_b \log \frac{1}{K} \sum_k w_{kb}(\theta) + \frac{1}{N} (\log p(\theta) - \log q(\theta))`. They
are no particles, so ``iwae`` takes the path gradient of their q, and ``rws`` refuses them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import ComposeTransform, Independent, TransformedDistribution
from torch.distributions.transforms import IndependentTransform, _InverseTransform

from amortized_bayes.guides.easyguides import forget_plates
from amortized_bayes.program_errors import ProgramError
from amortized_bayes.shared_draw import SharedDraw, plate_frame
from amortized_bayes.tiling import Tiling
from amortized_bayes.traces import PairedTraces, trace_pair, unwrapped
from amortized_bayes.types import Guide, Model

__all__ = ["Bound", "ImportanceWeighted"]

logger = logging.getLogger("amortized_bayes.inference.svi")


class Cut(NamedTuple):
    """A draw of a guide, and the leaf that densities see in its place.

    Args:
        made: the draw, by the parameters; of a flow, its base's.
        leaf: a copy that no gradient passes.
        dim: dimension of the plate, counted from the right; ``None`` outside of it.
        base: distribution of ``made`` where that is the base of a flow.
    """

    made: Tensor
    leaf: Tensor
    dim: int | None
    base: Any = None


class Parts(NamedTuple):
    """Log densities of a run: of its rows, ``(S·B,)``, and outside the plate, ``()``.

    ``moved`` is what draws are moved by (point masses, factors, determinants), ``log_q`` that of the draws themselves.
    """

    log_p: Tensor
    moved: Tensor
    log_q: Tensor
    shared_log_p: Tensor
    shared_moved: Tensor
    shared_log_q: Tensor
    cuts: Sequence[Cut]


class Bound:
    """The bound of a batch, and the gradients of minus it.

    Args:
        runs: with K·B rows in one, or with B in each of K.
        num_particles: K.
        num_data: N.
        wake: fit the guide by the wake phase of reweighted wake-sleep.
    """

    def __init__(self, runs: Sequence[Parts], num_particles: int, num_data: int, *, wake: bool) -> None:
        self.log_p, self.moved, self.log_q = (torch.cat(part).reshape(num_particles, -1) for part in _parts(runs))
        self.runs, self.wake = runs, wake
        first, log_w = runs[0], self.log_p - self.moved - self.log_q
        self.shared = (first.shared_log_p - first.shared_moved) / num_data, first.shared_log_q / num_data
        self.local = log_w.logsumexp(0) - math.log(num_particles)  # (B,)
        self.value = self.local.mean() + self.shared[0] - self.shared[1]
        self.weights = log_w.detach().softmax(0)  # (K, B)

    def gradients(self, wanted: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of minus the bound with respect to parameters, those of the guide's draws as the objective says."""
        weights, count = self.weights, len(wanted)
        loss = -((weights * (self.log_p - self.moved)).sum(0).mean() + self.shared[0])
        if self.wake:
            return _gradients(loss - (weights * self.log_q).sum(0).mean(), wanted)
        cuts, weight_of = [cut for run in self.runs for cut in run.cuts], self._weight_of_rows()
        leaves = [cut.leaf for cut in cuts]
        found = _gradients(loss, [*wanted, *leaves])
        totals, pulled = found[:count], found[count:]
        for inside, log_q in ((True, (weights * self.log_q).sum(0).mean()), (False, self.shared[1])):
            own = [i for i, cut in enumerate(cuts) if (cut.dim is not None) == inside]
            for i, gradient in zip(own, _gradients(log_q, [leaves[i] for i in own]), strict=True):
                pulled[i] = _sum(pulled[i], gradient)
        pulled = [None if g is None else g * w for g, w in zip(pulled, weight_of, strict=True)]
        for i in reversed(range(len(cuts))):
            if pulled[i] is None or not cuts[i].made.requires_grad:
                continue
            found = _gradients(cuts[i].made, [*wanted, *leaves[:i]], pulled[i])
            totals = [_sum(a, b) for a, b in zip(totals, found[:count], strict=True)]
            pulled[:i] = [_sum(a, b) for a, b in zip(pulled[:i], found[count:], strict=True)]
        return totals

    def _weight_of_rows(self) -> Iterator[Tensor | float]:
        """What the gradient at each leaf is multiplied by once more: the weight of its row; 1 outside the plate."""
        for run, rows in zip(self.runs, self.weights.reshape(len(self.runs), -1), strict=True):
            for cut in run.cuts:
                yield 1.0 if cut.dim is None else rows.reshape(-1, *[1] * (-cut.dim - 1))


class ImportanceWeighted:
    """Draws K particles of each point of a batch and gives their bound.

    Args:
        model: Pyro program.
        guide: Pyro program for all its latents.
        plate: name of the plate over data points.
        objective: ``iwae`` or ``rws``.
        num_particles: K.
        num_data: N.
    """

    def __init__(
        self,
        model: Model,
        guide: Guide,
        plate: str,
        objective: Literal["iwae", "rws"],
        num_particles: int,
        num_data: int,
    ) -> None:
        self.model, self.guide, self.plate, self.wake = model, guide, plate, objective == "rws"
        self.num_particles, self.num_data = num_particles, num_data
        self.tiled = num_particles > 1

    def settle(self, args: tuple[Any, ...], index: Tensor) -> None:
        """Find out on a batch whether programs take repeated data; if they do not, particles are drawn in turn.

        Raises:
            ValueError: a guide whose draws have no such gradient.
        """
        if not self.tiled:
            self.bound(args, index)
            return
        try:
            self.bound(args, index)
        except (RuntimeError, ValueError, IndexError) as error:
            self.tiled = False
            forget_plates(self.guide)
            self.bound(args, index)  # what is wrong with one particle is said of one
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("particles are drawn in turn, which is slower: programs refuse repeated data (%s)", first)

    def bound(self, args: tuple[Any, ...], index: Tensor) -> Bound:
        """The bound of the points at the places ``index`` (B,), with ``args`` of the programs.

        Raises:
            ValueError: a guide whose draws have no such gradient.
        """
        if self.tiled:
            with Tiling(self.plate, index, self.num_particles) as tiling:
                tiled, _ = tiling.tile(args, {})
                runs = [self._run(tiled)]
        else:
            shared = SharedDraw(self.plate)
            runs = [self._run(args, shared) for _ in range(self.num_particles)]
        return Bound(runs, self.num_particles, self.num_data, wake=self.wake)

    def _run(self, args: tuple[Any, ...], shared: SharedDraw | None = None) -> Parts:
        # a draw that is shared is remembered cut off: handlers see a draw from the outside in
        with _Cutting(self.plate, self.wake) as cutting, shared or nullcontext():
            traces = trace_pair(self.model, self.guide, args, {}, self.plate)
        with _one_line(traces, self.wake):
            return _score(traces, cutting, () if shared is None else shared.values)


class _Cutting(Messenger):
    """Puts a leaf in the place of each draw of a guide; of a point mass, only of the draws that it is made of."""

    def __init__(self, plate: str, wake: bool) -> None:
        super().__init__()
        self.plate, self.wake = plate, wake
        self.cuts: dict[str, Cut] = {}
        self._open: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample)
        if given or not torch.is_grad_enabled() or isinstance(unmasked(msg["fn"]), Delta):
            return
        flow = unmasked(msg["fn"])
        if self.wake or not (isinstance(flow, TransformedDistribution) and _is_flow(flow)):
            self._open.add(msg["name"])
            return
        cut = self._cut(msg, flow.base_dist.rsample(), flow.base_dist)
        value = cut.leaf
        for transform in flow.transforms:
            value = transform(value)
        msg["value"] = value

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in self._open:
            return
        self._open.remove(msg["name"])
        value = msg["value"]
        if self.wake:
            msg["value"] = value.detach()
        elif value.is_floating_point() and msg["fn"].has_rsample:
            msg["value"] = self._cut(msg, value).leaf

    def _cut(self, msg: Any, made: Tensor, base: Any = None) -> Cut:
        frame, events = plate_frame(msg, self.plate), made.dim() - len(msg["fn"].batch_shape)
        dim = None if frame is None else frame.dim - events
        cut = self.cuts[msg["name"]] = Cut(made, made.detach().requires_grad_(), dim, base)
        return cut


def _score(traces: PairedTraces, cutting: _Cutting, remembered: Container[str]) -> Parts:
    rows, _ = traces.plate_sizes()
    log_prior, log_likelihood = traces.log_prior_and_likelihood()
    shared_log_p = sum((traces.log_prob(s) for s in traces.shared_sites(traces.model)), start=torch.zeros(()))
    inside = [*traces.local_sites(traces.guide, observed=False), *traces.local_sites(traces.guide, observed=True)]
    sums = [_summed(traces, sites, cutting, remembered) for sites in (inside, traces.shared_sites(traces.guide))]
    local = [part.expand(rows) for part in (log_prior + log_likelihood, *sums[0])]
    return Parts(local[0], local[1], local[2], shared_log_p, *sums[1], tuple(cutting.cuts.values()))


def _summed(
    traces: PairedTraces, sites: Iterable[Any], cutting: _Cutting, remembered: Container[str]
) -> tuple[Tensor, Tensor]:
    """Log densities of a guide's sites, those of what moves draws apart."""
    moved = log_q = torch.zeros(())
    for site in sites:
        own = _split(traces, site, cutting, remembered)
        moved, log_q = moved + own[0], log_q + own[1]
    return moved, log_q


def _split(traces: PairedTraces, site: Any, cutting: _Cutting, remembered: Container[str]) -> tuple[Tensor, Tensor]:
    """Log density of a guide's site: of what moves its draw, and of the draw itself."""
    log_q, nothing, name, fn = traces.log_prob(site), torch.zeros(()), site["name"], site["fn"]
    if site["is_observed"] or isinstance(unmasked(fn), (Delta, Unit)):
        if cutting.wake and (log_q.requires_grad or (not site["is_observed"] and site["value"].requires_grad)):
            raise ValueError(
                f"objective 'rws' expected draws that it can hold fixed, got {name!r}, which parameters of the guide "
                "move; use objective 'iwae'"
            )
        return log_q, nothing
    if cutting.wake:
        if plate_frame(site, traces.plate) is None:
            raise ValueError(
                f"objective 'rws' expected latents inside plate {traces.plate!r} alone, got {name!r} outside of it, "
                "which has no weights of its own; use objective 'iwae' or 'elbo'"
            )
        return nothing, log_q
    cut = cutting.cuts.get(name)
    if cut is None and not fn.has_rsample:
        if log_q.requires_grad:
            raise ValueError(
                f"objective 'iwae' expected draws that can be reparametrized, got {name!r} from {type(fn).__name__}; "
                "use objective 'rws'"
            )
        return nothing, log_q
    if cut is None and name in remembered:  # a later run's: the first has counted it
        return nothing, nothing
    if cut is None or (cut.base is None and site["value"] is not cut.leaf):
        raise ValueError(f"an importance-weighted objective cannot follow the draw {name!r}: the guide hides it")
    if cut.base is None:
        return nothing, log_q
    if isinstance(unwrapped(fn), MaskedDistribution):
        raise ValueError(f"objective 'iwae' expected a flow for {name!r} without masked entries; mask whole points")
    of_base = cut.base.log_prob(cut.leaf)
    of_base = traces.reduce(site, of_base.reshape(*of_base.shape[: len(fn.batch_shape)], -1).sum(-1))
    return log_q - of_base, of_base


@contextmanager
def _one_line(traces: PairedTraces, wake: bool) -> Iterator[None]:
    """Say in a line that a flow cannot score draws that are held fixed: some transforms have no inverse."""
    try:
        yield
    except (NotImplementedError, KeyError, ProgramError) as error:
        flows = [name for name, site in traces.guide.nodes.items() if _is_flow(unmasked(site.get("fn")))]
        if not (wake and flows):
            raise
        raise ValueError(
            f"objective 'rws' expected a guide that can score any value, got the flow of {flows[0]!r}, which has no "
            "inverse; use objective 'iwae'"
        ) from error


def unmasked(fn: Any) -> Any:
    """A distribution without masks and what ``to_event`` put around it."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _is_flow(fn: Any) -> bool:
    """Whether a distribution is moved by other transforms than torch's own, whose inverses are closed."""
    if not isinstance(fn, TransformedDistribution):
        return False
    pending, known = list(fn.transforms), True
    while pending:
        transform = pending.pop()
        if isinstance(transform, ComposeTransform):
            pending += transform.parts
        elif isinstance(transform, IndependentTransform):
            pending.append(transform.base_transform)
        elif isinstance(transform, _InverseTransform):
            pending.append(transform.inv)
        known = known and type(transform).__module__.startswith("torch.distributions")
    return not known


def _parts(runs: Sequence[Parts]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(run[:3] for run in runs), strict=True)


def _gradients(output: Tensor, inputs: Sequence[Tensor], of_output: Tensor | None = None) -> list[Tensor | None]:
    if not (inputs and output.requires_grad):
        return [None] * len(inputs)
    return [*torch.autograd.grad(output, inputs, of_output, retain_graph=True, allow_unused=True)]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
