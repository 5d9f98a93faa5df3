"""The sides of `step.py`: one model and guide, fitted by this library, Pyro, PyTorch by hand and NumPyro."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
import torch.nn.functional as F
from _measure import Side, wait_for
from torch import Tensor, nn

from amortized_bayes.guides import Amortized, MeanField
from amortized_bayes.inference.options import FitOptions, WarmUp, linear
from amortized_bayes.inference.streams import Batches
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

NUM_DATA, PIXELS, LATENTS = 10_000, 784, 64
ENCODER = (PIXELS, 64, 64, 2 * LATENTS)
DECODER = (LATENTS, 256, PIXELS)
RATE = 1e-3
LOG_SCALE = -4.5  # of the factors of decoder weights, at the start
PYRO, TORCH, NUMPYRO, PRODUCTS = "Pyro, SVI.step", "PyTorch by hand", "NumPyro, jit", "matrix products"
REPLAYED, COMPILED, MOMENTS = "captured, replayed", "captured, compiled", "local reparam."
LAST = f"{COMPILED}, last iterate"
SWEEP_ENCODER, SWEEP_DECODER, SWEEP_BATCH = (PIXELS, 32, 2 * 16), (16, 64, PIXELS), 250


@dataclass(frozen=True)
class Setting:
    """One problem: which decoder, which batch, which images."""

    bayesian: bool
    batch_size: int
    images: Tensor  # (N, 784), uint8, on the device
    encoder: tuple[int, ...] = ENCODER
    decoder: tuple[int, ...] = DECODER

    @property
    def num_parameters(self) -> int:
        """Parameters that every side must fit."""
        return _size(self.encoder) + _size(self.decoder) * (2 if self.bayesian else 1)

    @property
    def sweep(self) -> bool:
        """Whether this is a step of the sweep."""
        return self.decoder == SWEEP_DECODER

    @property
    def name(self) -> str:
        """For people."""
        if self.sweep:
            return f"the sweep's step, k = {SWEEP_ENCODER[1]}, batch {self.batch_size:,}"
        decoder = "Bayesian decoder" if self.bayesian else "point-estimated decoder"
        return f"{decoder}, batch {self.batch_size:,}"

    def programs(self) -> tuple[DeepGenerative, Amortized]:
        """Model and guide, fresh."""
        torch.manual_seed(0)
        latents, *hidden, _ = self.decoder
        model = DeepGenerative(PIXELS, latents, hidden, NUM_DATA, bayesian=self.bayesian)
        sites = latent_sites(model, torch.zeros(2, PIXELS), torch.arange(2))
        shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=LOG_SCALE) if self.bayesian else None
        guide = Amortized(sites.local, NUM_DATA, PIXELS, self.encoder[1], len(self.encoder) - 2, shared=shared)
        return model.to(self.images.device), guide.to(self.images.device)

    def batches(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return a function that gives the next minibatch and its indices."""
        order = Batches(NUM_DATA, self.batch_size, 0, self.images.device)
        step = -1

        def following() -> tuple[Tensor, Tensor]:
            nonlocal step
            step += 1
            index = order[step]
            return self.images.index_select(0, index).float(), index

        return following


def _size(sizes: Sequence[int]) -> int:
    return sum((i + 1) * o for i, o in pairwise(sizes))


def captured_sides(name: str, setting: Setting, capture: str, **options: Any) -> list[Side]:
    """Return the library's own step; none where it cannot be captured so."""
    options = {"analytic_kl": False, **options}
    pyro.clear_param_store()  # of other sides, whose parameters it holds
    fit = FitOptions(setting.batch_size, learning_rate=RATE, shared_learning_rate=RATE, capture=capture, **options)
    training = Training(*setting.programs(), setting.images, fit)
    _require_size(setting, training.variables.parameters)
    start = time.perf_counter()
    training.prepare(1)
    seconds = time.perf_counter() - start
    backend = training.captured.backend if training.captured else ""
    if capture != "off" and (not backend or (capture == "inductor") != (backend == "inductor")):
        return []  # the figure would be of the way that it fell back to

    def run(steps: int) -> None:
        for _ in training.run(steps):
            pass
        wait_for(setting.images.device)

    operations = f"{training.captured.num_operations} operations" if training.captured else ""
    return [Side(name, run, seconds, operations)]


def pyro_side(name: str, setting: Setting, *, validate: bool) -> Side:
    """Return Pyro's own step on the same programs."""
    model, guide = setting.programs()
    modules: dict[str, nn.Module] = {"model": model, "guide": guide}

    def program(name: str, x: Tensor, index: Tensor) -> None:
        pyro.module(name, modules[name])
        modules[name](x, index)

    pyro.clear_param_store()  # the modules keep their parameters
    svi = pyro.infer.SVI(
        partial(program, "model"),
        partial(program, "guide"),
        pyro.optim.Adam({"lr": RATE}),  # pyright: ignore[reportAttributeAccessIssue]
        pyro.infer.Trace_ELBO(),
    )
    _require_size(setting, [p for m in modules.values() for p in m.parameters()])
    batch = setting.batches()

    def run(steps: int) -> None:
        with pyro.validation_enabled(validate):
            for _ in range(steps):
                svi.step(*batch())
        wait_for(setting.images.device)

    return Side(name, run, 0.0)


def torch_side(name: str, setting: Setting) -> Side:
    """Return the same loss written out in PyTorch."""
    torch.manual_seed(0)
    device = setting.images.device
    encoder = _network(ENCODER).to(device)
    decoder = None if setting.bayesian else _network(DECODER).to(device)
    factors: list[list[tuple[Tensor, Tensor, float]]] = []  # location, log scale and prior scale, a layer
    if setting.bayesian:
        for size_in, size_out in pairwise(DECODER):
            layer = [((size_out, size_in), 1 / math.sqrt(size_in)), ((size_out,), 1.0)]
            factors.append(
                [
                    (
                        torch.randn(shape, device=device).mul_(prior).requires_grad_(),
                        torch.full(shape, LOG_SCALE, device=device, requires_grad=True),
                        prior,
                    )
                    for shape, prior in layer
                ]
            )
    weights = [t for layer in factors for loc, log_scale, _ in layer for t in (loc, log_scale)]
    parameters = [*encoder.parameters(), *(decoder.parameters() if decoder else ()), *weights]
    _require_size(setting, parameters)
    adam = torch.optim.Adam(parameters, lr=RATE, fused=True)
    batch = setting.batches()

    def draw_weights() -> tuple[list[list[Tensor]], Tensor]:
        drawn, log_ratio = [], torch.zeros((), device=device)
        for layer in factors:
            drawn.append([])
            for loc, log_scale, prior in layer:
                noise = torch.randn_like(loc)
                value = loc + log_scale.exp() * noise
                drawn[-1].append(value)
                log_ratio = log_ratio + (0.5 * noise**2 + log_scale - 0.5 * (value / prior) ** 2).sum()
                log_ratio = log_ratio - loc.numel() * math.log(prior)
        return drawn, log_ratio

    def loss() -> Tensor:
        x, _ = batch()
        loc, log_scale = encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        local = (0.5 * noise**2 + log_scale - 0.5 * z**2).sum()
        if decoder is not None:
            log_likelihood = -F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            return -(log_likelihood + local) / len(x)
        drawn, shared = draw_weights()
        for weight, bias in drawn[:-1]:
            z = F.leaky_relu(F.linear(z, weight, bias), 0.2)
        log_likelihood = -F.binary_cross_entropy_with_logits(F.linear(z, *drawn[-1]), x, reduction="sum")
        return -(log_likelihood + local) / len(x) - shared / NUM_DATA

    def run(steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            loss().backward()
            adam.step()
        wait_for(device)

    return Side(name, run, 0.0)


def _network(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def numpyro_side(name: str, setting: Setting) -> Side:
    """Return the same programs in NumPyro, gather and update inside one jitted function."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist

    images = jnp.asarray(setting.images.cpu().numpy())
    batch, scale = setting.batch_size, NUM_DATA / setting.batch_size
    layers = list(enumerate(pairwise(DECODER)))

    def uniform(size_in: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        bound = 1 / math.sqrt(size_in)
        return lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    def forward(y: Any, weights: Sequence[tuple[Any, Any]]) -> Any:
        for weight, bias in weights[:-1]:
            y = jax.nn.leaky_relu(y @ weight + bias, 0.2)
        return y @ weights[-1][0] + weights[-1][1]

    def linear(prefix: str, size_in: int, size_out: int) -> tuple[Any, Any]:
        weight = numpyro.param(f"{prefix}.weight", uniform(size_in, (size_in, size_out)))
        return weight, numpyro.param(f"{prefix}.bias", uniform(size_in, (size_out,)))

    def decoder_shapes(size_in: int, size_out: int) -> list[tuple[str, tuple[int, ...], float]]:
        return [("weight", (size_in, size_out), 1 / math.sqrt(size_in)), ("bias", (size_out,), 1.0)]

    def decoder_weights() -> list[tuple[Any, ...]]:
        if not setting.bayesian:
            return [linear(f"decoder.{l}", *sizes) for l, sizes in layers]
        return [
            tuple(
                numpyro.sample(f"decoder.{l}.{part}", dist.Normal(0, prior).expand(shape).to_event(len(shape)))
                for part, shape, prior in decoder_shapes(*sizes)
            )
            for l, sizes in layers
        ]

    def model(x: Any) -> None:
        weights = decoder_weights()
        with numpyro.plate("data", batch), numpyro.handlers.scale(scale=scale):
            z = numpyro.sample("z", dist.Normal(0, 1).expand((LATENTS,)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=forward(z, weights)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        for l, sizes in layers if setting.bayesian else []:
            for part, shape, prior in decoder_shapes(*sizes):
                start = partial(_normal_start, jax, shape, prior)
                loc = numpyro.param(f"decoder.{l}.{part}.loc", start)
                log_scale: Any = numpyro.param(f"decoder.{l}.{part}.log_scale", jnp.full(shape, LOG_SCALE))
                numpyro.sample(f"decoder.{l}.{part}", dist.Normal(loc, jnp.exp(log_scale)).to_event(len(shape)))
        encoder = [linear(f"encoder.{l}", *sizes) for l, sizes in enumerate(pairwise(ENCODER))]
        loc, log_scale = jnp.split(forward(x, encoder), 2, -1)
        with numpyro.plate("data", batch), numpyro.handlers.scale(scale=scale):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(RATE), numpyro.infer.Trace_ELBO())

    def update(state: Any, index: Any) -> Any:
        return svi.update(state, images[index].astype(jnp.float32))

    jitted = jax.jit(update)
    generator = np.random.default_rng(0)
    order: list[Any] = []

    def following() -> Any:
        if not order:
            whole = NUM_DATA // batch * batch
            order.extend(generator.permutation(NUM_DATA).astype(np.int32)[:whole].reshape(-1, batch))
        return order.pop()

    state = svi.init(jax.random.PRNGKey(0), images[:batch].astype(jnp.float32))
    fitted = sum(p.size for p in jax.tree_util.tree_leaves(svi.get_params(state)))
    if fitted != setting.num_parameters:
        raise AssertionError(f"NumPyro fits {fitted} parameters, not {setting.num_parameters}")
    start = time.perf_counter()
    state, loss = jitted(state, following())
    jax.block_until_ready(loss)
    seconds = time.perf_counter() - start

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, loss = jitted(state, following())
        jax.block_until_ready((state, loss))

    return Side(name, run, seconds, f"on {jax.devices()[0].platform}")


def _normal_start(jax: Any, shape: tuple[int, ...], scale: float, key: Any) -> Any:
    return scale * jax.random.normal(key, shape)


def products_side(name: str, setting: Setting, *, moments: bool = False) -> Side:
    """Return the matrix products of a step and nothing else, each by the quickest kernel there is.

    Args:
        name: of the row.
        setting: which step.
        moments: those of local reparametrization, which multiplies in the decoder by means and by variances.
    """
    device, batch = setting.images.device, setting.batch_size
    shapes: list[tuple[int, int, int]] = []
    decoder = list(pairwise(setting.decoder))
    for l, (size_in, size_out) in enumerate([*pairwise(setting.encoder), *decoder * (1 + moments)]):
        shapes += [(batch, size_in, size_out), (size_out, batch, size_in)]
        if l > 0:  # nobody needs the gradient of the images
            shapes.append((batch, size_out, size_in))
    products = [_quickest(_product_candidates(shape, device), device) for shape in shapes]
    flops = sum(2 * m * k * n for m, k, n in shapes)

    def run(steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                for product in products:
                    product()
        wait_for(device)

    return Side(name, run, 0.0, f"{flops / 1e6:.0f} Mflop")


def _product_candidates(shape: tuple[int, int, int], device: torch.device) -> list[Callable[[], Tensor]]:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    transposed = right.t().contiguous()
    found: list[Callable[[], Tensor]] = [lambda: left @ right, lambda: left @ transposed.t()]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        found.append(lambda: onednn(left, transposed, None, "none", [], ""))
        found.append(lambda: onednn(left, right.t(), None, "none", [], ""))
    return found


def _quickest(candidates: Sequence[Callable[[], Tensor]], device: torch.device) -> Callable[[], Tensor]:
    best, shortest = candidates[0], float("inf")
    with torch.no_grad():
        for _ in range(5):
            for candidate in candidates:
                candidate()
                start = time.perf_counter()
                for _ in range(3):
                    candidate()
                wait_for(device)
                seconds = time.perf_counter() - start
                if seconds < shortest:
                    best, shortest = candidate, seconds
    return best


def _require_size(setting: Setting, parameters: Sequence[Tensor]) -> None:
    fitted = sum(p.numel() for p in parameters)
    if fitted != setting.num_parameters:
        raise AssertionError(f"expected all sides to fit {setting.num_parameters} parameters, one fits {fitted}")


def build_sides(setting: Setting, *, numpyro: bool) -> list[Side]:
    """Build everything that is compared in one setting; compiling happens here."""
    sides = [
        pyro_side(PYRO, setting, validate=True),
        pyro_side("Pyro, validation off", setting, validate=False),
        torch_side(TORCH, setting),
    ]
    if numpyro:
        sides.append(numpyro_side(NUMPYRO, setting))
    sides += captured_sides("uncaptured", setting, "off")
    sides += captured_sides(REPLAYED, setting, "replay")
    sides += captured_sides(COMPILED, setting, "inductor")
    sides += captured_sides(LAST, setting, "inductor", average=None)
    if setting.bayesian:
        options = {"analytic_kl": True, "local_reparametrization": True}
        sides += captured_sides(f"{COMPILED}, {MOMENTS}", setting, "inductor", **options)
        sides.append(products_side(f"{PRODUCTS}, {MOMENTS}", setting, moments=True))
    else:
        sides += captured_sides(f"{COMPILED}, analytic KL", setting, "inductor", analytic_kl=True)
    return [*sides, products_side(PRODUCTS, setting)]


def sweep_sides(setting: Setting) -> list[Side]:
    """Build what is compared in a step of the sweep: ours, with draws of outputs and with quadrature; and products."""
    recipe = {"analytic_kl": True, "local_reparametrization": True, "average": None, "adam_beta2": 0.99}
    recipe |= {"schedule": linear, "kl_weight": WarmUp(0.2), "shared_kl_weight": WarmUp(0.2)}
    quadrature = {**recipe, "quadrature_nodes": 3}
    return [
        *captured_sides(f"{REPLAYED}, quadrature, {MOMENTS}", setting, "replay", **quadrature),
        *captured_sides(f"{COMPILED}, quadrature, {MOMENTS}", setting, "inductor", **quadrature),
        *captured_sides(f"{COMPILED}, {MOMENTS}", setting, "inductor", **recipe),
        products_side(f"{PRODUCTS}, {MOMENTS}", setting, moments=True),
    ]
